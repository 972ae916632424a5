"""Blanks in held-out text: where a model has to say what was taken out.

Three kinds, each drawn uniformly and by seed alone:

- single: one token that is not special and not white space alone;
- multi: 2 to 6 consecutive tokens, Poisson(3) lengths as in training, neither end white space alone;
- identifier: one whole occurrence of a name in code (no keyword), whatever the number of its tokens. Its tokens must
  spell exactly the name, or the name and the one space before it, where the tokenizer joins that to words. Occurrences
  whose tokens cross the name's ends are left out and counted.

Every blank comes with a window of its document, the blank in the middle as far as the document's ends allow, and with
its two neighbours in the document, which is all that the count baselines see.
"""

import io
import keyword
import math
import random
import tokenize
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from glmkit.errors import DataError, TokenizerError
from glmkit.tokenizer.protocol import Tokenizer
from glmkit.tokenizer.trained import TrainedTokenizer


def identifiers(text: str) -> list[tuple[int, int]] | None:
    """Character spans [start, end) of every identifier in code, in order; None where `text` is not Python we can read.

    Keywords are left out (`match`, `case` and `type` count as identifiers, which they usually are), and so is
    everything inside comments, strings and, before Python 3.12, f-strings.
    """
    starts = [0]
    for line in io.StringIO(text):  # lines as `tokenize` counts them: "\n" alone ends one
        starts.append(starts[-1] + len(line))
    spans = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                start = starts[token.start[0] - 1] + token.start[1]
                spans.append((start, start + len(token.string)))
    except (tokenize.TokenError, SyntaxError):  # IndentationError is a SyntaxError
        return None
    return spans


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


def tokenize_texts(
    tokenizer: Tokenizer, named_texts: Sequence[tuple[str, str]], spelled: Sequence[bytes]
) -> list[Tokenized]:
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


Kind = Literal["single_token", "multi_token", "identifier"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MULTI_LENGTHS = (2, 3, 4, 5, 6)
MULTI_MEAN = 3.0  # of the Poisson law before it is cut to MULTI_LENGTHS
LONGEST_IDENTIFIER = 16  # tokens


@dataclass(frozen=True, slots=True)
class Blank:
    """One blank. `window[start:end] == truth` are the tokens taken out; the rest is what a model may see."""

    kind: Kind
    document: str
    window: tuple[int, ...]
    start: int
    end: int
    truth: tuple[int, ...]
    left: int  # the document's token before the blank; eos at its beginning
    right: int  # the one after it; eos at its end
    line: int  # of the first character, from 1
    span: tuple[int, int]  # characters [start, end) of the document's text


@dataclass(frozen=True)
class Drawn:
    """Blanks of one kind in the order they were drawn, of how many places, and the places that could not be used."""

    blanks: tuple[Blank, ...]
    places: int
    left_out: dict[str, int]  # reason -> count


def draw(
    documents: Sequence[Tokenized],
    kind: Kind,
    count: int,
    *,
    allowed: NDArray[np.bool_],
    spelled: Sequence[bytes],
    eos: int,
    window: int,
    seed: int = 0,
) -> Drawn:
    """Draw `count` different blanks of a kind.

    allowed: (V,) bool, tokens that a single blank can hold (`pieces.blankable`). spelled: `pieces.pieces`.
    window: tokens of document around and including the blank; shorter documents give shorter windows.
    Raises DataError when the documents have fewer places than `count`.
    """
    if window < LONGEST_IDENTIFIER + 2:
        raise DataError(f"a window of {window} tokens cannot hold every blank; use at least {LONGEST_IDENTIFIER + 2}")
    rng = random.Random(f"{seed}:{kind}")
    left_out: dict[str, int] = {}
    if kind == "single_token":
        places = _tokens(documents, allowed)
        chosen = [(d, s, s + 1) for d, s in _sample(places, count, kind, rng)]
    elif kind == "multi_token":
        places = _tokens(documents, allowed)
        chosen = _runs(documents, places, allowed, count, rng)
    else:
        spans = _identifiers(documents, spelled, left_out)
        places = np.array([(d, s) for d, s, _ in spans], dtype=np.int64).reshape(-1, 2)
        ends = {(d, s): e for d, s, e in spans}
        chosen = [(d, s, ends[d, s]) for d, s in _sample(places, count, kind, rng)]
    lines = [[i for i, letter in enumerate(document.text) if letter == "\n"] for document in documents]
    blanks = tuple(_blank(kind, documents[d], lines[d], s, e, window, eos) for d, s, e in chosen)
    return Drawn(blanks, len(places), left_out)


def _tokens(documents: Sequence[Tokenized], allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(places, 2): document number and token number of every token that may be a blank."""
    found = [np.flatnonzero(allowed[document.ids]) for document in documents]
    owner = np.repeat(np.arange(len(found)), [len(tokens) for tokens in found])
    return np.stack([owner, np.concatenate([np.zeros(0, np.int64), *found])], axis=1).astype(np.int64)


def _sample(places: NDArray[np.int64], count: int, kind: str, rng: random.Random) -> list[tuple[int, int]]:
    if count > len(places):
        raise DataError(f"{count} {kind} blanks asked for, but the text has {len(places)} places; ask for less")
    picked = places[rng.sample(range(len(places)), count)]
    return [(int(d), int(s)) for d, s in picked]


def _runs(
    documents: Sequence[Tokenized],
    places: NDArray[np.int64],
    allowed: NDArray[np.bool_],
    count: int,
    rng: random.Random,
) -> list[tuple[int, int, int]]:
    weights = [MULTI_MEAN**n / math.factorial(n) for n in MULTI_LENGTHS]
    chosen: dict[tuple[int, int], int] = {}
    for _ in range(50 * count if len(places) else 0):
        length = rng.choices(MULTI_LENGTHS, weights)[0]
        d, start = (int(number) for number in places[rng.randrange(len(places))])
        ids = documents[d].ids
        end = start + length
        if end <= len(ids) and allowed[ids[end - 1]] and (d, start) not in chosen:
            chosen[d, start] = end
            if len(chosen) == count:
                return [(d, start, end) for (d, start), end in chosen.items()]
    raise DataError(f"{count} multi_token blanks asked for, but only {len(chosen)} were found; ask for less")


def _identifiers(
    documents: Sequence[Tokenized], spelled: Sequence[bytes], left_out: dict[str, int]
) -> list[tuple[int, int, int]]:
    """(document, first token, end token) of every name whose tokens spell it."""
    left_out |= {"not_python": 0, "token_crosses_name": 0, "too_long": 0}
    result = []
    for number, document in enumerate(documents):
        spans = identifiers(document.text)
        if spans is None:
            left_out["not_python"] += 1
            continue
        starts = np.array([a for a, _ in spans], dtype=np.int64)
        ends = np.array([b for _, b in spans], dtype=np.int64)
        first = np.searchsorted(document.starts, starts, side="right") - 1  # the token that holds the first character
        after = np.searchsorted(document.ends, ends) + 1  # one past the token that holds the last
        for (a, b), s, e in zip(spans, first.tolist(), after.tolist(), strict=True):
            name = document.text[a:b].encode()
            spelling = b"".join([spelled[index] for index in document.ids[s:e]])
            if spelling not in (name, b" " + name):
                left_out["token_crosses_name"] += 1
            elif e - s > LONGEST_IDENTIFIER:
                left_out["too_long"] += 1
            else:
                result.append((number, s, e))
    return result


def _blank(kind: Kind, document: Tokenized, lines: list[int], start: int, end: int, window: int, eos: int) -> Blank:
    ids = document.ids
    first = max(0, min((start + end - window) // 2, len(ids) - window))
    shown = tuple(int(index) for index in ids[first : first + window])
    span = (int(document.starts[start]), int(document.ends[end - 1]))
    return Blank(
        kind=kind,
        document=document.name,
        window=shown,
        start=start - first,
        end=end - first,
        truth=shown[start - first : end - first],
        left=int(ids[start - 1]) if start else eos,
        right=int(ids[end]) if end < len(ids) else eos,
        line=bisect_right(lines, span[0] - 1) + 1,
        span=span,
    )
