"""Tensor files of every format, read bit for bit as the libraries that wrote them read them, and mapped, not copied."""

import argparse
import io
import json
import pickle
import pickletools
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from glmkit.checkpoint.files.mapping import TensorFile
from glmkit.checkpoint.files.open_file import open_tensor_file
from glmkit.checkpoint.files.paddle_file import open_paddle_file
from glmkit.checkpoint.files.safetensors_file import open_safetensors_file
from glmkit.checkpoint.files.tensors import Omitted
from glmkit.checkpoint.files.torch_file import open_torch_file
from glmkit.errors import CheckpointError
from support.hostile import mapping, number, resident, tensor, whole, write_legacy
from support.shared import ROOT, shared_dir

pytestmark = pytest.mark.sampled(4)

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def raw(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten().contiguous().view(torch.uint8)


def assert_same(file: TensorFile, expected: dict[str, Tensor]) -> None:
    assert file.keys() == list(expected)
    for name, value in expected.items():
        found = file.read(name)
        info = file.info(name)
        assert found.dtype == info.dtype == value.dtype, name
        assert tuple(found.shape) == info.shape == tuple(value.shape), name
        assert info.nbytes == value.numel() * value.element_size()
        assert raw(found).equal(raw(value)), name
        file.release(name)
        assert raw(file.read(name)).equal(raw(value)), name
    assert file.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in expected.values())


def bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random values of any dtype (NaNs among the floats)."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    numel = int(np.prod(shape)) * dtype.itemsize
    return torch.randint(0, 256, (numel,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)


def tricky() -> dict[str, Tensor]:
    """Every dtype, views, strides, shared storages, scalars and empty tensors."""
    base = bits((6, 10), torch.float32)
    half = bits((9,), torch.bfloat16)
    state = {f"plain.{dtype}": bits((3, 5), dtype) for dtype in DTYPES}
    return state | {
        "base": base,
        "transposed": base.t(),
        "window": base[2:4, 3:9:2],
        "permuted": bits((2, 3, 4), torch.float16).permute(2, 0, 1),
        "alias": base,
        "tail": half[5:],
        "scalar": torch.tensor(3.25),
        "empty": torch.empty(0, 7),
        "empty-tail": half[9:],
        "repeated": torch.tensor([1.5, 2.5]).expand(4, 2),
        "parameter": nn.Parameter(bits((4,), torch.float32, 1)),
    }


# --- torch ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", ["", "module", "state_dict", "model", "net"])
def test_torch_files(modern: bool, wrapper: str, tmp_path: Path) -> None:
    state = tricky()
    content = {wrapper: OrderedDict(state), "iteration": 7} if wrapper else state
    torch.save(content, tmp_path / "a.bin", _use_new_zipfile_serialization=modern)
    for opener in (open_torch_file, open_tensor_file):
        file = opener(tmp_path / "a.bin")
        assert_same(file, state)
        assert file.path == tmp_path / "a.bin"
        assert dict(file.extras) == ({"iteration": 7} if wrapper else {})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_torch_files_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    state = tricky()
    torch.save(state, tmp_path / "a.bin", pickle_protocol=protocol)
    assert_same(open_tensor_file(tmp_path / "a.bin"), state)


def test_newer_torch_types(tmp_path: Path) -> None:
    kinds = (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64)
    state = {str(dtype): bits((4, 3), dtype) for dtype in kinds}
    torch.save(state, tmp_path / "a.bin")
    assert_same(open_tensor_file(tmp_path / "a.bin"), state)


def test_tensors_with_attributes_and_module_states(tmp_path: Path) -> None:
    marked = nn.Parameter(bits((3,), torch.float32))
    marked.model_parallel = True  # type: ignore[attr-defined]
    plain = bits((3,), torch.float32, 1)
    plain.note = "x"  # type: ignore[attr-defined]
    state = {**nn.Linear(3, 2).state_dict(), "marked": marked, "plain": plain}
    torch.save(state, tmp_path / "a.bin")
    assert_same(open_tensor_file(tmp_path / "a.bin"), state)
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)).state_dict()  # an OrderedDict with the attribute _metadata
    torch.save(module, tmp_path / "b.bin")
    assert_same(open_tensor_file(tmp_path / "b.bin"), dict(module))


class Scaler:
    """A class that the reader has never heard of."""

    def __init__(self) -> None:
        self.scale = 2.0**16


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_bookkeeping_of_training_checkpoints(modern: bool, tmp_path: Path) -> None:
    weight = bits((4, 4), torch.float16)
    np.random.seed(1)
    content = {
        "module": {"w": weight},
        "iteration": 12,
        "rate": 1e-4,
        "np_number": np.float32(0.5),
        "groups": {"decay", "other"},
        "frozen": frozenset({1, 2}),
        "args": argparse.Namespace(lr=0.1, path=Path("/a/b"), dtype=torch.float16, device=torch.device("cuda:1")),
        "shape": torch.Size([2, 3]),
        "scaler": Scaler(),
        "random_rng_state": (3, (1, 2**31), None),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "big": 2**70,
    }
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=modern)
    file = open_tensor_file(tmp_path / "a.pt")
    assert_same(file, {"w": weight})
    extras = dict(file.extras)
    for key in ("iteration", "rate", "groups", "frozen", "random_rng_state", "big"):
        assert extras[key] == content[key], key
    assert extras["np_number"] == 0.5
    assert extras["shape"] == (2, 3)
    assert extras["args"] == {"lr": 0.1, "path": "/a/b", "dtype": "torch.float16", "device": "cuda:1"}
    assert str(extras["scaler"]).startswith("object of class ")
    assert str(extras["scaler"]).endswith("Scaler")
    assert extras["torch_rng_state"] == Omitted("tensor uint8 (5056,)")
    assert extras["np_rng_state"][:2] == ("MT19937", Omitted("array uint32 (624,)"))
    assert extras["optimizer"]["param_groups"] == [{"lr": 0.1, "params": [0]}]
    assert extras["optimizer"]["state"][0]["exp_avg"] == Omitted("tensor float32 (4,)")


def test_bookkeeping_among_the_tensors(tmp_path: Path) -> None:
    weight = bits((2,), torch.float32)
    torch.save({"w": weight, "epoch": 3}, tmp_path / "a.pt")
    torch.save({"module": {"w": weight, "_extra_state": None}, "epoch": 3}, tmp_path / "b.pt")
    flat, wrapped = open_tensor_file(tmp_path / "a.pt"), open_tensor_file(tmp_path / "b.pt")
    assert flat.keys() == wrapped.keys() == ["w"]
    assert dict(flat.extras) == {"epoch": 3}
    assert dict(wrapped.extras) == {"epoch": 3, "module._extra_state": None}


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    """Numbers beyond 32 bits are text there, and every str is bytes."""
    body = mapping(w=tensor(), steps=b"I4294967296\n", name=b"U\x03abc", flag=b"I01\n", rate=b"F0.5\n")
    file = open_tensor_file(write_legacy(tmp_path / "a.pt", whole(body.replace(number(0), b"I0\n"))))
    assert file.read("w").tolist() == [0.0] * 4
    assert dict(file.extras) == {"steps": 2**32, "name": "abc", "flag": True, "rate": 0.5}


def test_views_share_memory_and_writing_stays_private(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    torch.save({"base": base, "turned": base.t()}, tmp_path / "a.bin")
    before = (tmp_path / "a.bin").read_bytes()
    file = open_tensor_file(tmp_path / "a.bin")
    first, turned = file.read("base"), file.read("turned")
    first[1, 2] = -1
    assert turned[2, 1] == -1
    assert (tmp_path / "a.bin").read_bytes() == before
    file.close()
    assert turned[0, 1] == 6  # tensors outlive the file
    with pytest.raises(CheckpointError, match="was closed"):
        file.read("base")
    with pytest.raises(KeyError):
        file.info("other")


# --- Paddle -----------------------------------------------------------------------------------------------------------


def paddle_state() -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    state: dict[str, np.ndarray[Any, Any]] = {
        np.dtype(kind).str: generator.integers(0, 2, (33, 5)).astype(kind)
        for kind in ("f2", "f4", "f8", "i1", "u1", "i4", "i8", "b1")
    }
    large = generator.standard_normal((300, 40)).astype("f4")
    return state | {
        "large": large,
        "fortran": np.asfortranarray(large[:, :30]),
        "scalar": np.array(2.5, "f4"),
        "empty": np.zeros((0, 3), "f4"),
        "bf16": generator.integers(0, 2**16, (40, 30)).astype("u2"),
    }


def as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype == np.uint16:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("named", [False, True], ids=["arrays", "pairs"])
def test_paddle_files(named: bool, protocol: int, tmp_path: Path) -> None:
    state = paddle_state()
    content: dict[str, Any] = {name: (f"linear_{name}.w_0", array) if named else array for name, array in state.items()}
    content["StructuredToParameterName@@"] = {"large": "linear_0.w_0"}
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(content, protocol))
    for opener in (open_paddle_file, open_tensor_file):
        file = opener(tmp_path / "a.pdparams")
        assert_same(file, {name: as_tensor(array) for name, array in state.items()})
        assert dict(file.extras) == {"StructuredToParameterName@@": {"large": "linear_0.w_0"}}


def test_paddle_arrays_of_numpy_1_and_through_tuple(tmp_path: Path) -> None:
    state = paddle_state()

    class Pair:
        def __init__(self, array: np.ndarray[Any, Any]) -> None:
            self.array = array

        def __reduce__(self) -> tuple[Any, ...]:
            return tuple, (("name", self.array),)

    for protocol in (2, 4):
        raw = pickle.dumps({name: Pair(array) for name, array in state.items()}, protocol)
        old = raw.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
        old = old.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
        assert old != raw
        (tmp_path / "a.pdparams").write_bytes(_without_frames(old))
        assert_same(
            open_tensor_file(tmp_path / "a.pdparams"), {name: as_tensor(array) for name, array in state.items()}
        )


def _without_frames(pickled: bytes) -> bytes:
    """The pickle without its FRAME opcodes, whose lengths an edit has made wrong."""
    cuts = [place for opcode, _, place in pickletools.genops(io.BytesIO(pickled)) if opcode.name == "FRAME"]
    for cut in reversed([place for place in cuts if place is not None]):
        pickled = pickled[:cut] + pickled[cut + 9 :]
    return pickled


def test_paddle_tensors_saved_in_slices(tmp_path: Path) -> None:
    array = np.arange(60, dtype="f4").reshape(6, 10)
    flat = array.flatten()
    content = {
        "w@@.0": flat[:25],
        "w@@.1": flat[25:50],
        "w@@.2": flat[50:],
        "b": np.ones(2, "f4"),
        "UnpackBigParamInfor@@": {"w": {"OriginShape": (6, 10), "slices": ["w@@.0", "w@@.1", "w@@.2"]}},
    }
    path = tmp_path / "a.pdparams"
    path.write_bytes(pickle.dumps(content, 2))
    assert_same(open_tensor_file(path), {"b": torch.ones(2), "w": torch.from_numpy(array)})
    content["UnpackBigParamInfor@@"]["w"]["OriginShape"] = (6, 11)
    path.write_bytes(pickle.dumps(content, 2))
    with pytest.raises(CheckpointError, match="do not fill the shape"):
        open_tensor_file(path)


def test_text_that_is_no_bytes_is_found_when_read(tmp_path: Path) -> None:
    """Protocol 2 writes bytes as text; its length is known before it is decoded, its content is not."""
    array = np.full(2000, 255, "u1")
    path = tmp_path / "a.pdparams"
    good = pickle.dumps({"w": array}, 2)
    path.write_bytes(good.replace(b"\xc3\xbf\xc3\xbf", b"\xc5\xbf\xc3\xbf", 1))  # a character beyond latin-1
    file = open_tensor_file(path)
    with pytest.raises(CheckpointError, match="w is damaged"):
        file.read("w")
    path.write_bytes(good.replace(b"\xc3\xbf\xc3\xbf", b"abcd", 1))  # two characters more
    with pytest.raises(CheckpointError, match="more than 2000 bytes"):
        open_tensor_file(path).read("w")


# --- safetensors ------------------------------------------------------------------------------------------------------


def test_safetensors_files(tmp_path: Path) -> None:
    state = {name: value.detach().contiguous().clone() for name, value in tricky().items()}
    path = tmp_path / "a.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    for opener in (open_safetensors_file, open_tensor_file):
        file = opener(path)
        names = file.keys()
        assert set(names) == set(state)
        assert_same(file, {name: state[name] for name in names})
        assert dict(file.extras) == {"__metadata__": {"format": "pt"}}


def test_unaligned_safetensors(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}
    raw = json.dumps(header).encode()
    raw += b" " * (-(8 + len(raw)) % 4 + 1)
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(raw)) + raw + struct.pack("<3f", 1, 2, 3))
    found = open_tensor_file(tmp_path / "a").read("a")
    assert found.tolist() == [1, 2, 3]
    assert found.data_ptr() % 4 == 0


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "safetensors", "pdparams"])
def test_tensors_are_mapped_and_pages_are_given_back(kind: str, tmp_path: Path) -> None:
    state = {f"w{index}": torch.full((2**23,), float(index)) for index in range(3)}  # 32 MiB each
    path = tmp_path / "a"
    if kind == "zip":
        torch.save(state, path)
    elif kind == "safetensors":
        save_file(state, path)
    else:  # the arrays of a pickle lie anywhere: bytes are aligned always
        arrays = {name: value.view(torch.uint8).numpy() for name, value in state.items()}
        path.write_bytes(pickle.dumps(arrays, 4))
    del state
    arrays = {}
    own, mapped = resident("RssAnon"), resident("RssFile")
    file = open_tensor_file(path)
    for index in range(3):
        weight = file.read(f"w{index}")
        assert weight.view(torch.float32)[:: 2**20].eq(index).all() if kind != "pdparams" else weight.numel() == 2**25
        weight.sum()
        assert weight.data_ptr() == file.read(f"w{index}").data_ptr()
        assert resident("RssFile") - mapped > 31 * 2**20
        file.release(f"w{index}")
        assert resident("RssFile") - mapped < 8 * 2**20
        assert weight.view(torch.uint8)[-1] == weight.view(torch.uint8)[3]
    assert resident("RssAnon") - own < 8 * 2**20


# --- published layouts ------------------------------------------------------------------------------------------------


def recorded(*endings: str) -> list[str]:
    base = ROOT.parent / "shared" / "fixtures"
    found = sorted(str(path.relative_to(base)) for ending in endings for path in base.rglob(f"*{ending}"))
    return found or ["absent"]


@pytest.mark.parametrize("name", recorded(".bin", ".pt"))
def test_recorded_torch_files(name: str) -> None:
    path = shared_dir("fixtures", *Path(name).parts)
    content = torch.load(path, weights_only=False)
    wrapped = "module" in content
    file = open_tensor_file(path)
    assert_same(file, dict(content["module"] if wrapped else content))
    assert file.extras.keys() == (content.keys() - {"module"} if wrapped else set())


@pytest.mark.parametrize("name", recorded(".safetensors"))
def test_recorded_safetensors(name: str) -> None:
    path = shared_dir("fixtures", *Path(name).parts)
    expected = load_file(path)
    file = open_tensor_file(path)
    names = file.keys()
    assert set(names) == set(expected)
    assert_same(file, {name: expected[name] for name in names})


@pytest.mark.parametrize("name", recorded(".pdparams"))
def test_recorded_paddle_files(name: str) -> None:
    path = shared_dir("fixtures", *Path(name).parts)
    content = pickle.loads(path.read_bytes())
    names = content.pop("StructuredToParameterName@@", None)
    file = open_tensor_file(path)
    assert_same(file, {name: as_tensor(array) for name, array in content.items()})
    assert file.extras.get("StructuredToParameterName@@") == names


@pytest.mark.parametrize("size", [128, 384, 1408])
def test_a_safetensors_header_that_begins_as_a_pickle_does(size: int, tmp_path: Path) -> None:
    """Its length is the file's first bytes: 0x80, then what could be the protocol."""
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(size)
    path = tmp_path / "model.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + header + struct.pack("<2f", 1.5, -2.0))
    file = open_tensor_file(path)
    assert file.read("w").tolist() == [1.5, -2.0]
