"""Several stores as one source, epochs, and the names that other trainers have for things."""

import json
import math
import random
import shutil
from pathlib import Path

import pytest
import yaml

from glmkit.cli.main import main
from glmkit.data.mixture import MixedTexts, named_stores
from glmkit.data.store import TokenStore, write_store
from glmkit.errors import ConfigError
from glmkit.objective.counter_rng import CounterRng
from glmkit.tokenizer.training import train_tokenizer
from glmkit.train.metrics import read_metrics
from glmkit.train.pretraining_data import PretrainingData
from glmkit.train.pretraining_recipes import PRETRAINING
from glmkit.train.schedule import BatchPlan

CATS = [f"The cat {verb} the moon {number} times." for verb in ("sees", "hears", "eats") for number in range(20)]
DOGS = [f"A dog {verb} {number} bones today." for verb in ("wants", "finds") for number in range(20)]
RECIPE = {
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 64},
    "data": {"sequence_length": 40, "workers": 0},
    "objective": {"preset": "glm_10b", "short_seq_prob": 0.0},
    "training": {"max_steps": 6, "micro_batch_size": 4},
    "optimizer": {"learning_rate": 2e-3},
    "checkpoint": {"every": 3},
    "evaluation": {"every": 6, "rows": 8},
    "output": {"plot": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    tokenizer = train_tokenizer([*CATS, *DOGS], vocab_size=300)
    for name, texts in (("cats", CATS), ("dogs", DOGS)):
        write_store(folder / name, tokenizer, {"train": texts[4:], "validation": texts[:4]})
    other = train_tokenizer(DOGS, vocab_size=290)
    write_store(folder / "strange", other, {"train": DOGS, "validation": []})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


def kinds(data: PretrainingData, config_overrides: dict[str, object], folder: Path, draws: int = 2000) -> float:
    """Share of cats among drawn texts."""
    config = PRETRAINING.read(folder / "recipe.yaml", {"data.sample_one_document": True, **config_overrides})
    texts = data.training(config).texts
    cats = 0
    for number in range(draws):
        text = data.tokenizer.decode(texts.draw(CounterRng(1, number, 0)).tokens.tolist())
        cats += "cat" in text
        assert ("cat" in text) != ("dog" in text)
    return cats / draws


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_texts_come_by_weight(share: float, folder: Path) -> None:
    data = PretrainingData.open([f"{folder}/cats={share * 3}", f"{folder}/dogs={(1 - share) * 3}"])
    assert kinds(data, {}, folder) == pytest.approx(share, abs=0.03)


def test_without_weights_by_tokens(folder: Path) -> None:
    data = PretrainingData.open([f"{folder}/cats", f"{folder}/dogs"])
    sizes = [TokenStore(folder / name).num_tokens for name in ("cats", "dogs")]
    assert data.num_tokens == sum(sizes)
    assert kinds(data, {}, folder) == pytest.approx(sizes[0] / sum(sizes), abs=0.03)


def test_one_store_is_drawn_as_ever(folder: Path) -> None:
    config = PRETRAINING.read(folder / "recipe.yaml")
    alone = PretrainingData.open(folder / "cats").training(config)
    weighted = PretrainingData.open([f"{folder}/cats=2"]).training(config)
    assert not isinstance(weighted.texts, MixedTexts)
    for index in range(4):
        assert alone.batch(index).input_ids.equal(weighted.batch(index).input_ids)


def test_validation_reads_every_store(folder: Path) -> None:
    config = PRETRAINING.read(folder / "recipe.yaml", {"evaluation.rows": 100})
    data = PretrainingData.open([f"{folder}/cats", f"{folder}/dogs"])
    for batches in data.validation(config).values():
        rows = [row for index in range(len(batches)) for row in batches.batch(index).input_ids.tolist()]
        texts = [data.tokenizer.decode(row) for row in rows]
        assert len(texts) == 8
        assert any("cat" in text or "moon" in text for text in texts)
        assert any("dog" in text or "bones" in text for text in texts)


def run(folder: Path, output: Path, *more: str) -> int:
    return main(["pretrain", str(folder / "recipe.yaml"), "--output", str(output), "--quiet", *more])


def test_a_mixture_resumes_exactly(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", f"{folder}/cats=0.3", "--data", f"{folder}/dogs=0.7"]
    assert run(folder, tmp_path / "whole", *data) == 0
    assert run(folder, tmp_path / "half", *data, "--max_steps", "6") == 0
    shutil.rmtree(tmp_path / "half/checkpoints/step-00000006")
    assert run(folder, tmp_path / "half", *data, "--resume", "auto") == 0
    assert read_metrics(tmp_path / "half") == read_metrics(tmp_path / "whole")
    written = yaml.safe_load((tmp_path / "whole/recipe.yaml").read_text())
    assert written["data"]["path"] == [f"{folder}/cats=0.3", f"{folder}/dogs=0.7"]
    assert main(["pretrain", str(tmp_path / "whole/recipe.yaml"), "--dry-run"]) == 0
    capsys.readouterr()
    other = ["--data", f"{folder}/cats=0.5", "--data", f"{folder}/dogs=0.5"]
    assert run(folder, tmp_path / "whole", *other, "--resume", "auto") == 2
    assert "was trained on other data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stores", "said"),
    [
        (["cats=0", "dogs=1"], "the weight is '0'; give a positive number"),
        (["cats=x", "dogs=1"], "the weight is 'x'"),
        (["cats=nan", "dogs=1"], "the weight is 'nan'"),
        (["cats=0.5", "dogs"], "gives weights to some stores only; give each one, or none"),
        (["cats", "../stores/cats"], "names a store twice"),
        (["cats", "strange"], "has another tokenizer"),
    ],
)
def test_mixtures_that_cannot_be(stores: list[str], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = folder.parent / "stores"
    if not link.exists():
        link.symlink_to(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError) as caught:
        PretrainingData.open(stores)
    assert said in str(caught.value)
    assert caught.value.param == "data.path"


def test_a_directory_with_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "lr=3").mkdir()
    assert named_stores(f"{tmp_path}/lr=3") == [(f"{tmp_path}/lr=3", None)]
    assert named_stores([f"{tmp_path}/lr=3=2"]) == [(f"{tmp_path}/lr=3", 2.0)]


@pytest.mark.parametrize("place", ["cats", "cats/run", "dogs/../cats/a/b"])
@pytest.mark.parametrize("dry", [True, False])
def test_a_run_inside_its_data(place: str, dry: bool, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in (folder / "cats").iterdir())
    arguments = ["--data", f"{folder}/cats=1", "--data", f"{folder}/dogs=1", *(["--dry-run"] if dry else [])]
    assert run(folder, folder / place, *arguments) == 2
    assert f"lies in the data {folder}/cats, which is replaced as a whole" in capsys.readouterr().err
    assert sorted(path.name for path in (folder / "cats").iterdir()) == before


# --- epochs and warm-up ---


@pytest.mark.parametrize("epochs", [0.5, 1, 3])
@pytest.mark.parametrize("option", ["--num_train_epochs", "--training.num_epochs"])
def test_epochs_are_passes_over_the_tokens(
    epochs: float, option: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pretrain", str(folder / "recipe.yaml"), "--data", f"{folder}/cats", option, str(epochs)]
    assert main([*arguments, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    tokens = TokenStore(folder / "cats").num_tokens
    assert plan["data_tokens"] == tokens
    assert plan["steps"] == math.ceil(math.ceil(epochs * tokens / 40) / 4)
    assert epochs <= plan["passes"] <= epochs + 4 * 40 / tokens
    assert main([*arguments, "--dry-run"]) == 0
    assert f"{tokens:,} tokens in 56 documents, {plan['passes']} passes" in capsys.readouterr().out


def test_a_run_of_epochs(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "run", "--data", f"{folder}/dogs", "--epochs", "1") == 0
    steps = [line["step"] for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    rows = -(-TokenStore(folder / "dogs").num_tokens // 40)
    assert steps == list(range(1, -(-rows // 4) + 1))


def test_epochs_exclude_steps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", f"{folder}/cats", "--epochs", "1", "--max_steps", "2", "--dry-run"]
    assert main(["pretrain", str(folder / "recipe.yaml"), *arguments]) == 2
    assert "give one of training.max_steps, training.max_samples and training.num_epochs" in capsys.readouterr().err
    assert main(["pretrain", str(folder / "recipe.yaml"), "--epochs", "1", "--dry-run"]) == 2
    assert "training.num_epochs needs data to count; give --data DIR" in capsys.readouterr().err


def test_warm_up_in_steps(folder: Path) -> None:
    config = PRETRAINING.read(folder / "recipe.yaml", {"training.max_steps": "100", "schedule.warmup_steps": "10"})
    schedule, unit = config.learning_rate(BatchPlan(micro_batch_size=4, batch_size=4, ramp=None, world_size=1))
    assert unit == "steps"
    assert [schedule(step) for step in (1, 5, 10)] == pytest.approx([2e-4, 1e-3, 2e-3])
    with pytest.raises(ConfigError, match=r"one of schedule\.warmup_steps and schedule\.warmup_samples"):
        PRETRAINING.read(
            folder / "recipe.yaml",
            {"schedule.warmup_steps": 1, "schedule.warmup_samples": 1, "schedule.lr_decay_samples": 9},
        )


# --- names of other trainers ---


def test_names_of_others_are_options_or_explained() -> None:
    ours = {leaf.name for leaf in PRETRAINING.leaves()}
    assert set(PRETRAINING.aliases.values()) <= ours
    assert not set(PRETRAINING.foreign) & (set(PRETRAINING.aliases) | ours)
    for name in ("num_train_epochs", "warmup_steps", "block_size"):
        assert name in PRETRAINING.aliases
    for name in ("logging_steps", "model_name_or_path", "pre_seq_len", "cutoff_len", "mlm_probability", "tokenizer"):
        assert name in PRETRAINING.foreign


@pytest.mark.parametrize("name", [*random.Random(0).sample(sorted(PRETRAINING.foreign), 6), "model_name_or_path"])
def test_a_name_of_another_trainer(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (f"--{name}", f"--{name.replace('_', '-')}=x"):
        assert main(["pretrain", str(folder / "recipe.yaml"), option]) == 2
        err = capsys.readouterr().err
        assert (
            err
            == f"glm pretrain: {option.partition('=')[0]} is no option of glm pretrain; {PRETRAINING.foreign[name]}\n"
        )
