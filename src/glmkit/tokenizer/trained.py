"""Tokenizers that glmkit trains itself: byte-level BPE, and unigram with byte fallback.

Both live in the `tokenizer.json` of the `tokenizers` library. Every byte is in the vocabulary, so every text comes back
exactly: decode(encode(text)) == text. The special strings are cut out of the text here, only when asked for, and never
by the library: ordinary text that happens to read "[MASK]" stays ordinary text.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import tokenizers

from glmkit.config import SpecialIds
from glmkit.errors import TokenizerError
from glmkit.small_files import MOST_VOCABULARY_BYTES, read_small

from .byte_tokens import BYTE_OF, ByteRun
from .explain import Explainable
from .library import Content, Model, checked_content, library_errors, set_plain
from .pretokens import RUST_PATTERN, cut_pieces, is_usual, split_words
from .text_model import IdStream, as_ids, as_texts, check_id, check_text, check_unicode
from .vocabulary_files import parse_json, write_vocabularies

TOKENIZER_FILE = "tokenizer.json"
SPECIALS_FILE = "special_tokens.json"

# Role -> string, in the order of their ids. "[MASK]" blanks words, "[sMASK]" sentences, "[gMASK]" the rest of a text.
SPECIAL_STRINGS: dict[str, str] = {
    "pad": "<|pad|>",
    "eos": "<|endoftext|>",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
    "smask": "[sMASK]",
    "gmask": "[gMASK]",
    "sop": "<|startofpiece|>",
    "eop": "<|endofpiece|>",
    "dblock": "[dBLOCK]",
    "unk": "[UNK]",
}
MASK_ROLES = ("mask", "smask", "gmask")
_REQUIRED_ROLES = ("pad", "eos", "cls", "mask", "smask", "gmask", "sop", "eop")

_PIECE = 16_384  # characters encoded at a time, which bounds memory for texts of any length
_UNUSUAL_PIECE = 256
_CACHED_WORDS = 1 << 18  # about 80 MB
_LONGEST_CACHED = 16  # characters; longer words rarely come again
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def has_tokenizer(directory: str | os.PathLike[str]) -> bool:
    """True when a directory holds the files that `TrainedTokenizer.load` reads."""
    return all((Path(directory) / name).is_file() for name in (TOKENIZER_FILE, SPECIALS_FILE))


_TO_ALPHABET = dict(enumerate(BYTE_OF))


class TrainedTokenizer(Explainable):
    """A `Tokenizer` of ours. Made by `train_tokenizer` or `TrainedTokenizer.load`.

    A word carries the space in front of it, so "a [MASK] b" reads as "a", blank, " b": one space between a word and a
    blank belongs to the blank. With `lstrip_masks` all white space on the left of a mask does, as in the published GLM
    tokenizers.
    """

    def __init__(self, tokenizer_json: str, specials: Mapping[str, str], *, source: str = "tokenizer") -> None:
        """`tokenizer_json` as the library writes it; `specials` maps role to string. Raises TokenizerError."""
        self._json, self._specials, self._source = tokenizer_json, dict(specials), source
        what = f"{source}: not a tokenizer file"
        content = checked_content(parse_json(tokenizer_json, source), what)
        with library_errors(what, "copy it again"):
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        set_plain(self._tokenizer)
        model = content["model"]
        self.kind: str = model["type"].lower()
        self._ids = self._special_ids(content)
        self._id_of = {text: self._ids[role] for role, text in self._specials.items()}
        self._special_id_set = frozenset(self._ids.values())
        self._bytes = self._byte_table(model)
        masks = {self._specials[role] for role in MASK_ROLES}
        flags = {entry["content"]: bool(entry.get("lstrip")) for entry in content["added_tokens"]}
        self._stripping = frozenset(text for text in masks if flags.get(text))
        space = r"\s+" if self._stripping else r"(?<=\S) "
        self._blank_space = re.compile(f"{space}(?=(?:{'|'.join(map(re.escape, sorted(masks)))}))")
        longest_first = sorted(self._specials.values(), key=len, reverse=True)
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._fast = _split_pattern(content) == RUST_PATTERN
        self._words = _Words(self._tokenizer.model, byte_level=self.kind == "bpe")

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "TrainedTokenizer":
        """Read `tokenizer.json` and `special_tokens.json`. Raises TokenizerError naming the file."""
        folder = Path(directory)
        if not folder.is_dir():
            raise TokenizerError(f"{folder}: no such directory", step=f"give the one that holds {TOKENIZER_FILE}")
        texts = {name: _read_text(folder / name) for name in (TOKENIZER_FILE, SPECIALS_FILE)}
        specials = parse_json(texts[SPECIALS_FILE], str(folder / SPECIALS_FILE))
        if not isinstance(specials, dict) or not all(isinstance(text, str) and text for text in specials.values()):
            raise TokenizerError(f"{folder / SPECIALS_FILE}: must be an object of role -> string")
        return cls(texts[TOKENIZER_FILE], specials, source=str(folder / TOKENIZER_FILE))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write both files, each atomically."""
        specials = json.dumps(self._specials, ensure_ascii=False, indent=2) + "\n"
        write_vocabularies(directory, {TOKENIZER_FILE: self._json.encode(), SPECIALS_FILE: specials.encode()})

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    @property
    def special(self) -> SpecialIds:
        return SpecialIds(**{role: self._ids[role] for role in SPECIAL_STRINGS if role in self._ids})

    @property
    def lstrip_masks(self) -> bool:
        return bool(self._stripping)

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        check_text(text)
        if not specials:
            return self._encode_plain([text])[0]
        parts = self._special_pattern.split(self.without_blank_space(text))
        plain = parts[0::2]
        found = parts[1::2]
        ids, *rest = self._encode_plain(plain)
        for mark, part in zip(found, rest, strict=True):
            ids.append(self._id_of[mark])
            ids.extend(part)
        return ids

    def without_blank_space(self, text: str) -> str:
        """The text as `encode(text, specials=True)` reads it: without the white space that belongs to its blanks."""
        return self._blank_space.sub("", text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self._encode_plain(as_texts(texts))

    def decode(self, ids: Sequence[int], *, skip_specials: bool = True) -> str:
        stream = self.stream(skip_specials=skip_specials)
        return stream.feed(as_ids(ids)) + stream.finish()

    def stream(self, *, skip_specials: bool = True) -> IdStream:
        """A fresh decoder, as `Streaming` has it."""
        return ByteRun(self._bytes, self._special_id_set if skip_specials else frozenset())

    def id_to_token(self, index: int) -> str:
        """The token's text; a token that is not whole characters is written as its bytes, "<0xE4><0xB8>"."""
        raw = self.token_bytes(index)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in raw)

    def token_bytes(self, index: int) -> bytes:
        """The UTF-8 bytes that a token stands for. Raises TokenizerError for an unknown id."""
        (index,) = as_ids((index,))
        check_id(index, len(self._bytes))
        return self._bytes[index]

    def fingerprint(self) -> str:
        content = {"tokenizer": json.loads(self._json), "special_tokens": self._specials}
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()

    def __reduce__(self) -> tuple[object, ...]:
        return TrainedTokenizer, (self._json, self._specials)

    def _encode_plain(self, texts: Iterable[str]) -> list[list[int]]:
        with library_errors(f"{self._source}: a text cannot be encoded"):
            return self._encoded(texts)

    def _encoded(self, texts: Iterable[str]) -> list[list[int]]:
        """Cut each text into bounded pieces; look words up where the rule is known to agree, else ask the library."""
        waiting: list[tuple[int, int, str]] = []  # text, index among its pieces, piece
        pieces: list[list[list[int]]] = []
        for number, text in enumerate(texts):
            parts: list[list[int]] = []
            for piece in self._pieces(text):
                if self._fast and is_usual(piece):
                    parts.append(list(chain.from_iterable(map(self._words.__getitem__, split_words(piece)))))
                else:
                    waiting.append((number, len(parts), piece))
                    parts.append([])
            pieces.append(parts)
        if waiting:
            for piece_text in (entry[2] for entry in waiting):
                check_unicode(piece_text)
            encodings = self._tokenizer.encode_batch_fast([entry[2] for entry in waiting], add_special_tokens=False)
            for (number, index, _), encoding in zip(waiting, encodings, strict=True):
                pieces[number][index] = encoding.ids
        return [parts[0] if len(parts) == 1 else list(chain.from_iterable(parts)) for parts in pieces]

    def _pieces(self, text: str) -> Iterator[str]:
        """Pieces to encode one by one; short ones around unusual characters, for the slow path is meant for few."""
        for piece in cut_pieces(text, _PIECE):
            if is_usual(piece):
                yield piece
            else:
                yield from cut_pieces(piece, _UNUSUAL_PIECE)

    def _special_ids(self, content: Content) -> dict[str, int]:
        missing = [role for role in _REQUIRED_ROLES if role not in self._specials]
        if missing:
            raise TokenizerError(f"{self._source}: no special string for {', '.join(missing)} in {SPECIALS_FILE}")
        unknown = [role for role in self._specials if role not in SPECIAL_STRINGS]
        if unknown:
            raise TokenizerError(f"{self._source}: {SPECIALS_FILE} names the unknown role {unknown[0]!r}")
        added = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
        for role, text in self._specials.items():
            if text not in added:
                raise TokenizerError(f"{self._source}: the special token {text!r} ({role}) is not in the vocabulary")
        return {role: added[text] for role, text in self._specials.items()}

    def _byte_table(self, model: Model) -> list[bytes]:
        """Bytes of every id. Raises TokenizerError when a piece is not made of the expected alphabet."""
        entries = model["vocab"]
        if isinstance(entries, dict):
            pieces = {index: piece for piece, index in entries.items()}
        else:
            pieces = {index: piece for index, (piece, _score) in enumerate(entries)}
        special = {self._ids[role]: text.encode() for role, text in self._specials.items()}
        table: list[bytes] = []
        for index in range(len(pieces.keys() | special.keys())):
            piece = pieces.get(index)
            if index in special:
                table.append(special[index])
            elif piece is None:
                raise TokenizerError(f"{self._source}: the vocabulary has no token number {index}")
            elif self.kind == "unigram":
                byte = _BYTE_PIECE.fullmatch(piece)
                table.append(bytes([int(byte[1], 16)]) if byte else piece.encode())
            else:
                try:
                    table.append(bytes(BYTE_OF[character] for character in piece))
                except KeyError:
                    raise TokenizerError(f"{self._source}: token {piece!r} is not byte-level BPE") from None
        if len(set(table) & {bytes([byte]) for byte in range(256)}) < 256:
            raise TokenizerError(f"{self._source}: not every byte is in the vocabulary, so text could be lost")
        return table


class _Words(dict[str, list[int]]):
    """Ids of words, filled on demand from the library's model and emptied when full."""

    def __init__(self, model: tokenizers.models.Model, *, byte_level: bool) -> None:
        self._model, self._byte_level = model, byte_level

    def __missing__(self, word: str) -> list[int]:
        text = word.encode().decode("latin-1").translate(_TO_ALPHABET) if self._byte_level else word
        ids = [token.id for token in self._model.tokenize(text)]
        if len(word) <= _LONGEST_CACHED:
            if len(self) >= _CACHED_WORDS:
                self.clear()
            self[word] = ids
        return ids


def _split_pattern(content: Content) -> str | None:
    """The pattern of the word split in a tokenizer.json, None when there is none or anything rewrites the text."""
    if content.get("normalizer") is not None:
        return None
    steps = content.get("pre_tokenizer") or {}
    first = steps["pretokenizers"][0] if steps.get("type") == "Sequence" else steps
    pattern = first.get("pattern") if first.get("type") == "Split" else None
    return pattern.get("Regex") if isinstance(pattern, dict) else None


def _read_text(path: Path) -> str:
    try:
        return read_small(path, TokenizerError, limit=MOST_VOCABULARY_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise TokenizerError(f"{path}: no such file; a tokenizer needs {TOKENIZER_FILE} and {SPECIALS_FILE}") from None
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 text at byte {error.start}") from None
