"""Opening input files: plain, packed and in archives as one kind of byte stream in UTF-8, lines of bounded length."""

import codecs
import gzip
import io
import tarfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from glmkit.errors import DataError

from .charset import Transcoded

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ARCHIVE = ".tar"  # the bare suffix of archives
LINE_LIMIT = 64 * 2**20  # bytes of one line, one JSON value or one table row

_BLOCK = 1 << 18
_ZSTD_INPUT = 256  # bytes at a time: four can stand for 128 KiB, so that 8 MiB may come out
_BOM = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)  # the first begins as that of UTF-16


def bare_suffix(path: Path) -> str:
    """The suffix in lower case, without that of a compression."""
    if path.suffix.lower() == ".tgz":
        return ARCHIVE
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return name.suffix.lower()


def open_stream(path: Path, count: Callable[[int], None], encoding: str = "utf-8") -> io.BufferedReader:
    """A buffered stream of the file's (unpacked) bytes, text of another encoding as UTF-8.

    `count` is called with the bytes read from disk. Reading raises DataError, naming the file, for damaged or truncated
    compressed data.
    """
    return _unpacked(path, _CountingFile(path, count), encoding)


def archive_members(
    path: Path, count: Callable[[int], None], wanted: Callable[[Path], bool], encoding: str = "utf-8"
) -> Iterator[tuple[Path, io.BufferedReader]]:
    """(path of the archive and name in it, stream) of the wanted files of a tar archive, packed or not, in its order.

    Nothing is written to disk, and links are left out. A stream is good until the next one. Raises DataError for a
    damaged archive.
    """
    with open_stream(path, count) as source:
        try:
            with tarfile.open(fileobj=source, mode="r|") as archive:
                for member in archive:
                    place = path / member.name.lstrip("/")
                    if member.isreg() and wanted(place) and (file := archive.extractfile(member)) is not None:
                        yield place, _unpacked(place, _MemberReader(path, file), encoding)
        except tarfile.TarError as error:
            raise DataError(f"{path}: damaged tar archive: {error}") from None


def _unpacked(path: Path, raw: Any, encoding: str) -> io.BufferedReader:
    suffix = path.suffix.lower()
    reader = {".gz": _GzipReader, ".tgz": _GzipReader, ".zst": _ZstdReader}.get(suffix)
    stream: Any = raw if reader is None else reader(path, raw)
    buffered: io.BufferedReader = io.BufferedReader(stream, _BLOCK)
    if encoding == "utf-8":
        return buffered
    decoded: Any = Transcoded(path, buffered, encoding)
    return io.BufferedReader(decoded, _BLOCK)


def read_lines(stream: io.BufferedReader, path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line with its end), without a leading byte-order mark. Raises DataError: line too long."""
    number = 0
    while line := stream.readline(LINE_LIMIT + 1):
        number += 1
        if len(line) > LINE_LIMIT:
            raise DataError(f"{path}: line {number} is longer than {LINE_LIMIT:,} bytes, the limit; break it up")
        if number == 1:
            line = without_mark(line, path)
        yield number, line


def without_mark(data: bytes, path: Path) -> bytes:
    """The first bytes of a file without UTF-8's byte-order mark. Raises DataError for UTF-16 and UTF-32."""
    if data.startswith(_UTF32_MARKS):
        raise DataError(f"{path}: the file is UTF-32; read it with --encoding utf-32", param="encoding")
    if data.startswith(_UTF16_MARKS):
        raise DataError(f"{path}: the file is UTF-16; read it with --encoding utf-16", param="encoding")
    return data.removeprefix(_BOM)


class _CountingFile(io.FileIO):
    """An unbuffered file that reports what is read and names itself in errors."""

    def __init__(self, path: Path, count: Callable[[int], None]) -> None:
        super().__init__(path)
        self._path, self._count = path, count

    def readinto(self, buffer: Any) -> int | None:
        try:
            size = super().readinto(buffer)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._count(size or 0)
        return size


class _Reader(io.RawIOBase):
    """A readable raw stream made from one function that returns some bytes, b"" at the end."""

    def __init__(self, path: Path, source: BinaryIO | IO[bytes]) -> None:
        self._path, self._source = path, source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._some(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()

    @abstractmethod
    def _some(self, size: int) -> bytes | memoryview:
        """At most `size` bytes."""


class _MemberReader(_Reader):
    def _some(self, size: int) -> bytes:
        try:
            return self._source.read(size)
        except tarfile.TarError as error:
            raise DataError(f"{self._path}: damaged tar archive: {error}") from None


class _GzipReader(_Reader):
    def __init__(self, path: Path, raw: Any) -> None:
        super().__init__(path, io.BufferedReader(raw, _BLOCK))
        self._gzip = gzip.GzipFile(fileobj=self._source, mode="rb")

    def _some(self, size: int) -> bytes:
        try:
            return self._gzip.read1(size)
        except EOFError:
            raise DataError(f"{self._path}: the gzip data stops in the middle; the file is truncated") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{self._path}: damaged gzip data: {error}") from None


class _ZstdReader(_Reader):
    def __init__(self, path: Path, raw: Any) -> None:
        super().__init__(path, io.BufferedReader(raw, _BLOCK))
        try:
            import zstandard
        except ImportError:
            raise DataError(f'{path}: reading .zst needs zstandard: pip install "glmkit[train]"') from None
        self._zstandard = zstandard
        self._decompressor: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def _some(self, size: int) -> bytes | memoryview:
        while not self._output:
            if not self._input:
                self._input = self._source.read(_ZSTD_INPUT)
            if not self._input:
                if self._decompressor is not None:
                    raise DataError(f"{self._path}: the zstd data stops in the middle; the file is truncated")
                return b""
            if self._decompressor is None:  # a file is one or more frames
                self._decompressor = self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._output = memoryview(self._decompressor.decompress(self._input))
            except self._zstandard.ZstdError as error:
                raise DataError(f"{self._path}: damaged zstd data: {error}") from None
            self._input = self._decompressor.unused_data if self._decompressor.eof else b""
            if self._decompressor.eof:
                self._decompressor = None
        data, self._output = self._output[:size], self._output[size:]
        return data
