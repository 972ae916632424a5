"""The checks of fine-tuning runs, joined to real runs: each method is measured from disk."""

import json
from pathlib import Path

import pytest

from glmkit.cli.main import main
from glmkit.errors import TrainingError
from glmkit.eval.tuned_run import TuningInspector
from glmkit.parallel.mesh import Ranks
from glmkit.progress import Progress
from glmkit.train.finetuning import finetune
from support.finetuning import toy_base, toy_rows, tuning_recipe
from support.shared import shared_dir

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_base(tmp_path_factory.mktemp("base") / "model")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", ["lora", "full", "ptuning"])
def test_a_run_is_measured_and_reported(base: Path, tmp_path: Path, method: str) -> None:
    rows, dev, output = toy_rows(tmp_path / "rows.jsonl"), toy_rows(tmp_path / "dev.jsonl", 3, seed=1), tmp_path / "run"
    config = tuning_recipe(
        method,
        base,
        [rows],
        output,
        data__validation=(str(dev),),
        evaluation__every=2,
        evaluation__metrics=("em",),
        evaluation__generate_rows=2,
        evaluation__generate_tokens=3,
    )
    inspector = TuningInspector(config, ["glm", "finetune", method], QUIET)
    outcome = finetune(config, scorer=inspector.scorer, prepare=inspector.prepare, quiet=True)
    effect = inspector.finish(outcome, Ranks())
    assert effect is not None
    assert effect.adapter == {"full": "", "lora": "lora", "ptuning": "prefix"}[method]
    assert set(effect.changes) == {"held_out", "general"}
    assert effect.changes["held_out"].largest > 0
    short = "hardly any effect: the training was very short, or its learning rate very small"
    assert effect.notes == (() if method == "ptuning" else (short,))
    report = json.loads((output / "report.json").read_text())
    assert report["command"] == f"glm finetune {method}"
    assert [line["rows"] for line in report["scores"]] == [2] * len(report["scores"]) != []
    assert len(report["answers"]) == 3
    assert report["effect"]["changes"]["general"]["kl"] == effect.changes["general"].kl
    assert len((output / "validation_predictions.jsonl").read_text().splitlines()) == 2
    (output / "report.json").unlink()  # killed between the export and the report
    again = finetune(config, scorer=inspector.scorer, prepare=inspector.prepare, resume="auto", quiet=True)
    inspector.finish(again, Ranks())
    assert json.loads((output / "report.json").read_text())["effect"] == report["effect"]


@pytest.mark.exhaustive
def test_a_run_with_the_checks_trains_what_one_without_them_does(base: Path, tmp_path: Path) -> None:
    rows = toy_rows(tmp_path / "rows.jsonl")
    config = tuning_recipe("lora", base, [rows], tmp_path / "a")
    inspector = TuningInspector(config, ["glm"], QUIET)
    finetune(config, prepare=inspector.prepare, quiet=True)
    finetune(tuning_recipe("lora", base, [rows], tmp_path / "b"), quiet=True)
    first, second = ((tmp_path / run / "metrics.jsonl").read_bytes() for run in "ab")
    assert first == second


def test_a_training_without_effect_is_an_error(base: Path, tmp_path: Path) -> None:
    rows = toy_rows(tmp_path / "rows.jsonl")
    config = tuning_recipe("lora", base, [rows], tmp_path / "run", optimizer__learning_rate=1e-30)
    inspector = TuningInspector(config, ["glm"], QUIET)
    outcome = finetune(config, prepare=inspector.prepare, quiet=True)
    with pytest.raises(TrainingError, match=r"has no effect: no output of the model differs from the base's") as error:
        inspector.finish(outcome, Ranks())
    assert error.value.code == "no_effect"


@pytest.mark.exhaustive
@pytest.mark.parametrize(("method", "bits"), [("lora", 4), ("ptuning", 8)])
def test_an_adapter_on_integers_is_measured_on_the_same_integers(
    base: Path, tmp_path: Path, method: str, bits: int, recwarn: pytest.WarningsRecorder
) -> None:
    rows = toy_rows(tmp_path / "rows.jsonl")
    config = tuning_recipe(
        method, base, [rows], tmp_path / "run", model__quantization_bit=bits, optimizer__learning_rate=0.02
    )
    inspector = TuningInspector(config, ["glm"], QUIET)
    effect = inspector.finish(finetune(config, prepare=inspector.prepare, quiet=True), Ranks())
    assert effect is not None
    assert set(effect.changes) == {"trained", "general"}
    assert effect.notes == ()
    assert [str(warning.message) for warning in recwarn.list if "quantization" in str(warning.message)] == []


@pytest.mark.exhaustive
def test_replayed_rows_are_a_group_of_their_own(base: Path, tmp_path: Path) -> None:
    rows, other = toy_rows(tmp_path / "rows.jsonl", 20), toy_rows(tmp_path / "general.jsonl", 20, seed=2)
    config = tuning_recipe(
        "lora", base, [rows, other], tmp_path / "run", data__weights=(0.75, 0.25), data__validation_share=0.2
    )
    inspector = TuningInspector(config, ["glm"], QUIET)
    effect = inspector.finish(finetune(config, prepare=inspector.prepare, quiet=True), Ranks())
    assert effect is not None
    assert set(effect.changes) == {"held_out", "replay", "general"}
    forgetting = json.loads((tmp_path / "run" / "report.json").read_text())["forgetting"]
    assert forgetting.endswith(f"; with replay of 25.0 % {other}")


@pytest.mark.exhaustive
def test_a_run_that_was_finished_before_is_left_alone(base: Path, tmp_path: Path) -> None:
    rows = toy_rows(tmp_path / "rows.jsonl")
    command = ["finetune", "lora", "--model", str(base), "--data", str(rows), "--output", str(tmp_path / "run")]
    command += ["--training.max_steps", "1", "--training.micro_batch_size", "2", "--training.device", "cpu", "--quiet"]
    assert main(command) == 0
    page = tmp_path / "run" / "report.html"
    before = page.stat().st_mtime_ns
    assert main([*command, "--resume", "auto"]) == 0
    assert page.stat().st_mtime_ns == before


def test_a_run_that_goes_on_from_an_adapter_is_measured_against_both_starts(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against the base alone, and against the base with the adapter; an effect is one on the latter."""
    rows = toy_rows(tmp_path / "rows.jsonl")
    first = tuning_recipe("lora", base, [rows], tmp_path / "first", optimizer__learning_rate=0.01)
    adapter = finetune(first, quiet=True).model
    goes_on = {"model__adapter": str(adapter), "training__max_steps": 1, "optimizer__learning_rate": 0.001}
    config = tuning_recipe("lora", base, [rows], tmp_path / "run", schedule__warmup_ratio=0.0, **goes_on)
    inspector = TuningInspector(config, ["glm"], Progress(quiet=False, eager=True))
    effect = inspector.finish(finetune(config, prepare=inspector.prepare, quiet=True), Ranks())
    assert effect is not None
    assert (effect.base, effect.start) == (str(base), str(adapter))
    assert 0 < effect.since_start["trained"].kl < effect.changes["trained"].kl / 10
    assert effect.since_start["trained"].loss_after == effect.changes["trained"].loss_after
    told = capsys.readouterr().err
    assert f"adapter (lora): all 8 tensors matched, against {base}\n" in told
    assert f"of this run alone, against its start, {base} with {adapter}\n" in told
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["forgetting"].startswith(f"against {base} the loss at general texts ")
    assert f"; against the start of this run, with {adapter}, the loss at general texts " in report["forgetting"]
    assert report["settings"]["adapter at the start"] == str(adapter)
    assert str(adapter) in (tmp_path / "run" / "report.html").read_text()
    config = tuning_recipe("lora", base, [rows], tmp_path / "idle", **goes_on | {"optimizer__learning_rate": 1e-30})
    inspector = TuningInspector(config, ["glm"], QUIET)
    outcome = finetune(config, prepare=inspector.prepare, quiet=True)
    with pytest.raises(TrainingError, match=rf"has no effect: no output of the model differs from {adapter}'s"):
        inspector.finish(outcome, Ranks())


def test_a_tokenizer_larger_than_the_embedding_is_no_trouble_where_the_rows_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The general texts have ids that the model lacks: they are not measured, which is told."""
    base, vocabulary = shared_dir("fixtures", "chatglm2-6b"), shared_dir("tokenizers", "chatglm2-chatglm3")
    rows = tmp_path / "ids.jsonl"
    rows.write_text("".join(json.dumps({"input_ids": [5, 6, 7 + n, 8], "seq_len": 2}) + "\n" for n in range(4)))
    options = {"model__tokenizer": str(vocabulary), "evaluation__report_rows": 0, "optimizer__learning_rate": 0.02}
    config = tuning_recipe("lora", base, [rows], tmp_path / "run", **options)
    inspector = TuningInspector(config, ["glm"], Progress(quiet=False, eager=True))
    effect = inspector.finish(finetune(config, prepare=inspector.prepare, quiet=True), Ranks())
    assert effect is not None
    assert set(effect.changes) == {"trained"}
    assert "forgetting: no general text was measured" in capsys.readouterr().err
