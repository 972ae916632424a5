"""Writers under the rules of Windows: no open file is replaced, no directory is opened, there are no locks."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from glmkit.batch.output import Output
from glmkit.checkpoint.conversion.conversion import convert
from glmkit.checkpoint.native import write_model
from glmkit.checkpoint.open import open_checkpoint
from glmkit.checkpoint.weights import expected_tensors
from glmkit.data.store import TokenStore, write_store
from glmkit.files import atomic_directory, atomic_write, fsync_path
from glmkit.locks import UnguardedWarning
from glmkit.tokenizer.training import train_tokenizer
from glmkit.train.checkpoints import CheckpointStore, RunLock, write_final_model
from support.checkpoints import small_config
from support.directories import layout_named
from support.store import toy_texts
from support.windows import held, use_windows_rules

pytestmark = pytest.mark.filterwarnings("ignore::glmkit.locks.UnguardedWarning")


@pytest.fixture(autouse=True)
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    use_windows_rules(monkeypatch)


def test_the_rules_are_those_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1")
    with open(path, "rb"):
        assert held(str(path))
        with pytest.raises(PermissionError):
            path.unlink()
        with pytest.raises(PermissionError):
            tmp_path.rename(tmp_path.with_name("other"))
    mapped = np.memmap(path, mode="r")
    assert held(str(path))
    del mapped
    assert not held(str(path))


def test_a_file_that_is_open_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with open(path, "rb"):
        with pytest.raises(OSError, match="a program has it open; close that") as caught, atomic_write(path) as file:
            file.write(b"new")
        assert str(caught.value.filename) == str(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"


def test_a_directory_with_a_mapped_file_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_directory(target) as folder:
        (folder / "data").write_bytes(bytes(8))
        (folder / "sub").mkdir()
    mapped = np.memmap(target / "data", mode="r")
    with pytest.raises(OSError, match="a program has it open"), atomic_directory(target, replace=True) as folder:
        (folder / "data").write_bytes(bytes(16))
    assert os.listdir(tmp_path) == ["out"]
    assert (target / "data").stat().st_size == 8
    del mapped
    with atomic_directory(target, replace=True) as folder:
        (folder / "data").write_bytes(bytes(16))
    assert (target / "data").stat().st_size == 16
    fsync_path(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = small_config(layout_named("glm/megatron")[1])
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(info.shape, generator=generator) for name, info in expected_tensors(config).items()}
    with atomic_directory(tmp_path / "model") as folder:
        write_model(folder, config, state)
    return tmp_path / "model"


def test_a_conversion_there_and_back(model: Path, tmp_path: Path) -> None:
    with pytest.warns(UnguardedWarning, match="no file locks"):
        convert(model, tmp_path / "ranks", to="megatron", tensor_parallel=2)
    convert(tmp_path / "ranks", tmp_path / "back", to="glmkit", family="glm")
    assert sorted(os.listdir(tmp_path)) == ["back", "model", "ranks"]
    before, after = (open_checkpoint(tmp_path / name).weights for name in ("model", "back"))
    assert all(torch.equal(before.read(name), after.read(name)) for name in before.names())


def test_a_token_store(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(toy_texts(30), vocab_size=300)
    for text in toy_texts(2, seed=1):
        write_store(tmp_path / "store", tokenizer, {"train": [text], "validation": []}, replace=True)
        store = TokenStore(tmp_path / "store", verify=True)
        assert tokenizer.decode(store.document(0).tolist(), skip_specials=True) == text
        del store
    assert os.listdir(tmp_path) == ["store"]


def test_a_file_of_answers(tmp_path: Path) -> None:
    output = Output(tmp_path / "out.jsonl")
    output.begin({"files": {}})
    output.write(b"{}\n")
    output.finish(1)
    output.close()
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "out.jsonl.run.json"]
    empty = Output(tmp_path / "other.jsonl")
    empty.close()
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "out.jsonl.run.json"]


def test_checkpoints_of_a_run(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    with pytest.raises(StoppedError), RunLock(tmp_path / "nothing"):
        raise StoppedError
    assert not (tmp_path / "nothing").exists()
    with RunLock(tmp_path / "run"):
        store = CheckpointStore(tmp_path / "run", keep_last=1)
        for step in (1, 2):
            store.save(
                step,
                write_model=lambda folder: (folder / "model.safetensors").write_bytes(b"x") and None,
                optimizer={"a": torch.ones(2)},
                state={},
            )
        assert store.steps() == [2]
        final = write_final_model(tmp_path / "run", store.path(2))
    assert os.listdir(final) == ["model.safetensors"]
