"""Ownership of the cache's blocks, as numbers alone; `model.paged` holds their content."""

from collections import OrderedDict
from collections.abc import Iterable


class BlockPool:
    """Blocks [first, first + count): free, idle (nobody's, but their content can be found again), or referenced.

    A block's content is named by a key (see `CachedSequence.chain`); a named block must not be written to.
    """

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count
        # Dictionaries as ordered sets: of free blocks the lowest comes first at the beginning, so that memory fills
        # from one end; of idle blocks the one that was used longest ago.
        self._free = dict.fromkeys(range(first + count - 1, first - 1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._references: dict[int, int] = {}
        self._by_key: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self.stale: set[int] = set()  # hold what an earlier owner wrote

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return len(self._free) + len(self._idle)

    def take(self) -> int | None:
        """A block of one's own; the content of an idle one is forgotten. None when every block is referenced."""
        if self._free:
            block, _ = self._free.popitem()
        elif self._idle:
            self.forget(next(iter(self._idle)))
            block, _ = self._free.popitem()
        else:
            return None
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more owner of a block that somebody has, or that is idle."""
        if block in self._idle:
            del self._idle[block]
            self._references[block] = 1
        else:
            self._references[block] += 1

    def is_shared(self, block: int) -> bool:
        """True when it has more than one owner."""
        return self._references[block] > 1

    def is_idle(self, block: int) -> bool:
        """True when it has no owner, and its content can still be found."""
        return block in self._idle

    def release(self, blocks: Iterable[int]) -> None:
        """Give up one's part of each. The last ones become the first to be taken again."""
        for block in reversed([*blocks]):
            left = self._references[block] - 1
            if left:
                self._references[block] = left
                continue
            del self._references[block]
            if block in self._keys:
                self._idle[block] = None
            else:
                self._free[block] = None
                self.stale.add(block)

    def find(self, key: bytes) -> int | None:
        """The block with that content."""
        return self._by_key.get(key)

    def name(self, block: int, key: bytes) -> bool:
        """Let a full block be found. False, and nothing happens, when another one with that content can be."""
        if self._by_key.setdefault(key, block) != block:
            return False
        self._keys[block] = key
        return True

    def forget(self, block: int) -> None:
        """Let its content not be found any more."""
        key = self._keys.pop(block, None)
        if key is not None:
            del self._by_key[key]
            if block in self._idle:
                del self._idle[block]
                self._free[block] = None
                self.stale.add(block)

    def check(self, tables: Iterable[Iterable[int]]) -> None:
        """Assert that every block is free, idle, or referenced exactly as often as these tables name it."""
        counted: dict[int, int] = {}
        for table in tables:
            for block in table:
                counted[block] = counted.get(block, 0) + 1
        assert counted == self._references, f"counted {counted}, noted {self._references}"
        parts = [*self._free, *self._idle, *self._references]
        assert sorted(parts) == [*range(self.first, self.first + self.count)], "every block has one state"
        assert {block: key for key, block in self._by_key.items()} == self._keys, "names are one to one"
        assert not self._free.keys() & self._keys.keys(), "free blocks have no content"
        assert set(self._idle) <= self._keys.keys(), "idle blocks can be found"
