"""A SentencePiece vocabulary (unigram or BPE), encoded by the `sentencepiece` library and decoded here step by step.

Decoding follows `google/sentencepiece:src/sentencepiece_processor.cc` (Decode), which the tests compare it with.
"""

import os
import struct
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from glmkit.errors import TokenizerError

from .incremental import ByteText
from .text_model import check_id, check_unicode
from .vocabulary_files import read_vocabulary

if TYPE_CHECKING:
    import sentencepiece

SPACE = "\u2581"  # stands for a space inside pieces
UNKNOWN_TEXT = " \u2047 "  # what the library gives for the unknown piece

# How much of the white space in front of a text decoding drops: every leading piece's, the first one's, none.
_Leading = Literal["all", "one", "none"]


class SentencePieceModel:
    """A `TextModel` read from the bytes of a `.model` file."""

    def __init__(self, data: bytes, *, source: str = "vocabulary") -> None:
        """Raise TokenizerError when the bytes are no SentencePiece model."""
        import sentencepiece

        self.data, self.source = data, source
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(data)
            self.size = int(self._model.GetPieceSize())
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).split("\n")[-1].strip() or type(error).__name__
            raise TokenizerError(
                f"{source}: not a SentencePiece model, or a damaged one ({reason})", step="copy or download it again"
            ) from None
        if not self.size:
            raise TokenizerError(f"{source}: a SentencePiece model without pieces", step="copy or download it again")
        self._surfaces = _Surfaces(self._model)
        self.leading: _Leading = self._find_leading()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SentencePieceModel":
        """Read a `.model` file. Raises TokenizerError naming it."""
        return cls(read_vocabulary(path), source=str(Path(path)))

    def encode(self, text: str) -> list[int]:
        check_unicode(text)
        ids: list[int] = self._model.EncodeAsIds(text)
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        for text in texts:
            check_unicode(text)
        ids: list[list[int]] = self._model.EncodeAsIds(texts) if texts else []
        return ids

    def pieces(self, text: str) -> list[str]:
        """The parts that a text is cut into; parts that the vocabulary cannot write as they are."""
        check_unicode(text)
        found: list[str] = self._model.EncodeAsPieces(text)
        return found

    def token(self, index: int) -> str:
        check_id(index, self.size)
        return str(self._model.IdToPiece(index))

    def find(self, token: str) -> int | None:
        index = int(self._model.PieceToId(token))
        return index if self._model.IdToPiece(index) == token else None

    def is_byte(self, index: int) -> bool:
        return bool(self._model.IsByte(index))

    def is_control(self, index: int) -> bool:
        """True for an entry that never comes from text and stands for none (<s>, [MASK])."""
        return bool(self._model.IsControl(index))

    def is_unknown(self, index: int) -> bool:
        """True for the entry that stands for what the vocabulary cannot write."""
        return bool(self._model.IsUnknown(index))

    def run(self) -> "SentencePieceRun":
        return SentencePieceRun(self)

    def __reduce__(self) -> tuple[object, ...]:
        return partial(SentencePieceModel, source=self.source), (self.data,)

    def _find_leading(self) -> _Leading:
        """Find out by trying, for the library does not tell how its normaliser is set."""
        space = self.find(SPACE)
        ordinary = next((i for i in range(self.size) if isinstance(self._surfaces[i], str) and self._is_plain(i)), None)
        if space is None or ordinary is None:
            return "all"
        text = str(self._model.DecodeIds([space, space, ordinary]))
        return {0: "all", 1: "one"}.get(len(text) - len(text.lstrip(" ")), "none")  # type: ignore[return-value]

    def _is_plain(self, index: int) -> bool:
        piece = str(self._model.IdToPiece(index))
        return SPACE not in piece and not self.is_control(index) and not self.is_unknown(index)


class SentencePieceRun:
    """Decodes consecutive ids."""

    def __init__(self, model: SentencePieceModel) -> None:
        self._surfaces, self._size, self._leading = model._surfaces, model.size, model.leading
        self._bytes = ByteText(each=True)
        self._in_bytes = False
        self._at_start = model.leading != "none"  # still where a leading space is dropped

    def feed(self, ids: Sequence[int]) -> str:
        parts: list[str] = []
        surfaces = self._surfaces
        for index in ids:
            if index not in surfaces:
                check_id(index, self._size)
            surface = surfaces[index]
            if isinstance(surface, int):
                parts.append(self._bytes.feed(bytes((surface,))))
                self._in_bytes = True
                continue
            if self._in_bytes:
                parts.append(self.finish())
            if self._at_start:
                surface = self._without_leading(surface)
            parts.append(surface)
        return "".join(parts)

    def literal(self, text: str) -> str:
        """Text that stands for itself, as a piece outside the vocabulary does."""
        before = self.finish()
        self._at_start = self._at_start and not text
        return before + text

    def finish(self) -> str:
        if self._in_bytes:
            self._in_bytes = self._at_start = False
            return self._bytes.finish()
        return ""

    def _without_leading(self, surface: str) -> str:
        if surface == UNKNOWN_TEXT:
            self._at_start = False
        elif surface.startswith(" "):
            surface = surface[1:]
            self._at_start = self._leading == "all" and not surface
        elif surface:
            self._at_start = False
        return surface


class _Surfaces(dict[int, str | int]):
    """The text of each id, or the number of a byte, filled on demand."""

    def __init__(self, model: "sentencepiece.SentencePieceProcessor") -> None:
        self._model = model

    def __missing__(self, index: int) -> str | int:
        model = self._model
        surface: str | int
        if model.IsByte(index):
            surface = int(model.IdToPiece(index)[3:5], 16)
        elif model.IsControl(index):
            surface = ""
        elif model.IsUnknown(index):
            surface = UNKNOWN_TEXT
        else:
            surface = str(model.IdToPiece(index)).replace(SPACE, " ")
        self[index] = surface
        return surface


PieceKind = Literal["normal", "control", "user", "byte"]
_KINDS: dict[PieceKind, int] = {"normal": 1, "control": 3, "user": 4, "byte": 6}
_PIECES, _TRAINER, _BYTE_FALLBACK = 1, 2, 35  # field numbers of ModelProto and TrainerSpec


def append_pieces(data: bytes, pieces: Iterable[tuple[str, PieceKind]]) -> bytes:
    """The model with more pieces behind its own; byte pieces switch byte fallback on.

    "control" pieces never come from text; "user" pieces always do where their string stands. Protocol buffers merge
    what is written one behind the other (`google/sentencepiece:src/sentencepiece_model.proto`).
    """
    parts, has_bytes = [data], False
    for text, kind in pieces:
        name = text.encode()
        body = b"\x0a" + _varint(len(name)) + name + b"\x15" + struct.pack("<f", 0.0) + b"\x18" + bytes((_KINDS[kind],))
        parts.append(_varint(_PIECES << 3 | 2) + _varint(len(body)) + body)
        has_bytes |= kind == "byte"
    if has_bytes:
        body = _varint(_BYTE_FALLBACK << 3) + b"\x01"
        parts.append(_varint(_TRAINER << 3 | 2) + _varint(len(body)) + body)
    return b"".join(parts)


def byte_pieces() -> list[tuple[str, PieceKind]]:
    """The 256 pieces that byte fallback needs."""
    return [(f"<0x{byte:02X}>", "byte") for byte in range(256)]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
