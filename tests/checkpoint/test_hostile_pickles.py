"""Pickles that want to run something, lie or explode: each refused with its reason, nothing run, memory bounded."""

import struct
from pathlib import Path

import pytest

from glmkit.checkpoint.files.open_file import open_tensor_file
from glmkit.errors import CheckpointError
from support.hostile import (
    PeakMemory,
    array,
    call,
    many,
    mapping,
    name,
    new_name,
    number,
    sizes,
    storage,
    tensor,
    text,
    watched,
    whole,
    write_legacy,
    write_pickle,
    write_zip,
)

WRITERS = {"bin": write_zip, "pt": write_legacy, "pdparams": write_pickle}
MEMORY = 200 * 2**20
SHELL = "touch MARKER"
PYTHON = "open('MARKER', 'w').close()"


def refuse(path: Path, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening `path` fails with `reason` in one line, runs nothing and takes little memory."""
    monkeypatch.chdir(path.parent)
    with watched() as seen, PeakMemory() as memory, pytest.raises(CheckpointError) as caught:
        open_tensor_file(path)
    message = str(caught.value)
    assert reason in message
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 700
    assert not seen
    assert not (path.parent / "MARKER").exists()
    assert memory.growth is None or memory.growth < MEMORY


# What a pickle wants to run -> the name that the refusal must give.
RUN = {
    "os.system": (call("os", "system", text(SHELL)), "os.system"),
    "posix.system": (call("posix", "system", text(SHELL)), "posix.system"),
    "nt.system": (call("nt", "system", text(SHELL)), "nt.system"),
    "eval": (call("builtins", "eval", text(PYTHON)), "builtins.eval"),
    "exec": (call("builtins", "exec", text(PYTHON)), "builtins.exec"),
    "python2-eval": (call("__builtin__", "eval", text(PYTHON)), "builtins.eval"),
    "import": (call("builtins", "__import__", text("os")), "builtins.__import__"),
    "open": (call("builtins", "open", text("MARKER"), text("w")), "builtins.open"),
    "getattr-chain": (
        call("builtins", "getattr", call("builtins", "__import__", text("os")), text("system"))
        + many(text(SHELL))
        + b"R",
        "builtins.getattr",
    ),
    "nested-reduce": (call("collections", "OrderedDict") + many(text(SHELL)) + b"R", "asks to run dict"),
    "reduce-of-a-reduce": (call("operator", "attrgetter", text("system")) + b"R", "operator.attrgetter"),
    "popen": (call("subprocess", "Popen", text(SHELL)), "subprocess.Popen"),
    "popen-newobj": (name("subprocess", "Popen") + many(text(SHELL)) + b"\x81", "subprocess.Popen"),
    "popen-newobj-ex": (name("subprocess", "Popen") + many(text(SHELL)) + b"}\x92", "subprocess.Popen"),
    "check_output": (call("subprocess", "check_output", text(SHELL)), "subprocess.check_output"),
    "importlib": (call("importlib", "import_module", text("antigravity")), "importlib.import_module"),
    "runpy": (call("runpy", "_run_code", text(PYTHON)), "runpy._run_code"),
    "ctypes": (call("ctypes", "CDLL", text("libc.so.6")), "ctypes.CDLL"),
    "shutil": (call("shutil", "rmtree", text(".")), "shutil.rmtree"),
    "pty": (call("pty", "spawn", text("sh")), "pty.spawn"),
    "timeit": (call("timeit", "timeit", text(PYTHON)), "timeit.timeit"),
    "webbrowser": (call("webbrowser", "open", text("http://localhost")), "webbrowser.open"),
    "partial": (call("functools", "partial", name("json", "loads")), "functools.partial"),
    "code-object": (call("types", "CodeType"), "types.CodeType"),
    "pickle.loads": (call("pickle", "loads", text("cos\nsystem\n.")), "pickle.loads"),
    "marshal.loads": (call("marshal", "loads", text("x")), "marshal.loads"),
    "torch.load": (call("torch", "load", text("MARKER")), "torch.load"),
    "torch.serialization": (call("torch.serialization", "load", text("MARKER")), "torch.serialization.load"),
    "load_from_bytes": (call("torch.storage", "_load_from_bytes", text("x")), "torch.storage._load_from_bytes"),
    "torch.hub": (call("torch.hub", "load", text("a/b"), text("c")), "torch.hub.load"),
    "torch-through-os": (new_name("torch", "serialization.os.system") + many(text(SHELL)) + b"R", "os.system"),
    "numpy.load": (call("numpy", "load", text("MARKER")), "numpy.load"),
    "numpy-runstring": (
        call("numpy.testing._private.utils", "runstring", text(PYTHON), b"}"),
        "numpy.testing._private.utils.runstring",
    ),
    "unknown-function": (call("apex.amp", "initialize", text("x")), "apex.amp.initialize"),
    "copyreg-newobj": (call("copyreg", "__newobj__", name("json", "JSONDecoder")), "copyreg.__newobj__"),
    "reconstructor": (call("copyreg", "_reconstructor", name("io", "FileIO"), b"N", b"N"), "io.FileIO"),
    "inst": (b"(" + text(SHELL) + b"ios\nsystem\n", "os.system"),
    "inst-unknown": (b"(" + text(SHELL) + b"iapex\nrun\n", "apex.run"),
    "obj": (b"(" + name("posix", "system") + text(SHELL) + b"o", "posix.system"),
    "obj-unknown": (b"(" + name("apex", "run") + text(SHELL) + b"o", "apex.run"),
    "defaultdict-factory": (call("collections", "defaultdict", name("os", "getcwd")), "os.getcwd"),
    "set-of-calls": (call("builtins", "set", b"](" + call("os", "system", text(SHELL)) + b"e"), "os.system"),
    "as-a-key": (b"}" + call("posix", "system", text(SHELL)) + b"Ns", "posix.system"),
    "ext1": (b"\x82\x01", "EXT1"),
    "ext2": (b"\x83\x01\x00", "EXT2"),
    "ext4": (b"\x84\x01\x00\x00\x00", "EXT4"),
    "persistent-text": (b"Pevil\n", "PERSID"),
    "next-buffer": (b"\x97", "NEXT_BUFFER"),
    "rot13": (call("_codecs", "encode", text("x"), text("rot13")), "encoded as rot13"),
    "unzip": (call("_codecs", "encode", text("x"), text("bz2")), "encoded as bz2"),
    "codecs-open": (call("codecs", "open", text("MARKER"), text("w")), "codecs.open"),
    "object-array": (array(kind="O8", order="|"), "arrays of objects"),
    "record-array": (array(kind="V16", order="|"), "numpy type 'V16'"),
    "array-subclass": (
        call("numpy.core.multiarray", "_reconstruct", name("numpy", "memmap"), sizes((0,)), b"C\x01b"),
        "numpy.memmap",
    ),
    "array-too-short": (array(shape=(5,)), "takes 20 bytes, the file gives it 16"),
    "array-too-long": (array(shape=(3,)), "takes 12 bytes, the file gives it 16"),
    "array-absurd": (array(shape=(2**62, 2**62)), "refused: shape"),
    "array-negative": (array(shape=(-4,)), "has -4 in it"),
    "array-big-endian": (array(order=">"), "big-endian"),
}
RUN_FILES = [(kind, case) for case in RUN for kind in WRITERS]


@pytest.mark.parametrize(("kind", "case"), RUN_FILES, ids=[f"{case}.{kind}" for kind, case in RUN_FILES])
def test_nothing_is_run(kind: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body, reason = RUN[case]
    path = WRITERS[kind](tmp_path / f"evil.{kind}", whole(mapping(w=body), 4 if case == "torch-through-os" else 2))
    refuse(path, reason, monkeypatch)


@pytest.mark.parametrize("kind", ["bin", "pt"])
@pytest.mark.parametrize("place", ["bookkeeping", "hooks", "beside", "metadata"])
def test_a_call_is_refused_wherever_it_hides(
    place: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = call("posix", "system", text(SHELL))
    body = {
        "bookkeeping": mapping(module=mapping(w=tensor()), optimizer=mapping(scaler=evil)),
        "hooks": mapping(w=tensor(hooks=evil)),
        "beside": mapping(w=tensor()) + evil + b"0",
        "metadata": mapping(w=tensor()) + mapping(_metadata=evil) + b"b",
    }[place]
    refuse(WRITERS[kind](tmp_path / f"evil.{kind}", whole(body)), "posix.system", monkeypatch)


def test_protocol_0_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"cos\nsystem\n(S'touch MARKER'\ntR."
    refuse(write_pickle(tmp_path / "a.pdparams", body), "protocol 0", monkeypatch)
    refuse(write_zip(tmp_path / "a.bin", body), "os.system", monkeypatch)


# --- lies about storages ----------------------------------------------------------------------------------------------

LIES = {
    "storage-too-small": (tensor((5,), source=storage(5)), "should have 20 bytes but has 16"),
    "storage-absurd": (tensor((4,), source=storage(2**62)), "should have"),
    "storage-negative": (tensor((4,), source=storage(-4)), "no proper key or size"),
    "storage-absent": (tensor(source=storage(key=text("7"))), "storage '7' is not in the file"),
    "storage-elsewhere": (tensor(source=storage(key=text("../../etc/passwd"))), "is not in the file"),
    "storage-number": (tensor(source=storage(key=number(0))), "no proper key or size"),
    "storage-of-system": (tensor(source=storage(kind=name("posix", "system"))), "posix.system"),
    "storage-quantised": (tensor(source=storage(kind=name("torch", "QInt8Storage"))), "torch.QInt8Storage"),
    "id-of-text": (tensor(source=text("storage") + b"Q"), "a storage is named by str"),
    "id-of-module": (tensor(source=many(text("module"), text("x")) + b"Q"), "refused"),
    "no-storage": (tensor(source=b"]"), "made of list, no storage"),
    "shape-too-large": (tensor((5,)), "leaves its storage of 4 elements"),
    "shape-absurd": (tensor((2**62,)), "leaves its storage"),
    "shape-overflow": (tensor((2**62, 2**62), (0, 0)), "repeats a storage"),
    "shape-repeats": (tensor((2**40,), (0,)), "repeats a storage of 4 elements"),
    "shape-negative": (tensor((-4,)), "has -4 in it"),
    "shape-of-float": (tensor().replace(sizes((4,)), many(b"G" + struct.pack(">d", 4.0)), 1), "float"),
    "stride-negative": (tensor((2,), (-1,), 1), "has -1 in it"),
    "stride-absurd": (tensor((2,), (2**61,)), "leaves its storage"),
    "stride-missing": (tensor((2, 2), (1,)), "2 sizes but 1 strides"),
    "offset-outside": (tensor((1,), (1,), 4), "leaves its storage"),
    "offset-negative": (tensor((1,), (1,), -1), "leaves its storage"),
    "65-dimensions": (tensor((1,) * 65, (1,) * 65), "at most 64 numbers"),
    "typed-as-system": (
        call(
            "torch._utils",
            "_rebuild_tensor_v3",
            storage(),
            number(0),
            sizes((4,)),
            sizes((1,)),
            b"\x89",
            b"N",
            text("x"),
        ),
        "has the type str",
    ),
    "attributes-of-system": (
        call("torch._tensor", "_rebuild_from_type_v2", name("apex", "run"), name("torch", "Tensor"), many(), b"}"),
        "apex.run",
    ),
    "parameter-of-text": (call("torch._utils", "_rebuild_parameter", text("x"), b"\x88", b"N"), "made of str"),
}
LIE_FILES = [(kind, case) for case in LIES for kind in ("bin", "pt")]


@pytest.mark.parametrize(("kind", "case"), LIE_FILES, ids=[f"{case}.{kind}" for kind, case in LIE_FILES])
def test_lies_about_storages_are_refused(kind: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body, reason = LIES[case]
    if kind == "pt" and case.startswith("storage-"):  # its storages are known only after the pickle
        late = {"storage-too-small": "truncated", "storage-absent": "list of storages"}
        reason = (late | {"storage-elsewhere": "list of storages"}).get(case, reason)
    refuse(WRITERS[kind](tmp_path / f"evil.{kind}", whole(mapping(w=body))), reason, monkeypatch)


def test_a_legacy_storage_has_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = mapping(a=tensor(), b=tensor((2,), source=storage(2)))
    refuse(write_legacy(tmp_path / "a.pt", whole(body)), "has two sizes", monkeypatch)


# --- bombs ------------------------------------------------------------------------------------------------------------


def laughs(depth: int, pair: bytes = b"\x86") -> bytes:
    """A tuple of two of a tuple of two of ...: 2^depth values in a few bytes."""
    return b")" + b"".join(b"q\x00h\x00" + pair for _ in range(depth))


BOMBS = {
    "dicts": (b"}" * 3_000_000, "MiB of objects"),
    "marks": (b"(" * 3_000_000, "MiB of objects"),
    "steps": (b"N0" * 2_600_000, "more than 5000000 steps"),
    "memo": (b"N" + b"".join(b"r" + struct.pack("<I", index) for index in range(1_200_000)), "MiB of objects"),
    "copies": (
        b"](" + b"N" * 300_000 + b"e" + b"q\x010" + (name("builtins", "list") + b"h\x01\x85R") * 100,
        "MiB of objects",
    ),
    "deep-lists": (b"]" * 400_000 + b"a" * 399_999, "holds no tensors"),
    "deep-tuples": (b")" + b"\x85" * 900_000, "holds no tensors"),
    "laughs": (laughs(200), "holds no tensors"),
    "laughs-as-key": (b"}" + laughs(200) + b"Ns", "tuple as its key"),
    "laughs-in-set": (call("builtins", "set", b"](" + laughs(200) + b"e"), "as its key"),
    "long-integer": (b"\x8b" + struct.pack("<I", 2**30), "integer of 1073741824 bytes"),
    "long-decimal": (b"L" + b"9" * 100_000 + b"L\n", "line of more than 512 bytes"),
    "long-digits": (b"I" + b"9" * 500 + b"\n", "is no integer"),
    "long-text": (b"\x8d" + struct.pack("<Q", 2**62), "are left"),
    "long-bytes": (b"\x8e" + struct.pack("<Q", 2**63), "are left"),
    "long-array": (b"\x96" + struct.pack("<Q", 2**40), "are left"),
    "long-frame": (b"\x95" + struct.pack("<Q", 2**60), "a frame of"),
    "collisions": (
        b"}(" + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(1, 1000)) + b"u",
        "integer of more than 60 bits",
    ),
    "endless": (b"N" * 10, "breaks off"),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("case", BOMBS)
def test_bombs_do_not_go_off(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body, reason = BOMBS[case]
    pickled = whole(mapping(w=body), 4)
    if case == "endless":
        pickled = pickled[:-1].rstrip(b"u")
    refuse(write_pickle(tmp_path / "evil.pdparams", pickled), reason, monkeypatch)


def test_deep_and_repeating_bookkeeping_is_named_and_left_out(tmp_path: Path) -> None:
    body = mapping(w=tensor(), deep=b")" + b"\x85" * 500, wide=laughs(60), iteration=number(7))
    file = open_tensor_file(write_zip(tmp_path / "a.bin", whole(body)))
    assert file.keys() == ["w"]
    assert file.extras["iteration"] == 7
    assert "too deeply" in str(file.extras["deep"])
    assert "too many" in str(file.extras["wide"])


def test_unknown_objects_in_bookkeeping_are_placeholders(tmp_path: Path) -> None:
    scaler = name("deepspeed.loss_scaler", "LossScaler") + b")\x81" + mapping(scale=number(4)) + b"b"
    body = mapping(
        module=mapping(w=tensor()),
        scaler=scaler,
        args=name("argparse", "Namespace") + b")\x81" + mapping(lr=b"N") + b"b",
    )
    file = open_tensor_file(write_zip(tmp_path / "a.bin", whole(body)))
    assert file.keys() == ["w"]
    assert str(file.extras["scaler"]) == "object of class deepspeed.loss_scaler.LossScaler"
    assert file.extras["args"] == {"lr": None}


def test_unknown_objects_among_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = name("apex", "Tensor") + b")\x81"
    refuse(write_zip(tmp_path / "a.bin", whole(mapping(w=tensor(), v=evil))), "apex.Tensor", monkeypatch)
    refuse(
        write_zip(tmp_path / "b.bin", whole(mapping(module=mapping(w=tensor(), v=evil)))), "apex.Tensor", monkeypatch
    )
    refuse(write_pickle(tmp_path / "c.pdparams", whole(mapping(w=array(), v=evil))), "apex.Tensor", monkeypatch)
    refuse(write_zip(tmp_path / "d.bin", whole(evil)), "apex.Tensor", monkeypatch)


def test_the_harmless_twins_are_read(tmp_path: Path) -> None:
    for kind, writer in WRITERS.items():
        body = array(struct.pack("<4f", 1, 2, 3, 4)) if kind == "pdparams" else tensor()
        file = open_tensor_file(writer(tmp_path / f"good.{kind}", whole(mapping(w=body))))
        assert file.read("w").tolist() == ([1, 2, 3, 4] if kind == "pdparams" else [0, 0, 0, 0])
