"""Interpreter of pickles that runs nothing: every result is an inert value.

The opcodes are those of Python's `pickletools`. Functions are never called: the readers give a table from the few
known names to functions of ours. Long byte strings stay in the file. Work and memory are bounded.
"""

import pickle  # for the names of the opcodes only
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from glmkit.errors import CheckpointError, shorten

from .calls import PLAIN_CALLS, check_name, full_name, refused
from .cursor import LINE_BYTES, Bytes, Cursor, PickleError, damaged
from .numpy_arrays import numpy_calls
from .torch_tensors import torch_calls
from .values import MAX_INLINE, Blob, Call, Global, Inert, Placeholder, checked_key, kind_of

Known = Literal["nothing", "numpy", "torch"]

MAX_OPCODES = 5_000_000
MAX_MEMORY = 128 * 2**20  # bytes that the values may take, estimated from above
_NUMBER_BYTES = 64


def read_pickle(
    path: Path,
    data: Bytes,
    start: int,
    end: int,
    known: Known = "nothing",
    persistent: Callable[[object], object] | None = None,
) -> tuple[Any, int]:
    """(value, end of the pickle) of the pickle that begins at byte `start` of `data` and must end before `end`.

    known: which calls have a meaning: none, those of plain containers and numpy arrays, or those of torch tensors too.
    persistent: what a persistent id stands for. Raises CheckpointError naming `path` for a pickle that is damaged, too
    large or asks for anything else.
    """
    calls: Mapping[str, Call] = {}
    if known != "nothing":
        calls = {**PLAIN_CALLS, **numpy_calls(data), **(torch_calls() if known == "torch" else {})}
    machine = _Machine(data, start, end, calls, persistent)
    try:
        return machine.run(), machine.at
    except PickleError as error:
        raise CheckpointError(f"{path}: {error.what}", step=error.step) from None
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, struct.error) as error:
        reason = shorten(f"{type(error).__name__}: {error}", 160)
        raise CheckpointError(
            f"{path}: damaged pickle near byte {machine.at} ({reason})", step="download it again"
        ) from None


@dataclass(eq=False)
class _Machine(Cursor):
    calls: Mapping[str, Call]
    persistent: Callable[[object], object] | None
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    memory: int = MAX_MEMORY

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            code = self.byte()
            if code == _STOP:
                return self.stack.pop()
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise self.unknown(code)
            opcode(self)
        raise PickleError(f"refused: the pickle has more than {MAX_OPCODES} steps; no checkpoint needs that many")

    def unknown(self, code: int) -> PickleError:
        name = _REFUSED.get(code)
        if name is None:
            return PickleError(
                f"byte {self.at - 1} ({code}) is no pickle opcode; the file is damaged, download it again"
            )
        return PickleError(
            f"refused: the pickle uses the opcode {name}, which no checkpoint needs", step="get another copy"
        )

    # --- stack ---

    def push(self, value: object, memory: int = 40) -> None:
        self.charge(memory)
        self.stack.append(value)

    def charge(self, memory: int) -> None:
        self.memory -= memory
        if self.memory < 0:
            raise PickleError(
                f"refused: the pickle builds more than {MAX_MEMORY // 2**20} MiB of objects beside its arrays; "
                "no checkpoint needs that"
            )

    def mark(self) -> None:
        self.charge(120)
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def pop_items(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("stack is empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def put(self, index: int) -> None:
        self.charge(120)
        self.memo[index] = self.stack[-1]

    # --- values ---

    def integer(self, count: int) -> None:
        if count > _NUMBER_BYTES:
            raise PickleError(f"refused: the pickle holds an integer of {count} bytes; {_NUMBER_BYTES} are the limit")
        self.push(int.from_bytes(self.take(count), "little", signed=True), 100)

    def decimal(self) -> None:
        text = self.line()
        if text in ("00", "01"):
            self.push(text == "01")
        elif len(text) <= _NUMBER_BYTES and text.removeprefix("-").removesuffix("L").isdecimal():
            self.push(int(text.removesuffix("L")), 100)
        else:
            raise PickleError(f"{shorten(text, 20)!r} is no integer; the file is damaged, download it again")

    def text(self, count: int) -> None:
        start = self.skip(count)
        if count > MAX_INLINE:
            self.push(Blob(start, count, text=True), 100)
        else:
            self.push(self.data[start : self.at].decode("utf-8", "surrogatepass"), 100 + 4 * count)

    def blob(self, count: int) -> None:
        self.push(Blob(self.skip(count), count), 100)

    def old_text(self, count: int) -> None:
        """A str of Python 2: bytes or text, nobody knows."""
        start = self.skip(count)
        if count > MAX_INLINE:
            self.push(Blob(start, count), 100)
        else:
            self.push(self.data[start : self.at].decode("latin-1"), 100 + 4 * count)

    # --- containers ---

    def make_tuple(self, items: list[Any]) -> None:
        self.push(tuple(items), 80 + 16 * len(items))

    def make_dict(self, items: list[Any]) -> None:
        self.push({}, 250)
        self.set_items(items)

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise PickleError("a dict has a key without a value; the file is damaged, download it again")
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.add()
            return
        if type(target) is not dict:
            raise PickleError(f"{kind_of(target)} gets the items of a dict; the file is damaged, download it again")
        self.charge(60 * len(items))
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def append_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.add()
        elif type(target) is list:
            self.charge(16 * len(items))
            target.extend(items)
        elif type(target) is set:
            self.charge(100 * len(items))
            target.update(checked_key(item) for item in items)
        else:
            raise PickleError(f"{kind_of(target)} gets the items of a list; the file is damaged, download it again")

    def make_frozenset(self, items: list[Any]) -> None:
        self.push(frozenset(checked_key(item) for item in items), 250 + 100 * len(items))

    # --- names and objects ---

    def mention(self, module: object, name: object) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a name is made of something else than text; the file is damaged, download it again")
        full = full_name(module, name)
        if full not in self.calls:
            check_name(full)
        return Global(full)

    def call(self, function: object, args: object) -> None:
        if not isinstance(function, Global):
            raise PickleError(
                f"refused: the file asks to run {kind_of(function)}, no name", step="get it from another source"
            )
        known = self.calls.get(function.name)
        if known is None:
            raise refused(function.name)
        if not isinstance(args, tuple):
            raise damaged(f"{function.name} is given {kind_of(args)}, no arguments")
        sizes = sum(len(arg) for arg in args if isinstance(arg, list | tuple | dict | set | frozenset))
        self.charge(800 + 120 * sizes)
        self.push(known(args))

    def new(self, cls: object, args: object, keywords: object = None) -> None:
        if not isinstance(cls, Global):
            raise PickleError(
                f"refused: the file asks for an object of {kind_of(cls)}", step="get it from another source"
            )
        if cls.name in self.calls and not keywords:
            self.call(cls, args)
        else:
            self.push(Placeholder(cls.name), 100)

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert):
            target.build(state)
        elif type(target) is not dict:  # attributes of an OrderedDict: `_metadata` of state dicts, of no use here
            raise PickleError(f"{kind_of(target)} is given a state; the file is damaged, download it again")

    def identify(self) -> None:
        if self.persistent is None:
            raise PickleError("refused: the pickle refers to a storage outside of it; is it part of another file?")
        self.push(self.persistent(self.stack.pop()), 600)

    def frame(self) -> None:
        count = self.number("<Q")
        if count > self.end - self.at:
            raise damaged(f"a frame of {count} bytes where {self.end - self.at} are left")

    def protocol(self) -> None:
        version = self.number("B")
        if version > 5:
            raise damaged(f"pickle protocol {version} is not known (5 is the last)")

    def make_object(self) -> None:
        items = self.pop_mark()
        self.call(items[0], tuple(items[1:]))


_STOP = pickle.STOP[0]
_OPCODES: dict[int, Callable[[_Machine], None]] = {
    code[0]: action
    for code, action in {
        pickle.PROTO: _Machine.protocol,
        pickle.FRAME: _Machine.frame,
        pickle.MARK: _Machine.mark,
        pickle.POP: _Machine.pop,
        pickle.POP_MARK: lambda m: m.pop_mark(),
        pickle.DUP: lambda m: m.push(m.stack[-1]),
        pickle.NONE: lambda m: m.push(None),
        pickle.NEWTRUE: lambda m: m.push(True),
        pickle.NEWFALSE: lambda m: m.push(False),
        pickle.BININT: lambda m: m.push(m.number("<i")),
        pickle.BININT1: lambda m: m.push(m.number("B")),
        pickle.BININT2: lambda m: m.push(m.number("<H")),
        pickle.LONG1: lambda m: m.integer(m.number("B")),
        pickle.LONG4: lambda m: m.integer(m.number("<I")),
        pickle.INT: _Machine.decimal,
        pickle.LONG: _Machine.decimal,
        pickle.FLOAT: lambda m: m.push(float(m.line())),
        pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
        pickle.SHORT_BINUNICODE: lambda m: m.text(m.number("B")),
        pickle.BINUNICODE: lambda m: m.text(m.number("<I")),
        pickle.BINUNICODE8: lambda m: m.text(m.number("<Q")),
        pickle.SHORT_BINBYTES: lambda m: m.blob(m.number("B")),
        pickle.BINBYTES: lambda m: m.blob(m.number("<I")),
        pickle.BINBYTES8: lambda m: m.blob(m.number("<Q")),
        pickle.BYTEARRAY8: lambda m: m.blob(m.number("<Q")),
        pickle.SHORT_BINSTRING: lambda m: m.old_text(m.number("B")),
        pickle.BINSTRING: lambda m: m.old_text(m.number("<i")),
        pickle.READONLY_BUFFER: lambda m: None,
        pickle.EMPTY_TUPLE: lambda m: m.push(()),
        pickle.TUPLE: lambda m: m.make_tuple(m.pop_mark()),
        pickle.TUPLE1: lambda m: m.make_tuple(m.pop_items(1)),
        pickle.TUPLE2: lambda m: m.make_tuple(m.pop_items(2)),
        pickle.TUPLE3: lambda m: m.make_tuple(m.pop_items(3)),
        pickle.EMPTY_LIST: lambda m: m.push([], 80),
        pickle.LIST: lambda m: m.push(m.pop_mark(), 80),
        pickle.APPEND: lambda m: m.append_items([m.stack.pop()]),
        pickle.APPENDS: lambda m: m.append_items(m.pop_mark()),
        pickle.EMPTY_DICT: lambda m: m.push({}, 250),
        pickle.DICT: lambda m: m.make_dict(m.pop_mark()),
        pickle.SETITEM: lambda m: m.set_items(m.pop_items(2)),
        pickle.SETITEMS: lambda m: m.set_items(m.pop_mark()),
        pickle.EMPTY_SET: lambda m: m.push(set(), 250),
        pickle.ADDITEMS: lambda m: m.append_items(m.pop_mark()),
        pickle.FROZENSET: lambda m: m.make_frozenset(m.pop_mark()),
        pickle.PUT: lambda m: m.put(int(m.line())),
        pickle.BINPUT: lambda m: m.put(m.number("B")),
        pickle.LONG_BINPUT: lambda m: m.put(m.number("<I")),
        pickle.MEMOIZE: lambda m: m.put(len(m.memo)),
        pickle.GET: lambda m: m.push(m.memo[int(m.line())]),
        pickle.BINGET: lambda m: m.push(m.memo[m.number("B")]),
        pickle.LONG_BINGET: lambda m: m.push(m.memo[m.number("<I")]),
        pickle.GLOBAL: lambda m: m.push(m.mention(m.line(), m.line()), 200 + LINE_BYTES),
        pickle.STACK_GLOBAL: lambda m: m.push(m.mention(*m.pop_items(2)), 200),
        pickle.REDUCE: lambda m: m.call(*m.pop_items(2)),
        pickle.BUILD: _Machine.build,
        pickle.NEWOBJ: lambda m: m.new(*m.pop_items(2)),
        pickle.NEWOBJ_EX: lambda m: m.new(*m.pop_items(3)),
        pickle.INST: lambda m: m.call(m.mention(m.line(), m.line()), tuple(m.pop_mark())),
        pickle.OBJ: _Machine.make_object,
        pickle.BINPERSID: _Machine.identify,
    }.items()
}
_REFUSED = {
    pickle.PERSID[0]: "PERSID",
    pickle.EXT1[0]: "EXT1",
    pickle.EXT2[0]: "EXT2",
    pickle.EXT4[0]: "EXT4",
    pickle.NEXT_BUFFER[0]: "NEXT_BUFFER",
    pickle.STRING[0]: "STRING (protocol 0)",
    pickle.UNICODE[0]: "UNICODE (protocol 0)",
}
