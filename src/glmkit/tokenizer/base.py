"""What every tokenizer offers, and decoding one token at a time."""

import os
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from glmkit.config import SpecialIds

from .explanation import Explanation
from .streams import IdStream
from .text_model import as_ids

_REPLACEMENT = "\ufffd"


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. Ids are 0 .. vocab_size - 1."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included (not the padded rows of an embedding)."""
        ...

    @property
    def special(self) -> SpecialIds:
        """The special ids by role."""
        ...

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Ids of a text, nothing added in front or behind.

        With `specials`, the special strings in the text ("[MASK]") become their ids; without it they are ordinary
        text, so that text from outside can never place a special id. Raises TokenizerError for text that is not
        valid Unicode (a lone surrogate).
        """
        ...

    def without_blank_space(self, text: str) -> str:
        """The text as `encode(text, specials=True)` reads it: without the white space that belongs to its blanks."""
        ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text; faster than one call per text where the tokenizer can."""
        ...

    def decode(self, ids: Sequence[int], *, skip_specials: bool = True) -> str:
        """Text of the ids. Bytes that are not valid UTF-8 become U+FFFD. Raises TokenizerError for an unknown id."""
        ...

    def id_to_token(self, index: int) -> str:
        """One token as people can read it."""
        ...

    def explain(self, text: str, *, specials: bool = True) -> Explanation:
        """The tokens of a text with what each stands for. specials: as in `encode`."""
        ...

    def fingerprint(self) -> str:
        """Hex SHA-256 over everything that decides how text is encoded."""
        ...

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the tokenizer's files into a directory, which is made when missing."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """A tokenizer whose `decode` can be fed id by id."""

    def stream(self, *, skip_specials: bool = True) -> IdStream:
        """A fresh decoder; what it gives joined is `decode` of all ids."""
        ...


class IncrementalDecoder:
    """Decodes ids one by one; the pieces joined equal `tokenizer.decode` of all ids.

    A character whose bytes are spread over several tokens is held back until it is complete, so no piece ends in a
    broken character. Tokenizers that are `Streaming` bring their own decoder. Any other works too: each step decodes a
    short window that starts one step earlier, so that tokenizers that treat the first token of a text differently (a
    dummy space) still give the text of the whole.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_specials: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_specials = skip_specials
        self._window: list[int] = []  # ids since the start of the step before
        self._shown = 0  # ids of the window whose text is out
        self._ahead = 0  # characters of the rest that are out already
        self._stream = self._new_stream()

    def push(self, index: int) -> str:
        """Add one id; returns the text that is now certain (often the token, "" inside a character)."""
        ids = as_ids((index,))
        if self._stream is not None:
            return self._stream.feed(ids)
        self._window += ids
        return self._advance(final=False)

    def flush(self) -> str:
        """The text still held back, at the end of the ids. The decoder is as new afterwards."""
        if self._stream is not None:
            text = self._stream.finish()
            self._stream = self._new_stream()
            return text
        text = self._advance(final=True)
        self._window, self._shown, self._ahead = [], 0, 0
        return text

    def _new_stream(self) -> IdStream | None:
        if isinstance(self._tokenizer, Streaming):
            return self._tokenizer.stream(skip_specials=self._skip_specials)
        return None

    def _advance(self, final: bool) -> str:
        before = self._decode(self._window[: self._shown])
        fresh = self._decode(self._window)[len(before) :]
        # An unfinished character shows as replacement characters at the end: at most one for each of three bytes.
        certain = len(fresh)
        while not final and certain and len(fresh) - certain < 3 and fresh[certain - 1] == _REPLACEMENT:
            certain -= 1
        text = fresh[self._ahead : certain]
        if certain == len(fresh):
            if fresh:
                self._window = self._window[self._shown :]
            self._shown, self._ahead = len(self._window), 0
        else:
            self._ahead = max(self._ahead, certain)
        return text

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_specials=self._skip_specials) if ids else ""
