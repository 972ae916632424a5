"""Showing how a text was cut: one line for each token."""

import re

from .base import IncrementalDecoder, Tokenizer
from .explanation import ExplainedToken, Explanation, TokenKind
from .streams import IdStream

_BYTES = re.compile(r"(?:<0x[0-9A-Fa-f]{2}>)+")


class Explainable:
    """Gives a tokenizer its method `explain`."""

    def explain(self: Tokenizer, text: str, *, specials: bool = True) -> Explanation:
        """The tokens of a text with what each stands for. specials: as in `encode`."""
        return explain(self, text, specials=specials)


def explain(tokenizer: Tokenizer, text: str, *, specials: bool = True) -> Explanation:
    """How `tokenizer.encode(text, specials=specials)` cuts a text. Raises TokenizerError as `encode` does."""
    ids = tokenizer.encode(text, specials=specials)
    texts = _texts(tokenizer, ids)
    return Explanation(
        ExplainedToken(index, tokenizer.id_to_token(index), piece, token_kind(tokenizer, index))
        for index, piece in zip(ids, texts, strict=True)
    )


def _texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """What each id adds. A tokenizer whose decoding rewrites text offers a plain way with `plain_stream()`."""
    plain = getattr(tokenizer, "plain_stream", None)
    decoder = IncrementalDecoder(tokenizer, skip_specials=False)
    stream: IdStream | None = None if plain is None else plain()
    texts = [decoder.push(index) if stream is None else stream.feed((index,)) for index in ids]
    if texts:
        texts[-1] += decoder.flush() if stream is None else stream.finish()
    return texts


def token_kind(tokenizer: Tokenizer, index: int) -> TokenKind:
    """The kind of one id. A tokenizer may answer for itself with a method `kind_of(index)`."""
    own = getattr(tokenizer, "kind_of", None)
    if own is not None:
        answer: TokenKind = own(index)
        return answer
    if index in vars(tokenizer.special).values():
        return "special"
    return "byte" if _BYTES.fullmatch(tokenizer.id_to_token(index)) else "text"
