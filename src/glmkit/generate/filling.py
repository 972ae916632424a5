"""Filling blanks: part A is read once, then every blank's span is written token by token on one cache.

Legend: B rows, T tokens of the padded part A, V vocabulary rows.
Rows of different lengths and different numbers of blanks run in one batch; each row is at its own place.
Source of positions and order: GLM paper section 2.1; `THUDM/GLM:blocklm_utils.py`.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral

import torch
from torch import Tensor

from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import RequestError
from glmkit.model import GLM, KVCache

from .sampling import Sampling, check_type, next_tokens


@dataclass
class _Row:
    """Progress of one row: which blank is open, what has been written into it, and the token to feed next."""

    blanks: list[int]  # positions of the mask tokens in part A
    counting: list[bool]  # whether positions go on counting behind part A in a blank's span
    length: int  # tokens of part A
    spans: list[list[int]] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)  # tokens of the open span still to be fed
    fed: int = 0  # tokens of the open span already fed
    total: int = 0  # tokens of all spans already fed
    done: bool = False

    def open_next(self, sop: int) -> None:
        if len(self.spans) == len(self.blanks):
            self.done = True
            return
        self.spans.append([])
        self.queue, self.fed = [sop], 0


def fill_rows(
    model: GLM,
    rows: Sequence[Sequence[int]],
    special: SpecialIds,
    *,
    max_tokens: int = 64,
    sampling: Sampling | None = None,
    forbidden: Iterable[int] = (),
    blank: int | None = None,
    drawn: int = 0,
    running: bool = False,
    block_positions: bool = True,
) -> list[list[list[int]]]:
    """The spans for the blanks of each part A, in the order of the blanks; a later span sees the earlier ones.

    rows: token ids of part A, each with at least one mask token. max_tokens: the longest span, in tokens.
    forbidden: ids never produced (besides mask, start, class and padding ids, which never are). A span ends at
    end-of-piece or end-of-text, which are not part of it. blank: the number of the only blank to fill, the first is 0.
    drawn: how many tokens earlier calls for the same text have drawn, so that the noise goes on.
    running: row 0 of the positions counts on from the mask (ObjectiveConfig.generation_positions). block_positions
    False: row 1 stays 1 in spans (block_position_encoding).
    Raises RequestError for rows without blanks or longer than the model's positions.
    """
    places = (blank, drawn, running, block_positions)
    last = deque(_steps(model, rows, special, max_tokens, sampling or Sampling(), forbidden, *places), maxlen=1)
    return [state.spans for states in last for state in states]


def stream_last_span(
    model: GLM,
    row: Sequence[int],
    special: SpecialIds,
    *,
    max_tokens: int = 64,
    sampling: Sampling | None = None,
    forbidden: Iterable[int] = (),
    running: bool = False,
    block_positions: bool = True,
) -> Iterator[int]:
    """The tokens of the last blank's span as they are chosen; arguments and errors as in `fill_rows`."""
    places, shown = (None, 0, running, block_positions), 0
    for (state,) in _steps(model, [row], special, max_tokens, sampling or Sampling(), forbidden, *places):
        if len(state.spans) == len(state.blanks):
            yield from state.spans[-1][shown:]
            shown = len(state.spans[-1])


@torch.inference_mode()
def _steps(
    model: GLM,
    rows: Sequence[Sequence[int]],
    special: SpecialIds,
    max_tokens: int,
    sampling: Sampling,
    forbidden: Iterable[int],
    blank: int | None,
    drawn: int,
    running: bool,
    block_positions: bool,
) -> Iterator[list[_Row]]:
    """The rows as they are after part A and after every token; always the same list."""
    check_type("max_tokens", max_tokens, Integral, "a whole number")
    if max_tokens < 1:
        raise RequestError(f"max_tokens is {max_tokens}; give at least 1")
    if not rows:
        return
    states = []
    for index, row in enumerate(rows):
        blanks = _find_blanks(row, index, special, model.config)
        if blank is not None:
            blanks = blanks[blank : blank + 1]
        # With one rotary stream a [gMASK] span goes on counting (`THUDM/GLM-130B:generation/`).
        one_stream = model.config.positions == "rope" and special.gmask != special.mask
        counting = [one_stream and row[place] == special.gmask for place in blanks]
        states.append(_Row(blanks, counting, len(row)))
    device = model.device
    lengths = [len(row) for row in rows]
    width = max(lengths)
    ids_BT = torch.full((len(rows), width), special.pad)
    for index, row in enumerate(rows):
        ids_BT[index, : len(row)] = torch.as_tensor(row)
    real_BT = torch.arange(width) < torch.tensor(lengths)[:, None]
    most_blanks = max(len(state.blanks) for state in states)
    capacity = width + most_blanks * (max_tokens + 1)
    try:
        cache = KVCache(model.config, len(rows), capacity, dtype=model.dtype, device=device)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise RequestError(f"no memory for {len(rows)} x {capacity} tokens; lower max_tokens ({max_tokens})") from error
    positions_B2T = torch.stack([torch.arange(width), torch.zeros(width, dtype=torch.long)]).expand(len(rows), 2, width)
    model.hidden(
        ids_BT.to(device),
        position_ids=positions_B2T.to(device),
        prefix_length=torch.full((len(rows),), width, device=device),
        attention_mask=real_BT.to(device),
        cache=cache,
    )
    for state in states:
        state.open_next(special.sop)
    banned = _banned(model.config, special, forbidden, device)
    stops = {special.eop, special.eos}
    yield states
    while not all(state.done for state in states):
        logits_BV = _step(model, states, special, cache, running, block_positions)
        logits_BV[:, banned] = -torch.inf
        chosen = next_tokens(logits_BV, sampling, [drawn + _written(state) for state in states]).tolist()
        for state, token in zip(states, chosen, strict=True):
            _take(state, token, stops, max_tokens, special.sop)
        yield states


def _find_blanks(row: Sequence[int], index: int, special: SpecialIds, config: GLMConfig) -> list[int]:
    masks = set(special.mask_ids())
    blanks = [position for position, token in enumerate(row) if token in masks]
    if not blanks:
        raise RequestError(f"text {index} has no blank; put [MASK], [sMASK] or [gMASK] where something is missing")
    if len(row) > config.max_positions:
        raise RequestError(f"text {index} has {len(row)} tokens, the model takes {config.max_positions}; shorten it")
    return blanks


def _step(
    model: GLM, states: list[_Row], special: SpecialIds, cache: KVCache, running: bool, block_positions: bool
) -> Tensor:
    """Feed each row's next token at its place; (B,V) logits. Finished rows feed padding that nobody sees."""
    tokens, places, live = [], [], []
    for state in states:
        live.append(not state.done)
        if state.done:
            tokens.append(special.pad)
            places.append((0, 0))
            continue
        tokens.append(state.queue.pop(0))
        state.fed += 1
        # Learned tables end at max_positions; a longer span stays on their last row.
        blank = len(state.spans) - 1
        place = state.blanks[blank] + (state.fed if running else 0)
        if state.counting[blank]:
            place = state.length + state.total
        state.total += 1
        inside = state.fed if block_positions else 1
        if model.config.positions == "learned_2d":
            place, inside = min(place, model.config.max_positions), min(inside, model.config.max_positions)
        places.append((place, inside))
    device = cache.visible_BS.device
    logits_BV: Tensor = model(
        torch.tensor(tokens, device=device)[:, None],
        position_ids=torch.tensor(places, device=device)[:, :, None],
        attention_mask=torch.tensor(live, device=device)[:, None],
        cache=cache,
        logits_at="last",
    )
    return logits_BV.float()


def _take(state: _Row, token: int, stops: set[int], max_tokens: int, sop: int) -> None:
    if state.done:
        return
    if len(state.spans[-1]) == max_tokens or token in stops:
        state.open_next(sop)
    else:
        state.spans[-1].append(token)
        # A full last span need not be fed: nothing comes after it.
        if len(state.spans[-1]) == max_tokens and len(state.spans) == len(state.blanks):
            state.done = True
        state.queue.append(token)


def _written(state: _Row) -> int:
    return sum(len(span) + 1 for span in state.spans)


def _banned(config: GLMConfig, special: SpecialIds, forbidden: Iterable[int], device: torch.device) -> Tensor:
    never = {special.pad, special.sop, *special.mask_ids(), *forbidden}
    never |= {i for i in (special.cls, special.dblock, special.sep) if i is not None}
    never -= {special.eop, special.eos}  # some vocabularies share an id between roles
    return torch.tensor(sorted(i for i in never if i < config.vocab_size), device=device)
