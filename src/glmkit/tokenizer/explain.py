"""Tables of tokens: how a text was cut, one line for each token."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from glmkit.config import SpecialIds

from .incremental import IncrementalDecoder
from .text_model import IdStream

_BYTES = re.compile(r"(?:<0x[0-9A-Fa-f]{2}>)+")
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


class Explained(Protocol):
    """The parts of a `Tokenizer` that an explanation needs."""

    @property
    def special(self) -> SpecialIds: ...
    def encode(self, text: str, *, specials: bool = False) -> list[int]: ...
    def decode(self, ids: Sequence[int], *, skip_specials: bool = True) -> str: ...
    def id_to_token(self, index: int) -> str: ...


class Explainable:
    """Gives a tokenizer its method `explain`."""

    def explain(self: Explained, text: str, *, specials: bool = True) -> Explanation:
        """The tokens of a text with what each stands for. specials, and errors: as in `encode`."""
        ids = self.encode(text, specials=specials)
        return Explanation(
            ExplainedToken(index, self.id_to_token(index), piece, token_kind(self, index))
            for index, piece in zip(ids, _texts(self, ids), strict=True)
        )


def _texts(tokenizer: Explained, ids: list[int]) -> list[str]:
    """The text that each id adds. A tokenizer whose decoding rewrites text offers a plain way with `plain_stream()`."""
    plain = getattr(tokenizer, "plain_stream", None)
    decoder = IncrementalDecoder(tokenizer, skip_specials=False)
    stream: IdStream | None = None if plain is None else plain()
    texts = [decoder.push(index) if stream is None else stream.feed((index,)) for index in ids]
    if texts:
        texts[-1] += decoder.flush() if stream is None else stream.finish()
    return texts


def token_kind(tokenizer: Explained, index: int) -> TokenKind:
    """The kind of one id. A tokenizer may answer for itself with a method `kind_of(index)`."""
    own = getattr(tokenizer, "kind_of", None)
    if own is not None:
        answer: TokenKind = own(index)
        return answer
    if index in vars(tokenizer.special).values():
        return "special"
    return "byte" if _BYTES.fullmatch(tokenizer.id_to_token(index)) else "text"


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
