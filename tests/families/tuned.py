"""Dialogues for tests of the families' tuning formats, and rows in the references' own form."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from glmkit.families.family import family_named
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import Dialogue, EncodedRow, Limits, TuningFormat
from glmkit.tokenizer.inputs import InputTokenizer, Side
from support.shared import shared_dir

IGNORED = -100
# ChatGLM3's call of weather(city='北京') with the tag in front, without the tag of the observation behind it.
WEATHER_CALL = [
    64796, 5100, 13, 16014, 23720, 13, 22268, 30962, 10372, 30946, 17654, 6521, 31719, 3387, 13, 10846, 31040,
]  # fmt: skip
WIDE = Limits(1024, 1024)
_FOLDERS = {"chatglm": "chatglm-6b", "chatglm2": "chatglm2-chatglm3", "chatglm3": "chatglm2-chatglm3"}
_FOLDERS |= {"glm-4": "glm4", "glm-4-0414": "glm4", "glm": "glm-chinese", "glm-130b": "chatglm-6b"}
_SHORT = {"u": "user", "a": "assistant", "s": "system", "o": "observation"}


class Tuned:
    """One family's format with its published vocabulary."""

    def __init__(self, name: str) -> None:
        family = family_named(name)
        assert family.tuning is not None
        tokenizer = family.tokenizer(shared_dir("tokenizers", _FOLDERS[name]), None)
        assert isinstance(tokenizer, InputTokenizer)
        self.name = name
        self.format: TuningFormat = family.tuning
        self.tokenizer: InputTokenizer = tokenizer

    def rows(self, dialogue: Dialogue, limits: Limits = WIDE, *quirks: str) -> list[EncodedRow]:
        return self.format.rows(self.tokenizer, dialogue, limits, frozenset(quirks))

    def row(self, dialogue: Dialogue, limits: Limits = WIDE, *quirks: str) -> EncodedRow:
        (row,) = self.rows(dialogue, limits, *quirks)
        return row

    def prompt(self, dialogue: Dialogue, limits: Limits = WIDE, *quirks: str) -> list[int]:
        return self.format.prompt(self.tokenizer, dialogue, limits, frozenset(quirks))

    def answer(self, dialogue: Dialogue, limits: Limits = WIDE, *quirks: str) -> list[int]:
        return self.format.answer(self.tokenizer, dialogue, limits, frozenset(quirks))


@cache
def of_family(name: str) -> Tuned:
    return Tuned(name)


def dialogue(*turns: str | Message, uncounted: Sequence[int] = (), cut: Side = "left") -> Dialogue:
    """Messages as "u text", "a text", "s text", "o text"; the assistant's count but for those with these indices."""
    messages = [turn if isinstance(turn, Message) else Message(_SHORT[turn[0]], turn[2:]) for turn in turns]
    counted = [message.role == "assistant" and i not in uncounted for i, message in enumerate(messages)]
    return Dialogue(tuple(messages), tuple(counted), "here: line 1", cut)


def question(prompt: str, response: str, history: Sequence[Sequence[str]] = ()) -> Dialogue:
    """A row with a history, whose last answer alone counts."""
    turns = [part for pair in history for part in (f"u {pair[0]}", f"a {pair[1]}")]
    return dialogue(*turns, f"u {prompt}", f"a {response}", uncounted=range(2 * len(history)))


def labels(row: EncodedRow) -> list[int]:
    """The references' labels: ids that count, -100 elsewhere."""
    return [index if counts else IGNORED for index, counts in zip(row.ids, row.counted, strict=True)]


def padded(values: Sequence[Any], length: int, pad: int) -> list[Any]:
    """Values filled up on the right."""
    assert len(values) <= length
    return [*values, *[pad] * (length - len(values))]
