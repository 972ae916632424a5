"""Byte-level BPE encoded by the `tokenizers` library and decoded here step by step.

The files are GPT-2's (`vocab.json` and `merges.txt`) or one `tokenizer.json`.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import tokenizers
from tokenizers import models, pre_tokenizers

from glmkit.errors import TokenizerError

from .byte_tokens import BYTE_OF, ByteTokens
from .library import checked_content, library_errors, set_plain
from .text_model import check_id, check_unicode
from .vocabulary_files import decode_vocabulary, parse_json

_MAX_UNMADE = 16  # entries that no merge makes, such as special strings: 9 in RoBERTa's vocabulary
_ALPHABET = list(BYTE_OF)
_JSON_FILE = "tokenizer.json"


class _LibraryBPE(ByteTokens):
    """A `TextModel` that a tokenizer of the library encodes for."""

    _tokenizer: tokenizers.Tokenizer

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        for text in texts:
            check_unicode(text)
        with library_errors("a text cannot be encoded"):
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


class ByteBPE(_LibraryBPE):
    """The vocabulary of GPT-2's kind: words by GPT-2's pattern, their UTF-8 bytes joined by merges."""

    def __init__(
        self,
        ids: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        source: str = "vocabulary",
        merges_source: str = "merges",
    ) -> None:
        """ids: entry -> id, without gaps. Raises TokenizerError for files that are no byte-level BPE."""
        self._ids, self.source = dict(ids), source
        self._entries = _by_id(self._ids, source)
        super().__init__([_entry_bytes(entry, source) for entry in self._entries], {})
        with library_errors(f"{merges_source} does not fit {source}", "take both from one model"):
            self._tokenizer = tokenizers.Tokenizer(models.BPE(vocab=self._ids, merges=list(merges)))
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        self._merges = list(merges)

    @classmethod
    def from_text(
        cls, vocabulary: str, merges: str, *, source: str = "vocabulary", merges_source: str = "merges"
    ) -> "ByteBPE":
        """Parse the texts of a vocab.json and a merges.txt (its first line is a version and is skipped)."""
        ids = parse_json(vocabulary, source)
        if not isinstance(ids, dict) or not ids or not all(type(index) is int for index in ids.values()):
            raise TokenizerError(f"{source}: must be an object of entry -> id", step="copy or download it again")
        pairs: list[tuple[str, str]] = []
        lines = merges.split("\n")
        for number, line in enumerate(lines[1:], 2):
            if not line and number == len(lines):
                break
            pair = line.split()
            if len(pair) != 2:
                raise TokenizerError(
                    f"{merges_source}: line {number} is {line[:40]!r}, not two entries", step="copy it again"
                )
            pairs.append((pair[0], pair[1]))
        if not pairs:
            raise TokenizerError(f"{merges_source}: no merges", step="copy or download it again")
        made = {left + right for left, right in pairs}
        unmade = [entry for entry in ids if len(entry) > 1 and entry not in made]
        if len(unmade) > _MAX_UNMADE:
            raise TokenizerError(
                f"{merges_source}: no merge makes {unmade[-1][:40]!r} and {len(unmade) - 1} other entries of {source}; "
                f"it is cut off or another model's, copy or download it again"
            )
        return cls(ids, pairs, source=source, merges_source=merges_source)

    def token(self, index: int) -> str:
        check_id(index, self.size)
        return self._entries[index]

    def find(self, token: str) -> int | None:
        return self._ids.get(token)

    def readable(self, index: int) -> str:
        """The entry's text; one that is not whole characters as its bytes, "<0xE4><0xB8>"."""
        return super().token(index)

    def __reduce__(self) -> tuple[object, ...]:
        return ByteBPE, (self._ids, self._merges)


class JsonVocabulary(_LibraryBPE):
    """A published `tokenizer.json`. Raises TokenizerError when `raw` is not one of a byte-level BPE.

    specials: string -> id of the special tokens that the file puts behind the vocabulary.
    """

    def __init__(self, raw: bytes, *, source: str = _JSON_FILE) -> None:
        self._source = source
        what, step = f"{source}: not a tokenizer.json", "copy or download it again"
        text = decode_vocabulary(raw, source)
        content = checked_content(parse_json(text, source), what)
        model = content["model"]
        if model["type"] != "BPE":
            raise TokenizerError(f"{source}: its model is {model['type']}; a byte-level BPE is expected")
        with library_errors(what, step):
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        vocabulary = model["vocab"]
        self._ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
        set_plain(self._tokenizer)
        self.specials: dict[str, int] = {
            entry["content"]: entry["id"] for entry in content["added_tokens"] if entry.get("special")
        }
        for name in self.specials:
            self._ids.pop(name, None)
        super().__init__([_entry_bytes(entry, source) for entry in _by_id(self._ids, source)], {_JSON_FILE: raw})

    def find(self, token: str) -> int | None:
        return self._ids.get("".join(_ALPHABET[byte] for byte in token.encode()))

    def __reduce__(self) -> tuple[object, ...]:
        return partial(JsonVocabulary, source=self._source), (self.files[_JSON_FILE],)


def _by_id(ids: Mapping[str, int], source: str) -> list[str]:
    entries = [""] * len(ids)
    for entry, index in ids.items():
        if not 0 <= index < len(ids) or entries[index]:
            raise TokenizerError(
                f"{source}: {len(ids)} entries, but id {index} of {entry!r} is out of line", step="copy again"
            )
        entries[index] = entry
    return entries


def _entry_bytes(entry: str, source: str) -> bytes:
    try:
        return bytes(BYTE_OF[character] for character in entry)
    except KeyError:
        raise TokenizerError(
            f"{source}: entry {entry[:40]!r} is not byte-level BPE; is this another model's?"
        ) from None
