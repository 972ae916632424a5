"""Keys and values of tokens already seen.

Legend: B batch, P prefix slots, S token slots, T new tokens, K heads of keys and values, D head width, L layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from glmkit.config import GLMConfig
from glmkit.errors import RequestError


class KVCache:
    """A contiguous cache of fixed capacity: (B,P+S,K,D) keys and values per layer, and which slots hold real tokens.

    The first `prefix` slots hold a tuned prefix (see `GLM.prefix`): always visible, counted neither in `length` nor in
    `capacity`. GLM's reference caches hidden states and recomputes keys from them; caching keys and values gives the
    same numbers up to rounding (`THUDM/GLM:model/modeling_glm.py`, "mems").
    """

    def __init__(
        self,
        config: GLMConfig,
        batch: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        kv_heads: int | None = None,
    ) -> None:
        """kv_heads: of a shard of the model (`GLM.kv_heads`); None for all of `config`."""
        self._layers, self._heads = config.num_layers, (kv_heads or config.kv_heads, config.head_dim)
        self._dtype, self._device = dtype, device
        self.visible_BS = torch.zeros(batch, capacity, dtype=torch.bool, device=device)
        self.length = 0
        self._allocate(0)

    def _allocate(self, prefix: int) -> None:
        batch, capacity = self.visible_BS.shape
        shape = (batch, prefix + capacity, *self._heads)
        self.prefix = prefix
        self.keys, self.values = (
            [torch.empty(shape, dtype=self._dtype, device=self._device) for _ in range(self._layers)] for _ in range(2)
        )

    @property
    def capacity(self) -> int:
        """Slots for tokens."""
        return self.visible_BS.shape[1]

    def check_room(self, num_tokens: int) -> None:
        """Raise RequestError when `num_tokens` more do not fit."""
        if self.length + num_tokens > self.capacity:
            raise RequestError(
                f"{self.length} cached tokens and {num_tokens} new ones exceed the cache's {self.capacity} slots; "
                f"allocate at least {self.length + num_tokens}"
            )

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` tokens in all; what is cached stays."""
        if capacity <= self.capacity:
            return
        keys, values, visible_BS = self.keys, self.values, self.visible_BS
        used = self.prefix + self.length
        self.visible_BS = torch.zeros(len(visible_BS), capacity, dtype=torch.bool, device=self._device)
        self.visible_BS[:, : self.length] = visible_BS[:, : self.length]
        self._allocate(self.prefix)
        for new, old in zip([*self.keys, *self.values], [*keys, *values], strict=True):
            new[:, :used] = old[:, :used]

    def seed(self, prefix_L: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Put a prefix, (P,K,D) keys and values per layer, or none, in front of an empty cache."""
        assert self.length == 0, "a prefix comes before the tokens"
        size = prefix_L[0][0].shape[0] if prefix_L else 0
        if size != self.prefix:
            self._allocate(size)
        for layer, (keys_PKD, values_PKD) in enumerate(prefix_L):
            self.keys[layer][:, :size] = keys_PKD.detach()
            self.values[layer][:, :size] = values_PKD.detach()

    def write(self, layer: int, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; returns that layer's whole (B,S',K,D) views, S' = P + length + T."""
        start = self.prefix + self.length
        end = start + k_BTKD.shape[1]
        self.keys[layer][:, start:end] = k_BTKD
        self.values[layer][:, start:end] = v_BTKD
        return self.keys[layer][:, :end], self.values[layer][:, :end]

    def advance(self, real_BT: Tensor) -> None:
        """Count the T tokens just written; `real_BT` False marks padding that nobody may look at."""
        end = self.length + real_BT.shape[1]
        self.visible_BS[:, self.length : end] = real_BT
        self.length = end

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise RequestError(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length
