"""The interface of every tokenizer."""

import os
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from glmkit.config import SpecialIds

from .explain import Explanation


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. Ids are 0 .. vocab_size - 1."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included (not the padded rows of an embedding)."""

    @property
    def special(self) -> SpecialIds:
        """The special ids by role."""

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Ids of a text, nothing added in front or behind.

        With `specials`, the special strings in the text ("[MASK]") become their ids; without it they are ordinary
        text, so that text from outside can never place a special id. Raises TokenizerError for text that is not
        valid Unicode (a lone surrogate).
        """

    def without_blank_space(self, text: str) -> str:
        """The text as `encode(text, specials=True)` reads it: without the white space that belongs to its blanks."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text; faster than one call per text where the tokenizer can."""

    def decode(self, ids: Sequence[int], *, skip_specials: bool = True) -> str:
        """Text of the ids. Bytes that are not valid UTF-8 become U+FFFD. Raises TokenizerError for an unknown id."""

    def id_to_token(self, index: int) -> str:
        """One token as people can read it."""

    def explain(self, text: str, *, specials: bool = True) -> Explanation:
        """The tokens of a text with what each stands for. specials: as in `encode`."""

    def fingerprint(self) -> str:
        """Hex SHA-256 over everything that decides how text is encoded."""

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the tokenizer's files into a directory, which is made when missing."""
