"""All layers in one call against the modules one after the other, for every kind of network and type."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generate.engine.jobs import Greedy
from glmkit.adapters.attach import new_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.config import Quantization
from glmkit.generate.engine import EngineCore
from glmkit.model import GLM
from glmkit.model.attention import Cache
from glmkit.model.paged import PagedStep
from glmkit.model.positions import Rotary
from glmkit.quant import quantize_modules, set_compute, use_kernels
from glmkit.quant.native import library
from quant.matrices import difference
from support.kinds import KINDS, make, prompt_of
from support.stepping import run, submit

pytestmark = pytest.mark.skipif(not library.kernels().multiplies_floats, reason="needs kernels for floats")

INT4 = Quantization(bits=4, group_size=32, scales="byte", packing="panels")
INT8 = Quantization(bits=8, packing="panels")


class Both:
    """Runs the stack and the modules on the same step, and keeps how far they are apart."""

    def __init__(self, model: GLM) -> None:
        self.model, self.stack = model, model.model.layers_at_once
        self.apart: list[float] = []
        self.refused = 0
        model.model.layers_at_once = self

    def __call__(self, x_BTH: Tensor, rotary: Rotary | None, cache: Cache | None) -> Tensor | None:
        assert self.stack is not None
        given = x_BTH.clone()
        out = self.stack(x_BTH, rotary, cache)
        assert torch.equal(given, x_BTH)
        if out is None:
            self.refused += 1
            return None
        assert isinstance(cache, PagedStep)
        expected = x_BTH
        for block in self.model.model.layers:
            expected = block(expected, cache, rotary, cache)
        self.apart.append(difference(out, expected.double()))
        return out


def small(kind: str, dtype: torch.dtype, quantization: Quantization | None = None, **changes: Any) -> GLM:
    model = make(kind, hidden_size=64, head_size=32, **changes).to(dtype).eval()
    for name, parameter in model.named_parameters():  # biases and norms that matter
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3, generator=torch.Generator().manual_seed(3))
    if quantization is not None:
        quantize_modules(model, quantization)
        set_compute(model, None)
    use_kernels(model)
    return model


def answer(model: GLM, kind: str) -> None:
    engine = EngineCore(model)
    jobs = [Greedy(model, prompt_of(kind, 11, 1), 6, copies=3), Greedy(model, prompt_of(kind, 7, 2), 6)]
    jobs.append(Greedy(model, prompt_of(kind, 9, 3), 6, draft=[20, 21, 22, 23, 24, 25]))
    run(engine, *[submit(engine, job) for job in jobs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantization", [None, INT8, INT4], ids=["float", "int8", "int4"])
@pytest.mark.parametrize("prefix", [False, True], ids=["", "tuned"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_stack_computes_what_the_modules_do(
    kind: str, prefix: bool, quantization: Quantization | None, dtype: torch.dtype
) -> None:
    model = small(kind, dtype, quantization)
    if prefix:
        model = small(kind, dtype, quantization, prefix=True)
    both = Both(model)
    answer(model, kind)
    assert len(both.apart) >= 5
    # bfloat16: a value at the middle between two falls to either side, and the layers after carry it on.
    assert max(both.apart) < (5e-6 if dtype == torch.float32 else 1.5e-2)


@pytest.mark.parametrize("kind", ["gmask_first", "causal"])
def test_what_is_unusual_goes_through_the_modules(kind: str) -> None:
    seen: list[Tensor] = []
    hooked = small(kind, torch.float32)
    both = Both(hooked)
    answer(hooked, kind)
    assert both.apart
    handle = hooked.model.layers[0].self_attn.o_proj.register_forward_hook(lambda *of: seen.append(of[2]))
    before = len(both.apart)
    answer(hooked, kind)
    assert len(both.apart) == before
    assert seen
    handle.remove()
    answer(hooked, kind)
    assert len(both.apart) > before


def test_exchanged_weights_are_noticed() -> None:
    model = small("causal", torch.float32)
    both = Both(model)
    answer(model, "causal")
    layer = model.model.layers[1].mlp.down_proj
    layer.weight = nn.Parameter(layer.weight.detach() * 2)
    answer(model, "causal")
    layer.weight.data = layer.weight.detach() * 2
    answer(model, "causal")
    model.to(torch.float64).to(torch.float32)
    answer(model, "causal")
    assert max(both.apart) < 5e-6


def test_another_way_to_compute_is_noticed() -> None:
    model = small("causal", torch.float32, INT4)
    both = Both(model)
    for compute in ("exact", "fast", "exact"):
        set_compute(model, compute)  # type: ignore[arg-type]
        answer(model, "causal")
    assert max(both.apart) < 5e-6


def test_a_copy_reads_its_own_weights() -> None:
    model = small("causal", torch.float32, INT8)
    answer(model, "causal")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name.endswith("row_scale"):
                parameter.mul_(1.5)
    both = Both(other)
    answer(other, "causal")
    assert max(both.apart) < 5e-6


def test_adapters_go_through_the_modules() -> None:
    model = small("causal", torch.float32)
    new_adapter(model, LoraOptions(("all",), rank=2))
    both = Both(model)
    answer(model.eval(), "causal")
    assert both.refused
    assert not both.apart
