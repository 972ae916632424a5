"""Byte-level vocabularies, whose every id stands for bytes of UTF-8, and GPT-2's printable alphabet for bytes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from .incremental import ByteText
from .text_model import check_id


def byte_alphabet() -> list[str]:
    """The 256 printable characters that stand for the bytes 0..255 in byte-level BPE (GPT-2's published table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in table)
    table.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return [table[byte] for byte in range(256)]


BYTE_OF = {character: byte for byte, character in enumerate(byte_alphabet())}


class ByteTokens(ABC):
    """The half of a `TextModel` that goes from ids to text. token_bytes: by id; files: the published ones by name."""

    def __init__(self, token_bytes: list[bytes], files: Mapping[str, bytes]) -> None:
        self.token_bytes, self.files = token_bytes, dict(files)

    @property
    def size(self) -> int:
        return len(self.token_bytes)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special. Raises TokenizerError for a lone surrogate."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def token(self, index: int) -> str:
        """The token's text; bytes that are no whole characters as "<0xE4><0xB8>"."""
        check_id(index, self.size)
        raw = self.token_bytes[index]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in raw)

    def is_byte(self, index: int) -> bool:
        try:
            self.token_bytes[index].decode()
        except UnicodeDecodeError:
            return True
        return False

    def run(self) -> "ByteRun":
        return ByteRun(self.token_bytes)


class ByteRun:
    """Decodes consecutive ids. hidden: those without text."""

    def __init__(self, token_bytes: Sequence[bytes], hidden: frozenset[int] = frozenset()) -> None:
        self._token_bytes, self._hidden, self._text = token_bytes, hidden, ByteText(each=False)

    def feed(self, ids: Sequence[int]) -> str:
        for index in ids:
            check_id(index, len(self._token_bytes))
        return self._text.feed(b"".join(self._token_bytes[index] for index in ids if index not in self._hidden))

    def finish(self) -> str:
        return self._text.finish()
