"""Keys and values of tokens already seen.

Legend: B batch, S slots, T new tokens, N heads, D head width.
"""

import torch
from torch import Tensor

from glmkit.config import GLMConfig
from glmkit.errors import RequestError


class KVCache:
    """A contiguous cache of fixed capacity: (B,S,N,D) keys and values per layer, and which slots hold real tokens.

    GLM's reference caches hidden states and recomputes keys from them; caching keys and values gives the same
    numbers up to rounding (`THUDM/GLM:model/modeling_glm.py`, "mems").
    """

    def __init__(
        self, config: GLMConfig, batch: int, capacity: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (batch, capacity, config.num_heads, config.head_dim)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.visible_BS = torch.zeros(batch, capacity, dtype=torch.bool, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.visible_BS.shape[1]

    def check_room(self, num_tokens: int) -> None:
        """Raise RequestError when `num_tokens` more do not fit."""
        if self.length + num_tokens > self.capacity:
            raise RequestError(
                f"{self.length} cached tokens and {num_tokens} new ones exceed the cache's {self.capacity} slots; "
                f"allocate at least {self.length + num_tokens}"
            )

    def write(self, layer: int, k_BTND: Tensor, v_BTND: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; returns that layer's whole (B,S',N,D) views, S' = length + T."""
        end = self.length + k_BTND.shape[1]
        self.keys[layer][:, self.length : end] = k_BTND
        self.values[layer][:, self.length : end] = v_BTND
        return self.keys[layer][:, :end], self.values[layer][:, :end]

    def advance(self, real_BT: Tensor) -> None:
        """Count the T tokens just written; `real_BT` False marks padding that nobody may look at."""
        end = self.length + real_BT.shape[1]
        self.visible_BS[:, self.length : end] = real_BT
        self.length = end

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` slots."""
        if not 0 <= length <= self.length:
            raise RequestError(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) batch rows by index, in the given order."""
        self.keys = [k.index_select(0, rows) for k in self.keys]
        self.values = [v.index_select(0, rows) for v in self.values]
        self.visible_BS = self.visible_BS.index_select(0, rows)
