"""Digests of model directories: what the answers come from, and nothing else."""

from pathlib import Path

import pytest

from glmkit.batch.fingerprint import difference, fingerprint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "ranks").mkdir()
    for name, size in (("config.json", 10), ("ranks/mp_rank_00_model_states.pt", 100), ("big.safetensors", 17 << 20)):
        (tmp_path / name).write_bytes(bytes(size))
    return tmp_path


def test_files_that_count(model: Path) -> None:
    before = fingerprint(model)
    assert set(before) == {"config.json", "ranks/mp_rank_00_model_states.pt", "big.safetensors"}
    for name in ("train.log", ".hidden.json", "notes.md"):
        (model / name).write_text("x")
    (model / ".git").mkdir()
    (model / ".git" / "config.json").write_text("x")
    assert fingerprint(model) == before
    assert fingerprint(model / "config.json") == {"config.json": before["config.json"]}


@pytest.mark.parametrize("place", [0, (17 << 20) - 1])
def test_a_changed_byte_is_noticed(model: Path, place: int) -> None:
    before = fingerprint(model)
    for name in before:
        with open(model / name, "r+b") as file:
            file.seek(min(place, (model / name).stat().st_size - 1))
            file.write(b"\1")
    after = fingerprint(model)
    assert all(after[name] != before[name] for name in before)


def test_a_trained_long_file_is_noticed(model: Path) -> None:
    """A change of any sixteenth of it, wherever it lies."""
    path, part = model / "big.safetensors", (17 << 20) // 16
    before = fingerprint(model)
    for place in range(0, (17 << 20) - part, 977_777):
        data = bytearray(17 << 20)
        data[place : place + part] = b"\1" * part
        path.write_bytes(data)
        assert fingerprint(path) != {path.name: before[path.name]}
    path.write_bytes(bytes((17 << 20) + 1))
    assert fingerprint(path) != {path.name: before[path.name]}, "another size"


def test_differences_in_words() -> None:
    plan = {"a": [1, 2], "options": {"x": 1}, "files": {"w": "1"}}
    assert difference(plan, {**plan, "a": (1, 2)}) is None
    assert difference(plan, {**plan, "a": 3}) == "a was [1, 2], now 3"
    assert difference({}, {"b": 1}) == "b was null, now 1"
    assert difference({**plan, "old": 1}, plan) == "old was 1, now null"
