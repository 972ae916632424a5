"""Tiny models of several families, and what their fused published matrices mean, written out by hand."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from glmkit.adapters.attach import adapter_off, attached
from glmkit.adapters.prefix.encoder import PrefixEncoder
from glmkit.adapters.prefix.prefix_adapter import PrefixAdapter
from glmkit.config import GLMConfig, SpecialIds
from glmkit.families.family import preset
from glmkit.model import GLM, init_weights

SPECIAL = SpecialIds(pad=3, eos=91, cls=None, mask=86, smask=None, gmask=87, sop=90, eop=91)


@dataclass(frozen=True)
class Tiny:
    """A family's tiny config and the published names of one layer's matrices."""

    config: GLMConfig
    layer: str  # "transformer.layers.{}."
    qkv: str
    dense: str
    up: str
    down: str

    @property
    def names(self) -> tuple[str, ...]:
        return self.qkv, self.dense, self.up, self.down


_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 4,
    "max_positions": 64,
    "init_std": 0.3,
    "special": SPECIAL,
}
_GROUPED = {"num_kv_heads": 2, "head_size": 12, "ffn_size": 40}
_FUSED = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
_SELF = ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
_PLAIN = dict.fromkeys(("embedding_dropout", "attention_dropout", "hidden_dropout"), 0.0)

TINY = {
    "chatglm": Tiny(replace(preset("chatglm-6b"), **_SIZES, ffn_size=64), "transformer.layers.{}.", *_FUSED),
    "chatglm2": Tiny(replace(preset("chatglm2-6b"), **_SIZES, **_GROUPED), "transformer.encoder.layers.{}.", *_SELF),
    "glm": Tiny(replace(preset("glm-base"), **_SIZES, **_PLAIN), "transformer.layers.{}.", *_FUSED),
}


def tiny_model(kind: str, seed: int = 0, **changes: Any) -> GLM:
    config = replace(TINY[kind].config, **changes)
    model = GLM(config)
    init_weights(model, config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def ids(config: GLMConfig, length: int = 14, rows: int = 2) -> Tensor:
    """Random tokens with [gMASK] <sop> in the middle."""
    tokens = torch.randint(4, 80, (rows, length), generator=torch.Generator().manual_seed(5))
    tokens[:, length // 2], tokens[:, length // 2 + 1] = SPECIAL.gmask, SPECIAL.sop
    return tokens


def matrix_shapes(family: str) -> dict[str, tuple[int, int]]:
    """Published stem without the layer -> (out, in)."""
    tiny = TINY[family]
    config = tiny.config
    width, inner = config.hidden_size, config.inner_size
    heads = config.num_heads * config.head_dim
    shared = config.kv_heads * config.head_dim
    gated = 2 if config.mlp == "swiglu" else 1
    return {
        tiny.qkv: (heads + 2 * shared, width),
        tiny.dense: (width, heads),
        tiny.up: (gated * inner, width),
        tiny.down: (width, inner),
    }


def ours(family: str, name: str, value: Tensor) -> dict[str, Tensor]:
    """A published matrix or vector of one layer as ours, by hand; name without the layer -> names inside the layer."""
    tiny, config = TINY[family], TINY[family].config
    heads, width = config.num_heads, config.head_dim
    qkv = [f"self_attn.{x}_proj" for x in "qkv"]
    if name == tiny.qkv:
        if family == "chatglm":  # head by head
            parts = [value.view(heads, 3, width, -1)[:, i].reshape(heads * width, -1) for i in range(3)]
            parts = [part.squeeze(1) if value.dim() == 1 else part for part in parts]
        else:  # one after the other
            parts = list(value.split([heads * width, config.kv_heads * width, config.kv_heads * width]))
        return dict(zip(qkv, parts, strict=True))
    if name == tiny.up and config.mlp == "swiglu":
        return dict(zip(("mlp.gate_proj", "mlp.up_proj"), value.chunk(2), strict=True))
    return {{tiny.dense: "self_attn.o_proj", tiny.up: "mlp.up_proj", tiny.down: "mlp.down_proj"}[name]: value}


def with_deltas(family: str, model: GLM, deltas: dict[str, Tensor], parameter: str = "weight") -> GLM:
    """A copy of the model with published stems ("transformer.layers.0....") changed by dense updates."""
    tiny = TINY[family]
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for stem, delta in deltas.items():
            layer = next(i for i in range(model.config.num_layers) if stem.startswith(tiny.layer.format(i)))
            name = stem.removeprefix(tiny.layer.format(layer))
            for module, value in ours(family, name, delta).items():
                getattr(changed.get_submodule(f"model.layers.{layer}.{module}"), parameter).add_(value)
    return changed.eval()


class Skeleton(nn.Module):
    """Nothing but linear layers under a family's published names, for PEFT to put LoRA on."""

    def __init__(self, family: str) -> None:
        super().__init__()
        tiny = TINY[family]
        for layer in range(tiny.config.num_layers):
            for name, (outputs, inputs) in matrix_shapes(family).items():
                place: nn.Module = self
                *path, last = (tiny.layer.format(layer) + name).split(".")
                for step in path:
                    if not hasattr(place, step):
                        place.add_module(step, nn.Module())
                    place = getattr(place, step)
                place.add_module(last, nn.Linear(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x

    def prepare_inputs_for_generation(self) -> None:
        """PEFT takes this name for the sign of a causal model."""


def transformers_pair(transformers: Any) -> tuple[Any, GLM]:
    """A tiny random model of transformers' own GLM class, and ours with its weights."""
    config = replace(TINY["chatglm2"].config, family="glm-4", norm_eps=1.5625e-07)
    torch.manual_seed(0)
    reference = transformers.GlmForCausalLM(
        transformers.GlmConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.inner_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            attention_bias=True,
            pad_token_id=0,
            eos_token_id=1,
            initializer_range=0.3,
            attn_implementation="eager",
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        )
    ).eval()
    state = dict(reference.state_dict())
    for layer in range(config.num_layers):
        place = f"model.layers.{layer}.mlp"
        gate, up = state.pop(f"{place}.gate_up_proj.weight").chunk(2)
        state |= {f"{place}.gate_proj.weight": gate, f"{place}.up_proj.weight": up}
    model = GLM(config)
    model.load_state_dict(state)
    return reference, model.eval()


def encoder_of(model: GLM) -> PrefixEncoder:
    """The encoder of the prefix that a model carries."""
    found = attached(model)
    assert isinstance(found, PrefixAdapter)
    return found.encoder


def adapter_delta(model: GLM, input_ids: Tensor) -> float:
    """The largest change of a logit that the adapter makes on `input_ids` (B,T): 0 means that it does nothing."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            with_it = model(input_ids).float()
            with adapter_off(model):
                without = model(input_ids).float()
    finally:
        model.train(training)
    return float((with_it - without).abs().max())
