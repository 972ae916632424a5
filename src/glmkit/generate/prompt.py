"""A prompt that is ready to be read: ids, places, and what may follow."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glmkit.config import GLMConfig
from glmkit.errors import RequestError
from glmkit.model.positions import infer_positions, infer_prefix

from .params import GenerationParams

# --- FOLDED generate/places
# Where the tokens of a prompt stand, and all that may follow them.
#
# Legend: T tokens asked for, S tokens worked out so far.


_FIRST = 64  # places behind the prompt that are worked out at once; then twice as many, and so on


class Places:
    """Both position rows of a prompt and, at any distance, of an answer.

    They are the model's own for such ids: a span at its blank for prefix models, counting on for causal ones
    (`model.positions.infer_positions`). Behind a prompt they grow by the same step from token to token, so nothing has
    to be known of how long the answer will be.
    """

    def __init__(self, start_2L: Tensor, step_2: Tensor, *, last: int | None = None, last_inside: int | None = None):
        """start_2L: places of L >= 1 tokens. step_2: what each token behind them adds. last: the largest place of a
        learned table, on which longer spans stay. last_inside: the largest of row 1. All int64 on the CPU.
        """
        self._end_21, self._step_21 = start_2L[:, -1:], step_2[:, None]
        self._last, self._last_inside = last, last_inside
        self._length = start_2L.shape[1]
        self._known_2S = self._clamped(start_2L)

    @classmethod
    def of(
        cls,
        ids: Sequence[int],
        part_a: int,
        config: GLMConfig,
        *,
        running: bool = False,
        block_positions: bool = True,
    ) -> "Places":
        """Of a whole prompt with `part_a` tokens that see each other in both directions; at least one token.

        running: row 0 counts on from the blank (ObjectiveConfig.generation_positions); nothing changes in a span that
        goes on counting behind part A anyway. block_positions False: row 1 stays 1 in the span
        (block_position_encoding).
        """
        # What follows must not look like the start of another span.
        filler = ids[-1] if config.special is None else config.special.pad
        ids_1S = torch.tensor([[*ids, filler, filler]])
        places_2S = infer_positions(ids_1S, torch.tensor([part_a]), config)[0]
        if running:
            counts_S = places_2S[0] == torch.arange(places_2S.shape[1])
            places_2S[0] += places_2S[1].masked_fill(counts_S, 0)
        learned = config.max_positions if config.positions == "learned_2d" else None
        inside = None if block_positions else 1
        step_2 = places_2S[:, -1] - places_2S[:, -2]
        return cls(places_2S[:, :-1], step_2, last=learned, last_inside=inside)

    def at(self, start: int, stop: int) -> Tensor:
        """(2,T) int64 on the CPU: of tokens `start` to before `stop`, counted from the prompt's first one."""
        missing = stop - self._known_2S.shape[1]
        if missing > 0:
            known = self._known_2S.shape[1]
            more = torch.arange(known, known + max(missing, _FIRST, known - self._length))
            more_2S = self._end_21 + self._step_21 * (more - (self._length - 1))
            self._known_2S = torch.cat([self._known_2S, self._clamped(more_2S)], 1)
        return self._known_2S[:, start:stop]

    def _clamped(self, places_2S: Tensor) -> Tensor:
        if self._last_inside is not None:
            places_2S = torch.stack([places_2S[0], places_2S[1].clamp_max(self._last_inside)])
        return places_2S if self._last is None else places_2S.clamp_max(self._last)


@dataclass(frozen=True, eq=False)
class Prompt:
    """What an answer continues.

    ids: the whole prompt, added tokens included. part_a: how many of its first tokens see each other in both
    directions. places: of the prompt and everything behind it. stops: the model's own ids that end an answer.
    forbidden: ids never produced, unless they are stops. max_positions: the most tokens that prompt and answer may
    have together, None where nothing ends. padding: ids that stood in front of the prompt where it was given; they are
    never read, but penalties and beam_length "row" count them, as transformers does.
    """

    ids: tuple[int, ...]
    part_a: int
    places: Places
    stops: frozenset[int] = frozenset()
    forbidden: tuple[int, ...] = ()
    max_positions: int | None = None
    padding: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        ids: Sequence[int],
        config: GLMConfig,
        *,
        stops: Iterable[int] = (),
        forbidden: Iterable[int] = (),
        max_positions: int | None = None,
        padding: Sequence[int] = (),
        running: bool = False,
        block_positions: bool = True,
        name: str = "the prompt",
    ) -> "Prompt":
        """With part A and places as the model itself reads such ids. running, block_positions: as in `Places.of`.

        name: how errors call it. Raises RequestError for no tokens, more than the model's positions, or an id that the
        model lacks.
        """
        ids = tuple(ids)
        _check_row(ids, config, name)
        part_a = int(infer_prefix(torch.tensor([ids]), config.special)) if config.mask == "prefix" else 0
        # The token that opens a span comes on top of the text, as it does for every blank of `jobs.spans`; families
        # whose prompts are whole rows count it.
        opens = part_a == len(ids) - 1 and config.blank_order != "gmask_first"
        length = part_a if opens else len(ids)
        if length > config.max_positions:
            raise RequestError(f"{name} has {length} tokens, the model takes {config.max_positions}; shorten it")
        places = Places.of(ids, part_a, config, running=running, block_positions=block_positions)
        return cls(ids, part_a, places, frozenset(stops), tuple(forbidden), max_positions, tuple(padding))

    @property
    def given(self) -> tuple[int, ...]:
        """The ids as penalties count them, padding included."""
        return self.padding + self.ids


def _check_row(ids: Sequence[int], config: GLMConfig, name: str) -> None:
    """Raises RequestError for a prompt without tokens or with an unknown id."""
    if not ids:
        raise RequestError(f"{name} has no tokens; give at least 1")
    low, high = min(ids), max(ids)
    if low < 0 or high >= config.vocab_size:
        wrong = low if low < 0 else high
        raise RequestError(f"{name} has the id {wrong}; the model's ids are 0 to {config.vocab_size - 1}")


def max_answer_tokens(prompt: Prompt, params: GenerationParams) -> int:
    """The longest answer. Raises RequestError where the positions end before its first token."""
    if prompt.max_positions is None:
        return int(params.max_new_tokens)
    room = prompt.max_positions - len(prompt.ids)
    if room < 1:
        raise RequestError(
            f"the prompt has {len(prompt.ids)} tokens of {prompt.max_positions} that it and the answer may have; "
            "shorten it"
        )
    return min(int(params.max_new_tokens), room)
