"""The blanks of one text as a job of the engine: part A is read, then one span after the other is written.

Legend: M tokens of a branch whose logits are there, V vocabulary rows, T tokens to feed.
Source of positions and order: GLM paper section 2.1; `THUDM/GLM:blocklm_utils.py`; `THUDM/GLM-130B:generation/`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import RequestError
from glmkit.generate.blank_text import BlankText
from glmkit.generate.engine.job import Branch
from glmkit.generate.outputs import Answer, Listener
from glmkit.generate.params import GenerationParams
from glmkit.position_rows import ONE_BLANK, PositionRows, Span, anchor

from .decoding import Bounds, GrowingAnswer, Heard, MakeReader, Writing
from .prompt_lookup import Lookup

BlankOrder = Literal["shared", "inserted"]


class SpansJob:
    """Fills every blank of a text; each answer is that of a blank, without the token that ended it.

    order "shared": all spans stand behind part A on one row, in the order of the blanks, and a later one sees the
    earlier ones (GLM). "inserted": each answer takes the place of its blank before the next one is asked; those of the
    kind that the model prefers come first (GLM-130B).
    Events carry the number of the blank. For penalties the prompt is all that stands before the span, and the answer
    the span alone; the noise of sampling goes on from span to span.
    """

    def __init__(
        self,
        ids: Sequence[int],
        params: GenerationParams,
        config: GLMConfig,
        special: SpecialIds,
        *,
        order: BlankOrder = "shared",
        forbidden: Iterable[int] = (),
        running: bool = False,
        block_positions: bool = True,
        reader: MakeReader | None = None,
        listener: Listener | None = None,
        name: str = "the text",
    ) -> None:
        """ids: part A, with at least one mask token. params.max_new_tokens: the longest answer of one blank.

        forbidden: ids never produced, besides mask, start, class and padding ids, which never are. A span ends at
        end-of-piece or end-of-text or at `params.stop_ids`. running, block_positions: as in `PositionRows`. reader:
        makes what reads the text of one answer. name: how errors call the text.
        Raises RequestError for a text without blanks or longer than the model's positions, and for several answers,
        beams and stop texts.
        """
        self._name = name
        _check_params(params)
        if order not in get_args(BlankOrder):
            raise RequestError(f"order is {order!r}; use 'shared' or 'inserted'", param="order")
        masks = set(special.mask_ids())
        self._kinds = [token for token in ids if token in masks]
        if not self._kinds:
            raise RequestError(f"{self._name} has no blank; put [MASK], [sMASK] or [gMASK] where something is missing")
        self.prompt_tokens = len(ids)
        self.max_rows = 1
        self.max_row_tokens = _longest_row(len(ids), len(self._kinds), int(params.max_new_tokens), order, config)
        self.order: BlankOrder = order
        self.drafted = self.accepted = 0
        self._params, self._config, self._special, self._masks = params, config, special, masks
        self._never = _never(special, forbidden)
        self._positions = PositionRows.of((), 0, config, running=running, block_positions=block_positions)
        self._reader, self._listener = reader, listener
        self._waiting = list(range(len(self._kinds)))  # numbers of the blanks without an answer
        self._done: dict[int, Answer] = {}
        self._bounds: Bounds | None = None
        self._lookup: Lookup | None = None
        self._writing: Writing | None = None
        self._drawn = 0  # noise that earlier spans used
        self._part_a(list(ids))

    @property
    def answers(self) -> list[Answer]:
        """The finished answers, by the number of their blank; all of them once the job is over."""
        return [self._done[number] for number in sorted(self._done)]

    @property
    def spans(self) -> list[list[int]]:
        """The ids of `answers`."""
        return [answer.ids for answer in self.answers]

    def start(self) -> Sequence[Branch]:
        """As in `Job`."""
        return [self._open()]

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        """As in `Job`."""
        writing = self._writing or self._begin(logits_MV[0].device)
        writing.take(logits_MV[0])
        if writing.answer is None:
            tokens = [*writing.unfed, *writing.drafts]
            first = len(self._row) - 1 + writing.size
            positions_2T = torch.tensor(self._positions.at(first, first + len(tokens)))
            return [Branch(tokens, positions_2T, 0, writing.dropped, logits=1 + len(writing.drafts))]
        self._end(writing)
        if not self._waiting:
            return []
        return [self._open(writing if self.order == "shared" else None)]

    def _part_a(self, row: list[int]) -> None:
        """Begin a row. `_row`: its tokens so far, of part A and of finished spans."""
        if len(row) > self._config.max_positions:
            raise RequestError(
                f"{self._name} has {len(row)} tokens, the model takes {self._config.max_positions}; shorten it",
                code="context_length_exceeded",
            )
        self._row, self._length, self._lookup = row, len(row), None
        self._positions = replace(self._positions, spans=())
        self._blanks = [index for index, token in enumerate(row) if token in self._masks]

    def _open(self, before: Writing | None = None) -> Branch:
        """The next blank's start: on a new row, or behind what the span before left to be fed."""
        tokens = [*(self._row if before is None else before.unfed), self._special.sop]
        self._number = self._next()
        # Where its mask stands: in "inserted", the answered blanks are no longer there.
        self._blank = self._blanks[self._number if self.order == "shared" else self._waiting.index(self._number)]
        span = Span(len(self._row), anchor(self._row, self._blank, self._config, self._special))
        self._positions = replace(self._positions, spans=(*self._positions.spans, span))
        self._row.append(self._special.sop)
        positions_2T = torch.tensor(self._positions.at(len(self._row) - len(tokens), len(self._row)))
        if before is None:
            return Branch(tokens, positions_2T, part_a=self._length)
        return Branch(tokens, positions_2T, 0, before.dropped)

    def _next(self) -> int:
        """The blank that is asked next, of those waiting."""
        roles = ONE_BLANK.get(self._config.blank_order)
        if self.order == "shared" or roles is None:
            return self._waiting[0]
        preferred = [getattr(self._special, role) for role in roles]
        return min(self._waiting, key=lambda number: [*preferred, self._kinds[number]].index(self._kinds[number]))

    def _begin(self, device: torch.device) -> Writing:
        """The open span, before its first token."""
        params, special = self._params, self._special
        if self._bounds is None:
            stops = (special.eop, special.eos)
            self._bounds = Bounds.of(params, self._config.vocab_size, device, stops=stops, forbidden=self._never)
        growing = GrowingAnswer(self._row, params, self._bounds, first=self._drawn + 1)
        if params.prompt_lookup:
            if self._lookup is None:
                self._lookup = Lookup(self._row, int(params.prompt_lookup_ngram))
            else:
                self._lookup.push(special.sop)
        heard = Heard(self._number, (), None if self._reader is None else self._reader(), self._listener)
        self._writing = Writing(growing, heard, self._lookup, most_drafts=int(params.prompt_lookup))
        return self._writing

    def _end(self, writing: Writing) -> None:
        answer = writing.answer
        assert answer is not None
        self._done[self._number] = answer
        self._drawn += len(answer.ids) + 1
        self.drafted += writing.drafted
        self.accepted += writing.accepted
        self._writing = None
        self._waiting.remove(self._number)
        if self.order == "shared":
            self._row += answer.ids
        elif self._waiting:
            text = self._row[: self._length]
            self._part_a([*text[: self._blank], *answer.ids, *text[self._blank + 1 :]])


def _longest_row(length: int, blanks: int, most: int, order: BlankOrder, config: GLMConfig) -> int:
    """The last token of the last answer is never fed."""
    if order == "shared":
        return length + blanks * (1 + most) - 1
    return min(length + (blanks - 1) * (most - 1), max(length, config.max_positions)) + most


def _never(special: SpecialIds, forbidden: Iterable[int]) -> tuple[int, ...]:
    never = {special.pad, special.sop, *special.mask_ids(), *forbidden}
    return tuple(never | {i for i in (special.cls, special.dblock, special.sep) if i is not None})


def _check_params(params: GenerationParams) -> None:
    clashes: tuple[tuple[str, bool, str], ...] = (
        ("n", params.n > 1, "ask again with another seed"),
        ("num_beams", params.num_beams > 1, "leave it at 1"),
        ("stop", bool(params.stop), "use stop_ids"),
    )
    for name, clash, hint in clashes:
        if clash:
            raise RequestError(f"{name} does not go with blanks; {hint}", param=name)


# --- FOLDED generate/jobs/fill_job
# A text with blanks as a job of the engine, and what comes out of it.


@dataclass(frozen=True)
class Filled:
    """A filled text: `text` with the blanks replaced, `blanks` the answers in order, `ids` their tokens."""

    text: str
    blanks: list[str]
    ids: list[list[int]]


class FillJob(SpansJob):
    """`SpansJob` of a text that can be put together again."""

    def __init__(self, text: BlankText, ids: Sequence[int], *args: Any, **options: Any) -> None:
        """ids: part A of the text as the model reads it. The rest as of `SpansJob`."""
        super().__init__(ids, *args, **options)
        self._text = text

    def filled(self) -> Filled:
        """The text with all answers, once the job is over."""
        spans = self.spans
        return Filled(*self._text.filled(spans), spans)
