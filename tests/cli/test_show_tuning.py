"""`glm show` on a model and rows: what it prints is what fine-tuning would read."""

import json
from pathlib import Path

import pytest
import yaml

from glmkit.cli.main import main
from glmkit.families.family import family_named
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import Dialogue, Limits
from glmkit.tokenizer.trained import TrainedTokenizer
from glmkit.train.finetuning_recipes import FINETUNING
from support.finetuning import toy_base

ROWS = [
    {"content": "What is the long name of this thing, and who gave it? " * 3, "summary": "The fox"},
    {"content": "short question", "summary": "a dog that was there for the first time " * 3},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_base(tmp_path_factory.mktemp("show") / "base")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def show(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["show", *map(str, words)]) == 0
    return capsys.readouterr().out


COLUMNS = ("--prompt_column", "content", "--response_column", "summary")


def test_json_holds_the_rows_of_training(base: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = show(capsys, base, "--data", rows, *COLUMNS, "--src_length", 40, "--tgt_length", 16, "--json")
    shown = json.loads(out)
    tokenizer, tuning = TrainedTokenizer.load(base), family_named("glm").tuning
    assert tuning is not None
    assert shown["limits"] == {"source_length": 40, "target_length": 16}
    for view, row in zip(shown["samples"], ROWS, strict=True):
        messages = (Message("user", row["content"]), Message("assistant", row["summary"]))
        (encoded,) = tuning.rows(tokenizer, Dialogue(messages, (False, True), ""), Limits(40, 16))
        assert view["input_ids"] == encoded.ids
        assert view["counted"] == list(map(int, encoded.counted))
        assert [view["positions"], view["block_positions"]] == [
            list(encoded.layout.positions),
            list(encoded.layout.blocks),
        ]
        assert view["num_counted"] == sum(encoded.counted)
        assert (view["lost_prompt_tokens"], view["lost_answer_tokens"]) == (encoded.lost.prompt, encoded.lost.answer)
        counted = "".join(text for text, counts in view["text"] if counts)
        assert counted.removesuffix("<|endofpiece|>").strip() in row["summary"]
    assert shown["samples"][0]["lost_prompt_tokens"] > 0
    assert shown["samples"][1]["lost_answer_tokens"] > 0
    assert "1 prompts cut, 1 answers cut" in " ".join(shown["report"])


def test_the_picture(
    base: Path, rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    out = show(capsys, base, "--data", rows, *COLUMNS, "--tgt_length", 16, "--columns", 12, "--index", 1)
    assert "example 1: " in out
    assert "did not fit: " in out
    assert "tokens of the answer" in out
    assert "columns not shown; --columns 0 shows all" in out
    assert "short question[gMASK]<|endoftext|><|startofpiece|>⟦ a dog" in out


def test_a_recipe_takes_model_and_data(base: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = show(capsys, "full", "--model", base, "--data", rows, *COLUMNS, "--count", 1, "--json")
    alone = show(capsys, base, "--data", rows, *COLUMNS, "--count", 1, "--json")
    assert json.loads(out)["samples"] == json.loads(alone)["samples"]


def test_a_run_shows_its_own_rows(base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"prompt": "content", "response": "summary"}
    values = {"model.base": str(base), "data.train": (str(rows),), "data.columns": columns, "data.source_length": 32}
    config = FINETUNING.read("full", values | {"output.directory": str(tmp_path / "run")})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(config.to_dict()))
    assert json.loads(show(capsys, tmp_path / "run", "--json"))["limits"]["source_length"] == 32


@pytest.mark.parametrize(("template", "kept"), [("qa", "and whose is it?"), ("dureader_qg", "答案：the fox")])
def test_what_is_asked_stays(
    base: Path, tmp_path: Path, template: str, kept: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A context that is too long gives way: its beginning before a question, its end behind an answer."""
    path = tmp_path / "qa.jsonl"
    path.write_text(json.dumps({"context": "long " * 200, "question": "and whose is it?", "answer": "the fox"}))
    (view,) = json.loads(show(capsys, base, "--data", path, "--template", template, "--src_length", 64, "--json"))[
        "samples"
    ]
    assert view["lost_prompt_tokens"] > 0
    assert kept in "".join(text for text, counts in view["text"] if not counts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the rows to show with --data"),
        (["--data", "{rows}", "--index", "7"], "--index is 7; "),
        (["--data", "{rows}", "--mode", "gpt"], "--mode is of pretraining"),
        (["--data", "{rows}", "--model", "x"], "--model goes with a recipe"),
        (["--data", "{rows}", "--data.quirks", "[leftcut]"], "leftcut"),
    ],
)
def test_mistakes(base: Path, rows: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(base), *COLUMNS, *(word.format(rows=rows) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_rows_that_are_left_out_are_not_shown(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"input_ids": [5, 10**6], "seq_len": 1}, {"prompt": "a question", "response": "an answer"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = json.loads(show(capsys, base, "--data", path, "--on-bad-row", "skip", "--json"))
    assert [view["where"] for view in shown["samples"]] == [f"{path}: line 2"]
    assert f"1 examples skipped ({path}: line 1: " in " ".join(shown["report"])
