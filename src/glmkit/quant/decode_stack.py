"""One call of the kernels for all layers of a step of few tokens.

Between calls of Python the weights push all else out of the caches. What a model's modules would do is described once,
as addresses (native/decode.h), and used while they are the very same; for anything unusual (adapters, hooks, other
types, long runs of tokens) the modules run.

Legend: R tokens, H hidden width, L layers.
"""

import ctypes
import operator
from typing import Any

import torch
from torch import Tensor, nn

from glmkit.config import GLMConfig
from glmkit.devices import is_cpu
from glmkit.model.attention import Attention, Cache
from glmkit.model.integer_packing import hooks_of, is_plain
from glmkit.model.paged import PagedCache, PagedStep
from glmkit.model.positions import Rotary
from glmkit.model.transformer import (
    DeepNormBlock,
    GegluMLP,
    GeluMLP,
    PreNormBlock,
    SandwichBlock,
    SwigluMLP,
    Transformer,
)

from .layers import FloatLinear, QuantLinear
from .native import library
from .products import FEW, FLOAT_BITS, KINDS_OF_SCALES
from .row_ops import KernelRMSNorm, KernelRotation

# Tokens of a step up to which all layers run at once.
MOST_TOKENS = 16
_STEP = 16  # widths are multiples of it
_MOST_TURNING = 1024
_PROJECTION = 9  # numbers of one
# As native/decode.h numbers them.
_MLPS = {GeluMLP: "gelu", GegluMLP: "geglu", SwigluMLP: "swiglu"}
_BLOCKS = {PreNormBlock: "pre", DeepNormBlock: "deepnorm", SandwichBlock: "sandwich"}
_NUMBERS = (
    "count", "group_count", "rows", "hidden", "heads", "kv_heads", "width", "block", "turning", "streams",
    "interleaved", "inner", "mlp", "residual", "bf16", "exact", "level", "threads",
)  # fmt: skip
_ADDRESSES = ("layers", "x", "cosines", "sines", "slots", "groups")


class _Decoding(ctypes.Structure):
    """`decoding` of native/decode.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _ADDRESSES),
        *((name, ctypes.c_int64) for name in _NUMBERS),
        ("eps", ctypes.c_double),
        ("alpha", ctypes.c_double),
    ]


class _Description:
    """Numbers of all layers as the kernels read them, and what they rest on.

    most: tokens of a step. Checked before every step, so without a loop of Python's own where possible.
    """

    def __init__(self, numbers_L: list[list[int]], scribe: "_Scribe") -> None:
        self._size = 1 + len(numbers_L[0])
        self.count, self.exact = len(numbers_L), "exact" in scribe.computes
        self.most = MOST_TOKENS if scribe.only_integers else FEW
        self.array = (ctypes.c_int64 * (self.count * self._size))(*(n for own in numbers_L for n in (0, *own)))
        self._owners, self._names, self._values = zip(*scribe.facts, strict=True)
        self._tensors, self._addresses = scribe.tensors, [tensor.data_ptr() for tensor in scribe.tensors]
        self._hooks = [hooks for value in self._values if isinstance(value, nn.Module) for hooks in hooks_of(value)]

    def holds(self) -> bool:
        """True while nothing was exchanged, moved or hooked."""
        return (
            all(map(operator.is_, map(dict.get, self._owners, self._names), self._values))
            and not any(self._hooks)
            and [*map(Tensor.data_ptr, self._tensors)] == self._addresses
        )

    def put_arenas(self, cache: PagedCache) -> None:
        """Write down where keys and values lie now."""
        for layer in range(self.count):
            self.array[layer * self._size] = cache.arena(layer).data_ptr()


class DecodeStack:
    """Runs the blocks of one transformer; `Transformer.layers_at_once`."""

    def __init__(self, transformer: Transformer, config: GLMConfig) -> None:
        self._transformer, self._config = transformer, config
        self._described: _Description | None = None

    def __getstate__(self) -> dict[str, object]:
        """The state that copies and files get: addresses are of this process's tensors."""
        return {**self.__dict__, "_described": None}

    def __call__(self, x_BTH: Tensor, rotary: Rotary | None, cache: Cache | None) -> Tensor | None:
        """(B,T,H), or None where the modules must run."""
        if not (isinstance(cache, PagedStep) and self._fits(x_BTH, rotary, cache)):
            return None
        described = self._described
        if described is None or not described.holds():
            described = self._described = self._describe(x_BTH.dtype)
        x_RH = x_BTH.flatten(0, 1)
        if described is None or len(x_RH) > described.most:
            return None
        x_RH = x_RH.clone()
        self._run(described, x_RH, rotary, cache)
        return x_RH.view(x_BTH.shape)

    def _fits(self, x_BTH: Tensor, rotary: Rotary | None, step: PagedStep) -> bool:
        return (
            library.calls_directly()
            and library.kernels().multiplies_floats
            and not self._transformer.training
            and not torch.is_autocast_enabled(x_BTH.device.type)
            and x_BTH.dtype in FLOAT_BITS
            and x_BTH.dtype == step.cache.arena(0).dtype
            and all(group.seen is not None for group in step.groups)
            and (rotary is None or rotary.cos_BT1R.shape[:2] == x_BTH.shape[:2])
        )

    def _run(self, described: _Description, x_RH: Tensor, rotary: Rotary | None, step: PagedStep) -> None:
        config, cache = self._config, step.cache
        described.put_arenas(cache)
        groups: list[int] = []
        kept: list[Tensor] = []  # until the call is over
        for group in step.groups:
            assert group.seen is not None
            seen = [x.contiguous() for x in (group.seen.table_RM, group.seen.firsts_R, group.seen.lasts_R)]
            groups += [group.first, group.rows * group.length, seen[0].shape[1], *(x.data_ptr() for x in seen)]
            kept += seen
        cos, sin = (None, None) if rotary is None else (rotary.cos_BT1R.contiguous(), rotary.sin_BT1R.contiguous())
        group_array = (ctypes.c_int64 * len(groups))(*groups)
        slots = step.slots.contiguous()
        library.decode(
            _Decoding(
                layers=ctypes.addressof(described.array),
                x=x_RH.data_ptr(),
                cosines=None if cos is None else cos.data_ptr(),
                sines=None if sin is None else sin.data_ptr(),
                slots=slots.data_ptr(),
                groups=ctypes.addressof(group_array),
                count=described.count,
                group_count=len(step.groups),
                rows=len(x_RH),
                hidden=config.hidden_size,
                heads=config.num_heads,
                kv_heads=cache.heads,
                width=cache.width,
                block=cache.block,
                turning=0 if cos is None else cos.shape[-1],
                streams=1 if rotary is None else rotary.num_streams,
                interleaved=rotary is not None and rotary.interleaved,
                inner=config.inner_size,
                mlp=list(_MLPS.values()).index(config.mlp),
                residual=list(_BLOCKS.values()).index(config.residual),
                bf16=x_RH.dtype == torch.bfloat16,
                exact=described.exact,
                level=library.LEVELS.index(library.kernels().level),
                threads=library.thread_count(),
                eps=config.norm_eps,
                alpha=config.deepnorm_alpha or (2 * config.num_layers) ** 0.5,
            )
        )

    def _describe(self, dtype: torch.dtype) -> _Description | None:
        """Addresses of all layers; None where one of them is not of the usual kind."""
        config = self._config
        widths = (config.hidden_size, config.num_heads * config.head_dim, config.inner_size, config.rotary_dim)
        if any(width % _STEP for width in widths) or config.rotary_dim > _MOST_TURNING or config.gelu != "tanh":
            return None
        scribe = _Scribe(config, dtype)
        try:
            numbers_L = [scribe.block(layer, block) for layer, block in enumerate(self._transformer.layers)]
        except _UnusualError:
            return None
        holder = self._transformer.layers._modules
        scribe.facts += [(holder, name, block) for name, block in holder.items()]
        if len(numbers_L) != config.num_layers or len(scribe.computes) > 1:
            return None
        return _Description(numbers_L, scribe)


class _UnusualError(Exception):
    """A layer that the modules must run."""


class _Scribe:
    """Writes blocks down as numbers, and what they rest on."""

    def __init__(self, config: GLMConfig, dtype: torch.dtype) -> None:
        self._config, self._dtype = config, dtype
        self.computes: set[str] = set()
        self.only_integers = True
        self.facts: list[tuple[dict[str, Any], str, object]] = []
        self.tensors: list[Tensor] = []

    def block(self, layer: int, block: nn.Module) -> list[int]:
        """`layer` of native/decode.h without the arena. Raises _UnusualError."""
        config = self._config
        attention, mlp = self._part(block, "self_attn", Attention), self._part(block, "mlp", *_MLPS)
        self._check(type(block) in _BLOCKS and isinstance(attention, Attention) and attention.layer == layer)
        self._part(attention, "rotate", KernelRotation)
        names = ["input_layernorm", "post_attention_layernorm"]
        if isinstance(block, SandwichBlock):
            names += ["post_self_attn_layernorm", "post_mlp_layernorm"]
        numbers = [number for name in names for number in self._norm(block, name)]
        numbers += [0] * (8 - len(numbers))
        hidden, inner, heads = config.hidden_size, config.inner_size, config.num_heads * config.head_dim
        shared = config.kv_heads * config.head_dim
        numbers += self._linears(attention, {"q_proj": heads, "k_proj": shared, "v_proj": shared}, hidden)
        numbers += self._linears(attention, {"o_proj": hidden}, heads)
        if isinstance(mlp, GegluMLP):
            numbers += self._linears(mlp, {"gate_proj": inner, "up_proj": inner}, hidden)
        else:
            numbers += [0] * _PROJECTION + self._linears(mlp, {"up_proj": inner}, hidden)
        return numbers + self._linears(mlp, {"down_proj": hidden}, inner)

    def _check(self, usual: bool) -> None:
        if not usual:
            raise _UnusualError

    def _part(self, owner: nn.Module, name: str, *types: type[nn.Module]) -> nn.Module:
        part = owner._modules.get(name)
        self._check(part is not None and type(part) in types and is_plain(part))
        assert part is not None
        self.facts.append((owner._modules, name, part))
        return part

    def _address(self, owner: nn.Module, name: str) -> int:
        """Address of a parameter in the activations' type; 0 where there is none."""
        value = owner._parameters.get(name)
        self.facts.append((owner._parameters, name, value))
        if value is None:
            return 0
        self._check(value.dtype == self._dtype and value.is_contiguous())
        return self._of(value)

    def _of(self, tensor: Tensor) -> int:
        self._check(is_cpu(tensor.device))
        self.tensors.append(tensor)
        return tensor.data_ptr()

    def _norm(self, owner: nn.Module, name: str) -> list[int]:
        norm = self._part(owner, name, KernelRMSNorm, nn.LayerNorm)
        numbers = [self._address(norm, "weight"), self._address(norm, "bias")]
        self._check((numbers[1] != 0) == isinstance(norm, nn.LayerNorm))
        return numbers

    def _linears(self, owner: nn.Module, rows: dict[str, int], columns: int) -> list[int]:
        """`projection` of layers that read the same inputs: all of integers, or all of floats."""
        layers = [self._part(owner, name, QuantLinear, FloatLinear) for name in rows]
        self._check(len({type(layer) for layer in layers}) == 1)
        numbers: list[int] = []
        for layer, count in zip(layers, rows.values(), strict=True):
            if isinstance(layer, QuantLinear):
                self._check(layer.form.blocks == 1)
                self.computes.add(layer.compute)
                self.facts.append((layer.__dict__, "compute", layer.compute))
                (panels,) = layer.panels
                size = panels.rows, panels.columns
                own = (panels.weight, panels.scales, panels.row_scale)
                addresses = [0 if tensor is None else self._of(tensor) for tensor in own]
                names = [*layer._parameters]
                kind = 0 if panels.scales is None else KINDS_OF_SCALES[panels.scales.dtype]
                numbers += [*addresses, 0, panels.rows, panels.group, panels.bits, kind]
            else:
                self.only_integers = False
                weight = layer.weight
                assert isinstance(weight, Tensor)
                size, names = (weight.shape[0], weight.shape[1]), ["weight"]
                numbers += [self._address(layer, "weight"), 0, 0, 0, count, 0, FLOAT_BITS[self._dtype], 0]
            self._check(size == (count, columns))
            self.facts += [(layer._parameters, name, layer._parameters[name]) for name in names]
            numbers.append(self._address(layer, "bias"))
        return numbers
