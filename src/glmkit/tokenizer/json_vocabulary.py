"""A byte-level vocabulary from a published `tokenizer.json`, read by the `tokenizers` library."""

import json
from collections.abc import Mapping
from typing import Any

import tokenizers

from glmkit.errors import TokenizerError

from .byte_table import byte_alphabet
from .byte_tokens import ByteTokens
from .text_model import check_unicode

_FILE = "tokenizer.json"


class JsonVocabulary(ByteTokens):
    """A `TextModel`. Raises TokenizerError when `raw` is not the `tokenizer.json` of a byte-level BPE.

    specials: string -> id of the special tokens that the file puts behind the vocabulary.
    """

    def __init__(self, raw: bytes, *, source: str = _FILE) -> None:
        self._source = source
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(raw.decode())
            content: dict[str, Any] = json.loads(raw)
            kind, self._ids = content["model"].get("type", "BPE"), dict(content["model"]["vocab"])
        except Exception as error:  # the library raises bare Exception
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise TokenizerError(f"{source}: not a tokenizer.json ({reason}); copy or download it again") from error
        if kind != "BPE":
            raise TokenizerError(f"{source}: its model is {kind}; a byte-level BPE is expected")
        self._tokenizer.encode_special_tokens = True  # special strings in a text are text
        self.specials: dict[str, int] = {
            str(entry["content"]): int(entry["id"]) for entry in content.get("added_tokens") or () if entry["special"]
        }
        for name in self.specials:
            self._ids.pop(name, None)
        super().__init__(_table(self._ids, source), {_FILE: raw})

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        for text in texts:
            check_unicode(text)
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def find(self, token: str) -> int | None:
        alphabet = byte_alphabet()
        return self._ids.get("".join(alphabet[byte] for byte in token.encode()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.files[_FILE], self._source)


def _rebuilt(raw: bytes, source: str) -> JsonVocabulary:
    return JsonVocabulary(raw, source=source)


def _table(ids: Mapping[str, int], source: str) -> list[bytes]:
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    table: dict[int, bytes] = {}
    for token, index in ids.items():
        try:
            table[index] = bytes(byte_of[character] for character in token)
        except KeyError:
            raise TokenizerError(f"{source}: token {token!r} is not byte-level BPE") from None
    if sorted(table) != list(range(len(table))):
        raise TokenizerError(f"{source}: the ids of the vocabulary are not 0 .. {len(table) - 1}, each once")
    return [table[index] for index in range(len(table))]
