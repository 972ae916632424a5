"""Vocabularies alone: plain text to ids and back, without special strings; checks of ids and texts."""

import reprlib
from collections.abc import Iterable, Sequence
from operator import index as whole
from typing import Protocol

from glmkit.errors import TokenizerError


class IdStream(Protocol):
    """Ids in, text out."""

    def feed(self, ids: Sequence[int]) -> str:
        """The text that these ids make certain."""

    def finish(self) -> str:
        """The text that was held back, at the end of the ids. The stream is used up."""


class TextModel(Protocol):
    """Plain text to ids 0 .. size - 1 and back."""

    @property
    def size(self) -> int:
        """Number of entries."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special. Raises TokenizerError for a lone surrogate."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text."""

    def token(self, index: int) -> str:
        """An entry as the vocabulary file spells it. Raises TokenizerError for an unknown id."""

    def find(self, token: str) -> int | None:
        """The id of an entry, None when there is none."""

    def is_byte(self, index: int) -> bool:
        """True when an entry is less than a character."""

    def run(self) -> IdStream:
        """A decoder for consecutive ids of this vocabulary. Raises TokenizerError for an unknown id."""


def check_id(index: int, size: int) -> None:
    """Raise TokenizerError for an id outside 0 .. size - 1."""
    if not 0 <= index < size:
        raise TokenizerError(f"token id {index} is outside the vocabulary of {size} tokens")


def as_ids(ids: Iterable[int]) -> list[int]:
    """Token ids as plain numbers, those of NumPy and torch too. Raises TokenizerError for anything else."""
    try:
        return [whole(index) for index in ids]
    except TypeError:
        raise TokenizerError(f"token ids are {reprlib.repr(ids)}", step="give a list of whole numbers") from None


def check_text(text: str) -> None:
    """Raise TokenizerError for what is no text."""
    if not isinstance(text, str):
        raise TokenizerError(f"a text is {reprlib.repr(text)}", step="give a text (str)")


def as_texts(texts: Iterable[str]) -> list[str]:
    """Several texts as a list. Raises TokenizerError for anything else, one text alone too."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise TokenizerError(f"texts are {reprlib.repr(texts)}", step="give a list of texts")
    found = list(texts)
    for text in found:
        check_text(text)
    return found


def check_unicode(text: str) -> None:
    """Raise TokenizerError for what is no text, and for a lone surrogate."""
    check_text(text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text has a lone surrogate U+{ord(text[error.start]):04X}, which is not valid Unicode",
            step="remove it",
        ) from None
