"""Rows of models that write an answer as the span of a generation mask: GLM and GLM-130B.

Sources: `PaddlePaddle/PaddleNLP:llm/glm/data.py`, `paddlenlp/transformers/glm/tokenizer.py`; the older form
`THUDM/GLM:tasks/seq2seq/dataset.py` and `PaddlePaddle/PaddleNLP:examples/language_model/glm/data.py`. For GLM-130B
nothing was published; its rows are its prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from glmkit.errors import RequestError
from glmkit.position_rows import PositionRows, Span
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import NO_QUIRKS, Dialogue, EncodedRow, Limits, Lost, Quirks, TuningFormat
from glmkit.tokenizer.inputs import InputTokenizer, RowLayout, Side
from glmkit.tokenizer.protocol import Tokenizer

from .round_chat import to_rounds
from .tuning import (
    BY_VALUE,
    CHOICES,
    OPEN,
    WORDS,
    Answer,
    asked,
    check_rooms,
    cut,
    fit_turns,
    joined_answers,
    mask_ids,
    without_pads,
)

LEFT, CONTENT = "left_cut", "content_prompt"
_ROLES = ("system", "user", "assistant")
_QUIRKS = {
    **CHOICES,
    LEFT: "prompts and answers are cut on their left, whatever stands there",
    BY_VALUE: "the place behind an id of padding or of a piece's end does not count",
    WORDS: "special words in texts become their ids",
}
_CONTENT = {
    CONTENT: "the older form: [CLS] [sMASK] ` Content:` text, cut on the right; a cut answer is left open",
}


@dataclass(frozen=True, kw_only=True)
class SpanTuning(TuningFormat):
    """Part A is the text with a generation mask behind it, part B the answer and its end.

    closed: the published end token of a text stands behind the mask ([CLS] text [gMASK] end), else the mask is last.
    Where the mask is last, answers count on from it.
    """

    limits: Limits
    closed: bool = True

    @property
    def quirks(self) -> dict[str, str]:
        return _QUIRKS | _CONTENT if self.closed else _QUIRKS

    def rows(
        self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: Quirks = NO_QUIRKS
    ) -> list[EncodedRow]:
        rows = []
        for answer in joined_answers(tokenizer, dialogue):
            before = asked(dialogue.messages[: answer.start])
            source, mask, lost = self._source(tokenizer, before, dialogue, limits, quirks)
            rows.append(self._row(tokenizer, source, mask, answer, limits, quirks, lost))
        return rows

    def prompt(self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: Quirks = NO_QUIRKS) -> list[int]:
        answers = joined_answers(tokenizer, dialogue)
        messages = asked(dialogue.messages[: answers[-1].start] if answers else dialogue.messages)
        source, _, _ = self._source(tokenizer, messages, dialogue, limits, quirks)
        return [*source, tokenizer.special.sop]

    def answer(self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: Quirks = NO_QUIRKS) -> list[int]:
        answers = joined_answers(tokenizer, dialogue)
        ids = self._written(tokenizer, answers[-1].text if answers else "", quirks)
        return cut(ids, limits.target - 1, _side(quirks))

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return (tokenizer.special.eop,)

    def _source(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        dialogue: Dialogue,
        limits: Limits,
        quirks: Quirks,
    ) -> tuple[list[int], int, Lost]:
        """Part A, the place of its mask, what is lost."""
        special = tokenizer.special
        front, behind = self._around(tokenizer)
        if CONTENT in quirks:
            smask = special.mask if special.smask is None else special.smask
            front, behind = [*front, smask, *tokenizer.encode(" Content:")], []
        room = limits.source - len(front) - len(behind)
        check_rooms(limits.source, limits.target, (limits.source - room + 1, 3))

        def encode(messages: Sequence[Message]) -> list[int]:
            text = plain_text(messages)
            return tokenizer.encode(" " + text if CONTENT in quirks else text, specials=WORDS in quirks)

        if LEFT in quirks or CONTENT in quirks:
            whole = encode(messages)
            text = cut(whole, room, _side(quirks))
            lost = Lost(len(whole) - len(text))
        else:
            text, lost = fit_turns(messages, encode, room, dialogue.cut)
        mask = len(front) - 1 - len(tokenizer.encode(" Content:")) if CONTENT in quirks else len(front) + len(text)
        return [*front, *text, *behind], mask, lost

    def _around(self, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """The ids in front of a text, and those behind it, the mask first."""
        special = tokenizer.special
        if not self.closed:
            return [], [special.gmask]
        if isinstance(tokenizer, InputTokenizer):
            opening, end = tokenizer.build_inputs([])
            return [opening], [special.gmask, end]
        return [] if special.cls is None else [special.cls], [special.gmask, special.eos]

    def _written(self, tokenizer: Tokenizer, text: str, quirks: Quirks) -> list[int]:
        """An answer's ids; with a space in front where vocabularies carry it in their words."""
        return tokenizer.encode(" " + text if self.closed else text, specials=WORDS in quirks)

    def _row(
        self,
        tokenizer: Tokenizer,
        source: list[int],
        mask: int,
        answer: Answer,
        limits: Limits,
        quirks: Quirks,
        lost: Lost,
    ) -> EncodedRow:
        special = tokenizer.special
        written = self._written(tokenizer, answer.text, quirks)
        if CONTENT in quirks:
            target = [*written, special.eop][: limits.target]
            kept = target[: len(written)]
        else:
            kept = cut(written, limits.target - 2, _side(quirks))
            target = [*kept, special.eop] if OPEN not in quirks or len(kept) == len(written) else kept
        ids = [*source, special.sop, *target]
        first = len(source) + 1
        counted = [False] * first + [True] * len(target)
        if BY_VALUE in quirks:
            behind = without_pads(counted[first - 1 : -1], ids[first - 1 : -1], mask_ids(special))
            counted[first + 1 :] = behind[1:]
        anchor = None if not self.closed else mask
        row_0, row_1 = PositionRows((Span(len(source), anchor),)).at(0, len(ids))
        if not self.closed:
            row_1 = [0] * len(ids)
        layout = RowLayout(row_0, row_1, len(source))
        lost = Lost(lost.prompt, len(written) - len(kept), lost.rounds)
        return EncodedRow(ids, counted, layout, lost, answer.num_messages)


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation for a model that was never taught one: a single question as it is, rounds as BELLE writes them.

    Source: `multiturn_chat_0.8M` of `LianjiaTech/BELLE`. Raises RequestError for tools and their outcomes.
    """
    for message in messages:
        if message.role not in _ROLES or message.metadata or message.tools is not None:
            raise RequestError(
                f"a message of the role {message.role!r} or with tools: this model has no form for it",
                step="leave tools out, or tune a model that was taught to call them",
            )
    texts = to_rounds(messages)
    if len(texts) == 1:
        return texts[0]
    names = ("Human:", "Assistant:")
    lines = [names[index % 2] + text for index, text in enumerate(texts)]
    return "\n".join([*lines, "Assistant:"] if len(texts) % 2 else lines)


def _side(quirks: Quirks) -> Side:
    return "left" if LEFT in quirks else "right"
