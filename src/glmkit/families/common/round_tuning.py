"""Rows of ChatGLM-6B and ChatGLM2-6B: one for each counted answer, behind the rounds before it as the chat writes them.

Sources: `THUDM/ChatGLM-6B:ptuning/main.py`, `THUDM/ChatGLM2-6B:ptuning/main.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from glmkit.position_rows import PositionRows, Span
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import NO_QUIRKS, Dialogue, EncodedRow, Limits, Lost, Quirks, TuningFormat
from glmkit.tokenizer.inputs import InputTokenizer, RowLayout
from glmkit.tokenizer.protocol import Tokenizer

from .round_chat import RoundTemplate
from .tuning import (
    BY_VALUE,
    CHOICES,
    OPEN,
    PADS,
    WORDS,
    Answer,
    asked,
    check_rooms,
    cut,
    fit_turns,
    joined_answers,
    own,
    without_pads,
)

RIGHT, TAGGED, MARKED = "right_cut", "tagged_training", "marked_answers"
_QUIRKS = {
    **CHOICES,
    RIGHT: "prompts are cut on the right after rendering, so that a long history takes the newest question with it",
    BY_VALUE: "ids of padding inside an answer do not count",
    PADS: "rows are padded to both limits, and the padding counts (ignore_pad_token_for_loss False)",
    WORDS: "special words in texts become their ids",
}
_BARE_QUIRKS = {
    TAGGED: "training writes the round in front of a single question, prediction does not (history_column, no history)",
    MARKED: "answers to compare with end in the tokens that stand behind prompts, within the limit",
}


@dataclass(frozen=True, kw_only=True)
class RoundTuning(TuningFormat):
    """Rows of a `RoundTemplate`.

    in_source, in_target: special tokens that count for each limit. The id that opens an answer is a label where it
    stands behind the prompt.
    """

    template: RoundTemplate
    limits: Limits
    in_source: int
    in_target: int

    @property
    def quirks(self) -> dict[str, str]:
        return _QUIRKS if self.template.opened else _QUIRKS | _BARE_QUIRKS

    def rows(
        self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: Quirks = NO_QUIRKS
    ) -> list[EncodedRow]:
        rows = []
        for answer in joined_answers(tokenizer, dialogue):
            before = asked(dialogue.messages[: answer.start])
            text, lost = self._prompt(own(tokenizer), before, dialogue, limits, quirks, training=True)
            rows.append(self._row(own(tokenizer), text, answer, limits, quirks, lost))
        return rows

    def prompt(self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: Quirks = NO_QUIRKS) -> list[int]:
        answers = joined_answers(tokenizer, dialogue)
        messages = asked(dialogue.messages[: answers[-1].start] if answers else dialogue.messages)
        ids, _ = self._prompt(own(tokenizer), messages, dialogue, limits, quirks)
        return own(tokenizer).build_inputs(ids)

    def answer(self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: Quirks = NO_QUIRKS) -> list[int]:
        answers = joined_answers(tokenizer, dialogue)
        text = answers[-1].text if answers else ""
        if MARKED in quirks:
            return own(tokenizer).encode_inputs(text, max_length=limits.target, specials=WORDS in quirks)
        return tokenizer.encode(text, specials=WORDS in quirks)[: limits.target - self.in_target]

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return self.template.stop_ids(own(tokenizer))

    def _prompt(
        self,
        tokenizer: InputTokenizer,
        messages: Sequence[Message],
        dialogue: Dialogue,
        limits: Limits,
        quirks: Quirks,
        *,
        training: bool = False,
    ) -> tuple[list[int], Lost]:
        """The text's ids of a prompt without the special tokens around it; what is lost."""
        check_rooms(limits.source, limits.target, (self.in_source + 1, self.in_target + 1))
        room = limits.source - self.in_source

        def encode(messages: Sequence[Message]) -> list[int]:
            tagged = training and TAGGED in quirks
            return tokenizer.encode(self.template.text(messages, tagged=tagged), specials=WORDS in quirks)

        if RIGHT in quirks:
            ids = encode(messages)
            room -= 0 if training else tokenizer.num_added() - self.in_source
            return ids[:room], Lost(max(len(ids) - room, 0))
        return fit_turns(messages, encode, room, dialogue.cut)

    def _row(
        self,
        tokenizer: InputTokenizer,
        prompt: list[int],
        answer: Answer,
        limits: Limits,
        quirks: Quirks,
        lost: Lost,
    ) -> EncodedRow:
        room = limits.target - self.in_target
        written = tokenizer.encode(answer.text, specials=WORDS in quirks)
        kept = cut(written, room, "right")
        ids = tokenizer.build_inputs(prompt, kept)
        # The id in front of the answer opens it where it stands behind a prompt.
        first = len(ids) - len(kept) - 1
        start = first if self.template.opened else first - 1
        counted = [False] * start + [True] * (len(ids) - start)
        if OPEN in quirks and len(kept) < len(written):
            ids.pop(), counted.pop()
        if BY_VALUE in quirks:
            counted = without_pads(counted, ids, (tokenizer.special.pad,))
        if PADS in quirks:
            missing = limits.source + limits.target + (1 if self.template.opened else 0) - len(ids)
            ids += [tokenizer.special.pad] * missing
            counted += [True] * missing
        layout = RowLayout(range(len(ids)), [0] * len(ids), 0)
        if not self.template.opened:
            span = Span(start, start - 1)
            layout = RowLayout(*PositionRows((span,)).at(0, len(ids)), start)
        lost = Lost(lost.prompt, len(written) - len(kept), lost.rounds)
        return EncodedRow(ids, counted, layout, lost, answer.num_messages)
