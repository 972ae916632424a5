"""The token store: all documents of a split back to back in one file, mapped into memory.

A directory holds, for each split, `<split>.tokens.bin` (uint16, or uint32 for vocabularies above 65,536 tokens) and
`<split>.offsets.bin` (int64, D + 1 numbers: document i is tokens[offsets[i] : offsets[i + 1]]), both little-endian.
Every document ends with the tokenizer's eos. `manifest.json` has counts, sizes and hashes of all files, of every chunk
of them too, and of itself; the tokenizer's files lie beside it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NotRequired, TypedDict, TypeVar, cast

import numpy as np
import numpy.typing as npt

from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import DataError, GLMKitError, TokenizerError
from glmkit.families.family import all_families, family_named
from glmkit.files import SEAL, Digest, DigestFacts, atomic_directory, atomic_write, seal_holds, sealed_json, sha256_file
from glmkit.small_files import parse_small_json, read_small
from glmkit.tokenizer.protocol import Tokenizer
from glmkit.tokenizer.trained import TrainedTokenizer

from .encoding import (
    DTYPES,
    OFFSETS,
    Encoded,
    Ids,
    SplitFacts,
    SplitWriter,
    encode,
    offsets_file,
    token_dtype,
    tokens_file,
)

FORMAT_NAME = "glmkit-token-store"
FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "validation")

_MOST_BYTES = 64 << 20  # of a manifest, which names every file that was read
_STEP = "prepare the store again"
AGAIN = "prepare the store again, or copy it again from where it is whole"
S = TypeVar("S", bound=np.generic)


class TokenizerFacts(TypedDict):
    """The tokenizer that a store was written with, as its manifest has it.

    family: whose published files it was read from, absent for one of ours. special: its ids by role, where the files
    alone do not say them. files: its files; stores of earlier versions lack them.
    """

    fingerprint: str
    kind: str
    vocab_size: int
    family: NotRequired[str]
    special: NotRequired[Mapping[str, int | None] | None]
    files: NotRequired[dict[str, DigestFacts]]


class Manifest(TypedDict):
    """manifest.json, as far as a store needs it; the writer's facts about its work stand beside these."""

    format: str
    version: int
    dtype: str
    eos: int
    tokenizer: TokenizerFacts
    splits: dict[str, SplitFacts]
    seal: NotRequired[str]


class TokenStore:
    """A store, seen at one split; read-only. Other processes that get it map the files again.

    Attributes: `tokens` (N,) uint16 or uint32; `offsets` (D + 1,) int64; `name` of the split; `directory`; `manifest`,
    the parsed manifest.json; `eos`, the id that ends each document; `vocab_size` of the tokenizer.
    """

    def __init__(self, directory: str | os.PathLike[str], split: str = "train", *, verify: bool = False) -> None:
        """File sizes are compared with the manifest; with `verify`, the hashes too, which reads everything.

        Raises: DataError naming the file that is missing, damaged or of another version.
        """
        self.directory, self.name = Path(directory), split
        self.manifest = read_manifest(self.directory)
        splits = self.manifest["splits"]
        if split not in splits:
            raise DataError(f"{self.directory}: no split {split!r}; splits: {', '.join(splits)}")
        try:
            self.eos = _whole(self.manifest["eos"])
            self.vocab_size = _whole(self.manifest["tokenizer"]["vocab_size"])
            entry = splits[split]
            documents, tokens = _whole(entry["documents"]), _whole(entry["tokens"])
            files = {name: (_whole(facts["bytes"]), str(facts["sha256"])) for name, facts in entry["files"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{self.directory / MANIFEST_FILE}: damaged ({error!r}); prepare the store again") from None
        dtype = DTYPES[self.manifest["dtype"]]
        for name, needed in ((tokens_file(split), tokens * dtype.itemsize), (offsets_file(split), 8 * documents + 8)):
            size, digest = files.get(name, (needed, ""))
            _check_file(self.directory / name, (size, needed), digest if verify else None)
        self.tokens: Ids = _map(self.directory / tokens_file(split), dtype, tokens)
        self.offsets: npt.NDArray[np.int64] = _map(self.directory / offsets_file(split), OFFSETS, documents + 1)
        if self.offsets[0] != 0 or self.offsets[-1] != tokens:
            raise DataError(
                f"{self.directory / offsets_file(split)}: ends at token {self.offsets[-1]:,} of {tokens:,}; "
                "the store is damaged, prepare it again"
            )

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the store was written with. Raises TokenizerError when its files are not as written."""
        return _read_vocabulary(self.directory, self.manifest["tokenizer"])

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the hashes of all token files and of the tokenizer: equal means the same data."""
        files = [item for entry in self.manifest["splits"].values() for item in entry["files"].items()]
        hashes = sorted((name, facts["sha256"]) for name, facts in files)
        content = [self.manifest["tokenizer"]["fingerprint"], hashes]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def split(self, name: str) -> "TokenStore":
        """Another split of the same store."""
        return TokenStore(self.directory, name)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def document(self, index: int) -> Ids:
        """Tokens of one document, eos included: a view of the mapped file. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.tokens[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def __reduce__(self) -> tuple[Callable[..., "TokenStore"], tuple[Path, str, str]]:
        return _same_store, (self.directory, self.name, self.fingerprint)


def _same_store(directory: Path, split: str, fingerprint: str) -> TokenStore:
    """A store that another process opened. Raises DataError when other data lie there by now."""
    store = TokenStore(directory, split)
    if store.fingerprint != fingerprint:
        raise DataError(f"{directory} holds another store than when the run began", step="start the run again")
    return store


def read_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """The manifest of a store. Raises DataError when it is missing, damaged or of an unknown version."""
    path = Path(directory) / MANIFEST_FILE
    try:
        data = read_small(path, DataError, limit=_MOST_BYTES, step=_STEP)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, so this is no token store; make one with: glm prepare") from None
    found = parse_small_json(data, str(path), DataError, step=_STEP)
    if not isinstance(found, dict) or found.get("format") != FORMAT_NAME:
        raise DataError(f"{path}: not the manifest of a token store; make one with: glm prepare")
    manifest = cast(Manifest, found)
    if type(found.get("version")) is not int or manifest["version"] != FORMAT_VERSION:
        raise DataError(
            f"{path}: store version {manifest.get('version')!r}, this glmkit reads {FORMAT_VERSION}; prepare it again"
        )
    missing = [key for key in ("dtype", "eos", "tokenizer", "splits") if key not in manifest]
    if missing or str(manifest["dtype"]) not in DTYPES:
        what = f"no {missing[0]!r}" if missing else f"unknown dtype {manifest['dtype']!r}"
        raise DataError(f"{path}: damaged: {what}; prepare it again")
    # Hashes of the tokenizer's files and the seal came together: a damaged byte cannot hide both.
    tokenizer = manifest["tokenizer"]
    is_sealed = SEAL in manifest or (isinstance(tokenizer, dict) and "files" in tokenizer)
    if is_sealed and not seal_holds(data, manifest.get(SEAL)):
        raise DataError(
            f"{path}: holds other bytes than were written", step="prepare the store again, or copy it again"
        )
    return manifest


def _whole(value: object) -> int:
    """A count of a manifest. Raises TypeError for anything else, 2.0 and true too."""
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is no whole number")
    return value


class StoreWriter:
    """Appends documents to the splits of a new store in `directory`, an existing directory.

    Memory does not grow with the store. Use as a context manager and call `finish` inside it.
    Raises: OSError naming the file when it cannot be written (a full disk).
    """

    def __init__(self, directory: Path, tokenizer: Tokenizer, splits: Iterable[str] = SPLITS) -> None:
        self.directory, self._tokenizer = directory, tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self._splits = {name: SplitWriter(directory, name, DTYPES[self.dtype]) for name in splits}

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for split in self._splits.values():
            with suppress(OSError):  # after `finish` nothing can fail; before it, another error is on its way
                split.close()

    def add(self, split: str, texts: list[str]) -> None:
        """Encode and append documents; eos is added to each."""
        self.append(split, encode(self._tokenizer, texts))

    def append(self, split: str, encoded: Encoded) -> None:
        """Append documents that are encoded already."""
        self._splits[split].append(encoded)

    def restart(self) -> None:
        """Throw away what was appended."""
        for name, split in self._splits.items():
            split.close()
            self._splits[name] = SplitWriter(self.directory, name, DTYPES[self.dtype])

    def counts(self, split: str) -> tuple[int, int]:
        """(documents, tokens) so far."""
        return self._splits[split].documents, self._splits[split].num_tokens

    def finish(self, facts: Mapping[str, object]) -> Manifest:
        """Close the files, write the tokenizer and the manifest (with `facts` in it); returns the manifest."""
        manifest: Manifest = {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "dtype": self.dtype,
            "eos": self._tokenizer.special.eos,
            "tokenizer": _save_vocabulary(self._tokenizer, self.directory),
            "splits": {name: split.close() for name, split in self._splits.items()},
        }
        own = {MANIFEST_FILE, *(name for split in manifest["splits"].values() for name in split["files"])}
        others = sorted(path for path in self.directory.iterdir() if path.name not in own and path.is_file())
        manifest["tokenizer"]["files"] = {path.name: Digest.of(path).facts() for path in others}
        with atomic_write(self.directory / MANIFEST_FILE) as file:
            file.write(sealed_json({**manifest, **facts}, indent=2))
        return read_manifest(self.directory)


def write_store(
    directory: str | os.PathLike[str],
    tokenizer: Tokenizer,
    splits: Mapping[str, Iterable[str]],
    *,
    facts: Mapping[str, object] | None = None,
    replace: bool = False,
) -> Manifest:
    """Write a whole store from texts that are already split; nothing is left behind on an error. Returns the manifest.

    Raises: FileExistsError when `directory` exists, is not empty and `replace` is off.
    """
    with atomic_directory(directory, replace=replace) as folder, StoreWriter(folder, tokenizer, splits) as writer:
        for name, texts in splits.items():
            for text in texts:
                writer.add(name, [text])
        return writer.finish(facts or {})


def _check_file(path: Path, sizes: tuple[int, int], digest: str | None) -> None:
    """`sizes`: what the manifest says, and what its counts need. `digest`: the SHA-256 to compare, or None."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path}: missing from the token store; prepare it again") from None
    for expected in sizes:
        if found != expected:
            raise DataError(f"{path}: {found:,} bytes, but the manifest says {expected:,}; prepare the store again")
    if digest is not None and sha256_file(path) != digest:
        raise DataError(f"{path}: the content does not match the SHA-256 in the manifest; prepare the store again")


def _map(path: Path, dtype: np.dtype[S], count: int) -> npt.NDArray[S]:
    if count == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=(count,))


def _save_vocabulary(tokenizer: Tokenizer, directory: Path) -> TokenizerFacts:
    """Write the tokenizer's files; the facts with which `TokenStore.tokenizer` finds the same one again.

    Raises TokenizerError for a published one that its files do not give back.
    """
    tokenizer.save(directory)
    facts: TokenizerFacts = {
        "fingerprint": tokenizer.fingerprint(),
        "kind": getattr(tokenizer, "kind", type(tokenizer).__name__),
        "vocab_size": tokenizer.vocab_size,
    }
    if isinstance(tokenizer, TrainedTokenizer):
        return facts
    known = False
    for family in all_families():
        for special in (None, asdict(tokenizer.special)):
            tried: TokenizerFacts = {**facts, "family": family, "special": special}
            try:
                found = _published(directory, tried)
            except GLMKitError:  # another family's files
                continue
            known = known or found is not None
            if found is not None and found.fingerprint() == facts["fingerprint"]:
                return tried
    if not known:  # a tokenizer from elsewhere: who wrote the store has it
        return facts
    raise TokenizerError(
        f"{facts['kind']}: no family reads its saved files as the same tokenizer", step="give the published directory"
    )


def _read_vocabulary(directory: Path, facts: TokenizerFacts) -> Tokenizer:
    """The tokenizer beside a manifest. Raises TokenizerError when its files are not as they were written."""
    found = TrainedTokenizer.load(directory) if facts.get("family") is None else _published(directory, facts)
    if found is None or found.fingerprint() != facts["fingerprint"]:
        raise TokenizerError(f"{directory}: the tokenizer's files are not those the store was written with")
    return found


def _published(directory: Path, facts: TokenizerFacts) -> Tokenizer | None:
    special, config = facts.get("special"), None
    if special is not None:
        config = GLMConfig(
            vocab_size=facts["vocab_size"],
            hidden_size=1,
            num_layers=1,
            num_heads=1,
            special=SpecialIds(**special),  # type: ignore[arg-type]
        )
    return family_named(facts["family"]).tokenizer(directory, config)
