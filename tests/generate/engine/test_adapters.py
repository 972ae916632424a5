"""Rows of the base and of several adapters in one batch: each gets what its adapter alone gives."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from generate.engine.jobs import Greedy, check_answers, check_blocks, check_empty
from glmkit.adapters.attach import attached, new_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.adapters.prefix.prefix_adapter import PrefixOptions
from glmkit.config import Quantization
from glmkit.errors import RequestError
from glmkit.generate.engine import EngineCore, EngineLimits, runner
from glmkit.model import GLM
from glmkit.model.routing import RoutedModule, route, share_modules
from glmkit.quant import quantize_modules
from support.kinds import KINDS, make, prompt_of
from support.stepping import run, submit

pytestmark = pytest.mark.sampled(4)

NAMES = (None, "low", "high", "short", "long", "whole")


def drawn(parameter: Tensor, seed: int, size: float = 0.3) -> nn.Parameter:
    numbers = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    return nn.Parameter(parameter.detach() + size * numbers)


def variant(model: GLM, options: LoraOptions | PrefixOptions, seed: int, size: float = 0.1) -> GLM:
    """The model with an adapter on it that has an effect."""
    found = share_modules(model)
    new_adapter(found, options)
    with torch.no_grad():
        for number, parameter in enumerate(attached(found).parameters()):
            parameter.copy_(drawn(torch.zeros_like(parameter), seed + number, size))
    return found.eval()


def whole(model: GLM) -> GLM:
    """Modules replaced whole beside a LoRA: norms, a bias, the table of words, which may be the head, and the head."""
    found = variant(model, LoraOptions(["q_proj", "down_proj"], rank=3), 70)
    layer = found.model.layers[1]
    layer.input_layernorm.weight = drawn(layer.input_layernorm.weight, 80)
    found.model.norm.weight = drawn(found.model.norm.weight, 81)
    found.model.embed_tokens.weight = drawn(found.model.embed_tokens.weight, 82, 0.05)
    if found.lm_head is not None:
        found.lm_head.weight = drawn(found.lm_head.weight, 83, 0.05)
    return found


MAKERS: dict[str, Callable[[GLM], GLM]] = {
    "low": lambda model: variant(model, LoraOptions(["q_proj", "v_proj", "up_proj"], rank=2), 10),
    "high": lambda model: variant(model, LoraOptions(["q_proj", "o_proj"], rank=7, alpha=8), 20),
    "short": lambda model: variant(model, PrefixOptions(3), 30, 0.5),
    "long": lambda model: variant(model, PrefixOptions(9, projection=True), 40),
    "whole": whole,
}


def joined(model: GLM, *names: str) -> GLM:
    variants = {name: MAKERS[name](model) for name in names or MAKERS}
    found = route(model, variants)
    found.variants = variants
    return found


def alone(model: GLM, name: str | None) -> GLM:
    return model if name is None else model.variants[name]


def job(model: GLM, name: str | None, prompt: list[int], count: int = 5, copies: int = 1) -> Greedy:
    made = Greedy(model, prompt, count, copies=copies)
    made.adapter = name
    return made


def check(model: GLM, jobs: list[Greedy]) -> None:
    for one in jobs:
        check_answers(alone(model, one.adapter), one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limits", [EngineLimits(), EngineLimits(block=4, step_tokens=24)], ids=["usual", "small"])
def test_each_row_as_its_adapter_alone(kind: str, limits: EngineLimits) -> None:
    model = joined(make(kind))
    core = EngineCore(model, limits)
    jobs = [
        job(model, name, prompt_of(kind, length, seed), copies=copies)
        for seed, (name, (length, copies)) in enumerate(itertools.product(NAMES, [(4, 1), (21, 1), (9, 2)]))
    ]
    run(core, *[submit(core, one) for one in jobs])
    check(model, jobs)
    check_empty(core)
    answers = {str([one.answers for one in jobs if one.adapter == name]) for name in NAMES}
    assert len(answers) == len(NAMES), "the adapters differ"


@pytest.mark.parametrize("bits", [8, 4])
def test_on_integers(bits: int) -> None:
    base = make("causal")
    quantize_modules(base, Quantization(bits, embeddings=True))
    model = joined(base, "low", "high", "short")
    core = EngineCore(model, EngineLimits(block=4))
    jobs = [job(model, name, prompt_of("causal", 11, 1)) for name in (None, "low", "high", "short", None)]
    run(core, *[submit(core, one) for one in jobs])
    check(model, jobs)


@pytest.mark.parametrize("kind", ["each", "causal"])
def test_the_order_of_adapters_changes_nothing(kind: str) -> None:
    model, prompt = make(kind), prompt_of(kind, 12, 1)
    seen: dict[str | None, list[Tensor]] = {}
    for names in (list(MAKERS), list(MAKERS)[::-1]):
        together = joined(model, *names)
        core = EngineCore(together)
        jobs = [job(together, name, prompt) for name in NAMES]
        run(core, *[submit(core, one) for one in jobs])
        for one in jobs:
            seen.setdefault(one.adapter, []).append(torch.stack(one.logits[0]))
    for first, second in seen.values():
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("together", [False, True], ids=["in turn", "at once"])
def test_a_long_prompt_is_never_shared_between_adapters(kind: str, together: bool) -> None:
    model, prompt = joined(make(kind)), prompt_of(kind, 37, 5)
    core = EngineCore(model, EngineLimits(block=4))
    jobs = [job(model, name, prompt) for name in (None, "low", "short", "low", None, "short")]
    tickets = [submit(core, jobs[0])] if not together else [submit(core, one) for one in jobs]
    for one in jobs[len(tickets) :]:
        run(core, tickets[-1])
        tickets.append(submit(core, one))
    run(core, *tickets)
    check(model, jobs)
    own = (len(prompt) - 1) // 4 * 4
    assert [ticket.reused_tokens for ticket in tickets] == [0, 0, 0, own, own, own]
    core.reset()
    again = [job(model, one.adapter, prompt) for one in jobs[:3]]
    assert [run(core, submit(core, one)) for one in again] == [None] * 3
    check(model, again)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_cache_gives_the_same(kind: str) -> None:
    model = joined(make(kind))
    core = EngineCore(model, EngineLimits(block=4, tokens=64, step_tokens=16))
    jobs = [job(model, name, prompt_of(kind, 16, 3), 14) for name in (*NAMES, *NAMES)]
    tickets = [submit(core, one) for one in jobs]
    while any(not ticket.over for ticket in tickets):
        assert core.step()
        check_blocks(core)
    assert core.counters.preemptions > 0
    check(model, jobs)


def test_in_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLMKIT_THREADS", raising=False)
    monkeypatch.setattr(runner, "_PART", 8)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        model = joined(make("each"))
        core = EngineCore(model, EngineLimits(block=4))
        jobs = [job(model, name, prompt_of("each", 20, seed)) for seed, name in enumerate(NAMES)]
        run(core, *[submit(core, one) for one in jobs])
        check(model, jobs)
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every product of a plain linear layer."""
    rows: list[int] = []
    forward = nn.Linear.forward

    def counted(self: nn.Linear, x: Tensor) -> Tensor:
        rows.append(x.shape[1])
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    return rows


def test_a_mixed_batch_is_one_pass_over_the_base(passes: list[int]) -> None:
    model = joined(make("causal"), "low", "high", "short")
    core = EngineCore(model)
    jobs = [job(model, name, prompt_of("causal", 6, 1), 2) for name in (None, "low", "high", "short")]
    tickets = [submit(core, one) for one in jobs]
    core.step()
    linears = 7 * len(model.model.layers)
    assert passes == [4 * len(jobs[0].prompt)] * linears
    passes.clear()
    core.step()
    assert passes == [4] * linears
    assert all(ticket.over for ticket in tickets)
    routed = [name for name, module in model.named_modules() if isinstance(module, RoutedModule)]
    assert {name.rpartition(".")[2] for name in routed} == {"q_proj", "v_proj", "o_proj", "up_proj"}


def test_exchange_while_jobs_run() -> None:
    """Running jobs of what stays are read again; a variant with jobs cannot go."""
    model = make("each")
    both, one = joined(model, "low", "short"), joined(model, "short")
    core = EngineCore(model, EngineLimits(block=4))
    with pytest.raises(RequestError, match="has no adapter 'low'"):
        submit(core, job(model, "low", prompt_of("each", 6, 1)))
    first = job(both, None, prompt_of("each", 9, 2), 8)
    tickets = [submit(core, first)]
    core.step()
    core.exchange(both)
    second, third = (job(both, name, prompt_of("each", 9, 2), 8) for name in ("low", "short"))
    tickets += [submit(core, second), submit(core, third)]
    for _ in range(3):
        core.step()
    with pytest.raises(RequestError, match="1 requests run by the adapter low; let them end"):
        core.exchange(one)
    tickets[1].cancel()
    while tickets[1] in core._live:
        core.step()
    core.exchange(one)
    run(core, tickets[0], tickets[2])
    check(both, [first, third])


def test_what_takes_more_than_rows_is_refused() -> None:
    model = make("each")
    other = share_modules(model)
    other.model.layers[0].self_attn.head_dim += 1
    with pytest.raises(RequestError, match=r"'odd' changes the whole of model.layers.0.self_attn, so .*; load it as"):
        route(model, {"odd": other})
