"""One transformer layer, one class per value of the `residual` axis.

Legend: B batch, T tokens, H hidden width.
"""

import math

from torch import Tensor, nn

from glmkit.config import GLMConfig

from .attention import Attention, AttentionPlan, KeyValue, KeyValueStore
from .mlp import build_mlp
from .norm import build_norm
from .positions import Rotary


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
        cache: KeyValueStore | None,
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
        cache: KeyValueStore | None,
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
        cache: KeyValueStore | None,
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
