"""A text with blanks as a job of the engine, and what comes out of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glmkit.generate.blanks import BlankText

from .spans import SpansJob


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
