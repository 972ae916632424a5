"""The demo from end to end on our own source, with a second of training instead of minutes."""

import json
from pathlib import Path
from typing import Any

import pytest

import glmkit
from glmkit.cli.main import main
from glmkit.demo import end_to_end, timed_training
from glmkit.demo.end_to_end import DemoOptions
from glmkit.errors import RequestError
from support.shared import ROOT


@pytest.mark.parametrize(
    ("options", "message"), [({"minutes": 0.1}, "give at least 0.2"), ({"blanks": 1}, "give at least 2")]
)
def test_too_little_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        DemoOptions(output=tmp_path, **options)


def test_it_leaves_a_model_and_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def short(store: Path, run: Path, seconds: float, **options: Any) -> timed_training.Course:
        assert seconds < 0.2 * 60 * 0.86
        return timed_training.train(store, run, 1.0, **options)

    monkeypatch.setattr(end_to_end, "train", short)
    monkeypatch.setattr(end_to_end, "VOCABULARY", 512)
    command = ["demo", "--output", str(tmp_path), "--minutes", "0.2", "--blanks", "20", "--json"]
    assert main([*command, "--library", str(ROOT / "src" / "glmkit")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert report["corpus"]["modules"] > 100
    assert report["tokens_seen"] > 0
    assert list(report["phases"]) == [
        "reading the standard library", "training a tokenizer", "pretraining", "filling held-out blanks",
    ]  # fmt: skip
    lm = glmkit.load(tmp_path / "model", device="cpu")
    assert lm.tokenizer.vocab_size == report["model"]["vocabulary"]
    assert len(lm.fill("for i in [MASK](10):", max_tokens=4).blanks) == 1
