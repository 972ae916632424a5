"""The core's own modules under the names of the published code, so that what scripts do to a module by its name is done
to what computes.

Every name comes from the rules of a layout. Children move to their published paths; a published matrix that is several
of ours (query_key_value, dense_h_to_4h) is one linear layer behind the seams of `Attention` and of the gated MLP; the
core's names answer with the same objects, for the core goes on using them.

Legend: B batch, T tokens, N query heads, K heads of keys and values, D head width, F inner width of the MLP.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from glmkit.checkpoint.published_tensors import by_head
from glmkit.errors import RequestError, UnreadWarning
from glmkit.families.common.layout import Layout, Order, RemoteCode
from glmkit.model import GLM
from glmkit.model.transformer import PreNormBlock

_CLASSES: dict[tuple[object, ...], type] = {}
_LAYERS, _LAYER = "layers", "model.layers.{i}."


@dataclass(frozen=True)
class TreeNames:
    """Published paths of our modules, each inside the module above it.

    body: the attribute of the model that holds everything but some heads. top: children of the transformer. block,
    attention, mlp: theirs. fused: of the attention and of the MLP, the layer that is several of ours, "" where none is.
    order: of queries, keys and values in it. head: path of the head in the model, None where the table is used.
    """

    body: str
    top: Mapping[str, str]
    block: Mapping[str, str]
    attention: Mapping[str, str]
    mlp: Mapping[str, str]
    fused: tuple[str, str]
    order: Order
    head: str | None


def tree_names(layout: Layout) -> TreeNames:
    """Read the paths out of a layout's rules."""
    base = layout.base or "model."
    top: dict[str, str] = {}
    block: dict[str, str] = {}
    inner: dict[str, dict[str, str]] = {"self_attn": {}, "mlp": {}}
    fused = {"self_attn": "", "mlp": ""}
    order: Order = "concat"
    for rule in layout.rules:
        theirs = rule.theirs.removeprefix(base)
        if not rule.per_layer:
            top[rule.ours[0].removeprefix("model.")] = theirs
            continue
        top[_LAYERS], _, theirs = theirs.partition(".{i}.")
        for name in rule.ours:
            outer, _, leaf = name.removeprefix(_LAYER).partition(".")
            their_outer, _, their_leaf = theirs.partition(".")
            block[outer] = their_outer
            if leaf and len(rule.ours) == 1:
                inner[outer][leaf] = their_leaf
            elif leaf:
                fused[outer] = their_leaf
        if len(rule.ours) == 3:
            order = rule.order
    head = layout.aliases[0].theirs if layout.aliases else None
    matrices = fused["self_attn"], fused["mlp"]
    return TreeNames(base.rstrip("."), top, block, inner["self_attn"], inner["mlp"], matrices, order, head)


class Renamed(nn.Module):
    """Mixin of a module of the core whose children lie under other paths; their names in the core are aliases."""

    paths: ClassVar[Mapping[str, str]] = {}

    def __getattr__(self, name: str) -> Any:
        path = type(self).paths.get(name)
        if path is None or "_modules" not in self.__dict__:
            return super().__getattr__(name)
        found: nn.Module = self
        for part in path.split("."):
            found = found._modules[part]  # type: ignore[assignment]
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        path = type(self).paths.get(name)
        if path is None or not isinstance(value, nn.Module):
            super().__setattr__(name, value)
            return
        outer, _, leaf = path.rpartition(".")
        self.get_submodule(outer)._modules[leaf] = value

    def __reduce_ex__(self, protocol: object) -> Any:
        """Name the class by what it was made of, for copies, pickles and other processes."""
        cls = type(self)
        return _blank, (cls.__name__, *cls.__bases__, tuple(cls.paths.items())), self.__dict__


class PublishedBody(Renamed):
    """The transformer; the core calls it, and people should call the model."""

    pre_seq_len: ClassVar[None] = None  # scripts take so many off a cache's length; here a prefix is never in a cache

    def forward(self, *arguments: Any, **options: Any) -> Tensor:
        if len(arguments) < 3 or not hasattr(arguments[2], "attend"):
            raise RequestError(
                "the body alone is not called in glmkit: masks and positions are made by the model",
                step="call the model itself, with output_hidden_states=True for its hidden states",
            )
        return super().forward(*arguments, **options)  # type: ignore[no-any-return]


class PublishedBlock(Renamed):
    """A block, with recomputation in backward passes as transformers switches it on."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def forward(self, x_BTH: Tensor, plan: Any = None, *rest: Any) -> Tensor:
        if not hasattr(plan, "attend"):
            raise RequestError(
                "a block called by hand would need masks and positions of glmkit's own",
                step="call the model; to export a whole model use glm export",
            )
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(super().forward, x_BTH, plan, *rest)
        return super().forward(x_BTH, plan, *rest)  # type: ignore[no-any-return]

    def register_forward_hook(self, hook: Any, **options: Any) -> Any:
        """Warn that the output has another form than that of the published code."""
        message = "hooks on a block get (B,T,H) hidden states, not a tuple of (T,B,H) states and past keys"
        warnings.warn(message, UnreadWarning, stacklevel=2)
        return super().register_forward_hook(hook, **options)


class PublishedAttention(Renamed):
    """Attention whose queries, keys and values come out of one matrix (`fused`), head by head or side by side."""

    fused: str
    by_heads: bool
    widths: tuple[int, int, int]
    head_dim: int

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.widths[1] // self.head_dim

    def queries_keys_values(self, x_BTH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B,T,N,D) and twice (B,T,K,D)."""
        joined: Tensor = getattr(self, self.fused)(x_BTH)
        if self.by_heads:
            parts = torch.split(torch.unflatten(joined, -1, (-1, 3 * self.head_dim)), self.head_dim, -1)
        else:
            parts = tuple(
                torch.unflatten(own, -1, (-1, self.head_dim)) for own in torch.split(joined, list(self.widths), -1)
            )
        # Contiguous as the outputs of three layers are: some operations take other ways for strided inputs.
        q_BTND, k_BTKD, v_BTKD = (own.contiguous() for own in parts)
        return q_BTND, k_BTKD, v_BTKD


class PublishedMLP(Renamed):
    """A gated MLP whose gate and inner states come out of one matrix."""

    fused: str

    def gate_and_up(self, x_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """(B,T,F) twice."""
        gate_BTF, up_BTF = getattr(self, self.fused)(x_BTH).chunk(2, -1)
        return gate_BTF.contiguous(), up_BTF.contiguous()


def _class(title: str, mixin: type, own: type, paths: tuple[tuple[str, str], ...]) -> Any:
    """The same class for the same parts."""
    key = title, mixin, own, paths
    if key not in _CLASSES:
        _CLASSES[key] = type(title, (mixin, own), {"paths": dict(paths), "__module__": __name__})
    return _CLASSES[key]


def _blank(title: str, mixin: type, own: type, paths: tuple[tuple[str, str], ...]) -> Any:
    cls = _class(title, mixin, own, paths)
    return object.__new__(cls)


def _rename(module: nn.Module, title: str, mixin: type, paths: Mapping[str, str]) -> None:
    """Move the children to their paths and give the module the class that knows them."""
    moved = {name: path for name, path in paths.items() if name != path}
    children = dict(module._modules)
    module._modules.clear()
    for name, child in children.items():
        *outer, leaf = moved.get(name, name).split(".")
        at = module
        for part in outer:
            if part not in at._modules:
                at._modules[part] = nn.Module()
            at = at._modules[part]  # type: ignore[assignment]
        at._modules[leaf] = child
    module.__class__ = _class(title, mixin, type(module), tuple(moved.items()))


def publish(core: GLM, layout: Layout) -> TreeNames:
    """Turn a model of the core, in its place, into the published tree; its head is left to the caller."""
    names, remote = tree_names(layout), layout.remote or RemoteCode(block="")
    own = layout.remote is None
    for block in core.model.layers:
        assert isinstance(block, PreNormBlock)
        attention, mlp = block.self_attn, block.mlp
        if names.fused[0]:
            _fuse(attention, ("q_proj", "k_proj", "v_proj"), names.fused[0], names.order)
        if names.fused[1]:
            _fuse(mlp, ("gate_proj", "up_proj"), names.fused[1])
        if not own:
            _rename(attention, remote.attention, PublishedAttention if names.fused[0] else Renamed, names.attention)
            _rename(mlp, remote.mlp, PublishedMLP if names.fused[1] else Renamed, names.mlp)
        _rename(block, remote.block or type(block).__name__, PublishedBlock, {} if own else names.block)
    title = type(core.model).__name__ if own else remote.body
    _rename(core.model, title, PublishedBody, {} if own else names.top)
    return names


@torch.no_grad()
def _fuse(module: Any, parts: Sequence[str], name: str, order: Order = "concat") -> None:
    """Replace linear layers by the one that they are parts of, in the first one's place."""
    layers = [module._modules[part] for part in parts]
    rows = [layer.weight.shape[0] for layer in layers]
    bias = layers[0].bias is not None
    fused = nn.Linear(layers[0].in_features, sum(rows), bias=bias, device="meta", dtype=layers[0].weight.dtype)
    if not layers[0].weight.is_meta:
        for parameter in ("weight", "bias") if bias else ("weight",):
            values = [getattr(layer, parameter) for layer in layers]
            joined = by_head(values, module.head_dim) if order == "heads" else torch.cat(values)
            setattr(fused, parameter, nn.Parameter(joined))
    children = {name: fused, **{key: child for key, child in module._modules.items() if key not in parts}}
    module._modules.clear()
    module._modules.update(children)
    module.fused, module.by_heads, module.widths = name, order == "heads", tuple(rows)
