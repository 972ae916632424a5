"""What each token spells, in bytes, and where each token of a text is."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from glmkit.errors import TokenizerError
from glmkit.tokenizer.base import Tokenizer


@dataclass(frozen=True, eq=False)
class Tokenized:
    """A named text as tokens: `ids` (n,) int64; token i spells the characters starts[i]..starts[i + 1], (n+1,) int64.

    A token boundary inside a character of several bytes counts as its start.
    """

    name: str
    text: str
    ids: NDArray[np.int64]
    starts: NDArray[np.int64]


def pieces(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes that each id adds to a text, (V,); empty for special tokens.

    Raises TokenizerError for a token that stands for part of a character and is named in no known way.
    """
    special = special_ids(tokenizer)
    anchor = tokenizer.encode("a")[-1]  # decoders may treat the first token of a text in their own way
    head = tokenizer.decode([anchor])
    result = []
    for index in range(tokenizer.vocab_size):
        if index in special:
            result.append(b"")
            continue
        text = tokenizer.decode([anchor, index]).removeprefix(head)
        result.append(_named_bytes(tokenizer.id_to_token(index)) if "\ufffd" in text else text.encode())
    return result


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
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(leads)])  # characters begun before each byte
        inside = np.append(~leads, False)[bounds]
        result.append(Tokenized(name, text, ids, before[bounds] - inside))
    return result


def _named_bytes(name: str) -> bytes:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):  # SentencePiece's byte fallback
        return bytes([int(name[3:5], 16)])
    if all(letter in _BYTE_OF_LETTER for letter in name):
        return bytes([_BYTE_OF_LETTER[letter] for letter in name])
    raise TokenizerError(f"token {name!r} spells part of a character; its bytes cannot be told")


def _byte_letters() -> dict[str, int]:
    """The byte each letter of a byte-level vocabulary stands for (`openai/gpt-2:src/encoder.py`)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(visible)]
    letters = {chr(byte): byte for byte in visible}
    return letters | {chr(0x100 + number): byte for number, byte in enumerate(others)}


_BYTE_OF_LETTER = _byte_letters()
