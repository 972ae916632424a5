"""The data scripts of ChatGLM-Tuning: the lines and the folder that the originals wrote."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from glmkit.cli.main import main
from support.shared import ROOT, shared_dir

ROWS = [
    {"instruction": "翻译", "input": None, "output": "Hi"},
    {"instruction": "翻译", "input": "你好", "output": "Hi"},
    {"instruction": "几次", "input": "", "output": 0},
]
# The first row by ChatGLM-6B's vocabulary: prompt, its two special ids, target, end.
FIRST = [37010, 12, 5, 67769, 4, 13049, 12, 130001, 130004, 7950, 130005]


def script(command: str) -> int:
    return main(["script", *shlex.split(command)])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "alpaca_data.json").write_text(json.dumps(ROWS))
    return tmp_path


def lines_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_lines_of_context_and_target(folder: Path) -> None:
    assert script("cover_alpaca2jsonl.py") == 0
    target = folder / "data" / "alpaca_data.jsonl"
    assert lines_of(target) == [
        {"context": "Instruction: 翻译\nAnswer: ", "target": "Hi"},
        {"context": "Instruction: 翻译\nInput: 你好\nAnswer: ", "target": "Hi"},
        {"context": "Instruction: 几次\nAnswer: ", "target": "0"},
    ]
    assert target.read_bytes().startswith(b'{"context": "Instruction: \\u7ffb\\u8bd1\\nAnswer: ", "target": "Hi"}\n')


def test_the_rows_of_the_repository(folder: Path) -> None:
    """The lines that lie beside the list in the test data."""
    assets = ROOT / "tests" / "assets" / "finetune"
    assert script(f"cover_alpaca2jsonl.py --data_path {assets / 'alpaca_data.json'} --save_path lines.jsonl") == 0
    assert lines_of(folder / "lines.jsonl") == lines_of(assets / "alpaca_data.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "a", "output": {"x": 1}}, "output is dict; give a text"),
        ({"input": "a", "output": "b"}, "the row has no instruction"),
        ({"instruction": "a", "input": "b"}, "the row has no output"),
    ],
)
def test_rows_that_are_refused(
    folder: Path, row: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "data" / "alpaca_data.json").write_text(json.dumps([ROWS[0], row]))
    assert script("cover_alpaca2jsonl.py") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "alpaca_data.json" in error
    assert not (folder / "data" / "alpaca_data.jsonl").exists()


def saved(path: Path) -> list[dict[str, Any]]:
    datasets = pytest.importorskip("datasets", reason="an extra")
    rows: list[dict[str, Any]] = datasets.load_from_disk(str(path)).to_list()
    return rows


def test_a_folder_of_ids(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = shared_dir("tokenizers", "chatglm-6b")
    assert script("cover_alpaca2jsonl.py") == 0
    assert script(f"tokenize_dataset_rows.py --chatglm_path {vocabulary} --max_seq_length 200") == 0
    rows = saved(folder / "data" / "alpaca")
    assert rows[0] == {"input_ids": FIRST, "seq_len": 9}
    assert [row["input_ids"][row["seq_len"] - 2 : row["seq_len"]] for row in rows] == [[130001, 130004]] * 3
    assert "wrote data/alpaca: 3 rows, 0 cut, 0 left out at 200 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(("flag", "lengths"), [("False", [9, 9, 9]), ("True", []), ("", [9, 9, 9])])
def test_longer_rows(folder: Path, flag: str, lengths: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = shared_dir("tokenizers", "chatglm-6b")
    assert script("cover_alpaca2jsonl.py") == 0
    words = f"--skip_overlength {flag}" if flag else ""
    status = script(f"tokenize_dataset_rows.py --chatglm_path {vocabulary} --max_seq_length 9 {words}")
    said = capsys.readouterr()
    assert ("--skip_overlength False means False here" in said.err) == (flag == "False")
    if not lengths:
        assert status == 2
        assert "has no rows of at most 9 tokens" in said.err
        return
    assert [len(row["input_ids"]) for row in saved(folder / "data" / "alpaca")] == lengths


def test_the_second_version(folder: Path) -> None:
    """ChatGLM2's prompt of one round."""
    vocabulary = shared_dir("tokenizers", "chatglm2-chatglm3")
    (folder / "rows.jsonl").write_text('{"context": "你好", "target": "在"}\n')
    command = f"tokenize_dataset_rows.py --jsonl_path rows.jsonl --save_path ids --chatglm_path {vocabulary}"
    assert script(f"{command} --version v2") == 0
    (row,) = saved(folder / "ids")
    assert row["input_ids"][:2] == [64790, 64792]
    assert row["input_ids"][-1] == 2
