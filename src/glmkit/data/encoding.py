"""Turning batches of documents into token arrays, in this process or in several, always in the order given, and writing
the two files of a split.
"""

import hashlib
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from glmkit.errors import DataError
from glmkit.files import ChunkHasher
from glmkit.tokenizer.protocol import Tokenizer

Ids = npt.NDArray[np.unsignedinteger]  # of tokens, as narrow as they are stored
OFFSETS = np.dtype("<i8")
DTYPES: dict[str, np.dtype[np.unsignedinteger]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


class FileFacts(TypedDict):
    """One file of the store; stores of earlier versions lack the digests of its chunks."""

    bytes: int
    sha256: str
    chunk_bytes: NotRequired[int]
    chunks: NotRequired[str]


class SplitFacts(TypedDict):
    """One split: counts, UTF-8 bytes of its text, and its files by name."""

    documents: int
    tokens: int
    text_bytes: int
    files: dict[str, FileFacts]


@dataclass(frozen=True)
class Encoded:
    """Some documents: `tokens` (n,) back to back, eos after each; `lengths` (d,) int64; UTF-8 bytes of their text."""

    tokens: Ids
    lengths: npt.NDArray[np.int64]
    text_bytes: int


def tokens_file(split: str) -> str:
    """Name of a split's file of tokens."""
    return f"{split}.tokens.bin"


def offsets_file(split: str) -> str:
    """Name of a split's file of document bounds."""
    return f"{split}.offsets.bin"


def token_dtype(vocab_size: int) -> str:
    """The narrowest name in `DTYPES` that holds all ids."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def encode(tokenizer: Tokenizer, texts: list[str]) -> Encoded:
    """Tokens of some documents; eos is added to each."""
    dtype = DTYPES[token_dtype(tokenizer.vocab_size)]
    eos = tokenizer.special.eos
    arrays = []
    for ids in tokenizer.encode_batch(texts):
        ids.append(eos)
        arrays.append(np.array(ids, dtype=dtype))
    lengths = np.array([len(array) for array in arrays], dtype=np.int64)
    text_bytes = sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
    return Encoded(np.concatenate([np.zeros(0, dtype=dtype), *arrays]), lengths, text_bytes)


def encode_all(
    batches: Iterable[tuple[str, list[str]]], tokenizer: Tokenizer, workers: int = 1
) -> Iterator[tuple[str, Encoded]]:
    """(label, documents) to (label, tokens), in the same order, with at most two batches a worker in memory.

    Raises: DataError when a worker process dies.
    """
    if workers <= 1:
        for label, texts in batches:
            yield label, encode(tokenizer, texts)
        return
    # Not fork: the tokenizers library runs threads, which do not survive it.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer,))
    pending: deque[tuple[str, Future[Encoded]]] = deque()
    try:
        for label, texts in batches:
            pending.append((label, pool.submit(_encode_in_worker, texts)))
            if len(pending) >= 2 * workers:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    except BrokenProcessPool:
        raise DataError("an encoding process was killed (out of memory?); try again with one worker") from None
    finally:
        pool.shutdown(cancel_futures=True)


_worker_tokenizer: Tokenizer | None = None  # of this process, when it is a worker


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops us
    _worker_tokenizer = tokenizer


def _encode_in_worker(texts: list[str]) -> Encoded:
    assert _worker_tokenizer is not None
    return encode(_worker_tokenizer, texts)


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SplitWriter:
    """The two files of a split, written front to back."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype[np.generic]) -> None:
        self.documents = self.num_tokens = self.text_bytes = 0
        self._dtype = dtype
        self._tokens = _HashedFile(directory / tokens_file(name))
        self._offsets = _HashedFile(directory / offsets_file(name))
        self._offsets.write(np.zeros(1, dtype=OFFSETS))

    def append(self, encoded: Encoded) -> None:
        assert encoded.tokens.dtype == self._dtype
        self._tokens.write(encoded.tokens)
        self._offsets.write((self.num_tokens + np.cumsum(encoded.lengths)).astype(OFFSETS))
        self.num_tokens += len(encoded.tokens)
        self.documents += len(encoded.lengths)
        self.text_bytes += encoded.text_bytes

    def close(self) -> SplitFacts:
        files = {file.path.name: file.close() for file in (self._tokens, self._offsets)}
        return {
            "documents": self.documents,
            "tokens": self.num_tokens,
            "text_bytes": self.text_bytes,
            "files": files,
        }


class _HashedFile:
    """A file written front to back, its hashes kept along; errors name it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hash, self._chunks = hashlib.sha256(), ChunkHasher()
        self._file: BinaryIO = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 - closed in close()

    def write(self, array: npt.NDArray[np.generic]) -> None:
        data = array.tobytes()
        self._hash.update(data)
        self._chunks.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> FileFacts:
        try:
            self._file.close()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        digest = self._chunks.digest()
        return {"sha256": self._hash.hexdigest(), **digest.facts()}
