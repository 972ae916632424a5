"""The number of threads follows the work in a step, and parts of a step run side by side."""

import os
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from glmkit import threads
from glmkit.errors import RequestError
from glmkit.threads import LayerWork
from support.tiny import tiny_model


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GLMKIT_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_work_of_a_layer() -> None:
    model = tiny_model()
    numbers = sum(weight.numel() for weight in model.model.layers[0].parameters())
    assert LayerWork.of(model) == LayerWork(numbers, 4 * numbers)
    assert LayerWork.of(nn.Linear(3, 2)) == LayerWork(8, 32)
    with torch.device("meta"):
        assert LayerWork.of(tiny_model()) == LayerWork(0, 0)  # nothing of it runs on this processor


@pytest.mark.parametrize(
    ("numbers", "tokens", "small"),
    [
        (442_000, 1, True),
        (442_000, 512, True),
        (442_000, 1024, False),
        (201_000_000, 1, False),
        (12_600_000, 1, False),
        (7_100_000, 1, True),
    ],
)
def test_only_model_and_step_decide(numbers: int, tokens: int, small: bool) -> None:
    assert LayerWork(numbers, 4 * numbers).is_small(tokens) is small


def test_a_fixed_number_leaves_all_to_pytorch() -> None:
    threads.fix(2)
    assert not LayerWork(1, 4).is_small(1)
    assert (os.environ["OMP_NUM_THREADS"], os.environ["GLMKIT_THREADS"]) == ("2", "2")
    threads.fix(1)
    assert torch.get_num_threads() == 1
    with pytest.raises(RequestError, match="threads are 0; give a whole number from 1 to 4096"):
        threads.fix(0)


def test_one_thread_inside_alone() -> None:
    with threads.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with threads.one_thread(False):
        assert torch.get_num_threads() == 2
    with pytest.raises(KeyError), threads.one_thread():
        raise KeyError
    assert torch.get_num_threads() == 2


def test_tasks_run_side_by_side_each_in_one_thread() -> None:
    both = threading.Barrier(2)

    def task() -> tuple[int, bool, int]:
        both.wait(10)
        return torch.get_num_threads(), torch.is_inference_mode_enabled(), threading.get_ident()

    with torch.inference_mode():
        first, second = threads.share([task, task])
    assert first[:2] == second[:2] == (1, True)
    assert (first[2] == threading.get_ident(), second[2] == threading.get_ident()) == (True, False)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_waits_for_the_other_task(failing: int) -> None:
    done = []

    def task(number: int) -> None:
        if number == failing:
            raise ValueError(number)
        done.append(number)

    with pytest.raises(ValueError, match=str(failing)):
        threads.share([lambda: task(0), lambda: task(1)])
    assert done == [1 - failing]
