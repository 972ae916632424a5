"""Placement of blanks: lengths, positions, documents, sentences. Pure functions of their arguments and the rng.

A span is (start, end), end excluded, in tokens of the text. The ORDER OF RNG CALLS is part of the contract: with
`random.Random` the functions reproduce `THUDM/GLM:blocklm_utils.py` number for number.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .counter_rng import Rng

Span = tuple[int, int]

ASCII_MARKS = ".?!;:\n"
# The full-width colon is not among them. Source: `THUDM/GLM:blocklm_utils.py`.
CHINESE_MARKS = "。？！；…"
# The objective (sentence mode, shorter texts) always knows both; assembly of the published models knew ASCII only.
OBJECTIVE_MARKS = ASCII_MARKS + CHINESE_MARKS


class _Vocabulary(Protocol):
    @property
    def vocab_size(self) -> int: ...
    def id_to_token(self, index: int, /) -> str: ...
    def decode(self, ids: list[int], *, skip_specials: bool = True) -> str: ...


class LengthLaw:
    """Draws span lengths 1, 2, ... with the given relative weights: one rng.random() a length, none with `fixed`."""

    def __init__(self, weights: Sequence[float], *, fixed: int | None = None) -> None:
        self._cumulative = list(accumulate(weights))
        self._last = len(weights) - 1
        self._only = fixed

    def draw(self, rng: Rng) -> int:
        if self._only is not None:
            return self._only
        return bisect_right(self._cumulative, rng.random() * self._cumulative[-1], 0, self._last) + 1

    def draw_total(self, budget: int, rng: Rng) -> list[int]:
        """Lengths until their sum reaches `budget` (it may overshoot; none for a budget of 0)."""
        if self._only is not None:
            return [self._only] * -(-budget // self._only)
        cumulative, last, random = self._cumulative, self._last, rng.random
        scale = cumulative[-1]
        lengths, total = [], 0
        while total < budget:
            length = bisect_right(cumulative, random() * scale, 0, last) + 1
            lengths.append(length)
            total += length
        return lengths


def place(lengths: Sequence[int], total: int, rng: Rng, offset: int = 0) -> list[Span]:
    """Spans of these lengths, in this order, inside `total` tokens from `offset`, one token apart at least.

    The gaps are sorted uniform draws. Raises ValueError (from rng) when sum(lengths) + len(lengths) - 1 > total.
    """
    choices = total - sum(lengths) - len(lengths) + 2
    randrange = rng.randrange
    spans = []
    for gap, length in zip(sorted([randrange(choices) for _ in lengths]), lengths, strict=True):
        start = offset + gap
        spans.append((start, start + length))
        offset += length + 1
    return spans


def documents(tokens: NDArray[np.int64], eos: int, cls: int | None) -> list[tuple[int, int]]:
    """(offset, length) of each document of a text, shortest first, without its [CLS] and eos.

    Of equals the later one comes first. A text that does not end in eos gives up its last token as if it were one, and
    one that does has an empty document behind it (both as in the reference; neither can hold a span).
    """
    found = []
    last = size = len(tokens)
    for index in [*(tokens == eos).nonzero()[0][::-1].tolist(), -1]:
        start = index + 1
        if start < size and cls is not None and tokens[start] == cls:
            start += 1
        length = last - start
        found.append((start, length - 1 if last == size and length > 0 else length))
        last = index
    found.sort(key=lambda document: document[1])
    return found


def spans_in_documents(lengths: list[int], parts: Sequence[tuple[int, int]], ratio: float, rng: Rng) -> list[Span]:
    """Share the lengths among the documents (`documents`), then place them. Shuffles `lengths` first.

    Each document but the longest takes from the list while its own sum stays within int(ratio * length); the longest
    takes what is left while it fits with one token between. Fewer spans than lengths come back when they do not fit:
    the caller drops the text.
    """
    rng.shuffle(lengths)
    spans: list[Span] = []
    taken = 0
    for number, (offset, length) in enumerate(parts, start=1):
        budget = length if number == len(parts) else int(length * ratio)
        first, total = taken, 0
        while taken < len(lengths):
            total += lengths[taken]
            if total > budget or total + taken - first > length:
                break
            taken += 1
        if taken > first:
            spans += place(lengths[first:taken], length, rng, offset)
    return spans


def extents(tokens: NDArray[np.int64], eos: int, cls: int | None) -> list[Span]:
    """(start, end) of the words of each document of a text, in order: without [CLS] and eos, none without words."""
    found, start, size = [], 0, len(tokens)
    for end in [*(tokens == eos).nonzero()[0].tolist(), size]:
        while start < end and cls is not None and tokens[start] == cls:
            start += 1
        if start < end:
            found.append((start, end))
        start = end + 1
    return found


def spread_spans(lengths: Sequence[int], parts: Sequence[Span], rng: Rng) -> list[Span]:
    """Spans of these lengths over all documents (`extents`); a document's expected share of them is that of its words.

    The spans lie end to end on a circle turned by one rng.random(); the documents lie on it too, each as wide as its
    words or the span, whichever is more. The document under the middle of a span takes it, cut to the room that is
    left there; the rest of a cut span is dealt out again. Fewer tokens than asked for come out only when every document
    is full.
    """
    sizes = [end - start for start, end in parts]
    room, taken = list(sizes), [list[int]() for _ in parts]
    waiting = list(lengths)
    while waiting and (open_parts := [part for part, left in enumerate(room) if left > 0]):
        total, place_on_circle, rest = sum(waiting), rng.random(), list[int]()
        edges: dict[int, list[int]] = {}
        at = 0.0
        for length in waiting:
            point = (place_on_circle + (at + length / 2) / total) % 1.0
            at += length
            if length not in edges:
                edges[length] = list(accumulate(max(length, sizes[part]) for part in open_parts))
            bounds = edges[length]
            part = open_parts[bisect_right(bounds, point * bounds[-1], 0, len(bounds) - 1)]
            size = max(0, min(length, room[part]))
            if size:
                taken[part].append(size)
                room[part] -= size + 1
            if size < length:
                rest.append(length - size)
        waiting = rest
    spans: list[Span] = []
    for (start, _), size, own in zip(parts, sizes, taken, strict=True):
        if own:
            spans += place(own, size, rng, start)
    return spans


def sentence_end_table(tokenizer: _Vocabulary, *, chinese: bool = True) -> NDArray[np.bool_]:
    """(V,) bool: True where a token contains one of `. ? ! ; :`, a newline or (chinese) `。 ？ ！ ； …`.

    A substring test on the token's text, as in the reference. The vocabulary's own spelling is looked at too, but it
    is not enough alone: a byte-level BPE spells a newline as another symbol and a Chinese mark as three, and byte
    fallback writes <0x0A>; the decoded text shows the mark. Special tokens decode to nothing and never end a sentence.
    A mark that the vocabulary splits over several tokens is not found.
    """
    marks = set(OBJECTIVE_MARKS if chinese else ASCII_MARKS)
    table = np.zeros(tokenizer.vocab_size, np.bool_)
    for index in range(tokenizer.vocab_size):
        text = tokenizer.decode([index])
        if text and not (marks.isdisjoint(text) and marks.isdisjoint(tokenizer.id_to_token(index))):
            table[index] = True
    return table


def sentences(ends: NDArray[np.bool_], is_eos: NDArray[np.bool_], start: int) -> list[Span]:
    """Sentences of a text from token `start`: each ends with a token that carries a mark; the rest at the end is one.

    ends, is_eos (n,) bool per token. An eos closes a document and belongs to no sentence; words between the last mark
    and an eos belong to none either (as in `THUDM/GLM:blocklm_utils.py`).
    """
    spans = []
    last = start
    for index in (ends | is_eos).nonzero()[0].tolist():
        if ends[index] and last <= index:
            spans.append((last, index + 1))
        last = index + 1
    if last < len(ends):
        spans.append((last, len(ends)))
    return spans


def sentences_in_documents(parts: Sequence[Span], ends: NDArray[np.bool_]) -> list[Span]:
    """Sentences of every document (`extents`) alone; words behind its last mark are one too. ends (n,) bool."""
    spans = []
    for first, last in parts:
        own = ends[first:last]
        spans += [(first + start, first + end) for start, end in sentences(own, np.zeros_like(own), 0)]
    return spans


def second_texts(parts: Sequence[tuple[int, int]], ends: NDArray[np.bool_]) -> list[Span]:
    """The second half of every document: from the sentence end nearest its middle (the middle without one) to its end.

    parts as `documents` gives them; documents of fewer than two tokens have no second text.
    """
    spans = []
    for offset, length in parts:
        if length < 2:
            continue
        marks = ends[offset : offset + length - 1].nonzero()[0] + 1
        middle = length // 2
        split = int(marks[np.abs(marks - length / 2).argmin()]) if len(marks) else middle
        spans.append((offset + split, offset + length))
    return sorted(spans)


def context_candidates(spans: Sequence[Span], size: int, reach: int) -> list[int]:
    """Places in part A, ascending, within `reach` tokens of a mask or of the end of the text.

    spans in source order, size the text's length. That the end of the text counts like a mask is the reference's doing.
    """
    found: set[int] = set()
    column, last = 0, 0
    for start, end in [*spans, (size, size)]:
        stop = column + start - last
        if column:
            found.update(range(column, min(stop, column + reach)))
        if stop:
            found.update(range(max(column, stop - reach), stop))
        column, last = stop + 1, end
    return sorted(found)


def shorter_text(good_end: NDArray[np.bool_], is_eos: NDArray[np.bool_], target: int, rng: Rng) -> Span:
    """A stretch of about `target` tokens from sentence start to sentence end: one rng.randrange.

    good_end (n,): the token carries a sentence mark or is eos. The start moves left to a sentence start (or 0), the end
    left to a sentence end, unless fewer than target // 2 tokens would stay.
    """
    start = rng.randrange(0, len(good_end) - target)
    starts = (good_end[:start] & ~is_eos[1 : start + 1]).nonzero()[0]
    start = int(starts[-1]) + 1 if len(starts) else 0
    ends = good_end[start : start + target].nonzero()[0]
    length = int(ends[-1]) + 1 if len(ends) else 0
    return start, start + (length if length >= target // 2 else target)
