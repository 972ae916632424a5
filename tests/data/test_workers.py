"""Failures of data workers: each ends the reading with one line, and no process stays behind."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from data.corpora import TEXTS, tokenizer
from glmkit.data.loader import BatchLoader
from glmkit.data.samples import TextPieces, TextSampler
from glmkit.data.store import TokenStore, write_store
from glmkit.errors import DataError
from glmkit.objective.counter_rng import CounterRng
from glmkit.objective.spans import sentence_end_table
from glmkit.train.trainer import Trainer
from support.store import toy_store
from support.training import toy_batch, toy_trainer


def raise_index_error() -> None:
    np.zeros(3)[np.array([7])]


def raise_memory_error() -> None:
    raise MemoryError("cannot allocate 12345 bytes")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


FAILURES: dict[str, tuple[Callable[[], None], str]] = {
    "a bug": (
        raise_index_error,
        r"batch 2 cannot be made: IndexError: index 7 is out of bounds.*test_workers.py, line",
    ),
    "no memory": (raise_memory_error, r"batch 2 cannot be made: MemoryError: cannot allocate 12345 bytes"),
    "killed": (die, r"a data worker \(process \d+\) was killed by SIGKILL.*memory.*--resume auto"),
    "exit": (leave, r"a data worker \(process \d+\) ended with status 3"),
}


class Failing:
    """Batches of which number 2 fails."""

    def __init__(self, failure: Callable[[], None]) -> None:
        self.failure = failure

    def batch(self, index: int) -> int:
        if index == 2:
            self.failure()
        return index


class Unpicklable(Failing):
    """Batches that a new interpreter cannot take over."""

    def __setstate__(self, state: dict[str, object]) -> None:
        raise DataError("the store is gone")


@pytest.fixture(params=["fork", pytest.param("spawn", marks=pytest.mark.exhaustive)])
def method(request: pytest.FixtureRequest) -> Iterator[str]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_worker_is_an_error_in_one_line(failure: str, method: str) -> None:
    action, message = FAILURES[failure]
    stream = iter(BatchLoader(Failing(action), num_workers=1, prefetch_factor=1))
    with pytest.raises(DataError, match=message) as error, stream:
        while True:
            next(stream)
    assert "\n" not in str(error.value)
    assert multiprocessing.active_children() == []
    assert list(stream) == []


@pytest.mark.parametrize("failure", ["a bug", "no memory"])
def test_the_same_without_workers(failure: str) -> None:
    action, message = FAILURES[failure]
    with pytest.raises(DataError, match=message):
        list(BatchLoader(Failing(action), stop=5))


@pytest.mark.exhaustive
def test_a_worker_that_dies_at_its_start() -> None:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        with pytest.raises(DataError, match="ended with status 1"):
            next(iter(BatchLoader(Unpicklable(die), num_workers=2)))
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert multiprocessing.active_children() == []


def test_one_of_several_dies_while_the_others_work() -> None:
    with pytest.raises(DataError, match="SIGKILL"):
        list(BatchLoader(Failing(die), stop=100, num_workers=2))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("failure", ["a bug", "killed"])
def test_the_trainer_stops_with_it(failure: str, tmp_path: Path) -> None:
    action, _ = FAILURES[failure]

    class Batches:
        def batch(self, index: int) -> object:
            if index == 6:
                action()
            return toy_batch(index)

    trainer: Trainer[object] = toy_trainer(tmp_path, steps=20)  # type: ignore[assignment]
    trainer.batches = lambda state: BatchLoader(Batches(), start=state.micro_batches, num_workers=1)
    with pytest.raises(DataError):
        trainer.run()
    assert multiprocessing.active_children() == []


def test_an_error_elsewhere_ends_the_workers_too(tmp_path: Path) -> None:
    class Batches:
        def batch(self, index: int) -> object:
            return toy_batch(index)

    def fail(record: object) -> None:
        raise ZeroDivisionError

    trainer: Trainer[object] = toy_trainer(tmp_path, steps=20, on_step=fail)  # type: ignore[assignment]
    trainer.batches = lambda state: BatchLoader(Batches(), start=state.micro_batches, num_workers=2)
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    assert multiprocessing.active_children() == []


# --- damaged tokens ---------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_store(tmp_path / "store", tokenizer(), {"train": TEXTS, "validation": TEXTS[:3]})
    return tmp_path / "store"


def overwrite(path: Path, place: int, values: list[int]) -> None:
    tokens = np.memmap(path, np.uint16, mode="r+")
    tokens[place : place + len(values)] = values
    tokens.flush()


def sampler(directory: Path, length: int) -> TextSampler:
    opened = TokenStore(directory)
    return TextSampler(opened, tokenizer().special, sentence_end_table(tokenizer()), length=length)


@pytest.mark.parametrize("length", [8, 64])
def test_an_id_beyond_the_vocabulary_names_file_and_place(store: Path, length: int) -> None:
    overwrite(store / "train.tokens.bin", 45, [60_000])
    texts, rng = sampler(store, length), CounterRng(0, 0, 0)
    with pytest.raises(DataError, match=r"train\.tokens\.bin: token 45 is 60000, but the vocabulary has 320 tokens"):
        for _ in range(3000):
            texts.draw(rng)


def test_a_zeroed_half_is_no_text(store: Path) -> None:
    half = TokenStore(store).num_tokens // 2
    overwrite(store / "train.tokens.bin", half, [0] * half)
    texts, rng = sampler(store, 64), CounterRng(0, 0, 0)
    with pytest.raises(DataError, match=r"document \d+, from token .*train\.offsets\.bin is damaged"):
        for _ in range(50):
            texts.draw(rng)


def test_validation_looks_at_its_ids_too(store: Path) -> None:
    overwrite(store / "validation.tokens.bin", 5, [400])
    pieces = TextPieces(TokenStore(store, "validation"), tokenizer().special, length=16, vocab_size=320)
    with pytest.raises(DataError, match=r"validation\.tokens\.bin: token 5 is 400"):
        list(pieces)


def test_a_store_that_was_replaced_is_not_opened_by_a_worker(store: Path, tmp_path: Path) -> None:
    make, arguments = TokenStore(store).__reduce__()
    assert len(make(*arguments)) == len(TEXTS)
    write_store(store, tokenizer(), {"train": TEXTS[:9], "validation": TEXTS[:3]}, replace=True)
    with pytest.raises(DataError, match="another store than when the run began"):
        make(*arguments)


@pytest.mark.exhaustive
@pytest.mark.parametrize("damage", ["ids", "killed"])
def test_the_command_ends_with_one_line(damage: str, tmp_path: Path) -> None:
    toy_store(tmp_path / "store", documents=60)
    if damage == "ids":  # by the writer, so that the hashes are right
        data = np.fromfile(tmp_path / "store" / "train.tokens.bin", np.uint16)
        tokens = [document.tolist() for document in np.split(data, TokenStore(tmp_path / "store").offsets[1:-1])]
        rewrite(tmp_path / "store", tokens)
    recipe = {
        "model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_positions": 64},
        "data": {"sequence_length": 24, "workers": 2},
        "training": {"max_steps": 100_000, "micro_batch_size": 2},
        "evaluation": {"every": 0},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = [tmp_path / "recipe.yaml", "--data", tmp_path / "store", "--output", tmp_path / "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "glmkit", "pretrain", *map(str, arguments)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    if damage == "killed":
        for line in process.stderr:
            if line.startswith("step "):
                break
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 2, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("glm pretrain: ")
    assert ("is 60000, but the vocabulary has" if damage == "ids" else "was killed by SIGKILL") in last, errors


def rewrite(directory: Path, documents: list[list[int]]) -> None:
    """The store again, with an id beyond the vocabulary in each document."""
    known = TokenStore(directory).tokenizer()

    class Wrong:
        vocab_size, special, kind = known.vocab_size, known.special, "bpe"
        fingerprint, save = known.fingerprint, known.save

        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            return [[*documents[int(text)][:5], 60_000, *documents[int(text)][5:-1]] for text in texts]

    shutil.rmtree(directory)
    names = [str(index) for index in range(len(documents))]
    write_store(directory, Wrong(), {"train": names})  # type: ignore[arg-type]
