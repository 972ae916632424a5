"""Feed-forward layers, one per value of the `mlp` axis.

Legend: B batch, T tokens, H hidden width, F inner width.
"""

from torch import Tensor, nn
from torch.nn import functional

from glmkit.config import GLMConfig


class GeluMLP(nn.Module):
    """`down(gelu(up(x)))`; the GELU is the tanh form in GLM and ChatGLM-6B, erf where the config says so."""

    def __init__(self, config: GLMConfig) -> None:
        super().__init__()
        self.gelu, bias = config.gelu, config.bias == "all"
        self.up_proj = nn.Linear(config.hidden_size, config.inner_size, bias=bias)
        self.down_proj = nn.Linear(config.inner_size, config.hidden_size, bias=bias)

    def forward(self, x_BTH: Tensor) -> Tensor:
        return self.down_proj(_gelu(self.up_proj(x_BTH), self.gelu))  # type: ignore[no-any-return]


class GegluMLP(nn.Module):
    """`down(up(x) * gelu(gate(x)))`: GLM-130B's code activates the second chunk of its fused matrix."""

    def __init__(self, config: GLMConfig) -> None:
        super().__init__()
        self.gelu, bias = config.gelu, config.bias == "all"
        self.gate_proj = nn.Linear(config.hidden_size, config.inner_size, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, config.inner_size, bias=bias)
        self.down_proj = nn.Linear(config.inner_size, config.hidden_size, bias=bias)

    def forward(self, x_BTH: Tensor) -> Tensor:
        inner_BTF = self.up_proj(x_BTH) * _gelu(self.gate_proj(x_BTH), self.gelu)
        return self.down_proj(inner_BTF)  # type: ignore[no-any-return]


class SwigluMLP(GegluMLP):
    """`down(silu(gate(x)) * up(x))`: ChatGLM2-6B and later activate the first chunk of their fused matrix."""

    def forward(self, x_BTH: Tensor) -> Tensor:
        inner_BTF = functional.silu(self.gate_proj(x_BTH)) * self.up_proj(x_BTH)
        return self.down_proj(inner_BTF)  # type: ignore[no-any-return]


def _gelu(x: Tensor, kind: str) -> Tensor:
    return functional.gelu(x, approximate="tanh" if kind == "tanh" else "none")


_MLPS: dict[str, type[nn.Module]] = {"gelu": GeluMLP, "geglu": GegluMLP, "swiglu": SwigluMLP}


def build_mlp(config: GLMConfig) -> nn.Module:
    """The feed-forward layer of `config.mlp`."""
    return _MLPS[config.mlp](config)
