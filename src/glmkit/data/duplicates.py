"""Exact duplicates among any number of documents, in eight bytes a document."""

import numpy as np
import numpy.typing as npt

_RECENT = 1 << 18


class SeenHashes:
    """A set of 64-bit hashes that only grows.

    New hashes gather in a Python set, then move into sorted arrays of doubling length, so that memory stays near eight
    bytes a hash. With n documents the chance that any two different ones share a hash is about n**2 / 2**65 (for a
    hundred million: 3 in 10,000).
    """

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._arrays: list[npt.NDArray[np.uint64]] = []  # longest first

    def add(self, value: int) -> bool:
        """Add a hash in [0, 2**64); True when it was there already."""
        if value in self._recent:
            return True
        key = np.uint64(value)
        for array in self._arrays:
            at = int(np.searchsorted(array, key))
            if at < len(array) and array[at] == key:
                return True
        self._recent.add(value)
        if len(self._recent) >= _RECENT:
            self._settle()
        return False

    def _settle(self) -> None:
        array = np.sort(np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent)))
        self._recent.clear()
        while self._arrays and len(self._arrays[-1]) <= len(array):
            array = np.sort(np.concatenate([self._arrays.pop(), array]), kind="stable")
        self._arrays.append(array)
