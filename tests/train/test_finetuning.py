"""Runs of fine-tuning on a tiny base: what they write, resume, refuse and keep."""

import gc
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import glmkit
from glmkit.adapters.attach import new_adapter
from glmkit.adapters.prefix import PrefixAdapter
from glmkit.checkpoint.taught import TAUGHT_FILE
from glmkit.cli.main import main
from glmkit.config import Quantization
from glmkit.errors import CheckpointError, ConfigError, DataError, GLMKitError, MismatchWarning, TrainingError
from glmkit.families.family import preset
from glmkit.filled_model import empty_model
from glmkit.loading import load_parts
from glmkit.parallel.mesh import Ranks
from glmkit.progress import Progress
from glmkit.quant import QuantEmbedding
from glmkit.train import checkpoints, finetuning
from glmkit.train.checkpoints import CheckpointStore
from glmkit.train.finetuning import finetune
from glmkit.train.finetuning_base import load_base, open_base, prefix_columns, trained
from glmkit.train.finetuning_data import TuningData
from glmkit.train.metrics import read_metrics
from glmkit.train.validation import ValidationLoss
from support.finetuning import options_of, toy_base, toy_rows, tuning_recipe, two_ranks
from support.finetuning import tuned_run as run
from support.ranks import run_ranks
from support.shared import shared_dir

METHODS = ("lora", "full", "ptuning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_base(tmp_path_factory.mktemp("tuned") / "base")


@pytest.fixture(scope="module")
def rows(base: Path) -> Path:
    return toy_rows(base.parent / "rows.jsonl")


# --- what a run writes ------------------------------------------------------------------------------------------------


@pytest.mark.sampled(50)
@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_goes_on_bit_for_bit(method: str, base: Path, rows: Path, tmp_path: Path) -> None:
    ends = {"schedule__lr_decay_iters": 6, "data__validation": [str(rows)], "evaluation__every": 2}
    whole = run(method, base, rows, tmp_path / "whole", training__max_steps=6, **ends)
    run(method, base, rows, tmp_path / "cut", training__max_steps=3, **ends)
    cut = run(method, base, rows, tmp_path / "cut", resume="auto", training__max_steps=6, **ends)
    assert cut["weights"] == whole["weights"]
    names = ("optimizer.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "model.safetensors")
    last = CheckpointStore(tmp_path / "whole").path(6), CheckpointStore(tmp_path / "cut").path(6)
    same = [name for name in names if (last[0] / name).exists() and name != "pytorch_model.bin"]
    assert same
    assert all((last[0] / name).read_bytes() == (last[1] / name).read_bytes() for name in same)
    assert [r for r in read_metrics(tmp_path / "cut") if r["step"] > 3] == [
        r for r in read_metrics(tmp_path / "whole") if r["step"] > 3
    ]


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_loads_and_is_what_was_trained(method: str, base: Path, rows: Path, tmp_path: Path) -> None:
    result = run(method, base, rows, tmp_path / "run", training__num_epochs=1, optimizer__learning_rate=1e-2)
    model = tmp_path / "run" / "model"
    names = {file.name for file in model.iterdir()}
    assert "LICENSE" in names
    assert not {"optimizer.safetensors", "trainer.json"} & names
    if method == "full":
        assert {"model.safetensors", "tokenizer.json", TAUGHT_FILE} <= names
        lm = glmkit.load(model, device="cpu")
    else:
        assert {"glmkit_adapter.json"} < names
        assert "model.safetensors" not in names
        lm = glmkit.load(base, adapter=model, device="cpu")
    stored = {name: p.detach().flatten().tolist() for name, p in lm.model.named_parameters()}
    assert {name: stored[name] for name in result["weights"]} == result["weights"]
    taught = json.loads((model / (TAUGHT_FILE if method == "full" else "glmkit_adapter.json")).read_text())
    taught = taught if method == "full" else taught["taught"]
    assert taught["stop_ids"]
    assert (taught["source_length"], taught["target_length"]) == (608, 160)


@pytest.mark.exhaustive
def test_what_is_trained_is_told_and_nothing_else_changes(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(tuning_recipe("lora", base, [rows], tmp_path / "run"))
    told = capsys.readouterr().err
    assert "trains 2,048 of 50,112 parameters (4.0868%)" in told
    assert "model.layers.*.self_attn.q_proj.lora_A x 2: 512" in told
    assert "steps: 5 of 4 rows; 1.67 epochs of 3 steps, 10 rows" in told
    assert "first batch: 2 rows" in told
    assert "exporting" not in told

    def drifting(model: nn.Module, batch: Any) -> Any:
        with torch.no_grad():
            model.get_parameter("model.embed_tokens.weight").add_(1e-7)
        return plain(model, batch)

    plain = finetuning.batch_loss()
    monkeypatch.setattr(finetuning, "batch_loss", lambda *options: drifting)
    with pytest.raises(TrainingError, match="weights that were to stay as they are have changed") as error:
        finetune(tuning_recipe("lora", base, [rows], tmp_path / "drift"), quiet=True)
    assert error.value.code == "drift"


@pytest.mark.exhaustive
@pytest.mark.parametrize(("bits", "dtype"), [(4, "auto"), (8, "auto"), (None, "bfloat16"), (None, "float16")])
def test_what_is_trained_is_float32_on_any_base(
    bits: int | None, dtype: str, base: Path, rows: Path, tmp_path: Path
) -> None:
    config = tuning_recipe("lora", base, [rows], tmp_path / "run", model__quantization_bit=bits, model__dtype=dtype)
    model = load_base(config, open_base(config), torch.device("cpu")).model
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    if bits is not None:
        assert model.config.quantization == Quantization.usual(bits)
        assert isinstance(model.model.embed_tokens, QuantEmbedding)
    outcome = finetune(config, quiet=True)
    assert outcome.result.reason == "finished"
    if bits is not None:  # the word table, too, is then as it was in training
        with warnings.catch_warnings():
            warnings.simplefilter("error", MismatchWarning)
            parts = load_parts(base, adapter=tmp_path / "run" / "model", quantize="int4" if bits == 4 else "int8")
        assert parts.config.quantization == Quantization.usual(bits)
        assert torch.equal(parts.model.model.embed_tokens.weight, model.model.embed_tokens.weight)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.sampled(50)
@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("full", {"model__quantization_bit": 4}, "model.quantization_bit is 4, and full tuning cannot train integers"),
        ("ptuning", {"adapter__length": 160}, "a prefix of 160 positions leaves no room in a model of 160"),
        ("lora", {"adapter__targets": "q_prj"}, "targets: 'q_prj' names no module of this model"),
        ("lora", {"data__quirks": "nonsense"}, "data.quirks: 'nonsense'"),
        ("lora", {"checkpoint__export": "best"}, "checkpoint.export best needs evaluations"),
        ("lora", {"checkpoint__export": "best", "evaluation__every": 1}, "there are no validation rows"),
        ("lora", {"output__report_to": "nowhere"}, "output.report_to names 'nowhere'"),
        ("lora", {"output__report_to": "wandb"}, "output.report_to wandb needs the package wandb"),
        ("lora", {"training__precision": "fp16"}, "precision fp16 needs CUDA"),
        ("lora", {"output__directory": "{base}"}, "holds {base}, which the run starts from"),
        ("lora", {"output__directory": "{base}/.."}, "holds {base}, which the run starts from"),
        ("lora", {"output__directory": "{base}/tokenizer.json"}, "tokenizer.json is a file; name a directory"),
    ],
)
def test_mistakes_are_told_before_training(
    method: str, overrides: dict[str, Any], message: str, base: Path, rows: Path, tmp_path: Path
) -> None:
    given = {key: value.format(base=base) if isinstance(value, str) else value for key, value in overrides.items()}
    before = sorted(base.parent.rglob("*"))
    with pytest.raises(GLMKitError) as error:
        finetune(tuning_recipe(method, base, [rows], tmp_path / "run", **given), quiet=True)
    assert message.format(base=base) in str(error.value)
    assert sorted(base.parent.rglob("*")) == before
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_tokenizer_of_another_model_is_told_before_training(rows: Path, tmp_path: Path) -> None:
    base, vocabulary = shared_dir("fixtures", "chatglm2-6b"), shared_dir("tokenizers", "chatglm2-chatglm3")
    ids = tmp_path / "ids.jsonl"
    lines = [{"input_ids": [5, 6, 7, last], "seq_len": 2} for last in (8, 256)]
    ids.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for data, place in ((rows, r"rows\.jsonl: line 1: the id \d+"), (ids, r"ids\.jsonl: line 2: the id 256")):
        config = tuning_recipe("lora", base, [data], tmp_path / "run", model__tokenizer=str(vocabulary))
        with pytest.raises(ConfigError, match=rf"{place} of the row is beyond the 256 rows of the embedding") as error:
            finetune(config, quiet=True)
        assert error.value.param == "model.tokenizer"
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("words", "notes"), [([], []), (["--eval_steps", "7"], ["evaluation.every is 7 and there are no validation rows"])]
)
def test_a_rhythm_that_was_asked_for_is_told_to_be_idle(
    words: list[str], notes: list[str], base: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Our recipes have a rhythm for those who give validation rows."""
    command = ["finetune", "lora", "--model", str(base), "--data", str(rows), "--training.device", "cpu"]
    assert main([*command, *words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [f"{note}: nothing is evaluated" for note in notes]


def test_a_list_with_spaces_is_told_to_have_commas(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "lora", "--lora_target", "q_proj", "v_proj", "--model", "m"]) == 2
    told = capsys.readouterr().err
    assert "unrecognized arguments: v_proj; several values of --lora_target are one word with commas" in told
    assert told.endswith(": --lora_target q_proj,v_proj\n")


@pytest.mark.sampled(50)
@pytest.mark.parametrize("where", ["train", "validation"])
def test_rows_without_a_label_are_refused_in_both_sets(where: str, base: Path, rows: Path, tmp_path: Path) -> None:
    masked = tmp_path / "masked.jsonl"
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer", "loss": False}]
    masked.write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"messages": turns}) + "\n")
    sets = {"data__train": [str(masked)]} if where == "train" else {"data__validation": [str(masked)]}
    with pytest.raises(DataError, match=r"masked\.jsonl"):
        finetune(tuning_recipe("lora", base, [rows], tmp_path / "run", **sets), quiet=True)


@pytest.mark.exhaustive
def test_a_long_prefix_is_a_note(base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finetune(tuning_recipe("ptuning", base, [rows], tmp_path / "run", adapter__length=150, training__max_steps=1))
    told = capsys.readouterr().err
    assert "150 positions of the prefix and 34 tokens of the longest row are more than the 160" in told


# --- steps, best checkpoints, ends ------------------------------------------------------------------------------------


@pytest.mark.sampled(50)
@pytest.mark.parametrize(("count", "acc", "epochs", "steps"), [(10, 4, 3, 9), (3, 4, 2, 2), (8, 4, 1, 2)])
def test_epochs_are_whole(count: int, acc: int, epochs: int, steps: int, base: Path, tmp_path: Path) -> None:
    data = toy_rows(tmp_path / "rows.jsonl", count)
    options = {"training__micro_batch_size": 1, "training__gradient_accumulation_steps": acc}
    result = run("ptuning", base, data, tmp_path / "run", training__num_epochs=epochs, **options)
    assert result["step"] == steps
    taken = [line["rows"] for line in read_metrics(tmp_path / "run")]
    assert sum(taken) == count * epochs


def evaluated(monkeypatch: pytest.MonkeyPatch, name: str, values: list[float]) -> None:
    """Let the evaluations of the coming runs give these numbers, one after the other."""
    given = iter(values)

    class Scripted:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, model: nn.Module) -> dict[str, object]:
            return {"loss": 1.0, name: next(given)}

    monkeypatch.setattr(finetuning, "ValidationLoss", Scripted)


@pytest.mark.sampled(50)
@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [("loss", [1.0, 3.0, 2.0], 1), ("rouge-l", [10.0, 30.0, 20.0], 2), ("loss", [math.nan, 3.0, 4.0], 2)],
)
def test_the_best_is_kept_beside_the_newest(
    metric: str, values: list[float], best: int, base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(monkeypatch, metric, values)
    options = {"training__max_steps": 3, "checkpoint__every": 1, "checkpoint__keep_last": 1, "evaluation__every": 1}
    options |= {"checkpoint__best": metric, "checkpoint__export": "best", "data__validation": [str(rows)]}
    output = tmp_path / "run"
    outcome = finetune(tuning_recipe("lora", base, [rows], output, **options), quiet=True)
    store = CheckpointStore(output)
    assert store.steps() == [best, 3]
    assert outcome.exported.startswith(f"the best checkpoint by {metric}")
    file = "adapter_model.safetensors"
    assert (output / "model" / file).read_bytes() == (store.path(best) / file).read_bytes()
    assert (output / "model" / file).read_bytes() != (store.path(3) / file).read_bytes()
    for line in (output / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.exhaustive
def test_patience_ends_a_run(base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated(monkeypatch, "loss", [3.0, 2.0, 1.999, 2.5, 1.0])
    options = {"training__max_steps": 9, "evaluation__every": 1, "data__validation": [str(rows)]}
    options |= {"evaluation__patience": 2, "evaluation__threshold": 0.01}
    outcome = finetune(tuning_recipe("lora", base, [rows], tmp_path / "run", **options), quiet=True)
    assert (outcome.result.step, outcome.result.reason) == (4, "patience")
    assert outcome.model is not None
    again = finetune(tuning_recipe("lora", base, [rows], tmp_path / "run", **options), quiet=True, resume="auto")
    assert (again.result.step, again.result.reason) == (4, "patience")


@pytest.mark.exhaustive
def test_a_metric_that_no_evaluation_gives_is_told(base: Path, rows: Path, tmp_path: Path) -> None:
    options = {"checkpoint__best": "rouge-x", "evaluation__every": 1, "data__validation": [str(rows)]}
    with pytest.raises(ConfigError, match=r"checkpoint.best is 'rouge-x'; the evaluation gives loss"):
        finetune(tuning_recipe("lora", base, [rows], tmp_path / "run", **options), quiet=True)


@pytest.mark.exhaustive
def test_a_finished_run_is_left_alone_and_a_raised_limit_goes_on(base: Path, rows: Path, tmp_path: Path) -> None:
    run("lora", base, rows, tmp_path / "run", training__max_steps=3)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    again = run("lora", base, rows, tmp_path / "run", training__max_steps=2, resume="auto")
    assert (again["step"], again["losses"]) == (3, [])
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")} == before
    more = run("lora", base, rows, tmp_path / "run", training__max_steps=4, resume="auto")
    assert (more["step"], len(more["losses"])) == (4, 1)
    with pytest.raises(ConfigError, match=r"is an adapter of .*: --model .* --model.adapter .*glm merge") as error:
        run("full", tmp_path / "run", rows, tmp_path / "other")
    assert error.value.param == "model.base"
    assert not (tmp_path / "other").exists()


@pytest.mark.exhaustive
def test_other_data_is_refused_unless_asked_for(base: Path, rows: Path, tmp_path: Path) -> None:
    run("lora", base, rows, tmp_path / "run", training__max_steps=2)
    changed = tmp_path / "rows.jsonl"
    changed.write_text(rows.read_text().replace("The small robot", "The smell robot", 1))  # one character, same size
    assert changed.stat().st_size == rows.stat().st_size
    config = tuning_recipe("lora", base, [changed], tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"other data .* --other-data .* --model.adapter "):
        finetune(config, resume="auto", quiet=True)
    assert finetune(config, resume="auto", other_data=True, quiet=True).result.step == 5
    with pytest.raises(CheckpointError, match=r"another model: adapter.rank was 8, the recipe says 4"):
        run("lora", base, changed, tmp_path / "run", resume="auto", adapter__rank=4, training__max_steps=9)


@pytest.mark.exhaustive
def test_rows_are_counted_whatever_the_micro_batch(base: Path, rows: Path, tmp_path: Path) -> None:
    parts = {"training__micro_batch_size": 1, "training__gradient_accumulation_steps": 4}
    run("full", base, rows, tmp_path / "whole", training__max_steps=6)
    run("full", base, rows, tmp_path / "cut", training__max_steps=3, schedule__lr_decay_iters=6)
    run("full", base, rows, tmp_path / "cut", resume="auto", training__max_steps=6, **parts)
    tokens = [[line["tokens"] for line in read_metrics(tmp_path / name)] for name in ("whole", "cut")]
    assert tokens[0] == tokens[1]


# --- what goes wrong on the way ---------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_loss_that_is_no_number_stops_the_run(base: Path, rows: Path, tmp_path: Path) -> None:
    options = {"optimizer__learning_rate": 1e9, "training__clip_grad": 0, "training__max_steps": 30}
    options |= {"schedule__warmup_ratio": 0.0, "adapter__targets": "all"}
    with pytest.raises(TrainingError, match=r"(loss|gradient norm) is (nan|inf).* at step \d+") as error:
        finetune(tuning_recipe("lora", base, [rows], tmp_path / "run", **options), quiet=True)
    assert "nothing was saved from this step" in str(error.value)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    for step in CheckpointStore(tmp_path / "run").steps():
        assert not checkpoints.inspect(CheckpointStore(tmp_path / "run").path(step)).damages


@pytest.mark.sampled(50)
@pytest.mark.parametrize("when", ["at the start", "later"])
def test_a_full_disk_is_seen_before_anything_is_written(
    when: str, base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([0] if when == "at the start" else [1 << 40, 1 << 40, 0])

    def usage(path: Path) -> Any:
        return type("Usage", (), {"free": next(free)})

    monkeypatch.setattr(checkpoints.shutil, "disk_usage", usage)
    with pytest.raises(TrainingError, match="no room for a checkpoint") as error:
        finetune(tuning_recipe("lora", base, [rows], tmp_path / "run"), quiet=True)
    assert error.value.code == "disk_full"
    store = CheckpointStore(tmp_path / "run")
    assert store.steps() == ([] if when == "at the start" else [2])
    monkeypatch.undo()
    if when == "later":
        assert finetune(tuning_recipe("lora", base, [rows], tmp_path / "run"), quiet=True, resume="auto").model


@pytest.mark.exhaustive
def test_a_reporter_that_fails_later_is_one_warning(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from glmkit.train import reporters

    class Broken:
        def __init__(self, *_: object) -> None: ...

        def numbers(self, *_: object) -> None:
            raise ConnectionError("offline")

    monkeypatch.setitem(reporters._KNOWN, "wandb", ("torch", Broken))
    options = {"output__report_to": "wandb,none", "training__max_steps": 3}
    assert finetune(tuning_recipe("lora", base, [rows], tmp_path / "run", **options), quiet=True).result.step == 3
    assert capsys.readouterr().err.count("wandb cannot be reached (offline); training goes on without it") == 1


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_two_ranks_are_one_process_with_the_same_rows(base: Path, tmp_path: Path) -> None:
    plain = toy_base(tmp_path / "plain", embedding_dropout=0.0, attention_dropout=0.0, hidden_dropout=0.0)
    data = toy_rows(tmp_path / "rows.jsonl", 5)
    options = {"optimizer__adam_eps": 1e-3, "training__micro_batch_size": 1, "adapter__dropout": 0.0}
    alone = {"training__gradient_accumulation_steps": 4}
    both = {"training__gradient_accumulation_steps": 2}
    results = run_ranks(two_ranks, 2, plain, data, tmp_path / "two", options | both)
    for method in METHODS:
        one = run(method, plain, data, tmp_path / "one" / method, **options_of(method, options | alone))
        for each in results:
            assert each[method]["losses"] in ([], pytest.approx(one["losses"], abs=1e-5))
            for name, numbers in each[method]["weights"].items():
                assert numbers == pytest.approx(one["weights"][name], abs=1e-5), (method, name)
        assert results[0][method]["weights"]


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "projection", "count"),
    [
        ("chatglm-6b", False, 29_360_128),
        ("chatglm-6b", True, 957_059_072),
        ("chatglm2-6b", False, 1_835_008),
        ("chatglm3-6b", False, 1_835_008),
        ("glm-4-9b", False, 2_621_440),
    ],
)
def test_the_size_of_a_prefix(name: str, projection: bool, count: int) -> None:
    model = empty_model(preset(name))
    with torch.device("meta"):
        new_adapter(model, PrefixAdapter.options(length=128, projection=projection))
    assert sum(p.numel() for p in trained(model).values()) == count
    assert prefix_columns(model) == 128


@pytest.mark.exhaustive
def test_an_evaluation_keeps_nothing_of_its_rows(base: Path, rows: Path, tmp_path: Path) -> None:
    def alive(count: int) -> int:
        data = toy_rows(tmp_path / f"{count}.jsonl", count)
        config = tuning_recipe("lora", base, [rows], tmp_path / "run", data__validation=[str(data)])
        opened = open_base(config)
        found = TuningData.open(config, opened, Progress(silent=True)).evaluation(config)
        model, most = load_base(config, opened, torch.device("cpu")).model, 0

        def loss(model: nn.Module, batch: Any) -> Any:
            nonlocal most
            gc.collect()
            most = max(most, sum(isinstance(item, torch.Tensor) for item in gc.get_objects()))
            return finetuning.batch_loss()(model, batch)

        with torch.no_grad():
            ValidationLoss(found, loss, Ranks())(model)
        return most

    assert alive(40) == alive(8)
