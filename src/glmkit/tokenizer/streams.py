"""Decoding piece by piece: ids go in, text comes out as soon as nothing that follows can change it.

A tokenizer's `decode` and its step-by-step decoding are the same machine, fed at once or id by id, so they cannot
disagree. Text filters stand behind it: replacements that may span several tokens hold back what might still be part of
a match.
"""

import codecs
import re
from collections.abc import Callable, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"


class IdStream(Protocol):
    """Ids in, text out."""

    def feed(self, ids: Sequence[int]) -> str:
        """The text that these ids make certain."""
        ...

    def finish(self) -> str:
        """What was held back, at the end of the ids. The stream is used up."""
        ...


class TextFilter(Protocol):
    """Text in, text out."""

    def feed(self, text: str) -> str:
        """The output that this text makes certain."""
        ...

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        ...


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


# What the published classes do to the spaces of decoded text, in their order.
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
