"""A store and a run written by an earlier version (tests/assets/README.md) open, load and resume."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

import glmkit
from glmkit.cli.main import main
from glmkit.data.store import TokenStore
from glmkit.train.checkpoints import CheckpointStore

ARCHIVE = Path(__file__).parent / "assets" / "run_5b8dc95.tar.xz"


@pytest.fixture
def old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unpacked directory, also the working directory: the paths recorded in it are relative."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path / "old_run")
    return tmp_path / "old_run"


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_store_opens_and_holds_its_texts(old_run: Path) -> None:
    store = TokenStore(old_run / "store", verify=True)
    assert (len(store), store.num_tokens) == (6, 1563)
    validation = store.split("validation")
    assert (len(validation), validation.num_tokens) == (4, 771)
    text = (old_run / "count.txt").read_text()
    for split in (store, validation):
        for index in range(len(split)):
            assert store.tokenizer().decode(split.document(index).tolist()) in text


def test_the_checkpoint_loads_and_answers(old_run: Path) -> None:
    lm = glmkit.load(old_run / "run" / "checkpoints" / "step-00000002", device="cpu")
    assert lm.model.config.hidden_size == 4
    assert lm.fill("After one comes [MASK]. Twice two is four.", max_tokens=6).blanks == ["eeeeee"]  # as 5b8dc95 did


def test_the_run_resumes_to_the_recorded_metrics(old_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pretrain", "recipe.yaml", "--data", "store", "--output", "other", "--quiet"]
    assert main([*command, "--resume", "run/checkpoints/step-00000002"]) == 0
    assert "resuming with evaluation.rows 1600 instead of None" in capsys.readouterr().err
    found, expected = records(old_run / "other" / "metrics.jsonl"), records(old_run / "expected_metrics.jsonl")
    assert CheckpointStore(old_run / "other").steps() == [4, 6]
    # Validation after the resume reads other rows than it did then: they depend on the store alone now.
    assert [(r["kind"], r["step"]) for r in found] == [(r["kind"], r["step"]) for r in expected]
    for record, recorded in zip(found, expected, strict=True):
        if record["kind"] == "train" or record["step"] <= 2:
            # Another processor or version of torch sums in another order; the same numbers then agree to rounding only.
            losses, recorded_losses = record.pop("losses"), recorded.pop("losses")
            assert losses == pytest.approx(recorded_losses, rel=1e-6, abs=1e-6)
            for name in ("kind", "targets", "dropped"):
                assert record.pop(name) == recorded.pop(name)
            assert record == pytest.approx(recorded, rel=1e-6, abs=1e-6)
