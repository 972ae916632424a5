"""Learning the pieces of a unigram tokenizer from word counts.

The method of Kudo, "Subword Regularization" (2018), section 3.2, with the pruning rule of SentencePiece: start from
frequent substrings, alternate expectation-maximisation with dropping the pieces whose loss hurts the likelihood least.
It is written on flat arrays and every tie is broken by position, so that equal counts give equal pieces, bit for bit;
the trainer of the `tokenizers` library walks hash maps in random order and does not.
"""

import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
AnyInts = npt.NDArray[np.int64] | npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

MAX_PIECE_LENGTH = 16  # characters
CHARACTER_COVERAGE = 0.9995  # rarer characters are left to the byte pieces
MAX_CHARACTERS = 4_000_000  # of distinct words; the rarest words beyond that are not learnt from

_MAX_WORD_LENGTH = 48  # longer words are cut, so that path probabilities stay far from the smallest float
_SHRINK = 0.75  # share of the pieces that outlives one round
_OVERSHOOT = 1.1  # rounds stop at this many times the target; the last cut is exact
_MIN_COUNT = 0.01  # expected count that a piece is granted at least, so that its score is finite


def learn_pieces(counts: Mapping[str, int], target: int) -> list[tuple[str, float]]:
    """Up to `target` pieces with their log-probabilities, most probable first.

    `counts` maps words to how often they occur. At most half of the pieces are single characters; fewer than `target`
    pieces come back when the text has no more repeated substrings.
    """
    corpus = _Corpus(counts, max_symbols=target // 2)
    if target < 1 or not corpus.symbols:
        return []
    pieces, text = corpus.seeds(8 * target + 20_000)
    spelling = corpus.spelling(pieces)
    frequency = pieces.frequency
    while True:
        scores = _normalise(frequency)
        for _ in range(2):
            frequency = text.expected_counts(np.exp(scores), len(scores))
            scores = _normalise(frequency)
        size = len(scores)
        if size <= target:
            break
        keep = target if size <= int(target * _OVERSHOOT) else max(int(target * _OVERSHOOT), int(size * _SHRINK))
        # Lost likelihood when each occurrence is spelled with other pieces; single characters cannot go.
        loss = frequency * (scores - spelling.best_scores(scores))
        loss[pieces.length == 1] = math.inf
        kept = np.sort(np.argsort(-loss, kind="stable")[:keep])
        renumber = np.full(size, -1, dtype=np.int64)
        renumber[kept] = np.arange(len(kept))
        pieces, frequency = pieces.select(kept), frequency[kept]
        text = text.renumbered(renumber)
        spelling = spelling.select_words(kept).renumbered(renumber)
    texts = corpus.texts(pieces)
    ranked = sorted(zip(texts, np.round(scores, 6).tolist(), strict=True), key=lambda item: (-item[1], item[0]))
    return [(piece, float(score)) for piece, score in ranked]


def _normalise(frequency: Floats) -> Floats:
    """Log-probabilities of expected counts; half a count less is a sparse prior (exp(digamma(c)) is about c - 1/2)."""
    weight = np.maximum(frequency - 0.5, _MIN_COUNT)
    scores: Floats = np.log(weight) - math.log(float(weight.sum()))
    return scores


class _Pieces:
    """Parallel arrays over pieces: where one occurrence starts in the corpus, its length, its count."""

    def __init__(self, start: Ints, length: Ints, frequency: Floats) -> None:
        self.start, self.length, self.frequency = start, length, frequency

    def select(self, kept: Ints) -> "_Pieces":
        return _Pieces(self.start[kept], self.length[kept], self.frequency[kept])


class _Lattice:
    """All ways to spell some words with pieces.

    Words lie back to back in one array of nodes, L + 1 nodes for a word of L characters. An edge goes from node `start`
    to node `start + length` and carries a piece. Edges are sorted by (position of their end in the word, length):
    within one such group no node is an end twice, nor a start twice, so a group is one vector operation.
    """

    def __init__(
        self, first: Ints, last: Ints, weight: Floats, start: AnyInts, length: AnyInts, piece: AnyInts
    ) -> None:
        self.first, self.last, self.weight = first, last, weight  # of each word: its outer nodes and its count
        self.num_nodes = int(last[-1]) + 1 if len(last) else 0
        self.word = np.repeat(np.arange(len(first), dtype=np.int32), last - first + 1)
        # At most 48 * 17, so that sorting is by radix.
        key = ((start + length - first[self.word[start]]) * (MAX_PIECE_LENGTH + 1) + length).astype(np.int16)
        order = np.argsort(key, kind="stable")
        self.start, self.length, self.piece = (array[order].astype(np.int32) for array in (start, length, piece))
        bounds = np.flatnonzero(np.diff(key[order])) + 1
        edges = [0, *bounds.tolist(), len(order)]
        self.groups = [slice(a, b) for a, b in pairwise(edges) if b > a]

    def expected_counts(self, probability: Floats, num_pieces: int) -> Floats:
        """How often each piece is used, over all spellings weighted by probability: (num_pieces,)."""
        ways_to = np.zeros(self.num_nodes)
        ways_to[self.first] = 1.0
        ends = self.start + self.length
        edge_probability = probability[self.piece]
        for group in self.groups:
            ways_to[ends[group]] += ways_to[self.start[group]] * edge_probability[group]
        ways_from = np.zeros(self.num_nodes)
        ways_from[self.last] = self.weight / ways_to[self.last]
        for group in reversed(self.groups):
            ways_from[self.start[group]] += ways_from[ends[group]] * edge_probability[group]
        use = ways_to[self.start] * edge_probability * ways_from[ends]
        return np.bincount(self.piece, weights=use, minlength=num_pieces).astype(np.float64, copy=False)

    def best_scores(self, scores: Floats) -> Floats:
        """Log-probability of the best spelling of each word; -inf where there is none."""
        best = np.full(self.num_nodes, -np.inf)
        best[self.first] = 0.0
        ends = self.start + self.length
        for group in self.groups:
            end = ends[group]
            best[end] = np.maximum(best[end], best[self.start[group]] + scores[self.piece[group]])
        found: Floats = best[self.last]
        return found

    def renumbered(self, renumber: Ints) -> "_Lattice":
        """Without the edges whose piece is gone (-1), the others renamed."""
        piece = renumber[self.piece]
        stays = piece >= 0
        return _Lattice(self.first, self.last, self.weight, self.start[stays], self.length[stays], piece[stays])

    def select_words(self, kept: Ints) -> "_Lattice":
        """Only these words (ascending), their nodes moved together."""
        is_kept = np.zeros(len(self.first), dtype=bool)
        is_kept[kept] = True
        size = self.last[kept] - self.first[kept] + 1
        last = np.cumsum(size) - 1
        first = last - size + 1
        shift = np.zeros(len(self.first), dtype=np.int64)
        shift[kept] = first - self.first[kept]
        word = self.word[self.start]
        stays = is_kept[word]
        start = self.start[stays] + shift[word[stays]]
        return _Lattice(first, last, self.weight[kept], start, self.length[stays], self.piece[stays])


class _Corpus:
    """The distinct words as one array of symbols, -1 at each word's end."""

    def __init__(self, counts: Mapping[str, int], max_symbols: int) -> None:
        characters: Counter[str] = Counter()
        for word, count in counts.items():
            for character in word:
                characters[character] += count
        self.symbols = _covering(characters, max_symbols)
        number = {character: i for i, character in enumerate(self.symbols)}
        words: Counter[tuple[int, ...]] = Counter()
        for word, count in counts.items():
            for part in _known_parts([number.get(character, -1) for character in word]):
                words[part] += count
        ranked = sorted(words.items(), key=lambda item: (-item[1], item[0]))
        flat: list[int] = []
        lengths: list[int] = []
        weights: list[int] = []
        for part, count in ranked:
            if len(flat) + len(part) > MAX_CHARACTERS:
                break
            flat.extend(part)
            flat.append(-1)
            lengths.append(len(part))
            weights.append(count)
        self.code = np.array(flat, dtype=np.int64)
        self.weight = np.array(weights, dtype=np.float64)
        size = np.array(lengths, dtype=np.int64) + 1
        self.last = np.cumsum(size) - 1
        self.first = self.last - size + 1
        self.node_weight = np.repeat(self.weight, size)

    def seeds(self, limit: int) -> tuple[_Pieces, _Lattice]:
        """All characters, and the longer substrings seen at least twice with the largest count * length."""
        levels: list[tuple[Ints, Ints]] = []  # for each length: positions, and the substring's number at each
        starts, lengths, frequencies = [], [], []
        position = np.flatnonzero(self.code >= 0)
        number = self.code[position]
        for length in range(1, MAX_PIECE_LENGTH + 1):
            if length > 1:
                following = self.code[np.minimum(position + length - 1, len(self.code) - 1)]
                inside = (following >= 0) & (position + length - 1 < len(self.code))
                position, key = position[inside], number[inside] * len(self.symbols) + following[inside]
                _, number = np.unique(key, return_inverse=True)
            if len(position) == 0:
                break
            frequency = np.bincount(number, weights=self.node_weight[position])
            repeated = frequency >= (1 if length == 1 else 2)
            renumber = np.cumsum(repeated) - 1
            stays = repeated[number]
            position, number = position[stays], renumber[number[stays]]
            _, first_use = np.unique(number, return_index=True)
            levels.append((position, number))
            starts.append(position[first_use])
            lengths.append(np.full(len(first_use), length, dtype=np.int64))
            frequencies.append(frequency[repeated])
        everything = _Pieces(np.concatenate(starts), np.concatenate(lengths), np.concatenate(frequencies))
        gain = everything.frequency * everything.length
        gain[everything.length == 1] = math.inf
        kept = np.sort(np.argsort(-gain, kind="stable")[: max(limit, len(self.symbols))])
        renumber = np.full(len(gain), -1, dtype=np.int64)
        renumber[kept] = np.arange(len(kept))
        base = np.cumsum([0] + [len(start) for start in starts])
        start = np.concatenate([position for position, _ in levels])
        length_of = np.concatenate([np.full(len(p), i + 1, dtype=np.int64) for i, (p, _) in enumerate(levels)])
        piece = renumber[np.concatenate([number + base[i] for i, (_, number) in enumerate(levels)])]
        stays = piece >= 0
        self._lattice = _Lattice(self.first, self.last, self.weight, start[stays], length_of[stays], piece[stays])
        return everything.select(kept), self._lattice

    def spelling(self, pieces: _Pieces) -> _Lattice:
        """The lattice of the pieces themselves, each without the edge that is the whole piece."""
        text = self._lattice
        width = MAX_PIECE_LENGTH + 1
        key = text.start * width + text.length
        order = np.argsort(key)
        sorted_key, sorted_piece = key[order], text.piece[order]
        last = np.cumsum(pieces.length + 1) - 1
        first = last - pieces.length
        found_start, found_length, found_piece = [], [], []
        for offset in range(MAX_PIECE_LENGTH):
            for length in range(1, MAX_PIECE_LENGTH + 1 - offset):
                word = np.flatnonzero((pieces.length >= offset + length) & (pieces.length > length))
                if len(word) == 0:
                    break
                wanted = (pieces.start[word] + offset) * width + length
                at = np.minimum(np.searchsorted(sorted_key, wanted), len(sorted_key) - 1)
                hit = sorted_key[at] == wanted
                found_start.append(first[word[hit]] + offset)
                found_length.append(np.full(int(hit.sum()), length, dtype=np.int64))
                found_piece.append(sorted_piece[at[hit]])
        empty = np.zeros(0, dtype=np.int64)
        edges = [np.concatenate([empty, *found]) for found in (found_start, found_length, found_piece)]
        return _Lattice(first, last, np.ones(len(first)), *edges)

    def texts(self, pieces: _Pieces) -> list[str]:
        spans = zip(pieces.start.tolist(), pieces.length.tolist(), strict=True)
        return ["".join(self.symbols[code] for code in self.code[start : start + n]) for start, n in spans]


def _covering(characters: Counter[str], limit: int) -> list[str]:
    """The most frequent characters that make up `CHARACTER_COVERAGE` of the text, at most `limit`."""
    total, covered = sum(characters.values()), 0
    chosen: list[str] = []
    for character, count in sorted(characters.items(), key=lambda item: (-item[1], item[0])):
        if len(chosen) >= limit or covered >= CHARACTER_COVERAGE * total:
            break
        chosen.append(character)
        covered += count
    return chosen


def _known_parts(codes: list[int]) -> list[tuple[int, ...]]:
    """A word without its rare characters (-1), cut where they stood and at the longest length."""
    parts: list[tuple[int, ...]] = []
    start = 0
    for i in range(len(codes) + 1):
        if i == len(codes) or codes[i] < 0:
            parts += [tuple(codes[j : min(j + _MAX_WORD_LENGTH, i)]) for j in range(start, i, _MAX_WORD_LENGTH)]
            start = i + 1
    return parts
