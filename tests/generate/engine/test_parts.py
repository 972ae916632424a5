"""A pass of small products in parts, a thread for each: the same numbers as alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from generate.engine.jobs import Greedy, check_answers, check_empty
from glmkit.generate.engine import EngineCore, EngineLimits, runner
from glmkit.generate.engine.sequence import Chunk, Plan
from glmkit.threads import share
from support.kinds import KINDS, make, prompt_of
from support.stepping import run, submit


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GLMKIT_THREADS", raising=False)
    monkeypatch.setattr(runner, "_PART", 8)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parts each pass had."""
    seen: list[int] = []

    def counted(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        seen.append(len(tasks))
        return share(tasks)

    monkeypatch.setattr(runner, "share", counted)
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [False, True], ids=["", "tuned"])
def test_parts_equal_rows_alone(kind: str, prefix: bool, counts: list[int]) -> None:
    """Rows alike go in one call; prompts that begin alike find each other's blocks within the pass."""
    model = make(kind, prefix=prefix)
    engine = EngineCore(model, EngineLimits(block=4))
    prompts = [prompt_of(kind, 20 + number % 2, number) for number in range(8)]
    prompts += [prompt_of(kind, 30, 99)] * 3 + [prompt_of(kind, 3, 7)]
    jobs = [Greedy(model, prompt, 6) for prompt in prompts]
    jobs.append(Greedy(model, prompt_of(kind, 9, 8), 6, copies=3))
    run(engine, *[submit(engine, job) for job in jobs])
    for job in jobs:
        check_answers(model, job)
    check_empty(engine)
    assert counts[0] == 3
    assert "mask" not in KINDS[kind] or engine.counters.reused_tokens > 0


def test_a_fixed_number_or_large_products_make_one_part(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("each")
    prompts = [prompt_of("each", 20, number) for number in range(4)]
    for worth in (1, 1 << 28):
        monkeypatch.setattr("glmkit.threads._WORTH", worth)
        if worth > 1:
            monkeypatch.setenv("GLMKIT_THREADS", "3")
        engine = EngineCore(model)
        run(engine, *[submit(engine, Greedy(model, prompt, 3)) for prompt in prompts])
    assert set(counts) == {1}


def test_readers_run_with_the_writer_of_their_blocks() -> None:
    """Slot 1 finds a block that slot 0 writes, slot 3 one that slot 1 writes; slot 2 stands alone."""
    owner = runner.Runner(make("causal"), 4, 40, allocate=True)

    def chunk(slot: int, start: int, length: int, blocks: list[int]) -> Chunk:
        made = Chunk(slot, start, [20] * length, ([0] * length, [0] * length), 0, 1, len(blocks), 0, blocks)
        owner._sync(made)
        return made

    plan = Plan(
        [chunk(0, 0, 8, [1, 2]), chunk(1, 4, 6, [1, 3, 4]), chunk(2, 0, 9, [5, 6, 7]), chunk(3, 8, 3, [1, 3, 8])],
        [],
        [],
    )
    assert sorted(map(sorted, owner._parts(plan))) == [[0, 1, 3], [2]]
