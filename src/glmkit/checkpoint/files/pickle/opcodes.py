"""The few pickle opcodes that our writers emit by hand, protocols 2 and 4 (names: CPython's `Lib/pickletools.py`)."""

import pickle

PROTO = b"\x80"
STOP = b"."
MARK = b"("
EMPTY_DICT = b"}"
SETITEMS = b"u"
EMPTY_TUPLE = b")"
TUPLE = b"t"  # of everything since MARK
REDUCE = b"R"
BUILD = b"b"
BINPERSID = b"Q"
STACK_GLOBAL = b"\x93"
NONE = b"N"
FALSE = b"\x89"
TRUE = b"\x88"


def number(value: int) -> bytes:
    """An int of any size."""
    return pickle.dumps(value, protocol=2)[2:-1]  # without PROTO and STOP


def long_number(value: int, length: int) -> bytes:
    """An int in `length` bytes (at most 255), more of them than it needs if you like."""
    return b"\x8a" + length.to_bytes(1, "little") + value.to_bytes(length, "little", signed=True)


def numbers(values: tuple[int, ...]) -> bytes:
    """A tuple of ints."""
    return MARK + b"".join(map(number, values)) + TUPLE if values else EMPTY_TUPLE


def text(value: str) -> bytes:
    """A str."""
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def bytes_header(length: int) -> bytes:
    """Header of `length` bytes of a bytes object (protocol 4 where they are 4 GiB or more)."""
    if length < 1 << 32:
        return b"B" + length.to_bytes(4, "little")
    return b"\x8e" + length.to_bytes(8, "little")


class Names:
    """Globals: spelled out once, taken from the pickle's memo afterwards (at most 256 of them)."""

    def __init__(self, protocol: int) -> None:
        self._stacked = protocol >= 4
        self._memo: dict[tuple[str, str], int] = {}

    def get(self, module: str, name: str) -> bytes:
        """The opcodes that push `module.name`."""
        key = (module, name)
        if key in self._memo:
            return b"h" + self._memo[key].to_bytes(1, "little")
        self._memo[key] = len(self._memo)
        spelled = text(module) + text(name) + STACK_GLOBAL if self._stacked else f"c{module}\n{name}\n".encode()
        return spelled + b"q" + self._memo[key].to_bytes(1, "little")
