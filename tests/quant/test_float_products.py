"""Products of few rows with float matrices as they lie in memory, at every level; the operators in programs."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from glmkit.quant import use_kernels
from glmkit.quant.layers import FloatEmbedding, FloatLinear
from glmkit.quant.native import library
from glmkit.quant.panels import Panels
from glmkit.quant.products import Compute, float_linear, linear
from quant.matrices import difference, random_panels
from support.tiny import random_ids, tiny_model


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float_products_of_any_size(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    for rows, columns in ((1, 1), (17, 172), (33, 300), (64, 64), (130, 1028), (3, 31)):
        weights = [torch.randn(count, columns, generator=random).to(dtype) for count in (rows, 2 * rows)]
        for count in (1, 2, 3, 5, 6, 7, 8, 9):
            x = torch.randn(count, columns, generator=random).to(dtype)
            for out, weight in zip(float_linear(x, weights), weights, strict=True):
                assert out.dtype == dtype
                assert difference(out, x.double() @ weight.double().T) < (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.usefixtures("level")
def test_a_bfloat16_row_is_nearer_than_one_rounding() -> None:
    """Sums are float32: the only rounding is that of the result."""
    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=random).bfloat16() for shape in ((2, 4096), (64, 4096)))
    (out,) = float_linear(x, [weight])
    exact = x.double() @ weight.double().T
    assert ((out.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()


def test_whatever_else_is_given_is_multiplied_by_torch() -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 48, generator=random)
    for x, matrix in (
        (torch.randn(2, 48, generator=random, dtype=torch.float64), weight.double()),
        (torch.randn(2, 3, 48, generator=random).transpose(0, 1), weight),
        (torch.randn(0, 48), weight),
        (torch.randn(200, 48, generator=random), weight),
        (torch.randn(2, 48, generator=random), torch.randn(48, 32, generator=random).T),
        (torch.randn(2, 96, generator=random)[:, ::2], weight),
    ):
        (out,) = float_linear(x, [matrix])
        torch.testing.assert_close(out, functional.linear(x, matrix))
    x = torch.randn(2, 48, generator=random, requires_grad=True)
    float_linear(x, [weight])[0].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.sum(0).expand(2, 48))


class _Layer(nn.Module):
    """Two matrices of integers and one of floats."""

    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self.compute: Compute = compute
        for name, bits, group in (("a", 4, 32), ("b", 8, 0)):
            panels, _ = random_panels(33, 64, bits, group)
            for field in ("weight", "scales", "row_scale"):
                self.register_buffer(f"{name}_{field}", getattr(panels, field))
        self.register_buffer("floats", torch.randn(5, 33, generator=torch.Generator().manual_seed(2)))

    def forward(self, x: Tensor) -> Tensor:
        """(B,T,64) to (B,T,5)."""
        a = Panels(4, 33, 64, 32, self.a_weight, self.a_scales, self.a_row_scale)  # type: ignore[arg-type]
        b = Panels(8, 33, 64, 0, self.b_weight, self.b_scales, self.b_row_scale)  # type: ignore[arg-type]
        first, second = linear(x, [a, b], self.compute)
        return float_linear(first + second, [self.floats])[0]  # type: ignore[list-item]


@pytest.mark.parametrize("compute", ["exact", "fast"])
def test_a_program_exports_with_the_operators(compute: Compute) -> None:
    layer = _Layer(compute)
    example = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))
    sizes = {"x": {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("time", min=1)}}
    with torch.no_grad():
        program = torch.export.export(layer, (example,), dynamic_shapes=sizes)
        names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert {"glmkit.panel_linear.default", "glmkit.float_linear.default"} <= names
        for x in (example, torch.randn(1, 5, 64)):
            torch.testing.assert_close(program.module()(x), layer(x))


def test_shapes_are_known_without_values() -> None:
    with torch.device("meta"):
        x = torch.empty(2, 3, 300, dtype=torch.bfloat16)
        panels = Panels.empty(4, 33, 300, 32)
    (out,) = linear(x, [panels], "fast")
    assert (out.shape, out.dtype, out.is_meta) == ((2, 3, 33), torch.bfloat16, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_a_loaded_model(dtype: torch.dtype) -> None:
    """The same parameters, near results for few rows, PyTorch's own for many and in training."""
    if not library.kernels().multiplies_floats:
        pytest.skip("the kernels of this machine multiply no floats")
    plain, model = (tiny_model(seed=1, mlp="swiglu").to(dtype) for _ in range(2))
    use_kernels(model)
    assert isinstance(model.model.embed_tokens, FloatEmbedding)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert all(type(module) is FloatLinear for module in linears)
    assert list(model.state_dict()) == list(plain.state_dict())
    ids = random_ids(1, 6)
    with torch.no_grad():
        few, expected = model(ids), plain(ids)
    torch.testing.assert_close(few, expected, **({} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}))
    many = random_ids(2, 9)
    for each in (model, plain):
        each.train()
    assert torch.equal(model(many), plain(many))
    model(many).float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
