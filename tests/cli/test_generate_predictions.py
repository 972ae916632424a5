"""`glm generate --task predict`: a line a row in the order of the input, whatever the batch and the ranks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from glmkit.checkpoint.native import write_model
from glmkit.checkpoint.taught import Taught, write_taught
from glmkit.cli.main import main
from glmkit.errors import CheckpointError
from glmkit.families.family import family_named
from glmkit.session import LM
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import Dialogue, Limits
from support.served_models import small_base
from support.shared import ROOT

ROWS: list[dict[str, Any]] = [
    {"content": "凯旋门是", "summary": "巴黎"},
    {"content": "The quick", "summary": "fox"},
    {"content": "没有答案", "summary": ""},
    {"content": {"x": 1}, "summary": "坏"},
    {"content": "纪念", "summary": "好"},
]
FLAGS = ["--task", "predict", "--prompt_column", "content", "--response_column", "summary"]
FLAGS += ["--max_new_tokens", "6", "--quiet"]


@pytest.fixture(scope="module")
def lm() -> LM:
    return small_base()


@pytest.fixture(scope="module")
def model(lm: LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_model(folder, lm.config, dict(lm.model.named_parameters()))
    lm.tokenizer.save(folder)  # type: ignore[attr-defined]
    return folder


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dev.json").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))


def predict(model: Path, *more: str, output: str = "generated_predictions.jsonl") -> list[dict[str, Any]]:
    status = main(["generate", str(model), "--input", "dev.json", "--output", output, *FLAGS, *more])
    lines: list[dict[str, Any]] = [json.loads(line) for line in Path(output).read_text().splitlines()]
    assert status == int(any(line["predict"] is None for line in lines))
    return lines


def test_a_line_a_row_with_prompts_as_in_training(model: Path, lm: LM, capsys: pytest.CaptureFixture[str]) -> None:
    lines = predict(model)
    assert [line["id"] for line in lines] == [f"dev.json: line {number}" for number in range(1, 6)]
    assert [line["labels"] for line in lines] == ["巴黎", "fox", "", "", "好"]
    assert lines[3]["predict"] is None
    assert "field 'content' is an object" in lines[3]["error"]
    tuning = family_named("glm").tuning
    assert tuning is not None
    asked = Dialogue((Message("user", "凯旋门是"), Message("assistant", "巴黎")), (False, True), "here")
    ids = tuning.prompt(lm.tokenizer, asked, Limits(608, 6))
    assert lines[0]["predict"] == (lm.answers([ids], max_new_tokens=6)[0][0].text or "").strip()
    published = [json.loads(line) for line in Path("generated_predictions.txt").read_text().splitlines()]
    assert published == [{"labels": line["labels"], "predict": line["predict"] or ""} for line in lines]
    said = capsys.readouterr()
    assert "1 rows could not be asked" in said.out
    assert said.err == "glm generate: 1 of 5 rows have an error instead of an answer\n"


def test_the_results_have_the_published_names_and_say_what_they_are(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(model, "--evaluate")
    assert "left out, their reference is empty: dev.json: line 3" in capsys.readouterr().out
    results = json.loads(Path("predict_results.json").read_text())
    assert {"predict_rouge-1", "predict_rouge-l", "predict_bleu-4", "predict_exact-match"} <= results.keys()
    assert results["predict_samples"] == 5
    facts = results["predict_facts"]
    assert facts["definitions"]["bleu-4"].startswith("BLEU-4 of characters x100")
    assert (facts["num_rows"], facts["without_reference"]) == (3, ["dev.json: line 3"])
    predict(model, "--evaluate", "--result_name", "eval", "--scores", "paddle", output="eval.jsonl")
    both = json.loads(Path("all_results.json").read_text())
    assert {"predict_rouge-1", "eval_rouge1", "eval_bleu4"} <= both.keys()


def test_the_size_of_the_batch_changes_nothing(model: Path) -> None:
    one = predict(model, "--batch_size", "1")
    assert predict(model, "--batch_size", "16", output="wide.jsonl") == one


@pytest.mark.exhaustive  # two processes start
def test_two_ranks_write_the_same_file(model: Path) -> None:
    one = predict(model)
    assert predict(model, "--nproc", "2", output="two.jsonl") == one
    assert sorted(path.name for path in Path().glob(".*rank*")) == []


@pytest.mark.exhaustive
def test_shards_of_two_ranks_answer_as_the_whole_model(model: Path) -> None:
    assert main(["convert", str(model), "shards", "--to", "paddle", "--tensor-parallel", "2"]) == 0
    assert len(list(Path("shards").glob("*.pdparams"))) == 2
    assert predict(Path("shards"), "--tokenizer", str(model), output="shards.jsonl") == predict(model)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "count"), [("dureader_qg:dev", 2), ("AdvertiseGen:dev", 2), ("alpaca_data.json", 8)])
def test_rows_of_published_formats_are_asked_by_name(model: Path, name: str, count: int) -> None:
    flags = ["--data_dir", str(ROOT / "tests/assets/finetune"), "--task", "predict", "--max_new_tokens", "4", "--quiet"]
    assert main(["generate", str(model), "--input", name, "--output", "named.jsonl", *flags]) == 0
    lines = [json.loads(line) for line in Path("named.jsonl").read_text().splitlines()]
    assert len(lines) == count
    assert all(line["labels"] and line["predict"] is not None for line in lines)


def test_a_run_that_broke_off_goes_on(model: Path) -> None:
    whole = predict(model)
    bytes_before = Path("generated_predictions.jsonl").read_bytes()
    first, *_ = bytes_before.splitlines(keepends=True)
    run = json.loads(Path("generated_predictions.jsonl.run.json").read_text())
    Path("generated_predictions.jsonl").unlink()
    Path("generated_predictions.jsonl.partial").write_bytes(first + b'{"id": "dev')
    Path("generated_predictions.jsonl.run.json").write_text(json.dumps({**run, "complete": None}))
    assert predict(model) == whole
    assert Path("generated_predictions.jsonl").read_bytes() == bytes_before


def test_rows_may_be_capped_and_bad_ones_may_stop_it(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(predict(model, "--max_rows", "2")) == 2
    refused = ["generate", str(model), "--input", "dev.json", "--output", "other.jsonl", *FLAGS, "--on_error", "stop"]
    assert main(refused) == 2
    assert "dev.json: line 4: field 'content' is an object" in capsys.readouterr().err
    assert main(["generate", str(model), "--input", "dev.json", "--output", "o.jsonl", "--max_rows", "2"]) == 2
    assert "--max_rows goes with --task predict" in capsys.readouterr().err


def test_columns_are_those_of_the_training_where_the_rows_have_them(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taught = Path(shutil.copytree(model, "taught"))
    columns = {"prompt": "text", "response": "target", "history": "rounds"}
    write_taught(taught, Taught(columns=columns))
    names = {"content": "text", "summary": "target"}
    renamed = [{names[key]: value for key, value in row.items()} for row in ROWS if isinstance(row["content"], str)]
    Path("own.json").write_text("".join(json.dumps({**row, "id": 1}) + "\n" for row in renamed))
    flags = ["--task", "predict", "--max_new_tokens", "6"]

    def asked(file: str, *more: str) -> list[dict[str, Any]]:
        assert (
            main(["generate", str(taught), "--input", file, "--output", "o.jsonl", "--overwrite", *flags, *more]) == 0
        )
        return [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]

    want = [line["predict"] for line in predict(model) if line["predict"] is not None]
    capsys.readouterr()
    assert [line["predict"] for line in asked("own.json")] == want
    said = capsys.readouterr().err
    assert "note: columns as in training: prompt text, response target, history rounds (--prompt_column" in said
    assert "note: own.json: no row has a field 'rounds', the history column" in said
    assert len(asked("dev.json", "--max_rows", "2")) == 2
    said = capsys.readouterr().err
    assert "and dev.json has no 'text': its rows are read by their own fields" in said
    with pytest.raises(CheckpointError, match="columns is"):
        Taught.from_dict({"columns": ["text"]}, "record")


def test_answers_are_as_long_as_in_training_or_as_the_family_publishes_unless_a_length_is_given(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--input", "dev.json", "--task", "predict", "--max_rows", "1"]
    taught = Path(shutil.copytree(model, "taught"))
    write_taught(taught, Taught(source_length=9, target_length=7))
    cases: list[tuple[Path, str, list[str], int, str]] = [
        (model, "a.jsonl", [], 160, "at most 608 tokens of a prompt and 160 of an answer\n"),
        (model, "b.jsonl", ["--max_new_tokens", "128"], 128, "128 of an answer\n"),
        (taught, "c.jsonl", [], 7, "at most 9 tokens of a prompt and 7 of an answer, as in training\n"),
        (taught, "d.jsonl", ["--src_length", "5"], 7, "at most 5 tokens of a prompt and 7 of an answer; the training"),
    ]
    for model, name, more, longest, said in cases:
        assert main(["generate", str(model), "--output", name, *flags, *more]) == 0
        plan = json.loads(Path(f"{name}.run.json").read_text())["plan"]
        assert plan["options"]["max_new_tokens"] == longest
        assert said in capsys.readouterr().err


def test_the_cost_is_told_before(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [flag for flag in FLAGS if flag != "--quiet"]
    with open("dev.json", "a") as file:
        file.write('{"content": "x", "summary": "zebra yacht vex"}\n')
    assert main(["generate", str(model), "--input", "dev.json", "--output", "o.jsonl", *flags]) == 1
    told = capsys.readouterr().err
    assert "glm generate: 6 rows with at most 36 tokens of answers, roughly" in told
    assert "references cut at 6 tokens, as answers are (--max_new_tokens): 1" in told
