"""Streamed files against the libraries that own the formats: torch, safetensors, pickle with numpy."""

import json
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from glmkit.checkpoint.files import stream, torch_file
from glmkit.checkpoint.files.paddle_file import NAME_TABLE, write_paddle
from glmkit.checkpoint.files.safetensors_file import write_safetensors
from glmkit.checkpoint.files.stream import Entry, Written
from glmkit.checkpoint.files.tensors import TensorInfo
from glmkit.checkpoint.files.torch_file import write_torch
from glmkit.checkpoint.files.zip_file import ZipWriter
from glmkit.errors import CheckpointError

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64, torch.int16, torch.bool]


def sample(seed: int = 0) -> dict[str, torch.Tensor]:
    """Every dtype; odd sizes, a scalar, an empty tensor, a transposed view."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"层.{number}.{str(dtype).split('.')[1]}": torch.randint(-100, 100, (3, 7 + number), generator=generator).to(
            dtype
        )
        for number, dtype in enumerate(DTYPES)
    }
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.zeros(0, 4, dtype=torch.float16)
    tensors["turned"] = torch.randn(5, 9, generator=generator).T
    tensors["odd"] = torch.tensor([-0.0, 65504.0, 6e-8], dtype=torch.float16)
    return tensors


def entries(tensors: dict[str, torch.Tensor], rows: int = 2) -> list[Entry]:
    def entry(name: str, tensor: torch.Tensor) -> Entry:
        def pieces() -> Iterator[torch.Tensor]:
            return iter(tensor.split(rows) if tensor.dim() else [tensor])

        return Entry(name, TensorInfo(tensor.dtype, tuple(tensor.shape)), pieces)

    return [entry(name, tensor) for name, tensor in tensors.items()]


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Bit for bit, dtype and shape included."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    pair = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (found, expected) if tensor.numel()]
    return not pair or torch.equal(*pair)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if not same(found[name], expected[name])] == []


def check_record(path: Path, written: Written) -> None:
    assert written == Written(path.stat().st_size, zlib.crc32(path.read_bytes()))


def test_safetensors_is_read_by_its_library(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    check_record(path, write_safetensors(path, entries(sample())))
    assert_same(load_file(path), sample())
    assert list(tmp_path.iterdir()) == [path]


def test_safetensors_data_is_aligned(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {
        "a": torch.ones(3, dtype=torch.int8), "b": torch.ones(2), "c": torch.ones(32), "d": torch.ones(16),
        "e": torch.ones(3).half(), "f": torch.ones(64).half(),
    }  # fmt: skip
    write_safetensors(path, entries(tensors))
    size = int.from_bytes(path.read_bytes()[:8], "little")
    table = json.loads(path.read_bytes()[8 : 8 + size])
    for name, tensor in tensors.items():
        start = 8 + size + table[name]["data_offsets"][0]
        assert start % tensor.element_size() == 0
        assert name not in "cd" or start % 64 == 0
    assert_same(load_file(path), tensors)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("under", [None, "module"])
def test_torch_files_are_read_by_torch(tmp_path: Path, under: str | None, mmap: bool) -> None:
    path = tmp_path / "pytorch_model-00001-of-00002.bin"
    check_record(path, write_torch(path, entries(sample()), under=under))
    found = torch.load(path, weights_only=True, mmap=mmap)
    if under is not None:
        assert list(found) == [under]
        found = found[under]
    assert list(found) == list(sample())
    assert_same(found, sample())


def test_torch_container_is_a_sound_zip(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    write_torch(path, entries(sample()))
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        names = file.namelist()
        assert names[0] == "weights/data.pkl"
        assert {"weights/byteorder", "weights/version", "weights/data/0"} <= set(names)
        data = path.read_bytes()
        for info in file.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            start = info.header_offset
            lengths = int.from_bytes(data[start + 26 : start + 28], "little") + int.from_bytes(
                data[start + 28 : start + 30], "little"
            )
            assert (start + 30 + lengths) % 64 == 0, info.filename


def test_large_file_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member and an offset past 4 GiB, with the data skipped over instead of written (a sparse file)."""
    path = tmp_path / "large.pt"
    size = (4 << 30) + 64
    with open(path, "wb") as file:

        class Sparse:
            size = 0
            crc32 = 0

            def write(self, data: bytes | memoryview) -> None:
                file.seek(self.size)
                file.write(data)
                self.size += len(data)

        sink = Sparse()
        container = ZipWriter(sink, "large")  # type: ignore[arg-type]
        entry = Entry("w", TensorInfo(torch.uint8, (size,)), list)
        container.add("data.pkl", torch_file._pickle(path, [entry], None))
        container.begin("data/0", size)
        sink.size += size - 1
        container.data(b"\x07")
        container.end()
        container.add("version", b"3\n")
        container.directory()
    with zipfile.ZipFile(path) as archive:
        _, first, second = archive.infolist()
        assert (first.file_size, first.compress_size) == (size, size)
        assert second.header_offset > size
        assert archive.read("large/version") == b"3\n"
    loaded = torch.load(path, weights_only=True, mmap=True)["w"]
    assert loaded.shape == (size,)
    assert loaded[-1] == 7


def test_paddle_files_are_read_by_pickle_and_numpy(tmp_path: Path) -> None:
    tensors = sample()
    path = tmp_path / "model_state.pdparams"
    check_record(path, write_paddle(path, entries(tensors)))
    found = pickle.loads(path.read_bytes())
    assert found.pop(NAME_TABLE) == {name: name for name in tensors}
    assert list(found) == list(tensors)
    for name, array in found.items():
        expected = tensors[name]
        assert type(array) is np.ndarray
        if expected.dtype == torch.bfloat16:
            assert array.dtype == np.uint16
            assert np.array_equal(array, expected.view(torch.uint16).numpy())
        else:
            assert same(torch.from_numpy(array.copy()), expected.contiguous()), name


@pytest.mark.parametrize("write", [write_safetensors, write_torch, write_paddle])
def test_large_tensors_go_in_small_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: stream.Writer
) -> None:
    """One view of a whole tensor, not contiguous: cut into pieces; the ticks add up to the data."""
    monkeypatch.setattr(stream, "PIECE_BYTES", 256)
    monkeypatch.setattr(stream.row_blocks, "__defaults__", (256,))
    monkeypatch.setattr(stream, "FLUSH_BYTES", 500)
    tensor = torch.randn(32, 40).T
    ticks: list[int] = []
    path = tmp_path / "weights"
    written = write(path, entries({"w": tensor}, rows=1000), tick=ticks.append)
    assert sum(ticks) == tensor.numel() * 4
    assert max(ticks) <= 256
    check_record(path, written)


@pytest.mark.parametrize("write", [write_safetensors, write_torch, write_paddle])
def test_pieces_that_break_their_promise(tmp_path: Path, write: stream.Writer) -> None:
    path = tmp_path / "weights"
    short = Entry("w", TensorInfo(torch.float32, (4, 4)), lambda: [torch.zeros(3, 4)])
    with pytest.raises(CheckpointError, match="w: 48 bytes came, the file's header says 64"):
        write(path, [short])
    other = Entry("w", TensorInfo(torch.float32, (4, 4)), lambda: [torch.zeros(4, 4, dtype=torch.float64)])
    with pytest.raises(CheckpointError, match="w: a piece is torch.float64"):
        write(path, [other])
    strange = Entry("w", TensorInfo(torch.complex64, (4,)), lambda: [torch.zeros(4, dtype=torch.complex64)])
    with pytest.raises(CheckpointError, match="complex64"):
        write(path, [strange])
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stream.os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write_safetensors(tmp_path / "model.safetensors", entries(sample()))
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
