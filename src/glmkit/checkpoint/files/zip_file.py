"""Uncompressed zip files: a strict index of one that is there, and a streaming writer.

Reading is the strictest reading of PKWARE's APPNOTE.TXT. Written is the container of
`pytorch/pytorch:caffe2/serialize/inline_container.cc`: stored members, each aligned to 64 bytes by padding in its
header, with sizes and CRC-32 behind the data; zip64 where a size or an offset needs it.
"""

import itertools
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from glmkit.errors import CheckpointError, shorten

from .pickle.cursor import Bytes
from .stream import Sink

MAX_MEMBERS = 200_000
MAX_DIRECTORY = 32 * 2**20  # bytes
MAX_NAME = 512  # bytes
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED = 0
_ENCRYPTED = 1
ALIGNMENT = 64  # of what is written
LIMIT = 0xFFFFFFFF  # sizes and offsets from here on are zip64
FLAGS = 0x0808  # sizes follow the data; names are UTF-8


@dataclass(frozen=True)
class Member:
    """Bytes `offset` to `offset + size` of the file."""

    offset: int
    size: int


class TruncatedZipError(CheckpointError):
    """The directory at the end of the file is missing."""


class _DamagedError(ValueError):
    pass


def read_zip_index(path: Path, data: Bytes, size: int) -> dict[str, Member]:
    """Members of the zip file `data` of `size` bytes, by name.

    Raises CheckpointError unless all are stored without compression or encryption, each under its own safe name, side
    by side inside the file; TruncatedZipError when the file has no directory.
    """
    try:
        return _read_members(data, *_find_directory(path, data, size))
    except (_DamagedError, struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: refused or damaged zip file ({error})", step="download it again") from None


def _find_directory(path: Path, data: Bytes, size: int) -> tuple[int, int, int]:
    """(offset, bytes, members) of the central directory."""
    end = data.rfind(b"PK\x05\x06", max(0, size - _END.size - 2**16))
    if end < 0 or end + _END.size > size:
        raise TruncatedZipError(f"{path} is truncated: {size} bytes are there, the zip directory at the end is missing")
    _, disk, first_disk, here, count, length, offset, comment = _END.unpack_from(data, end)
    if end + _END.size + comment != size:
        raise _DamagedError(f"{size - end - _END.size - comment} bytes follow its end")
    limit = end
    locator = end - _LOCATOR.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
        _, _, limit, _ = _LOCATOR.unpack_from(data, locator)
        if limit + _END64.size > locator or data[limit : limit + 4] != b"PK\x06\x06":
            raise _DamagedError("its 64-bit end record is not where it should be")
        _, _, _, _, disk, first_disk, here, count, length, offset = _END64.unpack_from(data, limit)
    if disk or first_disk or here != count:
        raise _DamagedError("it is one of several volumes")
    if count > MAX_MEMBERS or length > MAX_DIRECTORY:
        raise _DamagedError(f"it has {count} members in a directory of {length} bytes; {MAX_MEMBERS} are the limit")
    if offset + length > limit:
        raise _DamagedError(
            f"its directory should be bytes {offset} to {offset + length}, which is past its end {limit}"
        )
    return offset, length, count


def _read_members(data: Bytes, start: int, length: int, count: int) -> dict[str, Member]:
    members: dict[str, Member] = {}
    extents: list[tuple[int, int, str]] = []
    at = start
    for _ in range(count):
        if at + _ENTRY.size > start + length:
            raise _DamagedError(f"its directory ends after {len(members)} of {count} members")
        fields = _ENTRY.unpack_from(data, at)
        signature, _, _, flags, method, _, _, _, packed, unpacked, name_bytes, extra_bytes, comment_bytes = fields[:13]
        if signature != b"PK\x01\x02":
            raise _DamagedError(f"its directory is damaged at byte {at}")
        at += _ENTRY.size
        name = _checked_name(data, at, name_bytes)
        extra = data[at + name_bytes : at + name_bytes + extra_bytes]
        at += name_bytes + extra_bytes + comment_bytes
        if name in members:
            raise _DamagedError(f"it has two members {name!r}")
        if flags & _ENCRYPTED:
            raise _DamagedError(f"member {name!r} is encrypted")
        if method != _STORED:
            raise _DamagedError(f"member {name!r} is compressed; weights must be stored as they are")
        unpacked, packed, header = _wide(extra, unpacked, packed, fields[-1], name)
        if packed != unpacked:
            raise _DamagedError(f"member {name!r} has {packed} bytes but says that they stand for {unpacked}")
        offset = _data_offset(data, header, name, unpacked, start)
        members[name] = Member(offset, unpacked)
        extents.append((header, offset + unpacked, name))
    if at != start + length:
        raise _DamagedError(f"its directory has {start + length - at} bytes too many")
    extents.sort()
    for (_, end, name), (following, _, other) in itertools.pairwise(extents):
        if end > following:
            raise _DamagedError(f"members {name!r} and {other!r} overlap")
    return members


def _checked_name(data: Bytes, at: int, length: int) -> str:
    if length > MAX_NAME:
        raise _DamagedError(f"a member has a name of {length} bytes; {MAX_NAME} are the limit")
    name = data[at : at + length].decode("utf-8")
    parts = name.removesuffix("/").split("/")
    if not name.isprintable() or "\\" in name or ":" in name or any(part in ("", ".", "..") for part in parts):
        raise _DamagedError(f"the member name {shorten(name)!r} leads out of the archive")
    return name


def _wide(extra: bytes, unpacked: int, packed: int, header: int, name: str) -> tuple[int, int, int]:
    """Sizes and header offset, with those that are too large for 32 bits taken from the extra field."""
    field = b""
    at = 0
    while at + 4 <= len(extra) and not field:
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
        at += 4 + length
    values = [unpacked, packed, header]
    for index, value in enumerate(values):
        if value == 0xFFFFFFFF:
            if len(field) < 8:
                raise _DamagedError(f"member {name!r} lacks its 64-bit size")
            values[index] = int.from_bytes(field[:8], "little")
            field = field[8:]
    return values[0], values[1], values[2]


def _data_offset(data: Bytes, header: int, name: str, size: int, limit: int) -> int:
    """First byte of a member, whose own header must agree with the directory."""
    if header + _LOCAL.size > limit:
        raise _DamagedError(f"member {name!r} should begin at byte {header}, past the last member")
    signature, _, flags, method, _, _, _, packed, _, *lengths = _LOCAL.unpack_from(data, header)
    name_bytes, extra_bytes = int(lengths[0]), int(lengths[1])
    begin = header + _LOCAL.size
    if signature != b"PK\x03\x04" or method != _STORED or flags & _ENCRYPTED:
        raise _DamagedError(f"member {name!r} has no header of its own at byte {header}")
    if name_bytes > MAX_NAME or data[begin : begin + name_bytes] != name.encode():
        raise _DamagedError(f"member {name!r} has another name at byte {header}")
    if packed not in (0, 0xFFFFFFFF, size):
        raise _DamagedError(f"member {name!r} has {packed} bytes by its own header, {size} by the directory")
    begin += name_bytes + extra_bytes
    if begin + size > limit:
        raise _DamagedError(f"member {name!r} should end at byte {begin + size}, past the last member at {limit}")
    return begin


# --- writing ---------------------------------------------------------------------------------------------------------


@dataclass
class _WrittenMember:
    name: bytes
    offset: int
    size: int
    crc32: int = 0


class ZipWriter:
    """Stored members, one after the other, and the directory of them."""

    def __init__(self, sink: Sink, stem: str) -> None:
        self._sink = sink
        self._stem = stem
        self._members: list[_WrittenMember] = []

    def add(self, name: str, data: bytes) -> None:
        self.begin(name, len(data))
        self.data(data)
        self.end()

    def begin(self, name: str, size: int) -> None:
        member = _WrittenMember(f"{self._stem}/{name}".encode(), self._sink.size, size)
        self._members.append(member)
        wide = struct.pack("<HHQQ", 1, 16, 0, 0) if size >= LIMIT else b""  # tells that the sizes behind are 8 bytes
        start = self._sink.size + 30 + len(member.name) + len(wide) + 4
        padding = struct.pack("<2sH", b"FB", -start % ALIGNMENT) + b"Z" * (-start % ALIGNMENT)
        needed = LIMIT if wide else 0
        header = struct.pack(
            "<4sHHHHHLLLHH", b"PK\3\4", 45 if wide else 0, FLAGS, 0, 0, 0, 0, needed, needed,
            len(member.name), len(wide) + len(padding),
        )  # fmt: skip
        self._sink.write(header + member.name + wide + padding)

    def data(self, block: bytes | memoryview) -> None:
        self._members[-1].crc32 = zlib.crc32(block, self._members[-1].crc32)
        self._sink.write(block)

    def end(self) -> None:
        member = self._members[-1]
        form = "<4sLQQ" if member.size >= LIMIT else "<4sLLL"
        self._sink.write(struct.pack(form, b"PK\7\x08", member.crc32, member.size, member.size))

    def directory(self) -> None:
        start = self._sink.size
        for member in self._members:
            wide = [member.size, member.size] if member.size >= LIMIT else []
            wide += [member.offset] if member.offset >= LIMIT else []
            extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
            size = min(member.size, LIMIT)
            self._sink.write(
                struct.pack(
                    "<4sHHHHHHLLLHHHHHLL", b"PK\1\2", 0, 45 if wide else 0, FLAGS, 0, 0, 0, member.crc32, size, size,
                    len(member.name), len(extra), 0, 0, 0, 0, min(member.offset, LIMIT),
                ) + member.name + extra
            )  # fmt: skip
        size = self._sink.size - start
        count = len(self._members)
        ends = self._sink.size
        self._sink.write(
            struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 0, 45, 0, 0, count, count, size, start)
            + struct.pack("<4sLQL", b"PK\6\7", 0, ends, 1)
            + struct.pack(
                "<4sHHHHLLH", b"PK\5\6", 0, 0, min(count, 0xFFFF), min(count, 0xFFFF), min(size, LIMIT),
                min(start, LIMIT), 0,
            )
        )  # fmt: skip
