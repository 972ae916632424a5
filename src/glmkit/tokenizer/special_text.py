"""Strings in a text that stand for one id, and the white space that belongs to them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Strip = Literal["none", "left", "both"]


@dataclass(frozen=True)
class Marker:
    """A string that stands for one id. strip: on which sides it swallows white space."""

    text: str
    id: int
    strip: Strip = "none"


class MarkerTable:
    """Cuts text at its markers. Where two could begin at one place, the longer is taken."""

    def __init__(self, markers: Iterable[Marker]) -> None:
        self.markers: Mapping[str, Marker] = {marker.text: marker for marker in markers}
        longest_first = sorted(self.markers, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if self.markers else None

    def split(self, text: str) -> tuple[list[str], list[int]]:
        """The n + 1 plain parts (any of them may be empty) around the n ids."""
        plain, found = self._cut(text)
        return plain, [self.markers[name].id for name in found]

    def without_space(self, text: str) -> str:
        """The text without the white space that its markers swallow."""
        plain, found = self._cut(text)
        return "".join(part for pair in zip(plain, [*found, ""], strict=True) for part in pair)

    def _cut(self, text: str) -> tuple[list[str], list[str]]:
        if self._pattern is None:
            return [text], []
        parts = self._pattern.split(text)
        plain, found = parts[0::2], parts[1::2]
        for i, name in enumerate(found):
            strip = self.markers[name].strip
            if strip != "none":
                plain[i] = plain[i].rstrip()
            if strip == "both":
                plain[i + 1] = plain[i + 1].lstrip()
        return plain, found
