"""Decoding piece by piece: ids go in, text comes out as soon as nothing that follows can change it.

A tokenizer's `decode` and its step-by-step decoding are the same machine, fed at once or id by id, so they cannot
disagree. Text filters stand behind it: replacements that may span several tokens hold back what might still be part of
a match.
"""

import codecs
import re
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from .text_model import IdStream, as_ids

REPLACEMENT = "\ufffd"


class TextFilter(Protocol):
    """Text in, text out."""

    def feed(self, text: str) -> str:
        """The output that this text makes certain."""

    def finish(self) -> str:
        """The text that was held back, at the end."""


class FilteredStream:
    """An id stream with text filters behind it."""

    def __init__(self, source: IdStream, filters: Sequence[TextFilter]) -> None:
        self._source, self._filters = source, filters

    def feed(self, ids: Sequence[int]) -> str:
        text = self._source.feed(ids)
        for each in self._filters:
            text = each.feed(text)
        return text

    def finish(self) -> str:
        text = self._source.finish()
        for each in self._filters:
            text = each.feed(text) + each.finish()
        return text


class Replace:
    """`str.replace` of one string, in steps."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new, self._held = old, new, ""
        self._starts = [old[:length] for length in range(len(old) - 1, 0, -1)]

    def feed(self, text: str) -> str:
        if not text:
            return ""
        parts = (self._held + text).split(self._old)
        tail = parts[-1]
        # The rest of a match may still come.
        self._held = next((start for start in self._starts if tail.endswith(start)), "")
        if self._held:
            parts[-1] = tail[: -len(self._held)]
        return self._new.join(parts)

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


class ReplacePattern:
    """`re.sub` in steps, for a pattern whose matches begin with one character that stands nowhere else in them.

    starts: every beginning of a possible match, shorter than the match.
    """

    def __init__(self, pattern: re.Pattern[str], new: Callable[[re.Match[str]], str], starts: frozenset[str]) -> None:
        self._pattern, self._new, self._starts, self._held = pattern, new, starts, ""
        (self._first,) = {start[0] for start in starts}

    def feed(self, text: str) -> str:
        if not text:
            return ""
        text = self._held + text
        last = text.rfind(self._first)
        cut = last if last >= 0 and text[last:] in self._starts else len(text)
        self._held = text[cut:]
        return self._pattern.sub(self._new, text[:cut])

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


# Changes that the published classes make to the spaces of decoded text, in order.
# Source: `huggingface/transformers:src/transformers/tokenization_utils_base.py` (clean_up_tokenization).
_CLEAN_UP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def clean_up_filters() -> list[TextFilter]:
    """The space rules of the published decoders ("a , b" becomes "a, b"), as filters in order."""
    return [Replace(old, new) for old, new in _CLEAN_UP]


class ByteText:
    """UTF-8 bytes to text in steps. `each`: one U+FFFD for every byte that fits nowhere, as SentencePiece does it;
    otherwise one for every longest beginning of a character, as Python does.
    """

    def __init__(self, *, each: bool) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(_EACH_BYTE if each else "replace")

    def feed(self, data: bytes) -> str:
        """The characters that are complete or certainly wrong."""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """The beginning of a character that never got complete; new text may follow."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


_EACH_BYTE = "glmkit.each_byte"


def _replace_one_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return REPLACEMENT, error.start + 1


codecs.register_error(_EACH_BYTE, _replace_one_byte)


class Decodes(Protocol):
    """The part of a `Tokenizer` that gives text."""

    def decode(self, ids: Sequence[int], *, skip_specials: bool = True) -> str: ...


@runtime_checkable
class Streaming(Protocol):
    """A tokenizer whose `decode` can be fed id by id."""

    def stream(self, *, skip_specials: bool = True) -> IdStream:
        """A fresh decoder; what it gives joined is `decode` of all ids."""


class IncrementalDecoder:
    """Decodes ids one by one; the pieces joined equal `tokenizer.decode` of all ids.

    A character whose bytes are spread over several tokens is held back until it is complete, so no piece ends in a
    broken character. Tokenizers that are `Streaming` bring their own decoder. Any other works too: each step decodes a
    short window that starts one step earlier, so that tokenizers that treat the first token of a text differently (a
    dummy space) still give the text of the whole.
    """

    def __init__(self, tokenizer: Decodes, *, skip_specials: bool = True, whole: bool = False) -> None:
        """whole: a character at the end whose last bytes never came is left out, where `decode` has U+FFFD."""
        self._tokenizer = tokenizer
        self._skip_specials = skip_specials
        self._whole = whole
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
        else:
            text = self._advance(final=True)
            self._window, self._shown, self._ahead = [], 0, 0
        return text.rstrip(REPLACEMENT) if self._whole else text

    def _new_stream(self) -> IdStream | None:
        if isinstance(self._tokenizer, Streaming):
            return self._tokenizer.stream(skip_specials=self._skip_specials)
        return None

    def _advance(self, final: bool) -> str:
        before = self._decode(self._window[: self._shown])
        fresh = self._decode(self._window)[len(before) :]
        # An unfinished character shows as replacement characters at the end: at most one for each of three bytes.
        certain = len(fresh)
        while not final and certain and len(fresh) - certain < 3 and fresh[certain - 1] == REPLACEMENT:
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


def whole_text(tokenizer: Decodes, ids: Sequence[int], *, skip_specials: bool = True) -> str:
    """The text of ids that may have been cut inside a character, without the beginning of that character."""
    text = tokenizer.decode(ids, skip_specials=skip_specials)
    if not text.endswith(REPLACEMENT):
        return text
    decoder = IncrementalDecoder(tokenizer, skip_specials=skip_specials, whole=True)
    return "".join([*map(decoder.push, ids), decoder.flush()])
