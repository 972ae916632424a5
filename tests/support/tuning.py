"""Fine-tuning data for tests: a format of one id a character, as ChatGLM-6B builds its rows, and sets of it."""

from collections.abc import Sequence

from glmkit.data.dialogues.dialogue_set import OnBadRow
from glmkit.data.tuning_rows import RowMaker, RowSet, encode_rows
from glmkit.errors import ConfigError, RequestError
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import NO_QUIRKS, Dialogue, EncodedRow, Example, Limits, Lost, Quirks, TuningFormat
from glmkit.tokenizer.inputs import RowLayout
from glmkit.tokenizer.protocol import Tokenizer
from support.tiny import SPECIAL

LIMITS = Limits(32, 16)


class PairFormat(TuningFormat):
    """Question, gMASK, sop, answer, eop; the answer and eop count, and sop as in the published code. 11 + a letter."""

    limits = LIMITS

    def __init__(self, *, blocks: bool = True) -> None:
        self.blocks = blocks

    def rows(
        self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: Quirks = NO_QUIRKS
    ) -> list[EncodedRow]:
        if not limits.source:
            raise ConfigError("no room for a prompt")
        if len(dialogue.messages) != 2:
            raise RequestError(f"{len(dialogue.messages)} messages are not a pair")
        question, answer = ([11 + ord(c) % 50 for c in message.content] for message in dialogue.messages)
        a, b = question[: limits.source - 2], answer[: limits.target - 1]
        ids = [*a, SPECIAL.gmask or 0, SPECIAL.sop or 0, *b, SPECIAL.eop or 0]
        if not answer:
            return []
        counts = dialogue.counted[-1]
        counted = [False] * (len(a) + 1) + [counts] * (len(b) + 2)
        lost = Lost(prompt=len(question) - len(a), answer=len(answer) - len(b))
        place = len(a) + 1
        if self.blocks:
            after = len(ids) - place
            layout = RowLayout([*range(place), *[len(a)] * after], [0] * place + list(range(1, after + 1)), place)
        else:
            layout = RowLayout(range(len(ids)), [0] * len(ids), 0)
        notes = ("an answer with '!'",) * dialogue.messages[1].content.count("!")
        return [EncodedRow(ids, counted, layout, lost, num_answers=int(counts), notes=notes)]

    def prompt(self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: Quirks = NO_QUIRKS) -> list[int]:
        row = self.rows(tokenizer, dialogue, limits, quirks)[0]
        return row.ids[: row.layout.prefix + 1]

    def answer(self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: Quirks = NO_QUIRKS) -> list[int]:
        row = self.rows(tokenizer, dialogue, limits, quirks)[0]
        return row.ids[row.layout.prefix + 1 : -1]

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return (SPECIAL.eop or 0,)


class NoTokenizer:
    """What a format that needs none is given: ids and their places alone."""

    vocab_size = 96
    special = SPECIAL

    def row_layout(self, row: Sequence[int]) -> RowLayout:
        return RowLayout(range(len(row)), [0] * len(row), 0)


def pair(question: str, answer: str, *, counts: bool = True, line: int = 1) -> Dialogue:
    return Dialogue(
        (Message("user", question), Message("assistant", answer)), (False, counts), f"rows.jsonl: line {line}"
    )


def rows_of(
    pairs: Sequence[tuple[str, str]],
    *,
    name: str = "rows",
    limits: Limits = LIMITS,
    blocks: bool = True,
    on_bad_row: OnBadRow = "refuse",
    more: Sequence[Example] = (),
) -> RowSet:
    dialogues = [pair(a, b, line=number) for number, (a, b) in enumerate(pairs, 1)]
    return encode_rows(
        [*dialogues, *more],
        RowMaker(NoTokenizer(), PairFormat(blocks=blocks), limits),  # type: ignore[arg-type]
        name=name,
        on_bad_row=on_bad_row,
    )


def numbered(count: int, *, first: int = 0, name: str = "rows", blocks: bool = True) -> RowSet:
    """Rows of different lengths: question and answer of row i have letters of its own."""
    pairs = [
        (
            chr(65 + (first + i) % 26) * (3 + (first + i) * 7 % 20),
            chr(97 + (first + i) % 26) * (1 + (first + i) * 5 % 12),
        )
        for i in range(count)
    ]
    return rows_of(pairs, name=name, blocks=blocks)
