"""`glm show` on a small store: what it prints is what training would read."""

import json
from pathlib import Path

import pytest

from glmkit.cli.main import main
from glmkit.cli.show_print import mask_picture
from glmkit.data.store import write_store
from glmkit.model.masks import Segments
from glmkit.objective.options import ObjectiveConfig
from glmkit.tokenizer.training import train_tokenizer
from glmkit.train.pretraining_data import PretrainingData
from glmkit.train.recipe_config import DataSection, ModelSection, TrainConfig
from glmkit.train.run_config import TrainingSection

TEXTS = [
    f"The {word} is here. It runs away; who knows why? 你好，世界。\n" * 4 for word in ("fox", "dog", "cat", "hen")
]
RECIPE = """
model: {hidden_size: 32, num_layers: 1, num_heads: 2, vocab_size: null}
data: {sequence_length: 40, layout: packed, row_length: 120, sample_one_document: true}
objective: {preset: glm_base}
training: {max_steps: 1, micro_batch_size: 2, seed: 7}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("show") / "store"
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    write_store(directory, tokenizer, {"train": TEXTS, "validation": TEXTS[:1]})
    return directory


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_json_holds_the_training_batches(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(store), "--count", "4", "--index", "2", "--sequence_length", "48", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    config = TrainConfig(
        model=ModelSection(),
        data=DataSection(path=str(store), sequence_length=48),
        objective=ObjectiveConfig.preset("glm_large_chinese"),
        training=TrainingSection(max_steps=1, micro_batch_size=1),
    )
    maker = PretrainingData.open(store).training(config)
    assert [sample["batch"] for sample in shown["samples"]] == [2, 3, 4, 5]
    for sample, lost in zip(shown["samples"], shown["batches"], strict=True):
        batch = maker.batch(sample["batch"])
        ((_, start, prefix_end, end),) = batch.segments.bounds
        assert sample["mode"] == batch.mode
        assert sample["input_ids"] == batch.input_ids[0, start:end].tolist()
        assert sample["targets"] == batch.targets[0, start:end].tolist()
        assert sample["loss_mask"] == batch.loss_mask[0, start:end].long().tolist()
        assert [sample["positions"], sample["block_positions"]] == batch.position_ids[0, :, start:end].tolist()
        assert sample["prefix_length"] == prefix_end
        assert lost == {"batch": batch.index, "dropped": batch.num_dropped, "fill": batch.fill}


def test_blanks_carry_their_answers(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(store), "--mode", "gpt", "--sequence_length", "60", "--count", "8", "--json"]) == 0
    for sample in json.loads(capsys.readouterr().out)["samples"]:
        assert [part for part, blank in sample["text"] if blank] == ["[gMASK]"]
        (answer,) = sample["blanks"]
        filled = "".join(answer if blank else part for part, blank in sample["text"])
        plain = filled.replace("[CLS]", "").split("<|endoftext|>")
        assert all(part in "".join(TEXTS) for part in plain if "\ufffd" not in part)


def test_the_picture_of_a_sample(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert (
        main(["show", str(store), "--count", "1", "--mode", "bert", "--sequence_length", "64", "--columns", "0"]) == 0
    )
    out = capsys.readouterr().out
    assert "batch 0 row 0: bert" in out
    for word in ("column", "token", "position", "in blank", "target", "loss", "[MASK]1", "mask of row 0", "dropped"):
        assert word in out
    assert "not shown" not in out


def test_a_recipe_with_packed_rows(store: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(recipe), "--data", str(store), "--count", "5", "--columns", "6"]) == 0
    out = capsys.readouterr().out
    assert out.count("batch 0 row") + out.count("batch 1 row") == 5
    assert "mask of row 1" in out
    assert "batch 0: 2 x 120 tokens" in out
    assert "of 42 columns not shown" in out or "columns not shown" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{recipe}"], "names no prepared data; add --data DIR"),
        (["{recipe}", "--preset", "glm_base"], "--preset goes with a store"),
        (["{store}", "--data", "x"], "--data goes with a recipe"),
        (["{store}", "--preset", "glm"], "unknown objective preset 'glm'"),
        (["{store}", "--count", "0"], "too small"),
        (["{store}", "--sequence_length", "3"], "a text of 3 tokens has no room"),
        (["/nowhere.yaml"], "nowhere.yaml"),
        (["{store}", "--src_length", "8"], "data.source_length goes with fine-tuning"),
        (["{store}", "--model", "x"], "--model goes with fine-tuning"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, store: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.format(store=store, recipe=recipe) for argument in arguments]
    assert main(["show", *filled]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_mask_picture_of_a_prefix_and_a_triangle() -> None:
    # Part A 0..2, part B 2..4: A sees A; B sees A and itself so far.
    assert mask_picture(Segments(((1, 0, 2, 4),)), 1, 6) == ["████    ", "████    ", "██████  ", "████████"]
    # Two samples of one row, scaled from 40 tokens to 20 cells: blocks of a block of A.
    picture = mask_picture(Segments(((0, 0, 20, 20), (0, 20, 40, 40))), 0, 40)
    assert picture == ["█" * 20 + " " * 20] * 10 + [" " * 20 + "█" * 20] * 10
