"""benchmarks/samples.py runs, and ends with one line of JSON."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "samples.py"


def test_last_line_is_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seconds", "0.01", "--repeats", "1", "--length", "64", "--rows", "2", "--made_up_tokens", "200000"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["benchmark"], report["length"], report["rows"]) == ("samples", 64, 2)
    assert set(report["results"]) >= {"token", "sentence", "generation", "mix_0.4_0.3_0.3"}
    for result in report["results"].values():
        assert result["slowest"] <= result["tokens_per_second"] <= result["fastest"]
        assert result["microseconds_per_sample"] == pytest.approx(64e6 / result["tokens_per_second"], rel=0.01)
        assert 0.5 < result["fill"] <= 1
