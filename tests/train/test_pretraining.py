"""Recipe, prepared data and command line together, on a store of made-up text."""

import json
import resource
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml

import glmkit
from glmkit.cli.main import main
from glmkit.config import GenerationSettings
from glmkit.errors import CheckpointError
from glmkit.train.batch_loss import batch_loss
from glmkit.train.metrics import read_metrics
from glmkit.train.pretraining import pretrain
from glmkit.train.pretraining_data import PretrainingData
from glmkit.train.pretraining_recipes import PRETRAINING
from glmkit.train.state import compare_records
from support.store import toy_store

RECIPE = {
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 64, "hidden_dropout": 0.1},
    "data": {"sequence_length": 40, "workers": 0},
    "objective": {"preset": "glm_10b", "short_seq_prob": 0.0},
    "training": {"max_steps": 12, "micro_batch_size": 4, "batch_size": 8},
    "optimizer": {"learning_rate": 2e-3},
    "checkpoint": {"every": 5},
    "evaluation": {"every": 6, "rows": 8, "previews": ["The cat [MASK] the moon."]},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def arguments(recipe, store, tmp_path, *more):
    return ["pretrain", str(recipe), "--data", str(store), "--output", str(tmp_path / "run"), *more]


def test_a_whole_run(recipe, store, tmp_path, capsys):
    assert main(arguments(recipe, store, tmp_path, "--json")) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    run = tmp_path / "run"
    assert (summary["step"], summary["reason"], summary["model"]) == (12, "finished", str(run / "model"))
    lines = read_metrics(run)
    validations = [line for line in lines if line["kind"] == "validation"]
    assert [line["step"] for line in validations] == [6, 12]
    assert set(validations[0]["losses"]) == {"bert", "sentence", "gpt"}
    assert validations[1]["loss"] < validations[0]["loss"]
    assert "preview: The cat" in printed.err
    preview = json.loads((run / "previews.jsonl").read_text().splitlines()[0])
    assert preview["prompt"] == "The cat [MASK] the moon."
    assert (run / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [f"step-{n:08d}" for n in (5, 10, 12)]
    # What it leaves is a model directory and a recipe.
    lm = glmkit.load(str(run / "model"))
    assert lm.fill("The dog [MASK].").blanks
    assert PRETRAINING.read(run / "recipe.yaml").training.max_steps == 12


def test_validation_is_the_mean_over_all_targets(recipe, store):
    config = PRETRAINING.read(recipe, {"data.path": str(store)})
    data = PretrainingData.open(store)
    shape = config.model.config(data.tokenizer.vocab_size, data.tokenizer.special)
    model = glmkit.model.GLM(shape).eval()
    from glmkit.parallel.mesh import Ranks
    from glmkit.train.validation import ValidationLoss

    loss_fn = batch_loss()
    batches = data.validation(config)
    with torch.no_grad():
        result = ValidationLoss(batches, loss_fn, Ranks())(model)
        for mode, sequence in batches.items():
            sums = [loss_fn(model, sequence.batch(i)) for i in range(len(sequence))]
            targets = sum(s.num_targets for s in sums)
            assert result["targets"][mode] == targets
            assert result["losses"][mode] == pytest.approx(float(sum(s.cross_entropy_sum for s in sums)) / targets)
    weights = result["targets"]
    mean = sum(result["losses"][m] * weights[m] for m in weights) / sum(weights.values())
    assert result["loss"] == pytest.approx(mean)


def test_validation_counts_what_it_left_out(recipe, store):
    from glmkit.parallel.mesh import Ranks
    from glmkit.train.validation import ValidationLoss

    class Sparse:  # a batch with targets and one without any; both lost texts
        def __init__(self, batches):
            self.batches = batches

        def __len__(self):
            return 2

        def batch(self, index):
            return replace(self.batches.batch(0), num_dropped=2 + index, **({"num_targets": 0} if index else {}))

    config = PRETRAINING.read(recipe, {"data.path": str(store)})
    data = PretrainingData.open(store)
    model = glmkit.model.GLM(config.model.config(data.tokenizer.vocab_size, data.tokenizer.special)).eval()
    batches = {mode: Sparse(sequence) for mode, sequence in data.validation(config).items()}
    with torch.no_grad():
        result = ValidationLoss(batches, batch_loss(), Ranks())(model)
    assert result["dropped"] == {"bert": 5, "sentence": 5, "gpt": 5}
    assert result["targets"]["bert"] == batches["bert"].batch(0).num_targets
    assert result["losses"].keys() == result["dropped"].keys()


def test_replaced_texts_are_in_the_summary(recipe, store, tmp_path, capsys, monkeypatch):
    from glmkit.data.batches import TrainingBatches

    whole = TrainingBatches.batch
    monkeypatch.setattr(TrainingBatches, "batch", lambda self, index: replace(whole(self, index), num_dropped=600))
    more = ("--max_steps", "2", "--evaluation.every", "0", "--output.plot", "false")
    assert main(arguments(recipe, store, tmp_path, *more)) == 0
    assert "others replaced 2,400 texts" in capsys.readouterr().out
    assert main(arguments(recipe, store, tmp_path, *more, "--resume", "auto", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == 2400


def test_z_loss_pulls_but_is_not_reported(recipe, store, tmp_path):
    def first_two(z):
        overrides = {"data.path": str(store), "output.directory": str(tmp_path / z), "output.plot": "false"}
        config = PRETRAINING.read(
            recipe, {**overrides, "training.z_loss": z, "training.max_steps": "2", "evaluation.every": "0"}
        )
        pretrain(config, quiet=True)
        return read_metrics(tmp_path / z)

    plain, pulled = first_two("0"), first_two("0.1")
    assert plain[0]["loss"] == pulled[0]["loss"]
    assert plain[0]["grad_norm"] != pulled[0]["grad_norm"]


def test_dry_run(recipe, store, tmp_path, capsys):
    assert main(["pretrain", str(recipe), "--dry-run", "--json", "--data", str(store), "--batch_size", "16"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["tokens_per_step"] == 16 * 40
    assert summary["tokens"] == 12 * 16 * 40
    assert summary["vocabulary_rows"] == 384
    assert summary["parameters"] == 2 * (12 * 32**2 + 13 * 32) + 384 * 32 + 2 * 65 * 32 + 2 * 32
    assert main(["pretrain", str(recipe), "--dry-run", "--model.vocab_size", "500"]) == 0
    assert "parameters        " in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--training.max_steps", "x"], "training.max_steps is 'x'; expected whole number"),
        (["--model.vocab_size", "20"], "smaller than the tokenizer's 384; pass --model.vocab_size null"),
        (["--data.sequence_length", "100"], "data.sequence_length 100 is more than model.max_positions 64"),
        (["--batch_size", "10"], "batch_size 10 is not a multiple of micro_batch_size 4 x 1 rank(s) = 4; try 8"),
        (["--fp16"], "fp16 needs CUDA"),
        (["--fp16", "--bf16"], "both set training.precision"),
        (["--training.device", "tpu"], "training.device is 'tpu'; use auto, cpu, cuda or cuda:N"),
        (["--resume", "/nowhere"], "/nowhere is no training checkpoint"),
        (["--per_device_train_batch_size", "8000000", "--batch_size", "8000000"], "pass --ignore-memory-forecast"),
        (["--nproc", "3"], "x 3 rank(s) = 12"),
        (["--nproc", "0"], "--nproc is 0; it must be from 1 to 1024"),
    ],
)
def test_mistakes_are_one_line(recipe, store, tmp_path, capsys, more, message):
    assert main(arguments(recipe, store, tmp_path, *more)) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "run").exists()


def test_missing_directories_are_named(recipe, store, capsys):
    assert main(["pretrain", str(recipe)]) == 2
    assert "needs --data DIR" in capsys.readouterr().err
    assert main(["pretrain", str(recipe), "--data", str(store)]) == 2
    assert "needs --output DIR" in capsys.readouterr().err


def test_unknown_flags_get_a_hint(recipe, capsys):
    assert main(["pretrain", str(recipe), "--trainig.max_steps", "3"]) == 2
    assert "did you mean --training.max_steps?" in capsys.readouterr().err


def test_resuming_with_changes(recipe, store, tmp_path, capsys):
    assert main(arguments(recipe, store, tmp_path, "--max_steps", "5")) == 0
    assert main(arguments(recipe, store, tmp_path)) == 2
    assert "already holds a run (last checkpoint step-00000005)" in capsys.readouterr().err
    assert main(arguments(recipe, store, tmp_path, "--resume", "auto", "--lr", "1e-3", "--max_steps", "7")) == 0
    errors = capsys.readouterr().err
    assert "resuming with optimizer.learning_rate 0.001 instead of 0.002" in errors
    assert "resuming with training.max_steps 7 instead of 5" in errors
    assert main(arguments(recipe, store, tmp_path, "--resume", "auto", "--model.num_layers", "3")) == 2
    assert "is of another model: num_layers was 2, the recipe says 3" in capsys.readouterr().err
    # A branch takes the history along.
    branch = [str(recipe), "--data", str(store), "--output", str(tmp_path / "branch"), "--max_steps", "9"]
    assert main(["pretrain", *branch, "--resume", str(tmp_path / "run")]) == 0
    assert [line["step"] for line in read_metrics(tmp_path / "branch") if line["kind"] == "train"] == list(range(1, 10))


def test_a_run_that_is_past_its_end_stays_as_it_is(recipe, store, tmp_path, capsys):
    more = ("--evaluation.every", "0", "--output.plot", "false", "--quiet")
    assert main(arguments(recipe, store, tmp_path, "--max_steps", "5", *more)) == 0
    before = (tmp_path / "run" / "recipe.yaml").read_bytes()
    assert capsys.readouterr().err == ""
    assert main(arguments(recipe, store, tmp_path, "--max_steps", "3", "--resume", "auto", *more)) == 0
    errors = capsys.readouterr().err
    words = "is at step 5 already: nothing to train, nothing written; raise training.max_steps (or num_epochs) to go on"
    assert errors == f"{tmp_path / 'run'} {words}\n"
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == before
    # Quiet, but not about what changes the curve.
    assert main(arguments(recipe, store, tmp_path, "--max_steps", "6", "--resume", "auto", *more)) == 0
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("resuming with training.max_steps 6 instead of 5; the curve will differ")


@pytest.mark.parametrize("text", ["no blank here", "much " * 80 + "[MASK]"])
def test_a_useless_preview_is_refused_at_the_start(recipe, store, tmp_path, capsys, text):
    more = ("--evaluation.previews", json.dumps([text]))
    assert main(arguments(recipe, store, tmp_path, *more)) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("glm pretrain: evaluation.previews: the text has ")
    assert errors.count("\n") == 1
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    more = (*more, "--evaluation.every", "0", "--max_steps", "1", "--output.plot", "false")
    assert main(arguments(recipe, store, tmp_path, *more)) == 0  # nobody asks for previews then


@pytest.mark.exhaustive
def test_a_full_disk_in_a_checkpoint_is_one_line(recipe, store, tmp_path):
    more = ("--max_steps", "2", "--checkpoint.every", "1", "--evaluation.every", "0", "--quiet")
    limit = 40_000  # metrics and recipe fit, the weights do not
    result = subprocess.run(
        [sys.executable, "-m", "glmkit", *arguments(recipe, store, tmp_path, *more)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("glm pretrain: ")
    assert "model.safetensors cannot be written" in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, {"add_cls": True, "running_positions": False, "block_positions": True}),
        (
            {
                "data.add_cls": "false",
                "objective.generation_positions": "running",
                "objective.gpt_infill_prob": "1",
                "objective.block_position_encoding": "false",
            },
            {"add_cls": False, "running_positions": True, "block_positions": False},
        ),
    ],
    ids=["published", "changed"],
)
def test_the_model_says_how_it_was_trained(recipe, store, tmp_path, overrides, expected):
    fixed = {"data.path": str(store), "output.directory": str(tmp_path / "run"), "output.plot": "false"}
    short = {"training.max_steps": "1", "evaluation.every": "0"}
    pretrain(PRETRAINING.read(recipe, {**fixed, **short, **overrides}), quiet=True)
    lm = glmkit.load(tmp_path / "run" / "model", device="cpu")
    assert lm.parts.generation == GenerationSettings(generation_mask_id=lm.special.gmask, **expected)
    assert lm.fill("The dog [MASK].", max_tokens=2).blanks


def test_other_data_is_refused(tmp_path):
    record = {"model": {}, "data": "a" * 64, "config": {}}
    with pytest.raises(CheckpointError, match="other data"):
        compare_records(record, record | {"data": "b" * 64}, tmp_path)
    assert (
        compare_records(record, record | {"config": {"output": {"plot": True}, "data": {"path": "x"}}}, tmp_path) == []
    )


def test_a_store_without_validation_is_named(recipe, tmp_path, capsys):
    from glmkit.data.store import write_store
    from glmkit.tokenizer.training import train_tokenizer
    from support.store import toy_texts

    texts = toy_texts(50)
    write_store(tmp_path / "store", train_tokenizer(texts, vocab_size=300), {"train": texts, "validation": []})
    assert main(arguments(recipe, tmp_path / "store", tmp_path)) == 2
    assert "set --evaluation.every 0" in capsys.readouterr().err
