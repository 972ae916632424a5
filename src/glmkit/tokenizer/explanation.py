"""The result of `explain`: tokens in order, printable as a table."""

import unicodedata
from dataclasses import dataclass
from typing import Literal

TokenKind = Literal["text", "byte", "special", "added"]


@dataclass(frozen=True)
class ExplainedToken:
    """One token of a text. token: its entry in the vocabulary; text: what decoding adds at this place.

    kind: "special" has a role in the model (mask, end), "added" is another string that was put behind the vocabulary,
    "byte" is less than a character (its text comes with the last byte), "text" is everything else.
    """

    id: int
    token: str
    text: str
    kind: TokenKind


class Explanation(list[ExplainedToken]):
    """The tokens in order; `print` shows them as a table."""

    def __str__(self) -> str:
        rows = [("#", "id", "kind", "token", "text")]
        rows += [(str(i), str(t.id), t.kind, _visible(t.token), _visible(t.text)) for i, t in enumerate(self)]
        widths = [max(_width(row[column]) for row in rows) for column in range(4)]
        lines = []
        for row in rows:
            cells = [
                " " * (width - _width(cell)) + cell if column < 2 else cell + " " * (width - _width(cell))
                for column, (cell, width) in enumerate(zip(row, widths, strict=False))
            ]
            lines.append("  ".join([*cells, row[4]]).rstrip())
        return "\n".join(lines)


def _visible(text: str) -> str:
    """Text on one line, with the spaces at its ends and control characters made visible."""
    text = "".join(repr(c)[1:-1] if c != " " and not c.isprintable() else c for c in text)
    inner = text.strip(" ")
    left = len(text) - len(text.lstrip(" ")) if inner else len(text)
    right = len(text) - left - len(inner)
    return "␣" * left + inner + "␣" * right


def _width(text: str) -> int:
    """Columns on a terminal: Chinese characters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)
