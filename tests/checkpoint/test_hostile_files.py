"""Damaged, truncated and lying files of every format: each refused in one line that says what it is and what to do."""

import json
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from glmkit.checkpoint.files.open_file import open_tensor_file
from glmkit.checkpoint.files.safetensors_file import open_safetensors_file
from glmkit.checkpoint.files.torch_file import open_torch_file
from glmkit.errors import CheckpointError
from support.hostile import PeakMemory, array, mapping, storage, tensor, text, watched, whole, write_pickle, write_zip

pytestmark = pytest.mark.sampled(3)

GOOD = whole(mapping(w=tensor()))


def refusal(path: Path) -> str:
    with PeakMemory() as memory, pytest.raises(CheckpointError) as caught:
        open_tensor_file(path)
    assert memory.growth is None or memory.growth < 200 * 2**20
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# --- zip files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", ["archive/data.pkl", "archive/data/0"])
def test_compressed_members(member: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {"archive/data.pkl": GOOD, "archive/data/0": bytes(16)}.items():
            kind = zipfile.ZIP_DEFLATED if name == member else zipfile.ZIP_STORED
            file.writestr(name, data, compress_type=kind)
    assert f"member '{member}' is compressed" in refusal(path)


def test_a_zip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", GOOD)
        with file.open("archive/data/0", "w", force_zip64=True) as member:
            for _ in range(300):
                member.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    assert "is compressed" in refusal(path)


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/evil", "archive/../../evil", "archive\\..\\evil", "C:evil", "archive//evil", "a\nb"]
)
def test_names_that_lead_out(name: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.bin", GOOD)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, b"x")
    assert "leads out of the archive" in refusal(path)
    assert not (tmp_path.parent / "evil").exists()


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.bin", GOOD)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("archive/data/0", bytes(16))
    assert "two members 'archive/data/0'" in refusal(path)


def directory(path: Path) -> tuple[bytearray, list[int], int]:
    """(bytes of a zip file, offsets of its directory entries, offset of its end record)"""
    data = bytearray(path.read_bytes())
    end = data.rfind(b"PK\x05\x06")
    at = int.from_bytes(data[end + 16 : end + 20], "little")
    entries = []
    while data[at : at + 4] == b"PK\x01\x02":
        entries.append(at)
        at += 46 + sum(struct.unpack_from("<3H", data, at + 28))
    return data, entries, end


# What is written where in the directory entry of the storage (or in the end record) -> the reason of the refusal.
PATCHES = {
    "encrypted": (8, "<H", 1, "is encrypted"),
    "larger-than-packed": (24, "<L", 2**31, "stand for"),
    "lies-64": (24, "<L", 0xFFFFFFFF, "lacks its 64-bit size"),
    "elsewhere": (42, "<L", 2**31, "past the last member"),
    "in-the-middle": (42, "<L", 8, "has no header of its own"),
    "of-another": (42, "<L", 0, "has another name"),
    "no-entry": (0, "<L", 0, "its directory is damaged"),
    "long-name": (28, "<H", 65535, "name of 65535 bytes"),
}
ENDS = {
    "count": (10, "<H", 9, "several volumes"),
    "size": (12, "<L", 2**31, "are the limit"),
    "offset": (16, "<L", 2**30, "past its end"),
    "disk": (4, "<H", 1, "several volumes"),
    "comment": (20, "<H", 7, "bytes follow its end"),
}


@pytest.mark.parametrize("case", [*PATCHES, *ENDS])
def test_directories_and_end_records_that_lie(case: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.bin", GOOD)
    data, entries, end = directory(path)
    offset, form, value, reason = (PATCHES | ENDS)[case]
    struct.pack_into(form, data, (entries[1] if case in PATCHES else end) + offset, value)
    path.write_bytes(data)
    assert reason in refusal(path)


def test_sizes_of_two_headers_that_differ(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.bin", GOOD)
    data, entries, _ = directory(path)
    local = int.from_bytes(data[entries[1] + 42 : entries[1] + 46], "little")
    struct.pack_into("<L", data, local + 18, 12)
    path.write_bytes(data)
    assert "12 bytes by its own header, 16 by the directory" in refusal(path)


def test_overlapping_members(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner", GOOD).read_bytes()
    header = inner[inner.find(b"PK\x03\x04", 4) :][: 30 + len("archive/data/0") + 16]  # the local entry of data/0
    path = write_zip(tmp_path / "a.bin", GOOD, {"data/1": header})
    data, entries, _ = directory(path)
    struct.pack_into("<L", data, entries[1] + 42, data.rfind(header))  # data/0 now lies inside data/1
    path.write_bytes(data)
    assert "overlap" in refusal(path)


def test_directories_of_64_bits_that_lie(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.bin", GOOD)
    data, entries, end = directory(path)
    for count, offset, reason in ((2**40, entries[0], "are the limit"), (2, 2**62, "past its end")):
        record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, end - entries[0], offset)
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
        path.write_bytes(bytes(data[:end]) + record + locator + bytes(data[end:]))
        assert reason in refusal(path)


def test_other_zip_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "docs.bin", "w") as file:
        file.writestr("readme.txt", "x")
    assert "no data.pkl in it (it has readme.txt)" in refusal(tmp_path / "docs.bin")
    path = write_zip(tmp_path / "two.bin", GOOD)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("other/data.pkl", GOOD)
    assert "several files data.pkl" in refusal(path)
    assert "big-endian" in refusal(write_zip(tmp_path / "big.bin", GOOD, {"byteorder": b"big"}))
    assert "TorchScript" in refusal(write_zip(tmp_path / "script.bin", GOOD, {"constants.pkl": b"x"}))
    assert "5 bytes follow" in refusal(write_zip(tmp_path / "tail.bin", GOOD + b"extra"))
    (tmp_path / "junk.bin").write_bytes(write_zip(tmp_path / "b.bin", GOOD).read_bytes() + b"junk")
    assert "4 bytes follow its end" in refusal(tmp_path / "junk.bin")


def test_a_huge_pickle(tmp_path: Path) -> None:
    pickled = GOOD + bytes(65 * 2**20)
    assert "are the limit" in refusal(write_zip(tmp_path / "a.bin", pickled))


def test_truncated_zip_files_say_what_is_there_and_what_should_be(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(5000), "b": torch.zeros(3000)}, tmp_path / "whole.bin")
    data = (tmp_path / "whole.bin").read_bytes()
    path = tmp_path / "cut.bin"
    for length in (len(data) - 1, len(data) // 2, 2000):
        path.write_bytes(data[:length])
        message = refusal(path)
        assert f"{length} bytes are there" in message
        assert "download it again" in message
        if length < 30_000:
            (expected,) = [int(word) for word in message.split() if word.isdigit() and int(word) >= 32_000]
            assert expected <= len(data)
    path.write_bytes(data[:40])
    assert "40 bytes are there" in refusal(path)


# --- the other formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.999, 0.6, 0.3, 0.02])
def test_truncated_legacy_files(share: float, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(5000), "b": torch.zeros(3000)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    message = refusal(path)
    assert "truncated" in message
    if share > 0.1:
        assert f"{int(len(data) * share)} bytes are there, {len(data)} belong to it" in message


@pytest.mark.parametrize("share", [0.999, 0.5, 0.01])
def test_truncated_pickles(share: float, tmp_path: Path) -> None:
    data = whole(mapping(w=array(bytes(40_000), (10_000,))))
    message = refusal(write_pickle(tmp_path / "a.pdparams", data[: int(len(data) * share)]))
    assert "truncated" in message


def safetensors(path: Path, header: object, data: bytes = bytes(16), length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(start: int = 0, end: int = 16, shape: tuple[int, ...] = (4,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


SAFETENSORS = {
    "overlap": ({"a": entry(), "b": entry(8, 16, (2,))}, "damaged"),
    "gap": ({"a": entry(0, 4, (1,)), "b": entry(8, 16, (2,))}, "damaged"),
    "late": ({"a": entry(4, 16, (3,))}, "damaged"),
    "unused": ({"a": entry(0, 8, (2,))}, "damaged"),
    "short": ({"a": entry(0, 32, (8,))}, "is truncated"),
    "absurd": ({"a": entry(0, 16, (2**62, 4))}, "of shape"),
    "overflow": ({"a": entry(0, 0, (2**62, 2**62, 0))}, "damaged"),
    "negative": ({"a": entry(0, 16, (-4,))}, "has -4 in it"),
    "backwards": ({"a": entry(16, 0)}, "damaged"),
    "shape-differs": ({"a": entry(0, 16, (5,))}, "has 16 bytes, not 20"),
    "unknown-type": ({"a": entry(dtype="F4")}, "has the type F4"),
    "no-offsets": ({"a": {"dtype": "F32", "shape": [4]}}, "damaged"),
    "list": (b"{}[]", "damaged"),
    "twice": (b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), "stands in it twice"),
    "deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "damaged"),
    "no-json": (b"{nonsense", "damaged"),
    "not-utf8": (b'{"\xff":1}', "damaged"),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors_that_lie(case: str, tmp_path: Path) -> None:
    header, reason = SAFETENSORS[case]
    assert reason in refusal(safetensors(tmp_path / "a.safetensors", header))


def test_safetensors_headers_of_any_length(tmp_path: Path) -> None:
    good = {"a": entry()}
    assert "are the limit" in refusal(safetensors(tmp_path / "a", good, length=2**60))
    assert "is truncated" in refusal(safetensors(tmp_path / "b", good, length=2**20))
    huge = b'{"a":' + b" " * (20 * 2**20) + b"1}"
    assert "are the limit" in refusal(safetensors(tmp_path / "c", huge))


def test_truncated_safetensors_say_what_should_be_there(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    data = path.read_bytes()
    path.write_bytes(data[:2000])
    assert f"2000 bytes are there, at least {len(data)} belong to it" in refusal(path)


OTHERS = {
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 1904491802\n" % (b"0" * 64),
        "git-lfs pointer for 1904491802 bytes, not the file itself; run `git lfs pull`",
    ),
    "empty": (b"", "is empty (0 bytes); download it again"),
    "page": (b"\n<!DOCTYPE html><html><title>404</title>", "is a web page"),
    "error": (b"<Error><Code>AccessDenied</Code></Error>", "is a web page"),
    "zeros": (bytes(4096), "zero bytes"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "gzip; unpack it first"),
    "tar": (b"weights/a.bin".ljust(257, b"\0") + b"ustar\x0000" + bytes(300), "tar archive; unpack it first"),
    "old-torch": (b"sys_info".ljust(257, b"\0") + b"ustar\x0000" + bytes(300), "tar format of torch before 0.1.11"),
    "gguf": (b"GGUF" + bytes(100), "GGUF"),
    "ggml": (b"ggml" + bytes(100), "GGML file of chatglm.cpp"),
    "json": (b'{\n  "weight_map": {}}', "is JSON text"),
    "noise": (b"abcdefghijklmnop", "which no file of torch, Paddle or safetensors does"),
    "one-byte": (b"\x80", "protocol 0 or 1"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_tensor_file(case: str, tmp_path: Path) -> None:
    data, reason = OTHERS[case]
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(data)
    assert reason in refusal(path)


def test_places_without_a_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent.bin")
    assert "is a directory" in refusal(tmp_path)
    assert "is no regular file" in refusal(Path("/dev/null"))


def test_each_reader_says_what_else_a_file_is(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4)}, tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match="is a safetensors file, no file of torch.save"):
        open_torch_file(tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match="is a file of torch.save, no safetensors file"):
        open_safetensors_file(write_zip(tmp_path / "b.safetensors", GOOD))


def test_contents_without_tensors(tmp_path: Path) -> None:
    cases = {
        "tensor": (tensor(), "holds tensor float32 (4,), no dict of tensors"),
        "list": (b"](" + tensor() + b"e", "holds list, no dict"),
        "empty": (b"}", "holds no tensors"),
        "bookkeeping": (mapping(iteration=b"K\x07", args=b"N"), "holds no tensors, only iteration, args"),
        "numbered": (b"}K\x01" + tensor() + b"s", "named by int"),
        "storage": (mapping(w=storage()), "holds no tensors"),
        "model": (
            b"ctorch.nn.modules.linear\nLinear\n)\x81" + mapping(w=text("x")) + b"b",
            "class torch.nn.modules.linear.Linear",
        ),
    }
    for name, (body, reason) in cases.items():
        assert reason in refusal(write_zip(tmp_path / name, whole(body)))


# --- noise ------------------------------------------------------------------------------------------------------------


def write_good(kind: str, path: Path) -> None:
    state = {"a": torch.randn(5, 6), "b": torch.randn(4, 4).t(), "c": torch.randn(3).bfloat16()}
    if kind == "pdparams":
        path.write_bytes(pickle.dumps({"a": np.ones((5, 6)), "S@@": {"a": "b"}}, 4))
    elif kind == "safetensors":
        save_file({"a": state["a"]}, path)
    else:
        torch.save({"module": state, "iteration": 7}, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize("kind", ["zip", "legacy", "pdparams", "safetensors"])
def test_damage_anywhere_is_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    """Bytes changed, lost and repeated at random places: a CheckpointError, or tensors that can be read."""
    write_good(kind, tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    chance = random.Random(kind)
    path = tmp_path / "bad"
    refusals: list[str] = []
    for _ in range(200):
        data = bytearray(good)
        for _ in range(chance.choice([1, 2, 8])):
            at = chance.randrange(len(data))
            what = chance.randrange(4)
            if what < 2:
                data[at] = chance.randrange(256)
            elif what == 2:
                del data[at : at + chance.randrange(1, 20)]
            else:
                data[at:at] = data[chance.randrange(len(data)) :][: chance.randrange(1, 30)]
        path.write_bytes(data)
        with watched() as seen:
            try:
                file = open_tensor_file(path)
                for name in file.keys():  # noqa: SIM118
                    assert file.read(name).shape == file.info(name).shape
            except CheckpointError as error:
                refusals.append(str(error))
        assert not seen
    assert len(refusals) > 50
    assert not any("\n" in message for message in refusals)
