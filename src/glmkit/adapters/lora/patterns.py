"""Names of modules in `rank_pattern` and `alpha_pattern`, without regular expressions: those of a stranger may hang.

PEFT reads such a key as a regular expression for the end of a name, from one of its dots on
(`peft/utils/other.py:get_pattern_key`). What occurs is read the same way: names, dots, `\\d+` or `[0-9]+`, groups of
alternatives, `.*`, `^` and `$`. The time to match grows with the pattern's length times the name's.
"""

import re
from dataclasses import dataclass

from glmkit.errors import CheckpointError, shorten

_LONGEST = 500  # characters
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_DOT = re.compile(r"\\\.|\.(?![*+?{])")
_DIGITS = re.compile(r"(?:\\d|\[0-9\])\+")
_ALL = re.compile(r"\.\*(?![*+?{])")
_NUMBER, _ANY = "#", "*"  # stand for digits and for anything among the pieces of a pattern, and are in no name

# A piece is a text, digits or anything; alternatives are rows of pieces; a pattern is a row of groups of alternatives.
Group = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class NamePattern:
    """A pattern for the end of a module's name; one of its choices matches.

    It begins at the first character or behind a dot; whole: at the first only.
    """

    choices: tuple[tuple[Group, ...], ...]
    whole: bool = False
    literal: str = ""  # a single choice that is a text

    def matches(self, name: str) -> bool:
        """True when the pattern is the end of a name."""
        if self.literal:
            return name == self.literal or (not self.whole and name.endswith(f".{self.literal}"))
        starts = {0}
        if not self.whole:
            starts |= {place + 1 for place, character in enumerate(name) if character == "."}
        return any(len(name) in _ends(choice, name, starts) for choice in self.choices)


def _ends(groups: tuple[Group, ...], name: str, starts: set[int]) -> set[int]:
    """Places where the groups, one behind the other from any of `starts` on, can end."""
    for group in groups:
        found: set[int] = set()
        for pieces in group:
            places = starts
            for piece in pieces:
                places = _piece_ends(piece, name, places)
            found |= places
        starts = found
    return starts


def _piece_ends(piece: str, name: str, starts: set[int]) -> set[int]:
    if piece not in (_NUMBER, _ANY):
        return {start + len(piece) for start in starts if name.startswith(piece, start)}
    if piece == _ANY:
        return set(range(min(starts), len(name) + 1)) if starts else set()
    ends, inside = set[int](), False
    for place, character in enumerate(name):
        inside = (inside or place in starts) and character in "0123456789"
        if inside:
            ends.add(place + 1)
    return ends


def parse_pattern(text: str, source: str) -> NamePattern:
    """Read a pattern. Raises CheckpointError, beginning with `source`, for one that is more than described above."""
    reader = _Reader(text)
    pattern = reader.pattern() if len(text) <= _LONGEST else None
    if pattern is None:
        where = f" from character {reader.at + 1} on" if reader.at else ""
        raise CheckpointError(
            f"{source} {shorten(repr(text))} is not read{where}; names, dots, .*, \\d+ and simple groups are",
            step="write the names out in it",
        )
    return pattern


class _Reader:
    """One pattern, read from the left up to `at`."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def pattern(self) -> NamePattern | None:
        """The pattern, None for a text that is none."""
        whole = self._take("^")
        choices = [self._groups()]
        while self._take("|"):
            choices.append(self._groups())
        self._take("$")
        several = len(choices) > 1
        if self.at < len(self.text) or not all(choices) or (several and whole):
            return None
        pieces = [group[0] for group in choices[0] if len(group) == 1]
        literal = "".join(piece for row in pieces for piece in row)
        plain = not several and len(pieces) == len(choices[0]) and not {_NUMBER, _ANY} & set(literal)
        return NamePattern(tuple(choices), whole, literal if plain else "")

    def _groups(self) -> tuple[Group, ...]:
        groups: list[Group] = []
        while True:
            start = self.at
            if self._take("("):
                self._take("?:")
                group = [self._pieces()]
                while self._take("|"):
                    group.append(self._pieces())
                if not self._take(")"):
                    return ()
                groups.append(tuple(group))
            elif pieces := self._pieces():
                groups.append((pieces,))
            if self.at == start:
                return tuple(groups)

    def _pieces(self) -> tuple[str, ...]:
        pieces: list[str] = []
        while True:
            if found := _DIGITS.match(self.text, self.at):
                pieces.append(_NUMBER)
            elif found := _ALL.match(self.text, self.at):
                pieces.append(_ANY)
            elif found := _DOT.match(self.text, self.at):
                pieces.append(".")
            elif found := _NAME.match(self.text, self.at):
                pieces.append(found[0])
            else:
                return tuple(pieces)
            self.at = found.end()

    def _take(self, mark: str) -> bool:
        found = self.text.startswith(mark, self.at)
        self.at += len(mark) * found
        return found
