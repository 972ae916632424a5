"""Every damaged file of a store, a checkpoint or a run is told, by resuming, by loading and by the doctor."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import glmkit
from glmkit.cli.main import main
from glmkit.diagnosis.examine import examine
from glmkit.errors import CheckpointError, DamageWarning
from glmkit.files import sealed_json
from glmkit.train.checkpoints import CheckpointStore, RunLock
from support.damage import WAYS, flipped
from support.store import toy_store

RECIPE = {
    "model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_positions": 64, "hidden_dropout": 0.1},
    "data": {"sequence_length": 24, "workers": 0},
    "training": {"max_steps": 6, "micro_batch_size": 2},
    "checkpoint": {"every": 2},
    "evaluation": {"every": 3, "batches": 1},
    "output": {"plot": False},
}
STORE = ("train.tokens.bin", "train.offsets.bin", "validation.tokens.bin", "manifest.json", "tokenizer.json")
CHECKPOINT = ("model.safetensors", "optimizer.safetensors", "trainer.json", "config.json", "special_tokens.json")
MODEL = ("model.safetensors", "trainer.json", "config.json", "special_tokens.json")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a recipe, and the run of it: checkpoints at steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("original")
    toy_store(folder / "store", documents=40)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    assert resume(folder, "never", steps=6) == 0
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(original, tmp_path / "copy")


def resume(folder: Path, how: str = "auto", *, steps: int = 6) -> int:
    arguments = [str(folder / "recipe.yaml"), "--data", str(folder / "store"), "--output", str(folder / "run")]
    return main(["pretrain", *arguments, "--resume", how, "--quiet", "--train_iters", str(steps)])


def step(folder: Path, number: int = 6) -> Path:
    return folder / "run" / "checkpoints" / f"step-{number:08d}"


def told(directory: Path, **options: Any) -> dict[str, Any]:
    """The doctor's errors and warnings about a directory."""
    report = examine(directory, **options)
    texts = [f"{f.what} {f.where} -> {f.next_step}" for f in report.findings if f.level in ("error", "warning")]
    return {"kind": report.kind, "usable": report.usable, "text": "\n".join(texts), "facts": report.facts}


@pytest.mark.sampled(20)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STORE)
def test_a_damaged_store_stops_a_run(name: str, way: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    WAYS[way](folder / "store" / name)
    assert resume(folder, steps=8) == 2
    error = capfd.readouterr().err
    assert name in error
    assert "prepare" in error
    assert "Traceback" not in error
    assert error.count("\n") == 1
    found = told(folder / "store")
    assert (found["kind"], found["usable"]) == ("store", False)
    assert name in found["text"]
    assert "prepare" in found["text"]


@pytest.mark.sampled(20)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CHECKPOINT)
def test_a_damaged_checkpoint_is_passed_over(
    name: str, way: str, folder: Path, original: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    WAYS[way](step(folder) / name)

    found = told(folder / "run")
    assert (found["kind"], found["usable"]) == ("run", False)
    assert str(step(folder) / name) in found["text"]
    assert "step-00000004" in found["text"]
    assert found["facts"]["resumes_at_step"] == 4

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lm = glmkit.load(folder / "run", device="cpu")
    words = [str(warning.message) for warning in caught if warning.category is DamageWarning]
    assert len(words) == (name in MODEL)
    assert all(name in text and "step-00000004 is read" in text for text in words)
    stored = load_file(step(original, 4 if name in MODEL else 6) / "model.safetensors")
    assert torch.equal(lm.model.state_dict()[next(iter(stored))], stored[next(iter(stored))])
    if name in MODEL and way != "missing":
        with pytest.raises(CheckpointError, match=r"step-00000006/.*step-00000004"):
            glmkit.load(step(folder), device="cpu")

    assert resume(folder) == 0
    error = capfd.readouterr().err
    assert str(step(folder) / name) in error
    assert "going back to" in error
    assert "step-00000004" in error
    for file in ("metrics.jsonl", "model/model.safetensors"):
        assert (folder / "run" / file).read_bytes() == (original / "run" / file).read_bytes()
    assert CheckpointStore(folder / "run").steps() == [2, 4, 6]
    assert (folder / "run/checkpoints/damaged-step-00000006").is_dir()


@pytest.mark.sampled(20)
@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_record_is_told(way: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    WAYS[way](folder / "run" / "metrics.jsonl")
    assert "metrics.jsonl" in told(folder / "run")["text"] or way == "extended"
    assert resume(folder) == 0
    error = capfd.readouterr().err
    assert "metrics.jsonl" in error
    assert any(word in error for word in ("gap", "other bytes", "cannot be read", "dropped 1 line(s)"))
    for line in (folder / "run" / "metrics.jsonl").read_bytes().splitlines():
        json.loads(line)


def test_the_gap_is_named(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = folder / "run" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if json.loads(line)["step"] not in (2, 3, 5)))
    assert resume(folder) == 0
    assert "the record has a gap: steps 2-3, 5" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.json"])
def test_a_path_that_is_damaged_is_an_error(name: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flipped(step(folder) / name)
    assert resume(folder, str(step(folder))) == 2
    error = capfd.readouterr().err
    assert str(step(folder) / name) in error
    assert "resume from step-00000004" in error


def test_no_good_checkpoint_is_no_new_beginning(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in (2, 4, 6):
        flipped(step(folder, number) / "model.safetensors")
    assert resume(folder) == 2
    assert "no checkpoint of" in capfd.readouterr().err
    assert CheckpointStore(folder / "run").steps() == [2, 4, 6]
    with pytest.raises(CheckpointError, match="no checkpoint of .* is whole"):
        glmkit.load(folder / "run", device="cpu")


def swap_models(folder: Path) -> None:
    one, two = (step(folder, number) / "model.safetensors" for number in (4, 6))
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)


def swap_directories(folder: Path) -> None:
    step(folder, 4).rename(folder / "other")
    step(folder, 6).rename(step(folder, 4))
    (folder / "other").rename(step(folder, 6))


COUSINS: dict[str, tuple[Callable[[Path], object], int]] = {
    "files of two steps swapped": (swap_models, 2),
    "directories of two steps swapped": (swap_directories, 2),
    "half deleted": (lambda f: [(step(f) / name).unlink() for name in ("trainer.json", "model.safetensors")], 4),
    "emptied directory": (lambda f: [path.unlink() for path in step(f).iterdir()], 4),
    "a renamed file": (lambda f: (step(f) / "config.json").rename(step(f) / "config (1).json"), 4),
    "a directory for a file": (
        lambda f: ((step(f) / "model.safetensors").unlink(), (step(f) / "model.safetensors").mkdir()), 4,
    ),
    "another run's tokenizer": (lambda f: (step(f) / "tokenizer.json").write_text("{}"), 4),
}  # fmt: skip


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", COUSINS)
def test_other_damage(name: str, folder: Path, original: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage, good = COUSINS[name]
    damage(folder)
    assert told(folder / "run")["facts"]["resumes_at_step"] == good
    assert resume(folder) == 0
    assert f"going back to {step(folder, good)}" in capfd.readouterr().err
    assert (folder / "run/metrics.jsonl").read_bytes() == (original / "run/metrics.jsonl").read_bytes()


def without_hashes(path: Path) -> None:
    """Rewrite a trainer.json as earlier versions did."""
    document = json.loads(path.read_bytes())
    for key in ("seal", "digests", "metrics"):
        del document[key]
    path.write_text(json.dumps(document))


def test_numbers_that_are_not_finite_are_damage_without_hashes_too(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in (4, 6):
        without_hashes(step(folder, number) / "trainer.json")
    tensors = load_file(step(folder) / "model.safetensors")
    tensors[min(tensors)].view(-1)[3] = float("nan")
    save_file(tensors, step(folder) / "model.safetensors", metadata={"format": "pt"})
    assert resume(folder) == 0
    error = capfd.readouterr().err
    assert "numbers that are not finite" in error
    assert "going back to" in error
    assert "learning rate" not in error


def test_a_store_rebuilt_under_a_run_is_another_one(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "store")
    toy_store(folder / "store", documents=44)
    assert resume(folder, steps=8) == 2
    assert "was trained on other data" in capfd.readouterr().err


def test_a_run_is_its_model(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    by_run, by_model = (glmkit.load(folder / name, device="cpu") for name in ("run", "run/model"))
    text = "The cat [MASK] the moon."
    assert by_run.fill(text, max_tokens=4).blanks == by_model.fill(text, max_tokens=4).blanks
    assert main(["fill", str(folder / "run"), text, "--max-tokens", "2"]) == 0
    shutil.rmtree(folder / "run" / "checkpoints")
    assert glmkit.load(folder / "run", device="cpu").fill(text, max_tokens=4).blanks
    shutil.rmtree(folder / "run" / "model")
    (folder / "run" / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        glmkit.load(folder / "run", device="cpu")


def test_the_doctor_is_calm_about_a_whole_run(folder: Path) -> None:
    for options in ({}, {"check": True}, {"deep": True}):
        found = told(folder / "run", **options)
        assert (found["kind"], found["usable"], found["text"]) == ("run", True, "")
        assert found["facts"]["training_now"] is False
        assert told(folder / "store", **options)["text"] == ""
        assert told(step(folder), **options)["text"] == ""


def test_the_doctor_sees_that_a_run_goes_on(folder: Path) -> None:
    # A record lock belongs to the process, so the trainer must be another one.
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with RunLock(folder / "run"):
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            os._exit(0)
    os.read(ready[0], 1)
    found = told(folder / "run")
    os.write(done[1], b"x")
    os.waitpid(child, 0)
    assert (found["usable"], found["facts"]["training_now"]) == (True, True)
    assert told(folder / "run")["facts"]["training_now"] is False
    for descriptor in (*ready, *done):
        os.close(descriptor)


def test_a_file_without_rights_is_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    opened = Path.open

    def forbid(path: Path, *args: Any, **options: Any) -> Any:  # permissions do not stop root
        if path.name == "model.safetensors" and path.parent == step(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", forbid)
    assert resume(folder) == 2
    assert f"Permission denied ({step(folder) / 'model.safetensors'})" in capfd.readouterr().err
    assert CheckpointStore(folder / "run").steps() == [2, 4, 6]
    assert "Permission denied" in told(folder / "run")["text"]


def test_the_final_model_is_compared_with_its_checkpoint(folder: Path) -> None:
    path = folder / "run" / "model" / "model.safetensors"
    data = path.read_bytes()
    path.unlink()  # it shares its bytes with the checkpoint's
    path.write_bytes(data)
    assert told(folder / "run")["text"] == ""
    flipped(path)
    assert str(path) in told(folder / "run")["text"]


def test_a_seal_covers_every_byte() -> None:
    from glmkit.files import seal_holds

    for indent in (None, 2):
        data = sealed_json({"a": [1, 2], "text": "é", "seal2": "0" * 64}, indent=indent)
        values = json.loads(data)
        assert seal_holds(data, values["seal"])
        for place in range(len(data)):
            other = bytearray(data)
            other[place] ^= 1
            assert not seal_holds(bytes(other), values["seal"])
