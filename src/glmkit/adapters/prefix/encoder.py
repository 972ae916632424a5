"""P-Tuning v2: learned keys and values in front of every layer's own.

Legend: P prefix length, L layers, K key/value heads, D head width, W = 2*L*K*D all keys and values of one position,
E width of the prefix table, M inner width of the projection.
"""

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from glmkit.adapters.adapter_files import check_numbers
from glmkit.config import GLMConfig
from glmkit.errors import CheckpointError, ConfigError

# Names inside the encoder, as published; `trans` is absent without a projection.
TABLE = "embedding.weight"
PROJECTION = ("trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias")


class PrefixEncoder(nn.Module):
    """A table (P,W), or a table (P,E) behind Linear(E,M), tanh, Linear(M,W); its output is every layer's prefix.

    Called without arguments it returns (keys, values), each a list over layers of (P,K,D): the row of width W is seen
    as (2L,K,D), and layer i takes item 2i as keys and 2i+1 as values (`THUDM/ChatGLM-6B:ptuning/`, remote code
    `PrefixEncoder` and `get_prompt`). Keys are not turned by rotary positions. Weights stay float32 whatever `.to`,
    `.half` or `.bfloat16` asks for; what is returned has the base's dtype, which those calls change.

    length P in positions; dropout is applied to the output in training, 0.1 in the published runs. The reference draws
    it per sample, this module once for the batch.
    """

    def __init__(
        self,
        config: GLMConfig,
        length: int,
        *,
        projection: bool = False,
        table_width: int | None = None,
        inner_width: int | None = None,
        dropout: float = 0.1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ConfigError(f"the prefix length is {length!r}; it must be a whole number of at least 1")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"prefix dropout is {dropout}; it must be in [0, 1)")
        self.num_layers, self.kv_heads, self.head_dim = config.num_layers, config.kv_heads, config.head_dim
        width = prefix_width(config)
        self.output_dtype = dtype
        self.drop = nn.Dropout(dropout)
        if projection:
            if table_width is None:  # published code: ChatGLM2's with its few heads of keys has a table of all of them
                table_width = config.hidden_size if config.kv_heads == config.num_heads else width
            inner_width = config.hidden_size if inner_width is None else inner_width
            self.embedding = nn.Embedding(length, table_width, dtype=torch.float32)
            self.trans: nn.Sequential | None = nn.Sequential(
                nn.Linear(table_width, inner_width, dtype=torch.float32),
                nn.Tanh(),
                nn.Linear(inner_width, width, dtype=torch.float32),
            )
        else:
            self.embedding = nn.Embedding(length, width, dtype=torch.float32)
            self.trans = None

    @property
    def length(self) -> int:
        """P."""
        return self.embedding.num_embeddings

    def forward(self) -> tuple[list[Tensor], list[Tensor]]:
        rows_PW = self.embedding.weight
        if self.trans is not None:
            rows_PW = self.trans(rows_PW)
        items = self.drop(rows_PW.to(self.output_dtype)).view(-1, 2 * self.num_layers, self.kv_heads, self.head_dim)
        slots_PKD = items.unbind(1)
        return list(slots_PKD[0::2]), list(slots_PKD[1::2])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the device (`.to` and its like call this), keep float32, and remember the dtype for the output."""
        self.output_dtype = fn(torch.empty(0, dtype=self.output_dtype, device=self.embedding.weight.device)).dtype

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if not moved.is_floating_point() or moved.dtype == tensor.dtype:
                return moved
            return tensor.to(moved.device, torch.promote_types(moved.dtype, torch.float32))

        return super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call, no-any-return]


def prefix_width(config: GLMConfig) -> int:
    """W: numbers that one prefix position has over all layers, keys and values."""
    return 2 * config.num_layers * config.kv_heads * config.head_dim


def build_encoder(
    tensors: Mapping[str, Tensor], config: GLMConfig, *, dropout: float = 0.1, dtype: torch.dtype, source: str
) -> PrefixEncoder:
    """An encoder that holds `tensors` (names as in TABLE and PROJECTION; any float dtype), shaped by them.

    Raises CheckpointError naming what is missing, unknown or does not fit the base, with both sizes.
    """
    known = (TABLE, *PROJECTION)
    for name in tensors:
        if name not in known:
            raise CheckpointError(f"{source}: {name} is no part of a prefix encoder; known: {', '.join(known)}")
    projected = any(name in tensors for name in PROJECTION)
    for name in known if projected else (TABLE,):
        check_numbers(source, tensors, name)
    if tensors[TABLE].dim() != 2 or not all(tensors[TABLE].shape):
        raise CheckpointError(f"{source}: {TABLE} has shape {tuple(tensors[TABLE].shape)}; it must be (length, width)")
    length, table_width = tensors[TABLE].shape
    inner_width = tensors[PROJECTION[0]].shape[0] if projected and tensors[PROJECTION[0]].dim() == 2 else 0
    width = prefix_width(config)
    found = tensors[PROJECTION[3]].numel() if projected else table_width
    if found != width:
        raise CheckpointError(
            f"{source}: the prefix has {found} numbers a position, this model needs 2 x {config.num_layers} layers x "
            f"{config.kv_heads} key/value heads x {config.head_dim} channels = {width}",
            step="load it on the base it was trained with",
        )
    expected: dict[str, tuple[int, ...]] = {TABLE: (length, table_width)}
    if projected:
        shapes = ((inner_width, table_width), (inner_width,), (width, inner_width), (width,))
        expected.update(zip(PROJECTION, shapes, strict=True))
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, the rest of the file asks for {shape}"
            )
    with torch.device("meta"):
        encoder = PrefixEncoder(
            config,
            length,
            projection=projected,
            table_width=table_width if projected else None,
            inner_width=inner_width if projected else None,
            dropout=dropout,
            dtype=dtype,
        )
    # `to` with copy: the encoder must not live on pages of the file, which may be closed or read-only.
    state = {name: tensors[name].to(torch.float32, copy=True).contiguous() for name in expected}
    encoder.load_state_dict(state, strict=True, assign=True)
    return encoder
