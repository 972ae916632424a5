"""Builds pickles opcode by opcode, and the files that hold them; for readers that must not trust either."""

import pickle
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sys import addaudithook

LEGACY_HEAD = b"".join(
    pickle.dumps(part, 2)
    for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
)


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def new_name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def many(*items: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def call(module: str, attribute: str, *args: bytes) -> bytes:
    return name(module, attribute) + many(*args) + b"R"


def mapping(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def whole(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def storage(numel: int = 4, key: bytes | None = None, kind: bytes = name("torch", "FloatStorage")) -> bytes:
    return many(text("storage"), kind, key or text("0"), text("cpu"), number(numel)) + b"Q"


def sizes(values: tuple[int, ...]) -> bytes:
    return many(*map(number, values))


def tensor(
    shape: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
    source: bytes | None = None,
    hooks: bytes = b"N",
) -> bytes:
    parts = (source or storage(), number(offset), sizes(shape), sizes(stride), b"\x89", hooks)
    return call("torch._utils", "_rebuild_tensor_v2", *parts)


def array(data: bytes = bytes(16), shape: tuple[int, ...] = (4,), kind: str = "f4", order: str = "<") -> bytes:
    dtype = call("numpy", "dtype", text(kind), b"\x89", b"\x88")
    dtype += many(number(3), text(order), b"N", b"N", b"N", number(-1), number(-1), number(0)) + b"b"
    empty = call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), sizes((0,)), b"C\x01b")
    return empty + many(number(1), sizes(shape), dtype, b"\x89", b"B" + struct.pack("<I", len(data)) + data) + b"b"


# --- files ------------------------------------------------------------------------------------------------------------


def write_zip(path: Path, pickled: bytes, members: dict[str, bytes] | None = None, root: str = "archive") -> Path:
    """What torch.save writes: stored members, the content first. The storage "0" has 16 bytes unless told."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr(f"{root}/data.pkl", pickled)
        for member, data in ({"data/0": bytes(16)} | (members or {})).items():
            file.writestr(f"{root}/{member}", data)
    return path


def write_legacy(path: Path, pickled: bytes) -> Path:
    keys = pickle.dumps(["0"], 2)
    path.write_bytes(LEGACY_HEAD + pickled + keys + struct.pack("<q", 4) + bytes(16))
    return path


def write_pickle(path: Path, pickled: bytes) -> Path:
    path.write_bytes(pickled)
    return path


# --- watching ---------------------------------------------------------------------------------------------------------

_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
    "ctypes.dlopen",
    "marshal.loads",
    "pickle.find_class",
    "socket.connect",
)
_seen: list[str] | None = None
_hooked = False


def _hook(event: str, args: object) -> None:
    if _seen is not None and event in _FORBIDDEN:
        _seen.append(event)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Yields a list that gets the name of every forbidden thing the interpreter does in the block."""
    global _seen, _hooked
    if not _hooked:  # a hook stays for the life of the process
        addaudithook(_hook)
        _hooked = True
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None


class PeakMemory:
    """Growth in bytes of the largest resident size since the start of the block; None where Linux does not tell."""

    growth: int | None = None

    def __enter__(self) -> "PeakMemory":
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.before = self._read("VmRSS")
        except OSError:
            self.before = -1
        return self

    def __exit__(self, *error: object) -> None:
        if self.before >= 0:
            self.growth = self._read("VmHWM") - self.before

    @staticmethod
    def _read(field: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
        raise OSError(f"no {field}")


def resident(kind: str = "RssAnon") -> int:
    """Bytes of this process's pages of a kind: RssAnon (its own) or RssFile (mapped from files)."""
    return PeakMemory._read(kind)
