"""The transformer: norms, feed-forward layers and blocks (by the axes `norm`, `mlp` and `residual`), embeddings.

Legend: B batch, T tokens, H hidden width, F inner width, L layers.
"""

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from glmkit.config import GLMConfig

from .attention import Attention, AttentionPlan, Cache, KeyValue
from .integer_packing import project
from .positions import Rotary


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in fp32, rounded to the input's dtype, then times the weight.

    Source: `huggingface/transformers:models/glm/modeling_glm.py`; ChatGLM2-6B's `modeling_chatglm.py` rounds after the
    weight instead, which is the same in fp32.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, eps=self.eps) * self.weight

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def build_norm(config: GLMConfig) -> nn.Module:
    """The norm of `config.norm` over the hidden width."""
    if config.norm == "rms":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)


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

    def gate_and_up(self, x_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """(B,T,F) twice: the seam of one matrix for both."""
        gate_BTF, up_BTF = project((self.gate_proj, self.up_proj), x_BTH)
        return gate_BTF, up_BTF

    def forward(self, x_BTH: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_and_up(x_BTH)
        inner_BTF = up_BTF * _gelu(gate_BTF, self.gelu)
        return self.down_proj(inner_BTF)  # type: ignore[no-any-return]


class SwigluMLP(GegluMLP):
    """`down(silu(gate(x)) * up(x))`: ChatGLM2-6B and later activate the first chunk of their fused matrix."""

    def forward(self, x_BTH: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_and_up(x_BTH)
        inner_BTF = functional.silu(gate_BTF) * up_BTF
        return self.down_proj(inner_BTF)  # type: ignore[no-any-return]


def _gelu(x: Tensor, kind: str) -> Tensor:
    return functional.gelu(x, approximate="tanh" if kind == "tanh" else "none")


_MLPS: dict[str, type[nn.Module]] = {"gelu": GeluMLP, "geglu": GegluMLP, "swiglu": SwigluMLP}


def build_mlp(config: GLMConfig) -> nn.Module:
    """The feed-forward layer of `config.mlp`."""
    return _MLPS[config.mlp](config)


class PreNormBlock(nn.Module):
    """x + f(norm(x)), twice. Source: `THUDM/GLM:mpu/transformer.py`."""

    def __init__(self, config: GLMConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = build_norm(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = build_norm(config)
        self.mlp = build_mlp(config)
        self.drop = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        x_BTH: Tensor,
        plan: AttentionPlan,
        rotary: Rotary | None,
        cache: Cache | None,
        prefix: KeyValue | None = None,
    ) -> Tensor:
        x_BTH = x_BTH + self.drop(self.self_attn(self.input_layernorm(x_BTH), plan, rotary, cache, prefix))
        return x_BTH + self.drop(self.mlp(self.post_attention_layernorm(x_BTH)))  # type: ignore[no-any-return]


class DeepNormBlock(PreNormBlock):
    """alpha * LN(x) + f(LN(x)), twice, DeepNorm with each block starting at its norm.

    alpha = sqrt(2 * num_layers) unless the config says otherwise: ChatGLM-6B's code has its 28 layers as a constant.

    Source: GLM-130B, `SwissArmyTransformer:sat/model/official/glm130B_model.py`.
    """

    def __init__(self, config: GLMConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.alpha = config.deepnorm_alpha or math.sqrt(2 * config.num_layers)

    def forward(
        self,
        x_BTH: Tensor,
        plan: AttentionPlan,
        rotary: Rotary | None,
        cache: Cache | None,
        prefix: KeyValue | None = None,
    ) -> Tensor:
        u_BTH = self.input_layernorm(x_BTH)
        x_BTH = self.alpha * u_BTH + self.drop(self.self_attn(u_BTH, plan, rotary, cache, prefix))
        u_BTH = self.post_attention_layernorm(x_BTH)
        return self.alpha * u_BTH + self.drop(self.mlp(u_BTH))  # type: ignore[no-any-return]


class SandwichBlock(PreNormBlock):
    """x + norm(f(norm(x))), twice: the second norm acts on the branch, before it is added.

    Source: GLM-4-0414, `huggingface/transformers:models/glm4/modeling_glm4.py`.
    """

    def __init__(self, config: GLMConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.post_self_attn_layernorm = build_norm(config)
        self.post_mlp_layernorm = build_norm(config)

    def forward(
        self,
        x_BTH: Tensor,
        plan: AttentionPlan,
        rotary: Rotary | None,
        cache: Cache | None,
        prefix: KeyValue | None = None,
    ) -> Tensor:
        branch_BTH = self.self_attn(self.input_layernorm(x_BTH), plan, rotary, cache, prefix)
        x_BTH = x_BTH + self.drop(self.post_self_attn_layernorm(branch_BTH))
        branch_BTH = self.mlp(self.post_attention_layernorm(x_BTH))
        return x_BTH + self.drop(self.post_mlp_layernorm(branch_BTH))  # type: ignore[no-any-return]


_BLOCKS: dict[str, type[PreNormBlock]] = {"pre": PreNormBlock, "deepnorm": DeepNormBlock, "sandwich": SandwichBlock}


def build_block(config: GLMConfig, layer: int) -> PreNormBlock:
    """Layer number `layer` (from 0) with the residual scheme of `config.residual`."""
    return _BLOCKS[config.residual](config, layer)


class LayersAtOnce(Protocol):
    """A way to run all blocks in one call: the seam of `quant.decode_stack`."""

    def __call__(self, x_BTH: Tensor, rotary: Rotary | None, cache: Cache | None) -> Tensor | None:
        """(B,T,H), the last block's output, with keys and values written; None for what it does not do."""


class Transformer(nn.Module):
    """Embeddings (with learned position tables where the config has them), blocks and the last norm.

    A pipeline stage owns some of them: what belongs to another stage is None (`embed_tokens`, `norm`, single `layers`),
    so that the names of the rest stay those of the whole model.
    """

    def __init__(self, config: GLMConfig) -> None:
        super().__init__()
        self.embed_tokens: nn.Embedding | None = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions: nn.Embedding | None = None
        self.embed_block_positions: nn.Embedding | None = None
        if config.positions == "learned_2d":
            self.embed_positions = nn.Embedding(config.max_positions + 1, config.hidden_size)
            self.embed_block_positions = nn.Embedding(config.max_positions + 1, config.hidden_size)
        self.embed_drop = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(build_block(config, layer) for layer in range(config.num_layers))
        self.norm: nn.Module | None = build_norm(config)
        self.gradient_scale = config.embedding_gradient_scale
        self.layers_at_once: LayersAtOnce | None = None

    def forward(
        self,
        inputs: Tensor,
        position_ids_B2T: Tensor,
        plan: AttentionPlan,
        rotary: Rotary | None,
        cache: Cache | None = None,
        prefix_L: Sequence[KeyValue] = (),
        every_layer: list[Tensor] | None = None,
        words_BTH: Tensor | None = None,
    ) -> Tensor:
        """(B,T,H): the last norm's output, or the last block's of a stage without the norm.

        inputs: ids (B,T), or hidden states (B,T,H) for a stage without embeddings. prefix_L: a tuned prefix for each
        layer, to put in front where no cache holds it. every_layer: receives the first hidden states and each block's.
        words_BTH: word vectors that are used instead of the table's.
        """
        x_BTH = inputs if self.embed_tokens is None else self._embed(inputs, position_ids_B2T, words_BTH)
        if every_layer is not None:
            every_layer.append(x_BTH)
        if self.layers_at_once is not None and every_layer is None:
            out_BTH = self.layers_at_once(x_BTH, rotary, cache)
            if out_BTH is not None:
                return out_BTH if self.norm is None else self.norm(out_BTH)
        for block, own in zip_longest(self.layers, prefix_L):
            if block is not None:
                x_BTH = block(x_BTH, plan, rotary, cache, own)
                if every_layer is not None:
                    every_layer.append(x_BTH)
        return x_BTH if self.norm is None else self.norm(x_BTH)

    def _embed(self, input_ids_BT: Tensor, position_ids_B2T: Tensor, words_BTH: Tensor | None) -> Tensor:
        """(B,T,H): word vectors plus both position vectors, after dropout."""
        assert self.embed_tokens is not None
        x_BTH = self.embed_tokens(input_ids_BT) if words_BTH is None else words_BTH
        if not self.embed_tokens.weight.is_floating_point():  # a quantised table gives fp32, rounded once, here
            x_BTH = x_BTH.to(self.norm_weight.dtype)
        if self.training and self.gradient_scale != 1.0 and x_BTH.requires_grad:
            # GLM-130B paper, section 2, in training only: elsewhere gradients are those of the function. Written so
            # that the value stays the same to the last bit.
            x_BTH = x_BTH.detach() + (x_BTH - x_BTH.detach()) * self.gradient_scale
        if self.embed_positions is not None and self.embed_block_positions is not None:
            x_BTH = x_BTH + self.embed_positions(position_ids_B2T[:, 0])
            x_BTH = x_BTH + self.embed_block_positions(position_ids_B2T[:, 1])
        return self.embed_drop(x_BTH)  # type: ignore[no-any-return]

    @property
    def norm_weight(self) -> Tensor:
        """The weight of the last norm here: never quantised, it has the dtype and device that the model computes in."""
        norm = self.norm or [block for block in self.layers if block is not None][-1].post_attention_layernorm
        assert isinstance(norm, nn.Module)
        assert isinstance(norm.weight, Tensor)
        return norm.weight
