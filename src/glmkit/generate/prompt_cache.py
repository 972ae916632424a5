"""Keys and values kept between prompts, so that the next one only feeds what is new."""

from collections.abc import Sequence

from glmkit.errors import RequestError
from glmkit.model import GLM, KVCache


class PromptCache:
    """What a model remembers of the last prompt and its answer. For one model and one conversation at a time.

    A following prompt reuses the longest beginning that it shares with what is kept. Where a part A sees itself in both
    directions, all of it must be the same: one token more changes the keys and values of every other.
    """

    def __init__(self, model: GLM) -> None:
        self._model = model
        self._cache: KVCache | None = None
        self._ids: list[int] = []
        self._prefix = 0
        self._owner: object = None
        self.reused = 0  # tokens that the last prompt did not have to feed

    def clear(self) -> None:
        """Forget everything and free the memory; needed when the model's weights change."""
        self._cache, self._ids, self._owner = None, [], None

    def open(self, model: GLM, row: Sequence[int], prefix: int, capacity: int) -> tuple[KVCache, object]:
        """A cache with room for `capacity` tokens that holds a beginning of `row`, and a mark of who uses it now.

        prefix: tokens of part A. At least the last token of the row is left to be fed. Raises RequestError for another
        model, and what `KVCache` raises without memory.
        """
        if model is not self._model:
            raise RequestError("this cache was made for another model; make one with prompt_cache() of this one")
        cache, self._owner = self._cache, object()
        if cache is None:
            cache = KVCache(model.config, 1, capacity, dtype=model.dtype, device=model.device)
            self._ids = []
        # A call that was interrupted may have left one of the two behind the other.
        common = min(_common(row, self._ids), cache.length, len(row) - 1)
        if (prefix or self._prefix) and (prefix != self._prefix or common < prefix):
            common = 0
        cache.truncate(common)
        self._ids, self._prefix, self.reused = list(row[:common]), prefix, common
        try:
            cache.grow(capacity)
        except BaseException:
            self.clear()
            raise
        self._cache = cache
        return cache, self._owner

    def fed(self, owner: object, ids: Sequence[int]) -> None:
        """Note the ids that are fed next. Raises RequestError when another prompt has taken the cache."""
        if owner is not self._owner:
            raise RequestError("this cache went on to another prompt; give every open stream a cache of its own")
        self._ids += ids


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two rows share from their beginning on."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length
