"""What each token spells, in bytes, and where each token of a text is."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from glmkit.errors import TokenizerError
from glmkit.tokenizer.base import Tokenizer
from glmkit.tokenizer.bpe import TrainedTokenizer


@dataclass(frozen=True, eq=False)
class Tokenized:
    """A named text as tokens: `ids` (n,) int64; token i spells the characters [starts[i], ends[i]), (n,) int64 each.

    Tokens that share a character of several bytes both count it.
    """

    name: str
    text: str
    ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


def pieces(tokenizer: TrainedTokenizer) -> list[bytes]:
    """The bytes that each id adds to a text, (V,); empty for special tokens."""
    special = special_ids(tokenizer)
    return [b"" if index in special else tokenizer.token_bytes(index) for index in range(tokenizer.vocab_size)]


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids of all special tokens."""
    return frozenset(index for index in asdict(tokenizer.special).values() if index is not None)


def blankable(spelled: Sequence[bytes]) -> NDArray[np.bool_]:
    """(V,) True for tokens that a blank can hold: not special and not white space alone."""
    # Undecodable bytes are part of a character, hence not white space.
    texts = (piece.decode(errors="replace") for piece in spelled)
    return np.array([bool(text) and not text.isspace() for text in texts])


def tokenize(tokenizer: Tokenizer, named_texts: Sequence[tuple[str, str]], spelled: Sequence[bytes]) -> list[Tokenized]:
    """Encode (name, text) pairs and find every token in its text; `spelled` is `pieces(tokenizer)`.

    Raises TokenizerError when the tokens of a text do not spell it, byte for byte.
    """
    lengths = np.array([len(piece) for piece in spelled], dtype=np.int64)
    result = []
    for (name, text), encoded in zip(named_texts, tokenizer.encode_batch([t for _, t in named_texts]), strict=True):
        raw = text.encode()
        if b"".join([spelled[index] for index in encoded]) != raw:
            raise TokenizerError(
                f"the tokens of {name} do not spell it byte for byte; use a tokenizer that does not normalise text"
            )
        ids = np.array(encoded, dtype=np.int64)
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[ids])])
        leads = (np.frombuffer(raw, np.uint8) & 0xC0) != 0x80  # bytes that begin a character
        begun = np.concatenate([np.zeros(1, np.int64), np.cumsum(leads)])[bounds]  # characters begun before each bound
        inside = np.append(~leads, False)[bounds]
        result.append(Tokenized(name, text, ids, (begun - inside)[:-1], begun[1:]))
    return result
