"""The job that fills the blanks of one text: part A is read, then one span after the other is written.

Legend: M tokens of a branch whose logits are there, V vocabulary rows, T tokens to feed.
Source of positions and order: GLM paper section 2.1; `THUDM/GLM:blocklm_utils.py`; `THUDM/GLM-130B:generation/`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import RequestError
from glmkit.generate.blank_text import BlankText
from glmkit.generate.detokenize import MakeDetokenizer
from glmkit.generate.engine.job import Branch
from glmkit.generate.outputs import Answer, Finish, Listener
from glmkit.generate.params import GenerationParams
from glmkit.position_rows import ONE_BLANK, PositionRows, Span, anchor

from .decoding import AnswerDecoder, Bounds
from .prompt_lookup import Lookup

BlankOrder = Literal["shared", "inserted"]


@dataclass(frozen=True)
class Filled:
    """A filled text: `text` with the blanks replaced, `blanks` the answers in order, `ids` their tokens.

    finish: why each answer ended, as in `Answer`: "length" where it was cut. around: the texts between the answers, so
    that `text` is the first of them, the first answer, the second of them, and so on.
    """

    text: str
    blanks: list[str]
    ids: list[list[int]]
    finish: list[Finish]
    around: list[str] = field(repr=False)


class FillJob:
    """Fills every blank of a text; each answer is that of a blank, without the token that ended it.

    order "shared": all spans stand behind part A on one sequence, in the order of the blanks, and a later one sees the
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
        order: str = "shared",
        forbidden: Iterable[int] = (),
        running: bool = False,
        block_positions: bool = True,
        detokenizer: MakeDetokenizer | None = None,
        room: int | None = None,
        listener: Listener | None = None,
        name: str = "the text",
        text: BlankText | None = None,
        adapter: str | None = None,
    ) -> None:
        """ids: part A, with at least one mask token. params.max_new_tokens: the longest answer of one blank.

        forbidden: ids never produced, besides mask, start, class and padding ids, which never are. A span ends at
        end-of-piece or end-of-text or at `params.stop_ids`. running, block_positions: as in `PositionRows`.
        detokenizer: makes one for each answer. room: the most tokens of a sequence; longer answers than fit in it are
        cut. name: of the text in errors. text: the one that `filled` puts together. adapter: as `Job` has it.
        Raises RequestError for a text without blanks or longer than the model's positions, and for several answers,
        beams and stop texts.
        """
        self._name, self.adapter = name, adapter
        _check_params(params)
        if order not in get_args(BlankOrder):
            raise RequestError(f"order is {order!r}; use 'shared' or 'inserted'", param="order")
        self.order: BlankOrder = "shared" if order == "shared" else "inserted"
        masks = set(special.mask_ids())
        self._kinds = [token for token in ids if token in masks]
        if not self._kinds:
            raise RequestError(f"{self._name} has no blank; put [MASK], [sMASK] or [gMASK] where something is missing")
        self.prompt_tokens = len(ids)
        self.max_sequences, self.spare_rows = 1, 0
        if room is not None:
            most = _longest_answer(len(ids), len(self._kinds), room, self.order, config)
            params = replace(params, max_new_tokens=max(1, params.min_new_tokens, min(params.max_new_tokens, most)))
        self.max_sequence_tokens = _longest_sequence(
            len(ids), len(self._kinds), int(params.max_new_tokens), self.order, config
        )
        self.drafted = self.accepted = 0
        self._params, self._config, self._special, self._masks = params, config, special, masks
        self._never = _never(special, forbidden)
        self._positions = PositionRows.of((), 0, config, running=running, block_positions=block_positions)
        self.listener = listener
        self._detokenizer, self._text = detokenizer, text
        self._waiting = list(range(len(self._kinds)))  # numbers of the blanks without an answer
        self._done: dict[int, Answer] = {}
        self._bounds: Bounds | None = None
        self._lookup: Lookup | None = None
        self._decoder: AnswerDecoder | None = None  # of the open span
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

    def filled(self) -> Filled:
        """The text with all answers, once the job is over."""
        assert self._text is not None, "the job was made of ids alone"
        text, blanks, around = self._text.filled(self.spans)
        return Filled(text, blanks, self.spans, [answer.finish for answer in self.answers], around)

    def start(self) -> Sequence[Branch]:
        """Begin, as `Job` has it."""
        return [self._open()]

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        """Go on, as `Job` has it."""
        decoder = self._decoder or self._begin(logits_MV[0].device)
        decoder.take(logits_MV[0], spare=self.spare_rows)
        if decoder.answer is None:
            tokens = [*decoder.unfed, *decoder.drafts]
            first = len(self._row) - 1 + len(decoder.ids)
            positions = self._positions.at(first, first + len(tokens))
            return [Branch(tokens, positions, 0, decoder.dropped, logits=1 + len(decoder.drafts))]
        self._end(decoder, decoder.answer)
        if not self._waiting:
            return []
        return [self._open(decoder if self.order == "shared" else None)]

    def _part_a(self, row: list[int]) -> None:
        """Begin a sequence. `_row`: its tokens so far, of part A and of finished spans."""
        if len(row) > self._config.max_positions:
            raise RequestError(
                f"{self._name} has {len(row)} tokens, the model takes {self._config.max_positions}; shorten it",
                code="context_length_exceeded",
            )
        self._row, self._length, self._lookup = row, len(row), None
        self._positions = replace(self._positions, spans=())
        self._blanks = [index for index, token in enumerate(row) if token in self._masks]

    def _open(self, before: AnswerDecoder | None = None) -> Branch:
        """The next blank's start: on a new sequence, or behind what the span before left to be fed."""
        tokens = [*(self._row if before is None else before.unfed), self._special.sop]
        self._number = self._next()
        # Where its mask stands: in "inserted", the answered blanks are no longer there.
        self._blank = self._blanks[self._number if self.order == "shared" else self._waiting.index(self._number)]
        span = Span(len(self._row), anchor(self._row, self._blank, self._config, self._special))
        self._positions = replace(self._positions, spans=(*self._positions.spans, span))
        self._row.append(self._special.sop)
        positions = self._positions.at(len(self._row) - len(tokens), len(self._row))
        if before is None:
            return Branch(tokens, positions, part_a=self._length)
        return Branch(tokens, positions, 0, before.dropped)

    def _next(self) -> int:
        """The next of the waiting blanks."""
        roles = ONE_BLANK.get(self._config.blank_order)
        if self.order == "shared" or roles is None:
            return self._waiting[0]
        preferred = [getattr(self._special, role) for role in roles]
        return min(self._waiting, key=lambda number: [*preferred, self._kinds[number]].index(self._kinds[number]))

    def _begin(self, device: torch.device) -> AnswerDecoder:
        """The decoder of the open span, before its first token."""
        params, special = self._params, self._special
        if self._bounds is None:
            stops = (special.eop, special.eos)
            self._bounds = Bounds.of(params, self._config.vocab_size, device, stops=stops, forbidden=self._never)
        if params.prompt_lookup:
            if self._lookup is None:
                self._lookup = Lookup(self._row, int(params.prompt_lookup_ngram))
            else:
                self._lookup.push(special.sop)
        self._decoder = AnswerDecoder(
            self._row,
            params,
            self._bounds,
            number=self._number,
            first=self._drawn + 1,
            detokenizer=None if self._detokenizer is None else self._detokenizer(),
            listener=self.listener,
            lookup=self._lookup,
        )
        return self._decoder

    def _end(self, decoder: AnswerDecoder, answer: Answer) -> None:
        self._done[self._number] = answer
        self._drawn += len(answer.ids) + 1
        self.drafted += decoder.drafted
        self.accepted += decoder.accepted
        self._decoder = None
        self._waiting.remove(self._number)
        if self.order == "shared":
            self._row += answer.ids
        elif self._waiting:
            text = self._row[: self._length]
            self._part_a([*text[: self._blank], *answer.ids, *text[self._blank + 1 :]])


def _longest_sequence(length: int, blanks: int, max_tokens: int, order: BlankOrder, config: GLMConfig) -> int:
    """The last token of the last answer is never fed."""
    if order == "shared":
        return length + blanks * (1 + max_tokens) - 1
    return min(length + (blanks - 1) * (max_tokens - 1), max(length, config.max_positions)) + max_tokens


def _longest_answer(length: int, blanks: int, room: int, order: BlankOrder, config: GLMConfig) -> int:
    """The most tokens of each answer with which `_longest_sequence` is within `room`."""
    if order == "shared":
        return (room + 1 - length) // blanks - 1
    return max((room - length + blanks - 1) // blanks, room - max(length, config.max_positions))


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
