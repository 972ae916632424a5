"""Building a token store from text: train a tokenizer unless one is given, split, encode, write."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glmkit.errors import DataError, TokenizerError
from glmkit.files import atomic_directory
from glmkit.progress import Progress
from glmkit.tokenizer.protocol import Tokenizer
from glmkit.tokenizer.training import DEFAULT_SAMPLE_BYTES, TextSample, TokenizerKind, train_tokenizer

from .encoding import encode_all
from .rows import ReadOptions, ReadReport
from .sources import Sources
from .store import SPLITS, Manifest, StoreWriter

_RECENT = 1 << 18  # hashes that gather before they are sorted
_MOST_WORKERS = 1024
_BATCH_CHARACTERS = 1 << 20
_BATCH_DOCUMENTS = 1024
_WORTH_WORKERS = 1 << 24  # bytes of input; starting processes takes about a second
_SHORT = 64  # tokens of a document on average, below which a row of pretraining always holds several
_TOKENIZER_STAGE, _ENCODE_STAGE = "reading for the tokenizer", "encoding"


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`: the store's directory and manifest, and remarks that the user should see."""

    directory: Path
    manifest: Manifest
    notes: tuple[str, ...]


def prepare(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
    tokenizer_type: TokenizerKind = "bpe",
    sample_bytes: int = DEFAULT_SAMPLE_BYTES,
    validation_share: float = 0.01,
    drop_duplicates: bool = False,
    read: ReadOptions | None = None,
    replace: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> Prepared:
    """Write a token store, whole or not at all; equal input and options give equal files.

    Reads the input twice when a tokenizer is trained (on training documents only), else once. A document goes to
    validation when the first 64 bits of the SHA-256 of its text, as a fraction of 2**64, are below `validation_share`:
    equal texts are never in both splits, and adding input moves none. Where no document falls into it, the one with the
    lowest hash does (and the input is read again), of a single document its end. Memory does not grow with the input
    but for the tokenizer's sample, and eight bytes a document to find exact duplicates; those are counted, and left out
    with `drop_duplicates`.

    Args:
        inputs: files, directories, globs, names of datasets on the Hugging Face hub.
        vocab_size: of the tokenizer to train, special tokens included; None: 32,000 or as many as the text gives.
        sample_bytes: UTF-8 bytes of text that the tokenizer is trained on at most, chosen by hash.
        replace: an existing `output` is replaced at the very end.
        workers: processes that encode, when there are 16 MiB of input or more; they change the speed, never the result.
            They start as new interpreters, so a script that asks for them needs `if __name__ == "__main__":`.

    Raises: DataError, TokenizerError, FileExistsError (`output` is there, not empty, and `replace` is off), OSError.
    """
    if not 0.0 <= validation_share < 1.0:
        raise DataError(f"the validation share is {validation_share}; it must be at least 0 and below 1")
    if not 1 <= workers <= _MOST_WORKERS:
        raise DataError(f"workers is {workers}; it must be from 1 to {_MOST_WORKERS}")
    if tokenizer is not None and vocab_size is not None:
        raise TokenizerError("a vocabulary size has no effect on a given tokenizer; leave out one of the two")
    sources = Sources(inputs, read)
    target = Path(output)
    _refuse_overlap(sources, target)
    if replace and target.is_dir() and any(target.iterdir()) and not (target / "manifest.json").is_file():
        raise DataError(f"{target} is not empty and no token store; nothing else is replaced, choose another name")
    progress = progress or Progress(quiet=True)
    splitter = _Splitter(validation_share)
    is_long = sources.total_bytes is None or sources.total_bytes >= _WORTH_WORKERS
    with atomic_directory(target, replace=replace) as folder:
        training: dict[str, int] | None = None
        if tokenizer is None:
            sample = _sample(sources, splitter, sample_bytes, progress)
            if splitter.take_one():
                sample = _sample(sources, splitter, sample_bytes, progress)
            progress.start("training the tokenizer", None)
            tokenizer = train_tokenizer(sample, vocab_size=vocab_size, kind=tokenizer_type)
            training = {"bytes_seen": sample.bytes_seen, "bytes_used": sample.bytes_used, "sample_bytes": sample_bytes}
        try:
            with StoreWriter(folder, tokenizer) as writer:
                second = _Pass(sources, splitter, drop_duplicates)
                _encode(second, writer, tokenizer, workers if is_long else 1, progress)
                if splitter.take_one():  # read once so far, as the tokenizer was given
                    writer.restart()
                    second = _Pass(sources, splitter, drop_duplicates)
                    _encode(second, writer, tokenizer, workers if is_long else 1, progress)
                _require_training(sources, second.report, writer.counts("train")[0] > 0)
                arguments = [
                    {"name": entry.name, "files": len(entry.files), "bytes": entry.size, "documents": entry.documents}
                    for entry in sources.inputs
                ]
                facts = {
                    "input": {"arguments": arguments, "ignored": dict(sorted(sources.ignored.items()))},
                    "read": second.report.to_dict(),
                    "duplicates": {"documents": second.duplicates, "dropped": drop_duplicates},
                    "tokenizer_training": training,
                    "options": {"validation_share": validation_share, **asdict(sources.options)},
                }
                manifest = writer.finish(facts)
        except OSError as error:
            # Name the place the user knows, not the temporary one.
            shown = str(error.filename or target).replace(str(folder), str(target))
            raise OSError(error.errno, error.strerror or str(error), shown) from error
    return Prepared(target, manifest, tuple(_notes(sources, manifest, second, training, vocab_size)))


class SeenHashes:
    """A set of 64-bit hashes that only grows: the texts seen so far.

    New hashes gather in a Python set, then move into sorted arrays of doubling length, so that memory stays near eight
    bytes a hash. With n documents the chance that any two different ones share a hash is about n**2 / 2**65 (for a
    hundred million: 3 in 10,000).
    """

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._arrays: list[npt.NDArray[np.uint64]] = []  # longest first

    def add(self, value: int) -> bool:
        """Add a hash in [0, 2**64); True when it was there already."""
        if value in self._recent:
            return True
        key = np.uint64(value)
        for array in self._arrays:
            at = int(np.searchsorted(array, key))
            if at < len(array) and array[at] == key:
                return True
        self._recent.add(value)
        if len(self._recent) >= _RECENT:
            self._settle()
        return False

    def _settle(self) -> None:
        array = np.sort(np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent)))
        self._recent.clear()
        while self._arrays and len(self._arrays[-1]) <= len(array):
            array = np.sort(np.concatenate([self._arrays.pop(), array]), kind="stable")
        self._arrays.append(array)


class _Splitter:
    """Decides by the hash of a text. `place` returns the split and 64 other bits of the hash."""

    def __init__(self, validation_share: float) -> None:
        self.share, self._below = validation_share, int(validation_share * (1 << 64))
        self._lowest, self._highest = 1 << 64, -1
        self.took_one = self.cuts_one = False

    def place(self, text: str) -> tuple[str, int]:
        digest = hashlib.sha256(text.encode()).digest()
        value = int.from_bytes(digest[:8], "big")
        self._lowest, self._highest = min(self._lowest, value), max(self._highest, value)
        return "validation" if value < self._below else "train", int.from_bytes(digest[8:16], "big")

    def take_one(self) -> bool:
        """True if the documents read so far do not give both splits: from now on one, or the end of the only one, is
        validation."""
        if self.took_one or self.cuts_one or not self.share or self._highest < 0:
            return False
        self.cuts_one = self._lowest == self._highest
        self.took_one = not self.cuts_one and self._lowest >= self._below
        if self.took_one:
            self._below = self._lowest + 1
        return self.took_one or self.cuts_one

    def parts(self, text: str) -> list[tuple[str, str]]:
        """(split, text) of a document that is the only one: its end, from a line's or a word's beginning on."""
        at = len(text) - max(1, round(self.share * len(text)))
        for mark in ("\n", " "):
            if (found := text.rfind(mark, len(text) // 2, at + 1)) > 0:
                at = found + 1
                break
        head, tail = text[:at], text[at:]
        return [("train", head), ("validation", tail)] if head.strip() and tail.strip() else [("train", text)]


class _Meter:
    """Counts bytes and documents and shows them now and then."""

    def __init__(self, progress: Progress, name: str, total: int | None) -> None:
        self._progress, self._bytes, self._documents = progress, 0, 0
        progress.start(name, total, unit="bytes")

    def count(self, size: int) -> None:
        self._bytes += size
        self._show()

    def document(self) -> None:
        self._documents += 1
        if self._documents % 64 == 0:
            self._show()

    def _show(self) -> None:
        self._progress.update(self._bytes, f"{self._documents:,} documents")


def _sample(sources: Sources, splitter: _Splitter, limit: int, progress: Progress) -> TextSample:
    sample, report = TextSample(limit), ReadReport()
    meter = _Meter(progress, _TOKENIZER_STAGE, sources.total_bytes)
    for text in sources.documents(report, meter.count):
        if splitter.cuts_one:
            text = splitter.parts(text)[0][1]
        if splitter.place(text)[0] == "train":
            sample.add(text)
        meter.document()
    _require_training(sources, report, sample.bytes_seen > 0)
    return sample


class _Pass:
    """The second reading: documents in batches of one split each, duplicates counted on the way."""

    def __init__(self, sources: Sources, splitter: _Splitter, drop_duplicates: bool) -> None:
        self._sources, self.splitter, self.drops = sources, splitter, drop_duplicates
        self.report = ReadReport()
        self.duplicates = 0

    def batches(self, progress: Progress) -> Iterator[tuple[str, list[str]]]:
        waiting: dict[str, list[str]] = {name: [] for name in SPLITS}
        sizes = dict.fromkeys(SPLITS, 0)
        seen = SeenHashes()
        meter = _Meter(progress, _ENCODE_STAGE, self._sources.total_bytes)
        for text in self._sources.documents(self.report, meter.count):
            meter.document()
            split, digest = self.splitter.place(text)
            if seen.add(digest):
                self.duplicates += 1
                if self.drops or self.splitter.cuts_one:  # the end of the first one stands in the other
                    continue
            if self.splitter.cuts_one:
                for split, part in self.splitter.parts(text):
                    waiting[split].append(part)
                continue
            waiting[split].append(text)
            sizes[split] += len(text)
            if sizes[split] >= _BATCH_CHARACTERS or len(waiting[split]) >= _BATCH_DOCUMENTS:
                yield split, waiting[split]
                waiting[split], sizes[split] = [], 0
        for split in SPLITS:
            if waiting[split]:
                yield split, waiting[split]


def _encode(reading: _Pass, writer: StoreWriter, tokenizer: Tokenizer, workers: int, progress: Progress) -> None:
    for split, encoded in encode_all(reading.batches(progress), tokenizer, workers):
        writer.append(split, encoded)


def _require_training(sources: Sources, report: ReadReport, has_training: bool) -> None:
    names = ", ".join(entry.name for entry in sources.inputs)
    if not report.documents:
        left_out = [f"{report.empty} empty documents"] if report.empty else []
        left_out += [f"{entry.count} bad rows ({entry.first})" for entry in report.bad_rows.values()]
        raise DataError(f"{names}: no text found" + (f"; left out: {', '.join(left_out)}" if left_out else ""))
    if not has_training:
        raise DataError(
            f"{names}: all {report.documents} documents fell into validation; lower the validation share, "
            "or cut the text into more documents (--split-lines, --split-blank-lines, --max-document-bytes)"
        )


def _refuse_overlap(sources: Sources, target: Path) -> None:
    place = target.resolve()
    for entry in sources.inputs:
        top = Path(entry.name)
        for path in [top] if top.is_dir() else [file.path for file in entry.files]:
            real = path.resolve()
            if real == place or real in place.parents or place in real.parents:
                raise DataError(f"{target}: the output overlaps with the input {path}; choose a place outside of it")


def _notes(
    sources: Sources, manifest: Manifest, done: _Pass, training: Mapping[str, int] | None, vocab_size: int | None
) -> list[str]:
    """One sentence for everything that is not as a user would take for granted."""
    notes, read, splits = list(sources.notes), done.report, manifest["splits"]
    for reason, entry in read.bad_rows.items():
        size = f", {entry.size:,} bytes" if entry.size else ""
        notes.append(f"skipped {entry.count:,} bad rows ({reason}{size}); the first: {entry.first}")
    for path, delimiter in read.delimiters.items():
        notes.append(
            f"{path}: its header is separated by {delimiter!r}, so its columns are (--delimiter says otherwise)"
        )
    if read.joined:
        notes.append(f"joined the texts of a list with line ends in {read.joined:,} documents")
    if read.ignored:
        kinds = ", ".join(f"{count} {reason}" for reason, count in sorted(read.ignored.items()))
        notes.append(f"left out of archives: {kinds}")
    if read.empty:
        notes.append(f"left out {read.empty:,} empty documents")
    if read.crlf:
        notes.append(f"changed CR LF line ends to LF in {read.crlf:,} documents (--keep-crlf keeps them)")
    if read.cut_files:
        limit = sources.options.max_document_bytes
        notes.append(f"cut {read.cut_files:,} text files at line ends into documents of {limit:,} bytes or one line")
    if read.reached_max_documents:
        notes.append(f"stopped after {read.documents:,} documents, as asked")
    if done.duplicates:
        what = "dropped" if done.drops else "kept (--drop-duplicates drops them)"
        notes.append(f"{done.duplicates:,} documents are exact duplicates of earlier ones: {what}")
    if training is not None and training["bytes_used"] < training["bytes_seen"]:
        notes.append(
            f"trained the tokenizer on {training['bytes_used']:,} of {training['bytes_seen']:,} bytes, chosen by hash"
        )
    if training is not None and vocab_size is None and manifest["tokenizer"]["vocab_size"] < 32_000:
        notes.append(f"the text gives no more than {manifest['tokenizer']['vocab_size']:,} tokens of vocabulary")
    train = splits["train"]
    if (mean := train["tokens"] / train["documents"]) < _SHORT:
        notes.append(
            f"documents are short, {mean:.1f} tokens on average: in pretraining several share a text and their blanks "
            "are spread over them (data.sample_one_document keeps each alone)"
        )
    share, chosen = done.splitter.share, splits["validation"]["documents"]
    if chosen and done.splitter.took_one:
        notes.append(
            f"a share of {share} of {read.documents:,} documents is less than one: the validation split has one"
        )
    if chosen and done.splitter.cuts_one:
        notes.append("there is one document: its end is the validation split")
    if share and not splits["validation"]["documents"]:
        notes.append(
            f"validation is empty: {splits['train']['documents']:,} documents at a share of {share}; "
            "cut the text into more documents (--split-lines, --split-blank-lines) or raise --validation-share"
        )
    return notes
