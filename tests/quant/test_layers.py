"""Quantised layers against the same model with its dequantised matrices in floats."""

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glmkit.config import Quantization
from glmkit.errors import ConfigError, RequestError
from glmkit.model import GLM, KVCache, init_weights
from glmkit.quant import QuantEmbedding, QuantLinear, layers, products, quantize_modules, set_compute
from glmkit.quant.native import library
from glmkit.quant.panels import Panels
from glmkit.quant.rounding import MatrixForm
from support.published import close, recording
from support.tiny import random_ids, tiny_config, tiny_model

pytestmark = pytest.mark.sampled(4)

KINDS = [
    Quantization(8),
    Quantization(4),
    Quantization(4, embeddings=True),
    Quantization(4, column_blocks=4),
    Quantization(8, embeddings=True, column_blocks=2),
    Quantization.usual(4),
    Quantization(4, True, group_size=64, packing="panels"),
]
COMPUTES: tuple[products.Compute, ...] = ("exact", "fast")
AXES: list[dict[str, Any]] = [{}, {"tie_embeddings": False, "mlp": "swiglu", "bias": "qkv", "num_kv_heads": 2}]


def pair(quantization: Quantization, **axes: Any) -> tuple[GLM, GLM]:
    """A quantised model and one in floats with the same function."""
    quantised = tiny_model(seed=3, quantization=quantization, **axes)
    plain = copy.deepcopy(quantised)
    quantize_modules(quantised, quantization)
    for name, module in quantised.named_modules():
        if isinstance(module, QuantLinear | QuantEmbedding):
            plain.get_submodule(name).weight.data.copy_(module.floats())
    return quantised, plain


@pytest.mark.parametrize("chunk", [1, 1 << 22])
@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("quantization", KINDS, ids=str)
def test_logits(quantization: Quantization, axes: dict[str, Any], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_CHUNK", chunk)
    library.use_level(library.TORCH if chunk == 1 else None)
    quantised, plain = pair(quantization, **axes)
    ids = random_ids(2, 9)
    torch.testing.assert_close(quantised(ids), plain(ids), rtol=1e-5, atol=1e-5)
    marked = torch.zeros(2, 9, dtype=torch.bool)
    marked[1, 4] = True
    torch.testing.assert_close(quantised(ids, logits_at=marked), plain(ids, logits_at=marked), rtol=1e-5, atol=1e-5)
    cache = KVCache(quantised.config, 2, 9, dtype=quantised.dtype, device=quantised.device)
    places = torch.arange(9).expand(2, 9)
    pieces = [quantised(ids[:, a:b], position_ids=places[:, a:b], cache=cache) for a, b in ((0, 8), (8, 9))]
    torch.testing.assert_close(torch.cat(pieces, 1), quantised(ids, position_ids=places), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantization", KINDS, ids=str)
def test_gradients_of_what_is_not_quantised(quantization: Quantization) -> None:
    quantised, plain = pair(quantization)
    ids = random_ids(2, 9)
    for model in (quantised, plain):
        model(ids).square().mean().backward()
    theirs = dict(plain.named_parameters())
    compared = 0
    for name, parameter in quantised.named_parameters():
        if parameter.requires_grad and "embed_tokens" not in name:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6, msg=name)
            compared += 1
    assert compared > 20


def test_which_modules_are_swapped() -> None:
    model = tiny_model(tie_embeddings=False, mlp="swiglu")
    quantize_modules(model, Quantization(8))
    kinds = {name: type(module) for name, module in model.named_modules()}
    swapped = {name.rsplit(".", 1)[-1] for name, kind in kinds.items() if kind is QuantLinear}
    assert swapped == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert kinds["lm_head"] is nn.Linear
    assert kinds["model.embed_tokens"] is nn.Embedding
    quantize_modules(model, Quantization(8, embeddings=True))  # what is quantised stays
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert (kinds["lm_head"], kinds["model.embed_tokens"]) == (QuantLinear, QuantEmbedding)
    assert kinds["model.embed_positions"] is nn.Embedding
    assert not list(model.buffers())


def test_shapes_on_the_meta_device() -> None:
    config = tiny_config(quantization=Quantization(4, embeddings=True, column_blocks=2), ffn_size=48)
    with torch.device("meta"):
        model = GLM(config)
    quantize_modules(model, config.quantization or Quantization(4))
    shapes = {name: (tuple(p.shape), p.dtype, p.device.type) for name, p in model.named_parameters()}
    layer = "model.layers.0"
    assert shapes[f"{layer}.self_attn.q_proj.weight"] == ((2, 4, 64), torch.uint8, "meta")
    assert shapes[f"{layer}.self_attn.q_proj.row_scale"] == ((32,), torch.float32, "meta")
    assert shapes[f"{layer}.self_attn.o_proj.row_scale"] == ((64,), torch.float32, "meta")
    assert shapes[f"{layer}.mlp.down_proj.weight"] == ((4, 4, 64), torch.uint8, "meta")
    assert shapes[f"{layer}.mlp.up_proj.bias"] == ((48,), torch.float32, "meta")
    assert shapes["model.embed_tokens.weight"] == ((4, 4, 64), torch.uint8, "meta")
    assert model.to(torch.bfloat16).model.layers[0].mlp.up_proj.row_scale.dtype == torch.float32


def test_scales_and_integers_survive_casts() -> None:
    quantised, _ = pair(Quantization(4, embeddings=True))
    before = {name: value.clone() for name, value in quantised.state_dict().items()}
    for cast in (torch.bfloat16, torch.float16, torch.float32):
        after = quantised.to(cast).state_dict()
        assert quantised.dtype == cast
        for name, value in before.items():
            if value.dtype == torch.uint8 or name.endswith("_scale"):
                assert after[name].dtype == value.dtype
                assert torch.equal(after[name], value), name
    logits = quantised.to(torch.bfloat16)(random_ids(1, 5))
    assert logits.dtype == torch.bfloat16


def test_a_bfloat16_model_stays_near_fp32() -> None:
    quantised, plain = pair(Quantization(4, embeddings=True), init_std=0.1)
    ids = random_ids(2, 20)
    exact = plain(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = quantised(ids)
    rounded = quantised.to(torch.bfloat16)(ids)
    for found in (mixed, rounded):
        assert (found.float() - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_head(tied: bool) -> None:
    quantised, plain = pair(Quantization(8, embeddings=True), tie_embeddings=tied)
    assert torch.equal(quantised.head_weight, plain.head_weight)
    assert quantised.to(torch.bfloat16).head_weight.dtype == torch.bfloat16
    quantised, plain = pair(Quantization(8, embeddings=True), tie_embeddings=tied)
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(quantised.head(hidden), plain.head(hidden), rtol=1e-5, atol=1e-5)


def test_a_quantised_model_is_not_initialised() -> None:
    quantised, _ = pair(Quantization(8))
    with pytest.raises(ConfigError, match="initialise the model before it is quantised"):
        init_weights(quantised, quantised.config, 0)


def test_no_floats_are_kept_for_the_backward_pass() -> None:
    layer = QuantLinear(64, 128, MatrixForm(4))
    nn.init.zeros_(layer.row_scale)
    layer.weight.data.zero_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(torch.randn(2, 64, requires_grad=True)).sum()
    assert sum(kept) < 64 * 128


def test_layers_that_read_the_same_inputs_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    whole = layers.linear

    def counted(x: Tensor, panels: Sequence[Panels], compute: products.Compute) -> list[Tensor]:
        calls.append(len(panels))
        return whole(x, panels, compute)

    quantised, plain = pair(Quantization.usual(4), mlp="swiglu", num_kv_heads=2)
    monkeypatch.setattr(layers, "linear", counted)
    ids = random_ids(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(quantised(ids), plain(ids), rtol=1e-5, atol=1e-5)
    assert calls == [3, 1, 2, 1] * quantised.config.num_layers + [1]
    # A hook sees its own layer's call.
    seen: list[int] = []
    quantised.model.layers[0].self_attn.k_proj.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        torch.testing.assert_close(quantised(ids), plain(ids), rtol=1e-5, atol=1e-5)
    assert seen == [1]


def test_a_hook_on_gradients_sees_its_own_layer() -> None:
    quantised, _ = pair(Quantization.usual(4))
    seen: list[int] = []
    quantised.model.layers[1].self_attn.v_proj.register_full_backward_hook(lambda *_: seen.append(1))
    quantised.train()(random_ids(2, 9)).sum().backward()
    assert seen == [1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_used_model_read_their_own_weights(copied: Callable[[GLM], GLM]) -> None:
    quantised, ids = pair(Quantization.usual(4))[0], random_ids(2, 9)
    before = quantised(ids)
    other = tiny_model(seed=4)
    quantize_modules(other, Quantization.usual(4))
    made = copied(quantised)
    assert torch.equal(made(ids), before)
    made.load_state_dict(other.state_dict())
    assert torch.equal(made(ids), other(ids))
    assert torch.equal(quantised(ids), before)
    layer = made.model.layers[0].mlp.up_proj
    assert isinstance(layer, QuantLinear)
    assert layer.panels[0].weight.data_ptr() == layer.weight.data_ptr()
    assert layer.group_scale is not None
    floats = layer.floats()
    layer.group_scale = nn.Parameter(torch.ones_like(layer.group_scale), requires_grad=False)
    assert not torch.equal(layer.floats(), floats)


def test_tensors_that_are_put_in_place_of_a_parameters_own_are_read() -> None:
    quantised, _ = pair(Quantization.usual(4))
    layer, ids = quantised.model.layers[0].mlp.up_proj, random_ids(2, 9)
    assert isinstance(layer, QuantLinear)
    before, floats = quantised(ids), layer.floats()
    layer.row_scale.data = 2 * layer.row_scale.data
    assert torch.equal(layer.floats(), 2 * floats)
    assert not torch.equal(quantised(ids), before)


def test_inputs_that_no_float_layer_takes_are_refused() -> None:
    """Nothing is read beside a matrix, and no fraction of a result is lost."""
    layer = QuantLinear(64, 17, MatrixForm(4, 32, "byte"))
    for x in (torch.randn(2, 63), torch.randn(2, 65), torch.ones(2, 64, dtype=torch.long), torch.ones(2, 64) * 1j):
        with pytest.raises(RequestError, match="the matrix takes floats with 64"):
            layer(x)
    table = QuantEmbedding(17, 64, MatrixForm(8))
    assert table(torch.empty(2, 0, dtype=torch.long)).shape == (2, 0, 64)
    for number in (17, 20, 31, -1):  # rows of the last panel beyond the table's, too
        with pytest.raises(IndexError):
            table(torch.tensor([0, number]))


def test_a_layer_in_a_compiled_program() -> None:
    quantised, _ = pair(Quantization.usual(4), mlp="swiglu")
    layer, x = quantised.model.layers[0].mlp, torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), layer(x))


def test_fast_products_are_near_exact_ones_and_training_is_exact() -> None:
    quantised, _ = pair(Quantization.usual(4), init_std=0.1)
    ids = random_ids(3, 20)
    with torch.no_grad():
        exact = quantised(ids)
        assert set_compute(quantised, "fast") == "fast"
        fast = quantised(ids)
        alone = torch.cat([quantised(ids[row : row + 1]) for row in range(3)])
    assert 0 < (fast - exact).norm() / exact.norm() < 2e-2
    torch.testing.assert_close(alone, fast, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(quantised(ids).detach(), fast, rtol=1e-2, atol=0.1)
    torch.testing.assert_close(quantised.train()(ids).detach(), exact, rtol=1e-6, atol=1e-6)
    assert set_compute(quantised.eval(), None) == "exact"  # float32
    assert set_compute(tiny_model(), "fast") is None


def test_fast_is_usual_in_bfloat16_where_the_kernels_run() -> None:
    quantised, _ = pair(Quantization.usual(8))
    expected = "fast" if library.kernels().there else "exact"
    assert set_compute(quantised.to(torch.bfloat16), None) == expected
    library.use_level(library.TORCH)
    assert set_compute(quantised, None) == "exact"
    library.use_level(None)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("name", ["chatglm-6b-int8", "chatglm-6b-int4", "chatglm-6b-int4-qe"])
def test_published_integers_at_every_level(name: str) -> None:
    """Recorded logits within the recording's own tolerance; fast products stay near them."""
    reference = recording(name)
    for case in [case for case in reference.inputs if f"{case}.logits" in reference.expected]:
        real, expected = reference.real(case), reference.expected[f"{case}.logits"]
        for compute in COMPUTES:
            set_compute(reference.model, compute)
            with torch.no_grad():
                logits = reference.model(reference.ids(case), attention_mask=real)
            theirs = torch.from_numpy(expected)
            if real is not None:
                logits, theirs = logits[real], theirs[real]
            elif case == "long":
                logits = logits[:, -12:]
            if compute == "exact":
                close(logits, theirs.numpy(), 3e-5)
            else:
                assert (logits - theirs).norm() / theirs.norm() < 0.03
