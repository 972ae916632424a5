"""Byte-level BPE over explicit ranks: files of lines "base64 rank", read by the `tiktoken` library.

The library needs time that grows with the square of a word's length, and a regular expression that may overflow on
long runs of white space. So long texts are cut first, only where the word split certainly cuts them anyway, and long
words are encoded in windows, joined only where byte pair encoding certainly would not join them: the ids stay the same.
"""

import base64
import re
from collections.abc import Iterator
from functools import cached_property, partial
from typing import TYPE_CHECKING

from tokenizers import Regex, pre_tokenizers

from glmkit.errors import TokenizerError

from .byte_tokens import ByteTokens
from .library import library_errors
from .text_model import check_unicode

if TYPE_CHECKING:
    import tiktoken

# The word split of the published file (`THUDM/glm-4-9b-chat:tokenization_chatglm.py`), in the order of its choices.
SPLIT_PATTERN = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+")
# A word never goes on from a letter to one of these marks, nor from a line break to a letter.
_CERTAIN_CUT = re.compile('[A-Za-z一-龥](?=[ \\n\\t.,;:!?()<>"，。、；：！？（）《》“”])|\\n(?=[A-Za-z一-龥])')
_SEGMENT = 1024  # characters after which a cut is looked for
_LONG_SEGMENT = 4096  # characters; longer ones are split here, not by the library
_WINDOW = 1024  # bytes of a long word encoded at a time
_LONG_WORD = 2048  # bytes


def parse_ranks(raw: bytes, source: str) -> dict[bytes, int]:
    """Token bytes -> rank of the lines "base64 rank". Raises TokenizerError naming the file and what it is instead."""
    lines = raw.splitlines()
    if not lines or not _LINE.fullmatch(lines[0]):
        raise TokenizerError(f"{source}: not a tiktoken vocabulary (lines of base64 and rank): {_what_is(raw)}")
    try:
        pairs = (line.split() for line in lines if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError:
        number = next(i for i, line in enumerate(lines, 1) if line and not _LINE.fullmatch(line))
        raise TokenizerError(f"{source}: line {number} is not base64 and a rank", step="get the file again") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(f"{source}: the ranks are not 0 .. {len(ranks) - 1}, each once", step="get the file again")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise TokenizerError(f"{source}: byte {missing[0]} is not in the vocabulary, so text could be lost")
    return ranks


class RankVocabulary(ByteTokens):
    """A `TextModel` of ranks: the ids are the ranks. Raises TokenizerError when `raw` is no such file."""

    def __init__(self, raw: bytes, *, source: str = "tokenizer.model", pattern: str = SPLIT_PATTERN) -> None:
        self._source, self._pattern = source, pattern
        self._ranks = parse_ranks(raw, source)
        table = [b""] * len(self._ranks)
        for token, rank in self._ranks.items():
            table[rank] = token
        super().__init__(table, {"tokenizer.model": raw})

    @cached_property
    def _encoding(self) -> "tiktoken.Encoding":
        import tiktoken

        return tiktoken.Encoding("ranks", pat_str=self._pattern, mergeable_ranks=self._ranks, special_tokens={})

    @cached_property
    def _words(self) -> pre_tokenizers.Split:
        return pre_tokenizers.Split(Regex(self._pattern), "isolated")

    def encode(self, text: str) -> list[int]:
        check_unicode(text)
        with library_errors(f"{self._source}: a text cannot be encoded"):
            return self._encoded(text)

    def _encoded(self, text: str) -> list[int]:
        if len(text) <= _LONG_SEGMENT:
            return self._native(text)
        ids: list[int] = []
        for segment in segments(text):
            if len(segment) <= _LONG_SEGMENT:
                ids += self._native(segment)
            else:
                for word, _ in self._words.pre_tokenize_str(segment):
                    ids += self.encode_word(word.encode())
        return ids

    def find(self, token: str) -> int | None:
        return self._ranks.get(token.encode())

    def _native(self, text: str) -> list[int]:
        ids: list[int] = self._encoding.encode_ordinary(text)
        return ids

    def encode_word(self, word: bytes) -> list[int]:
        """Ids of one word of the split, of any length."""
        if len(word) <= _LONG_WORD:
            return self._single(word)
        ids: list[int] = []
        start, reached, window = 0, 0, _WINDOW
        while start < len(word):
            fresh = self._single(word[start : start + window])
            if ids and not self._stay_apart(ids[-1], fresh[0]):
                start -= len(self.token_bytes[ids.pop()])
                if reached - start > window // 2:
                    window *= 2
                continue
            if start + window < len(word) and len(fresh) > 2:
                del fresh[-2:]  # the last tokens rarely stay as they are when more text follows
            ids += fresh
            start += sum(len(self.token_bytes[index]) for index in fresh)
            reached = start
        return ids

    def _single(self, word: bytes) -> list[int]:
        ids: list[int] = self._encoding._encode_single_piece(word)
        return ids

    def _stay_apart(self, left: int, right: int) -> bool:
        """True when these two tokens, side by side, are encoded as themselves.

        Merges are taken in the order of their ranks, so what happens between two neighbours does not depend on the
        rest: a row of tokens is what byte pair encoding gives exactly when every two neighbours stay apart.
        """
        return self._single(self.token_bytes[left] + self.token_bytes[right]) == [left, right]

    def __reduce__(self) -> tuple[object, ...]:
        return partial(RankVocabulary, source=self._source, pattern=self._pattern), (self.files["tokenizer.model"],)


def segments(text: str) -> Iterator[str]:
    """The text in pieces of about a thousand characters, cut only between words; longer where no cut is certain."""
    start = 0
    while len(text) - start > 2 * _SEGMENT:
        found = _CERTAIN_CUT.search(text, start + _SEGMENT)
        if found is None:
            break
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]


def looks_like_ranks(raw: bytes) -> bool:
    """True when a file begins as `parse_ranks` expects."""
    return _LINE.fullmatch(raw[:4096].split(b"\n", 1)[0].rstrip()) is not None


def _what_is(raw: bytes) -> str:
    if b"<unk>" in raw[:64]:
        return "it is a SentencePiece model, of another model family; give the directory of the right one"
    return f"it begins with {raw[:24]!r}; copy or download it again"
