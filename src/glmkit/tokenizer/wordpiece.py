"""BERT's wordpieces: words cut at spaces, punctuation and Chinese characters, then spelt with the longest entries.

Source: `THUDM/GLM:data_utils/wordpiece.py` (BERT's published rules), J. Devlin et al. 2018. The `tokenizers` library
would give other ids: its tables are of an older Unicode, so that it cuts differently at 759 assigned characters, and it
lowers Σ without regard to its place in the word.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain

from glmkit.errors import TokenizerError

from .text_model import check_id, check_unicode

_LONGEST_WORD = 100  # characters; longer ones are unknown
_CACHED_WORDS = 1 << 17
_GLUE = "##"  # in front of entries that go on with a word
_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class WordPiece:
    """A `TextModel` of BERT's kind."""

    def __init__(
        self, entries: Sequence[str], *, lower: bool = True, unknown: str = "[UNK]", source: str = "vocabulary"
    ) -> None:
        """entries: by id. Raises TokenizerError for a vocabulary without the unknown entry."""
        self._entries = list(entries)
        self._ids = {entry: index for index, entry in enumerate(self._entries)}  # of equal entries the last, as BERT
        if unknown not in self._ids:
            raise TokenizerError(f"{source}: no entry {unknown} among {len(self._entries)}; not a BERT vocabulary")
        self.lower, self.source = lower, source
        self._words = _Words(self._ids, self._ids[unknown], lower)

    @classmethod
    def from_text(cls, text: str, *, lower: bool = True, source: str = "vocabulary") -> "WordPiece":
        """Parse the text of a vocab.txt: one entry on each line."""
        lines = text.split("\n")
        if lines and not lines[-1]:
            lines.pop()
        return cls([line.strip() for line in lines], lower=lower, source=source)

    @property
    def size(self) -> int:
        return len(self._entries)

    def encode(self, text: str) -> list[int]:
        check_unicode(text)
        words = text.translate(_CLEAN).split()
        return list(chain.from_iterable(map(self._words.__getitem__, words)))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def token(self, index: int) -> str:
        check_id(index, self.size)
        return self._entries[index]

    def find(self, token: str) -> int | None:
        return self._ids.get(token)

    def is_byte(self, index: int) -> bool:
        return False

    def run(self) -> "WordPieceRun":
        return WordPieceRun(self._entries)


class WordPieceRun:
    """Decodes consecutive ids: entries with spaces between them, those of one word joined."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._entries, self._started = entries, False

    def feed(self, ids: Sequence[int]) -> str:
        parts: list[str] = []
        for index in ids:
            check_id(index, len(self._entries))
            parts += glued(self._entries[index], self._started)
            self._started = True
        return "".join(parts)

    def finish(self) -> str:
        return ""


def glued(entry: str, started: bool) -> tuple[str, str]:
    """An entry with what stands in front of it: nothing at the start and inside a word, else a space."""
    if not started:
        return "", entry
    return ("", entry[len(_GLUE) :]) if entry.startswith(_GLUE) else (" ", entry)


class _Words(dict[str, list[int]]):
    """Ids of what stands between two spaces, filled on demand and emptied when full."""

    def __init__(self, ids: dict[str, int], unknown: int, lower: bool) -> None:
        self._ids, self._unknown, self._lower = ids, unknown, lower

    def __missing__(self, word: str) -> list[int]:
        text = _plain(word) if self._lower else word
        found = list(chain.from_iterable(map(self._spell, _cut_punctuation(text))))
        if len(word) <= _LONGEST_WORD:
            if len(self) >= _CACHED_WORDS:
                self.clear()
            self[word] = found
        return found

    def _spell(self, word: str) -> list[int]:
        if len(word) > _LONGEST_WORD:
            return [self._unknown]
        found: list[int] = []
        start = 0
        while start < len(word):
            glue = _GLUE if start else ""
            for end in range(len(word), start, -1):
                index = self._ids.get(glue + word[start:end])
                if index is not None:
                    found.append(index)
                    start = end
                    break
            else:
                return [self._unknown]
        return found


class _Clean(dict[int, str | None]):
    """Rules for `str.translate`: control characters go, white space is a space, Chinese characters stand alone."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        result: str | None = character
        if character in "\t\n\r" or unicodedata.category(character) == "Zs":
            result = " "
        elif code in (0, 0xFFFD) or unicodedata.category(character).startswith("C"):
            result = None
        elif any(first <= code <= last for first, last in _CHINESE):
            result = f" {character} "
        self[code] = result
        return result


_CLEAN = _Clean()


def _plain(word: str) -> str:
    """Lower case without accents."""
    word = word.lower()
    if word.isascii():
        return word
    return "".join(c for c in unicodedata.normalize("NFD", word) if unicodedata.category(c) != "Mn")


def _cut_punctuation(word: str) -> Iterable[str]:
    """The word's parts: every punctuation character alone, what is between them, white space dropped."""
    if word.isalnum():
        return (word,)
    spaced = "".join(f" {c} " if _is_punctuation(c) else c for c in word)
    return spaced.split()


def _is_punctuation(character: str) -> bool:
    code = ord(character)
    if 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126:
        return True
    return unicodedata.category(character).startswith("P")
