"""SentencePiece with own pieces for line breaks, tabs and runs of spaces, and with ids of another kind in front.

The text is rewritten before it is encoded ("\\n" to "<n>") and back after it is decoded. So a person who writes the
string "<n>" gets a line break: those strings are the only ones that cannot be told apart from white space, and no other
meaning hides behind them. Source: `THUDM/chatglm-6b:tokenization_chatglm.py` (SPTokenizer), `THUDM/icetk`.
"""

import re
from collections.abc import Sequence

from .incremental import FilteredStream, ReplacePattern, TextFilter
from .sentencepiece import SentencePieceModel
from .text_model import IdStream, check_id

_LINE, _TAB = "<n>", "<|tab|>"
_LONGEST_BLANK = 80
_SPACES = re.compile(f" {{2,{_LONGEST_BLANK}}}")
_IMAGE = re.compile(r"<image_(\d+)>")

_BLANKS = {f"<|blank_{length}|>": " " * length for length in range(2, _LONGEST_BLANK + 1)}
_WHITE_SPACE = {_LINE: "\n", _TAB: "\t", **_BLANKS}
_PIECE = re.compile("|".join(map(re.escape, _WHITE_SPACE)))
_STARTS = frozenset(name[:end] for name in _WHITE_SPACE for end in range(1, len(name)))


def white_space_pieces() -> list[str]:
    """The pieces for a tab and for runs of spaces, in the order of their ids ("<n>" is part of the vocabulary)."""
    return [_TAB, *_BLANKS]


class WhitespacePieces:
    """A `TextModel` whose ids are those of the pieces plus `offset`; ids below that are image codes."""

    def __init__(self, pieces: SentencePieceModel, *, offset: int = 0) -> None:
        self.pieces, self.offset = pieces, offset
        self.size = offset + pieces.size

    def encode(
        self, text: str, *, linebreak: bool = True, whitespaces: bool = True, dummy_prefix: bool = True
    ) -> list[int]:
        """Ids of a text. linebreak, whitespaces: keep line breaks, or tabs and runs of spaces, which otherwise become
        one space. dummy_prefix: encode as if a space stood in front, as every text is unless it goes on from another.
        """
        text = _written(text, linebreak, whitespaces)
        ids = self.pieces.encode(text if dummy_prefix else _LINE + text)
        return [index + self.offset for index in (ids if dummy_prefix else ids[2:])]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        rows = self.pieces.encode_batch([_written(text, True, True) for text in texts])
        return [[index + self.offset for index in row] for row in rows] if self.offset else rows

    def token(self, index: int) -> str:
        check_id(index, self.size)
        return self.pieces.token(index - self.offset) if index >= self.offset else f"<image_{index}>"

    def find(self, token: str) -> int | None:
        image = _IMAGE.fullmatch(token)
        if image and int(image[1]) < self.offset:
            return int(image[1])
        index = self.pieces.find(token)
        return None if index is None else index + self.offset

    def is_byte(self, index: int) -> bool:
        return index >= self.offset and self.pieces.is_byte(index - self.offset)

    def run(self) -> IdStream:
        filters: list[TextFilter] = [ReplacePattern(_PIECE, lambda found: _WHITE_SPACE[found[0]], _STARTS)]
        return FilteredStream(_OffsetRun(self.pieces, self.offset), filters)


class _OffsetRun:
    def __init__(self, pieces: SentencePieceModel, offset: int) -> None:
        self._run, self._offset, self._size = pieces.run(), offset, offset + pieces.size

    def feed(self, ids: Sequence[int]) -> str:
        offset = self._offset
        if not offset:
            return self._run.feed(ids)
        parts: list[str] = []
        for index in ids:
            check_id(index, self._size)
            image = index < offset
            parts.append(self._run.literal(f"<image_{index}>") if image else self._run.feed((index - offset,)))
        return "".join(parts)

    def finish(self) -> str:
        return self._run.finish()


def _written(text: str, linebreak: bool, whitespaces: bool) -> str:
    if linebreak:
        text = text.replace("\n", _LINE)
    if whitespaces:
        text = _SPACES.sub(lambda found: f"<|blank_{len(found[0])}|>", text.replace("\t", _TAB))
    return text
