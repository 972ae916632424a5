"""Pretraining that starts from published weights: equal losses, tables of positions, tokenizers, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import glmkit
from glmkit.adapters.attach import new_adapter
from glmkit.adapters.directory import save_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.cli.main import main
from glmkit.data.store import TokenStore, write_store
from glmkit.loading import load_parts
from glmkit.merging import merge
from glmkit.tokenizer.training import train_tokenizer
from glmkit.train.batch_loss import batch_loss
from glmkit.train.continued import load_start
from glmkit.train.metrics import read_metrics
from glmkit.train.pretraining_data import PretrainingData
from glmkit.train.pretraining_recipes import PRETRAINING
from support.directories import huggingface_directory
from support.saved_adapters import draw
from support.shared import shared_dir
from support.store import toy_store, toy_texts

SMALL = (
    "--data.sequence_length", "48", "--per_device_train_batch_size", "4", "--batch_size", "8", "--data.workers", "0",
    "--objective.preset", "glm_base", "--evaluation.every", "0", "--output.plot", "false",
)  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded GLM of 256 rows, in its published layout, with a vocabulary of wordpieces beside it."""
    folder = tmp_path_factory.mktemp("published") / "glm"
    shutil.copytree(shared_dir("fixtures", "glm-hf"), folder)
    words = sorted({word for text in toy_texts(60) for word in text.lower().replace(".", " ").split()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *words]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return folder


@pytest.fixture(scope="module")
def store(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "texts.txt").write_text("\n".join(toy_texts(80)))
    words = ["prepare", str(folder / "texts.txt"), "--split-lines", "--tokenizer", str(published), "--quiet"]
    assert main([*words, "--output", str(folder / "store")]) == 0
    return folder / "store"


def pretrain(model: Path, store: Path, output: Path, *more: str) -> int:
    words = ["pretrain", "tiny", "--init-from", str(model), "--data", str(store), "--output", str(output)]
    return main([*words, *SMALL, *more])


def test_a_store_keeps_a_published_tokenizer(published: Path, store: Path) -> None:
    kept = TokenStore(store).tokenizer()
    assert kept.fingerprint() == glmkit.load_tokenizer(published).fingerprint()
    assert kept.special == glmkit.load_tokenizer(published).special


def test_the_first_loss_is_that_of_the_loaded_model(published: Path, store: Path, tmp_path: Path, capsys: Any) -> None:
    assert pretrain(published, store, tmp_path / "run", "--max_steps", "2") == 0
    assert f"note: weights of {published} (huggingface" in capsys.readouterr().err
    config = PRETRAINING.read(tmp_path / "run" / "recipe.yaml")
    model, batches = (
        load_parts(published, dtype="float32", device="cpu").model,
        PretrainingData.open(store).training(config),
    )
    with torch.no_grad():
        sums = [batch_loss()(model, batches.batch(index)) for index in range(2)]
    expected = float(sum(s.cross_entropy_sum for s in sums)) / sum(s.num_targets for s in sums)
    lines = read_metrics(tmp_path / "run")
    assert lines[0]["loss"] == pytest.approx(expected, abs=1e-5)
    assert lines[1]["loss"] != pytest.approx(expected, abs=1e-5)
    trained = glmkit.load(tmp_path / "run" / "model", device="cpu")
    assert trained.config.num_layers == 3  # of the weights, not of the recipe
    assert trained.tokenizer.fingerprint() == glmkit.load_tokenizer(published).fingerprint()
    # It can be gone on with, and started from, like any other.
    assert pretrain(published, store, tmp_path / "run", "--max_steps", "3", "--resume", "auto") == 0
    again = tmp_path / "run" / "checkpoints" / "step-00000003"
    assert pretrain(again, store, tmp_path / "again", "--max_steps", "1") == 0


def test_longer_and_shorter_position_tables(published: Path, store: Path, tmp_path: Path, capsys: Any) -> None:
    long = ("--data.sequence_length", "100", "--max_steps", "1")
    words = ["pretrain", "tiny", "--init-from", str(published), "--data", str(store), *SMALL[2:]]
    assert main([*words, "--output", str(tmp_path / "no"), *long]) == 2
    error = capsys.readouterr().err
    assert "100 is more than model.max_positions 64" in error
    assert "--model.max_positions" in error
    assert main([*words, "--output", str(tmp_path / "run"), *long, "--model.max_positions", "100"]) == 0
    assert "embed_positions.weight: rows 65 to 100 are not in" in capsys.readouterr().err
    own = load_parts(published, dtype="float32", device="cpu").model
    for rows in (100, 40):
        shape = PRETRAINING.read(
            "tiny", {"model.init_from": str(published), "model.max_positions": str(rows)}
        ).model.config()
        model = glmkit.model.GLM(shape)
        before = model.model.embed_positions.weight.detach().clone()
        with torch.no_grad():
            load_start(model, str(published))
        table, kept = model.model.embed_positions.weight, min(rows, 64) + 1
        assert torch.equal(table[:kept], own.model.embed_positions.weight[:kept])
        assert torch.equal(table[kept:], before[kept:])


def test_dropout_is_the_recipes(published: Path) -> None:
    plain = PRETRAINING.read("tiny", {"model.init_from": str(published)}).model.config()
    assert (plain.hidden_dropout, plain.attention_dropout) == (0.0, 0.0)
    assert PRETRAINING.read("glm-large", {"model.init_from": str(published)}).model.config().hidden_dropout == 0.1
    changed = PRETRAINING.read(
        "tiny", {"model.init_from": str(published), "model.hidden_dropout": "0.2"}
    ).model.config()
    assert (changed.hidden_dropout, changed.hidden_size) == (0.2, 64)


def test_another_shape_or_tokenizer_is_refused(published: Path, store: Path, tmp_path: Path, capsys: Any) -> None:
    assert pretrain(published, store, tmp_path / "run", "--model.num_layers", "6") == 2
    assert "model.num_layers is 6, the weights in" in capsys.readouterr().err
    assert pretrain(published, store, tmp_path / "run", "--model.preset", "glm-base") == 2
    assert "give one of model.preset (a shape) and model.init_from" in capsys.readouterr().err
    toy = toy_store(tmp_path / "toy", documents=30)
    for dry in ((), ("--dry-run",)):
        assert pretrain(published, toy, tmp_path / "run", *dry) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        for part in (str(toy), "384 ids", str(published), f"prepare the data with --tokenizer {published}"):
            assert part in error
    assert not (tmp_path / "run").exists()


def test_weights_without_a_tokenizer_go_by_their_ids(tmp_path: Path, capsys: Any) -> None:
    toy = toy_store(tmp_path / "toy", documents=30)
    huggingface_directory(tmp_path / "glm", "glm/huggingface", vocab_size=384, max_positions=64)
    assert pretrain(tmp_path / "glm", toy, tmp_path / "run", "--max_steps", "1") == 0
    assert "has no tokenizer: its 384 ids are taken to be those of the data" in capsys.readouterr().err
    huggingface_directory(tmp_path / "less", "glm/huggingface", vocab_size=256, max_positions=64)
    assert pretrain(tmp_path / "less", toy, tmp_path / "two", "--max_steps", "1") == 2
    assert "has 256 rows and no tokenizer files" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["chatglm-6b-int4", "chatglm2-6b", "chatglm-6b-ptuning-v2-embedding"])
def test_what_cannot_be_started_from(name: str, store: Path, tmp_path: Path, capsys: Any) -> None:
    assert pretrain(shared_dir("fixtures", name), store, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    expected = {"int4": "INT4 weights cannot be trained", "chatglm2": "reads from left to right", "ptuning": "adapter"}
    assert next(words for part, words in expected.items() if part in name) in error


def test_a_lora_is_merged_first(published: Path, store: Path, tmp_path: Path, capsys: Any) -> None:
    model = load_parts(published, dtype="float32", device="cpu").model
    new_adapter(model, LoraOptions(("query_key_value",), rank=2, alpha=6))
    draw(model, 1, 0.3)
    save_adapter(model, tmp_path / "lora")
    assert pretrain(tmp_path / "lora", store, tmp_path / "run") == 2
    command = f"glm merge BASE {tmp_path / 'lora'} --output MERGED"
    assert command in capsys.readouterr().err
    merge(published, tmp_path / "lora", tmp_path / "merged", dtype="float32")
    merged = load_parts(tmp_path / "merged", device="cpu")
    row = torch.tensor([[2, 7, 8, 9, 10]])
    torch.testing.assert_close(merged.model(row), model.eval()(row), atol=1e-5, rtol=1e-4)
    assert pretrain(tmp_path / "merged", store, tmp_path / "run", "--max_steps", "1") == 0


def test_a_preset_with_weights_says_that_they_are_not_taken(
    published: Path, store: Path, tmp_path: Path, capsys: Any
) -> None:
    words = ["pretrain", "tiny", "--model.preset", str(published), "--data", str(store), *SMALL]
    assert main([*words, "--output", str(tmp_path / "run"), "--max_steps", "1", "--quiet"]) == 0
    assert f"shapes only: random start; --init-from {published} takes the weights" in capsys.readouterr().err
    assert main([*words, "--dry-run", "--json"]) == 0
    assert "shapes only: random start" in json.loads(capsys.readouterr().out)["notes"][0]


def test_resuming_on_other_data_or_with_another_optimizer_points_to_init_from(tmp_path: Path, capsys: Any) -> None:
    texts = toy_texts(60)
    tokenizer = train_tokenizer(texts, vocab_size=384)
    for name, part in (("one", texts[:30]), ("two", texts[30:])):
        write_store(tmp_path / name, tokenizer, {"train": part, "validation": part[:3]})
    run = str(tmp_path / "run")
    words = ["pretrain", "tiny", *SMALL, "--max_steps", "1", "--data"]
    assert main([*words, str(tmp_path / "one"), "--output", run]) == 0
    capsys.readouterr()
    for more, part in (
        ([str(tmp_path / "two"), "--output", str(tmp_path / "other")], "was trained on other data"),
        ([str(tmp_path / "one"), "--output", str(tmp_path / "other"), "--optimizer.name", "adamw"],
         "was trained with muon, the recipe says adamw"),
    ):  # fmt: skip
        assert main([*words, *more, "--resume", run]) == 2
        error = capsys.readouterr().err
        assert part in error
        assert "--init-from " in error
    assert (
        main([*words, str(tmp_path / "two"), "--output", str(tmp_path / "third"), "--init-from", f"{run}/model"]) == 0
    )


def test_a_run_is_its_newest_checkpoint(published: Path, store: Path, tmp_path: Path, capsys: Any) -> None:
    assert pretrain(published, store, tmp_path / "first", "--max_steps", "1") == 0
    assert pretrain(tmp_path / "first", store, tmp_path / "second", "--max_steps", "1") == 0
    assert pretrain(tmp_path / "first" / "model", store, tmp_path / "third", "--max_steps", "1") == 0
    losses = [read_metrics(tmp_path / name)[0]["loss"] for name in ("second", "third")]
    assert losses[0] == losses[1]
    capsys.readouterr()


def test_texts_are_no_start(published: Path, store: Path, tmp_path: Path, capsys: Any) -> None:
    assert pretrain(store, store, tmp_path / "run") == 2
    assert "holds texts for training, written by `glm prepare`, not a model" in capsys.readouterr().err
