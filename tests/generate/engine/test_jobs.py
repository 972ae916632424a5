"""The life of jobs: refused, cancelled, failed; nothing stays behind."""

from collections.abc import Sequence

import pytest
from torch import Tensor

from generate.engine.jobs import Greedy, check_answers, check_blocks, check_empty
from glmkit.errors import RequestError
from glmkit.generate.engine import EngineCore, EngineLimits
from glmkit.generate.engine.job import Branch
from glmkit.model import GLM
from support.kinds import KINDS, make, prompt_of
from support.stepping import cancel, run, submit
from support.tiny import tiny_model

pytestmark = pytest.mark.sampled(4)


def jobs_of(model: GLM, kind: str, count: int = 6) -> list[Greedy]:
    lengths = (3, 11, 26, 1, 7, 14)
    return [Greedy(model, prompt_of(kind, lengths[n], n), 6, copies=1 + n % 3) for n in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [None, 72], ids=["room", "tight"])
def test_cancelled_at_any_step(kind: str, tokens: int | None) -> None:
    model = make(kind)
    limits = EngineLimits(block=4, step_tokens=8, tokens=tokens)
    for when in range(14):
        engine, jobs = EngineCore(model, limits), jobs_of(model, kind)
        tickets = [submit(engine, job) for job in jobs]
        for _ in range(when):
            engine.step()
        gone = tickets[when % 6 :: 2]
        for ticket in gone:
            was_over = ticket.over
            cancel(engine, ticket)
            check_blocks(engine)
            assert ticket.state == ("done" if was_over else "cancelled")
            cancel(engine, ticket)
        run(engine, *tickets)
        check_empty(engine)
        for ticket, job in zip(tickets, jobs, strict=True):
            if ticket.state == "done":
                check_answers(model, job)
        assert {ticket.state for ticket in tickets if ticket not in gone} <= {"done"}


def test_what_can_never_fit_is_refused() -> None:
    model = make("causal")
    engine = EngineCore(model, EngineLimits(tokens=64, rows=4, block=4))
    with pytest.raises(RequestError, match="5 answers or beams at once are more than this engine's 4 rows"):
        submit(engine, Greedy(model, [20], 2, copies=5))
    with pytest.raises(RequestError, match="1 x 65 tokens do not fit this engine's cache of 64"):
        submit(engine, Greedy(model, [20], 64))
    with pytest.raises(RequestError, match="4 x 60 tokens do not fit this engine's cache of 64"):
        submit(engine, Greedy(model, [20] * 50, 10, copies=4))
    check_empty(engine)
    # 40 tokens are shared; each of four rows needs five more: 10 + 4 * 2 blocks are more than 16, 10 + 3 * 2 are not.
    ticket = submit(engine, Greedy(model, [20] * 40, 5, copies=4))
    with pytest.raises(
        RequestError, match="4 x 45 tokens do not fit this engine's cache of 64; ask for fewer or shorter answers"
    ):
        run(engine, ticket)
    assert ticket.state == "failed"
    job = Greedy(model, [20] * 40, 5, copies=3)
    run(engine, submit(engine, job))
    check_answers(model, job)
    check_empty(engine)


class Spreading(Greedy):
    """Begins more rows of its own than fit, which nobody could know."""

    max_sequences = 4

    def __init__(self, model: GLM) -> None:
        super().__init__(model, [20] * 30, 5)
        self.max_sequences = 4

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        return [Branch([30 + number] * 30, self.at(0, 30), parent=None, part_a=self.part_a) for number in range(4)]


def test_a_job_that_outgrows_the_cache_fails_alone() -> None:
    model = make("causal")
    engine = EngineCore(model, EngineLimits(tokens=64, rows=8, block=4))
    other = Greedy(model, prompt_of("causal", 9, 1), 12)
    tickets = [submit(engine, Spreading(model)), submit(engine, other)]
    while engine.step():
        check_blocks(engine)
    assert [ticket.state for ticket in tickets] == ["failed", "done"]
    assert "4 x 35 tokens do not fit" in str(tickets[0].error)
    check_answers(model, other)
    check_empty(engine)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_a_job_ends_that_job(kind: str) -> None:
    model = make(kind)
    engine = EngineCore(model, EngineLimits(block=4))
    good = jobs_of(model, kind)
    bad = [Greedy(model, prompt_of(kind, 11, 1), 6, fail_at=at) for at in (1, 2, 4)]
    tickets = [submit(engine, job) for pair in zip(bad, good, strict=False) for job in pair]
    tickets += [submit(engine, job) for job in good[3:]]
    for _ in range(40):
        engine.step()
        check_blocks(engine)
    assert [ticket.state for ticket in tickets] == ["failed", "done"] * 3 + ["done"] * 3
    assert {str(ticket.error) for ticket in tickets[:6:2]} == {"this job fails"}
    for job in good:
        check_answers(model, job)
    check_empty(engine)


class Wrong(Greedy):
    """Its first row, or what follows, is not of this model."""

    def __init__(self, model: GLM, tokens: list[int], later: bool, place: int = 3) -> None:
        super().__init__(model, [20, 21], 8)
        self._tokens, self._later, self._place = tokens, later, place

    def _wrong(self, parent: int | None) -> list[Branch]:
        return [Branch(self._tokens, ([self._place] * len(self._tokens),) * 2, parent)]

    def start(self) -> Sequence[Branch]:
        return super().start() if self._later else self._wrong(None)

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        return self._wrong(0)


@pytest.mark.parametrize("later", [False, True])
def test_wrong_ids_and_positions(later: bool) -> None:
    model = tiny_model()
    engine = EngineCore(model)
    for tokens, place, words in (
        ([20, 64], 3, "id 64 is outside the vocabulary of 64 rows"),
        ([-1], 3, "id -1 is outside the vocabulary of 64 rows"),
        ([20], 97, "positions 97 to 97 are outside this model's 0 to 96"),
        ([20], -1, "positions -1 to -1 are outside"),
    ):
        other = Greedy(model, [20, 21, 22], 3)
        ticket, good = submit(engine, Wrong(model, tokens, later, place)), submit(engine, other)
        with pytest.raises(RequestError, match=words):
            run(engine, ticket)
        run(engine, good)
        check_answers(model, other)
        check_empty(engine)


def test_a_job_of_nothing() -> None:
    class Nothing(Greedy):
        def start(self) -> Sequence[Branch]:
            return []

    model = make("causal")
    engine = EngineCore(model)
    assert not engine.step()
    ticket = submit(engine, Nothing(model, [20], 1))
    run(engine, ticket)
    assert ticket.state == "done"
    assert not engine.step()
    check_empty(engine)


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_pass_ends_its_jobs_and_no_others(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also nothing of what the pass would have written is found later."""
    model = make(kind)
    engine = EngineCore(model, EngineLimits(block=4, step_tokens=12, rows=4))
    jobs = [Greedy(model, prompt_of(kind, 10, 1), 4) for _ in range(5)]
    tickets = [submit(engine, job) for job in jobs]

    def no_memory(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nwith a trace")

    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[1], "forward", no_memory)
        engine.step()
    check_blocks(engine)
    failed = [ticket for ticket in tickets if ticket.state == "failed"]
    assert 0 < len(failed) < 5
    for ticket in failed:
        assert isinstance(ticket.error, RequestError)
        assert str(ticket.error).endswith("failed: DefaultCPUAllocator: can't allocate memory")
        assert isinstance(ticket.error.__cause__, RuntimeError)
    left = [ticket for ticket in tickets if ticket not in failed]
    run(engine, *left)
    for ticket, job in zip(tickets, jobs, strict=True):
        if ticket in left:
            check_answers(model, job)
    check_empty(engine)


def test_reset_waits_for_nobody() -> None:
    model = make("causal")
    engine = EngineCore(model)
    ticket = submit(engine, Greedy(model, [20, 21], 4))
    with pytest.raises(RequestError, match="0 jobs run and 1 wait"):
        engine.reset()
    engine.step()
    with pytest.raises(RequestError, match="1 jobs run and 0 wait"):
        engine.reset()
    run(engine, ticket)
    engine.reset()
    assert engine.snapshot().free_tokens == engine.limits.tokens


def test_reset_takes_new_weights_and_a_new_prefix() -> None:
    model, prompt = make("causal"), prompt_of("causal", 40, 1)
    engine = EngineCore(model, EngineLimits(block=4))
    run(engine, submit(engine, Greedy(model, prompt, 3)))
    changed = make("causal", 9, prefix=True)
    model.load_state_dict(changed.state_dict(), strict=False)
    model.prefix = changed.prefix
    engine.reset()
    job = Greedy(model, prompt, 3)
    ticket = submit(engine, job)
    run(engine, ticket)
    assert ticket.reused_tokens == 0
    check_answers(model, job)


def test_memory_is_looked_at_first() -> None:
    model = make("causal")
    with pytest.raises(RequestError, match=r"a cache of \d+ tokens needs .* GB free .*; give the engine fewer tokens"):
        EngineCore(model, EngineLimits(tokens=1 << 40))
    engine = EngineCore(model, EngineLimits(tokens=4096, block=4))
    assert engine.cache_bytes == 4096 * 2 * 2 * 2 * 8 * 4, "keys and values, layers, heads, width, bytes"
    assert engine._runner.cache.blocks < 64, "grows when it is needed"
    job = Greedy(model, [20] * 300, 3)
    run(engine, submit(engine, job))
    assert 75 < engine._runner.cache.blocks < 1024
    check_answers(model, job)
    whole = EngineCore(model, EngineLimits(tokens=4096, block=4), allocate=True)
    assert whole._runner.cache.blocks == 1024 + 1
