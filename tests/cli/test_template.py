"""`--template` of the verbs, and the template of a run that they take without it."""

import json
from pathlib import Path
from typing import Any

import pytest

import glmkit
from glmkit.checkpoint.native import write_model
from glmkit.checkpoint.taught import Taught, write_taught
from glmkit.cli import chat
from glmkit.cli.main import main
from support.finetuning import toy_base, tuned_run
from support.served_models import small_chat

TEXT = "the fox"
ASKED = "Text: the fox\nAnswer: "
ROWS = [{"passage": f"{TEXT} {number}", "hint": "jump" * (number % 2), "a": "over"} for number in range(4)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose template was a file that is gone."""
    folder = tmp_path_factory.mktemp("template")
    base, rows, file = toy_base(folder / "base"), folder / "rows.jsonl", folder / "own.yaml"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    file.write_text(json.dumps({"prompt": ["Text: {passage}\n", "Hint: {hint}\n", "Answer: "], "answer": "{a}"}))
    options: dict[str, Any] = {"data__template": [str(file)], "training__max_steps": 1}
    tuned_run("lora", base, rows, folder / "run", **options)
    file.unlink()
    return folder / "run" / "model"


def rows_of(*options: str) -> list[dict[str, Any]]:
    arguments = ["generate", *options, "--output", "out.jsonl", "--overwrite", "--max_new_tokens", "6"]
    assert main(arguments) == 0
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


def test_a_run_is_asked_as_it_was_trained(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lm, length = glmkit.load(run), ["--max_new_tokens", "6"]
    assert main(["generate", str(run), TEXT, *length]) == 0
    said = capsys.readouterr()
    assert said.out == f"{TEXT}{lm.generate(ASKED, max_new_tokens=6)}\n"
    assert said.err.startswith(
        f"glm generate: template {run.parents[1]}/own.yaml, as in training: a text becomes 'Text: …"
    )
    assert main(["generate", str(run), TEXT, *length, "--template", "none"]) == 0
    assert "glm generate: warning: " in (said := capsys.readouterr()).err
    assert "/own.yaml, and is asked with none, as given\n" in said.err
    bare = glmkit.load(run, template="none")
    assert said.out == f"{TEXT}{bare.generate(TEXT, max_new_tokens=6)}\n"
    assert main(["generate", str(run), TEXT, "--template", "bele"]) == 2
    assert (
        "template is 'bele', which is no template and no .yaml file; did you mean 'belle'?" in capsys.readouterr().err
    )


def test_files_of_texts_and_of_rows(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of a file get the template, unless the option has made it of their fields; rows are as in training."""
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("".join(json.dumps(row | {"text": row["passage"]}) + "\n" for row in ROWS))
    tokens = [row["prompt_tokens"] for row in rows_of(str(run), "--input", "in.jsonl")]
    lm = glmkit.load(run)
    wanted = [f"Text: {row['passage']}\nAnswer: " for row in ROWS]
    assert tokens == [len(lm.prompts.continuation(text, worded=True).ids) for text in wanted]
    made = ["--template", "Text: {passage}\nHint: {hint}\nAnswer: "]
    hinted = [f"Text: {row['passage']}\nHint: {row['hint']}\nAnswer: " for row in ROWS]
    tokens = [row["prompt_tokens"] for row in rows_of(str(run), "--input", "in.jsonl", *made)]
    assert tokens == [len(lm.prompts.continuation(text, worded=True).ids) for text in hinted]
    tokens = [row["prompt_tokens"] for row in rows_of(str(run), "--input", "in.jsonl", "--template", "none")]
    assert tokens == [len(lm.prompts.continuation(row["passage"], worded=True).ids) for row in ROWS]
    predicted = rows_of(str(run), "--input", str(run.parents[1] / "rows.jsonl"), "--task", "predict")
    right = [text if row["hint"] else short for row, text, short in zip(ROWS, hinted, wanted, strict=True)]
    answers = lm.answers([lm.prompts.continuation(text).ids for text in right], max_new_tokens=6)
    assert [row["predict"] for row in predicted] == [(answer.text or "").strip() for (answer,) in answers]


class _Silent(chat.Lines):
    """A terminal at which nobody says anything."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.shown = True

    def read(self) -> str | None:
        return None


@pytest.mark.parametrize(
    ("template", "options", "said"),
    [
        (None, [], ""),
        ("chatglm_tuning", [], "template chatglm_tuning, as in training: a text becomes 'Instruction: …\\nAnswer: '\n"),
        ("dureader_qg", [], "the template dureader_qg puts several texts into one ("),
        (None, ["--template", "belle"], "template belle, as given: texts are read as they are\n"),
    ],
)
def test_a_chat_says_its_template(
    template: str | None,
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lm = small_chat("chatglm2")
    write_model(tmp_path, lm.config, dict(lm.model.named_parameters()))
    lm.tokenizer.save(tmp_path)
    write_taught(tmp_path, Taught(template))
    monkeypatch.setattr(chat, "Lines", _Silent)
    assert main(["chat", str(tmp_path), *options]) == 0
    printed = capsys.readouterr().err
    assert "clear forgets" in printed.splitlines()[0]
    assert printed.partition("\n")[2].startswith(said) if said else printed.count("\n") == 1
