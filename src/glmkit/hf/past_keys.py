"""Caches of transformers under a pass of the core, and the cache that published code gives to scripts.

Legend: B batch, T new tokens, S tokens cached and new, P tokens of a tuned prefix, K heads of keys and values, D head
width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from glmkit.errors import RequestError
from glmkit.model import GLM
from glmkit.model.cache import KVCache

# The name by which outputs carry their cache: it changed in transformers 5.24.
CACHE_NAME = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
WRITTEN = "_glmkit_written"  # on a cache whose keys and values a model here computed


class PublishedCache(DynamicCache):  # type: ignore[misc]
    """A growing cache that can be asked as the tuples of the published code were.

    `cache[i]` is the pair of keys and values of layer i: (S,B,K,D) with `sequence_first`, else (B,K,S,D). An empty one
    is false.
    """

    def __init__(self, *, sequence_first: bool) -> None:
        super().__init__()
        self.sequence_first = sequence_first

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        own = self.layers[layer]
        if self.sequence_first:
            return own.keys.permute(2, 0, 1, 3), own.values.permute(2, 0, 1, 3)
        return own.keys, own.values

    def __bool__(self) -> bool:
        return bool(self.get_seq_length())


class PassCache(KVCache):
    """A cache of transformers for one pass of the core; the tuned prefix of the model stays in front of it, outside."""

    def __init__(self, cache: Cache, model: GLM, batch: int, new: int, real_BS: Tensor | None) -> None:
        """Look at what is cached. real_BS: False for padding among cached tokens and new ones."""
        self.wrapped = cache
        self.length = int(cache.get_seq_length())
        self._tuned_L = model.tuned_prefix()
        self.prefix = self._tuned_L[0][0].shape[0] if self._tuned_L else 0
        self._end = self.length + new
        if real_BS is None:
            real_BS = torch.ones(batch, self._end, dtype=torch.bool, device=model.device)
        self.visible_BS = real_BS

    def check_room(self, num_tokens: int) -> None:
        """Leave it to the cache of transformers, which grows or raises."""

    def seed(self, prefix_L: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Nothing to do: the prefix was taken from the model."""

    def write(self, layer: int, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values; (B,P+S,K,D) each, of a static cache the part that is filled."""
        k_BKSD, v_BKSD = self.wrapped.update(k_BTKD.transpose(1, 2), v_BTKD.transpose(1, 2), layer)
        pair = [own[:, :, : self._end].transpose(1, 2) for own in (k_BKSD, v_BKSD)]
        if self._tuned_L:
            batch = len(k_BTKD)
            pair = [
                torch.cat([own.to(x).expand(batch, -1, -1, -1), x], 1)
                for own, x in zip(self._tuned_L[layer], pair, strict=True)
            ]
        return pair[0], pair[1]

    def advance(self, real_BT: Tensor) -> None:
        """Count the tokens just written."""
        self.length = self._end
        setattr(self.wrapped, WRITTEN, True)


def one_cache(past_key_values: Any, cache: Any) -> Cache | None:
    """The cache of a call, which transformers before 5.24 names past_key_values. Raises RequestError for two or none.

    An empty tuple or list is no cache.
    """
    given = [each for each in (past_key_values, cache) if each is not None and each != ()]
    if len(given) == 2 and given[0] is not given[1]:
        raise RequestError(
            "past_key_values and cache are two different caches", step="give one of them", param="past_key_values"
        )
    if not given:
        return None
    if not isinstance(given[0], Cache):
        raise RequestError(
            f"past_key_values is a {type(given[0]).__name__}; caches are objects of transformers' Cache",
            step="give back what a call returned as past_key_values",
            param="past_key_values",
        )
    return given[0]
