"""Encodings of text: checking a name, reading as UTF-8, and a guess at what bytes that are not UTF-8 may be."""

import codecs
import io
import re
import string
from pathlib import Path

from glmkit.errors import DataError

_SAMPLE = 1 << 16  # bytes that a guess looks at
_LIKELY = 0.8  # share of the characters beyond ASCII that must be usual ones
# Encodings of whole scripts: the first bytes, in that encoding or its older core, of its punctuation and of the letters
# that most texts are written with (the first level of each national standard); and what an eighth of the text must be
# where the same bytes are as usual in another encoding: kana in Japanese, spaces in Korean.
_SCRIPTS = (
    ("shift_jis", "shift_jis", ((0x81, 0x83), (0x88, 0x97)), "[\u3041-\u30ff]"),
    ("euc_jp", "euc_jp", ((0xA1, 0xA5), (0xB0, 0xCF)), "[\u3041-\u30ff]"),
    ("euc_kr", "euc_kr", ((0xA1, 0xA3), (0xB0, 0xC8)), " "),
    ("gb18030", "gb2312", ((0xA1, 0xA3), (0xB0, 0xD7)), ""),
    ("big5", "big5", ((0xA1, 0xA3), (0xA4, 0xC6)), ""),
)
_WESTERN = "cp1252"
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_QUOTES = "‘’“”–—…€«»¿¡°§©®™•·"
_CYRILLIC = (("cp1251", 0xE0, 0xFF), ("koi8_r", 0xC0, 0xDF))  # where the small letters are
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_USUAL_WIDE = frozenset(" \t\r\n" + string.punctuation + _QUOTES + "　、。《》「」『』【】！（），：；？")


def check_encoding(name: str) -> str:
    """The codec's own name of a text encoding. Raises DataError for one that Python does not know."""
    try:
        found = codecs.lookup(name)
        "".encode(name)
        codecs.getincrementaldecoder(name)("surrogateescape").decode(b"a")  # codecs of host names refuse that
    except (LookupError, ValueError):
        raise DataError(
            f"encoding is {name!r}, which is unknown; give one such as utf-8, gb18030, big5, shift_jis, latin-1 or "
            "utf-16",
            param="encoding",
        ) from None
    return found.name


def guess_encoding(data: bytes) -> str | None:
    """The encoding that makes the most usual characters of bytes that are not UTF-8; None where none is likely."""
    data = data[:_SAMPLE]
    for mark, marked in _MARKS:
        if data.startswith(mark) and _decoded(data, marked) is not None:
            return marked
    best, name = _LIKELY, None
    for encoding, core, usual, sign in _SCRIPTS:
        text = _decoded(data, encoding) or ""
        beyond = [character for character in text if not character.isascii()]
        if sign and 8 * len(re.findall(sign, text)) < len(text):
            continue
        if beyond and (share := sum(_is_usual(one, core, usual) for one in beyond) / len(beyond)) > best:
            best, name = share, encoding
    if name is not None:
        return name
    high = [byte for byte in data if byte >= 0x80]
    for encoding, first, last in _CYRILLIC if 2 * len(high) > len(data) else ():
        if sum(first <= byte <= last for byte in high) > _LIKELY * len(high):
            return encoding
    western = _decoded(data, _WESTERN) or ""
    beyond = [character for character in western if not character.isascii()]
    words = sum(character.isalpha() or character in _QUOTES for character in beyond)
    return _WESTERN if words >= _LIKELY * len(beyond) and 2 * len(beyond) < len(western) else None


def encoding_hint(data: bytes) -> str:
    """Advice on bytes that are not UTF-8, as the end of a sentence."""
    if data.isascii() and b"\0" not in data:
        return ""
    if b"\0" in data and (wide := wide_hint(data)):
        return wide
    name = guess_encoding(data)
    return f"; if the file is {name.upper()}: --encoding {name}" if name else "; --encoding names another encoding"


def conversion_hint(data: bytes) -> str:
    """The same advice where only UTF-8 is read."""
    name = guess_encoding(data)
    return "" if name is None else f"; if the file is {name.upper()}: iconv -f {name} -t UTF-8 makes it readable"


def wide_hint(data: bytes) -> str:
    """Advice on bytes with zeros among them, as the end of a sentence; "" unless it is text of 16 or 32 bits."""
    for name in _WIDE:
        text = _decoded(data[: _SAMPLE - _SAMPLE % 4], name) or ""
        if text and sum(character in _USUAL_WIDE or character.isalnum() for character in text) > 0.95 * len(text):
            return f"; if the file is {name.upper()}: --encoding {name}"
    return ""


class Transcoded(io.RawIOBase):
    """The bytes of a stream in another encoding as UTF-8. Bytes that are wrong in it stay as they are, and so stay
    wrong; where it has no such form (UTF-16), they raise DataError."""

    def __init__(self, path: Path, source: io.BufferedReader, encoding: str) -> None:
        self._path, self._source, self._encoding = path, source, encoding
        self._decode = codecs.getincrementaldecoder(encoding)("surrogateescape").decode
        self._left = b""
        self._ended = False

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer; 0 at the end."""
        while not self._left and not self._ended:
            data = self._source.read1(1 << 16)
            self._ended = not data
            try:
                self._left = self._decode(data, self._ended).encode("utf-8", "surrogateescape")
            except UnicodeError as error:
                raise DataError(f"{self._path}: not {self._encoding}: {error}", param="encoding") from None
        part, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        """Close the source, too."""
        self._source.close()
        super().close()


def _decoded(data: bytes, encoding: str) -> str | None:
    """The text, but for a character cut at the end; None for bytes that the encoding does not have."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeDecodeError:
        return None


def _is_usual(character: str, core: str, usual: tuple[tuple[int, int], ...]) -> bool:
    try:
        first = character.encode(core)[0]
    except UnicodeEncodeError:
        return False
    return any(low <= first <= high for low, high in usual)
