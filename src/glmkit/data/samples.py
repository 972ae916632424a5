"""Texts of a given length from stored documents: random ones for training, every token once for evaluation.

Source of the assembly rules: `THUDM/GLM:data_utils/datasets.py`, class BlockDataset.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from glmkit.config import SpecialIds
from glmkit.errors import ConfigError, DataError
from glmkit.objective.counter_rng import Rng
from glmkit.objective.sample import TextSample

from .encoding import Ids, offsets_file, tokens_file
from .store import AGAIN, TokenStore

# Refused documents in a row before `accept` is called hopeless.
_MOST_REFUSALS = 10_000


class Documents(Protocol):
    """Tokenized documents back to back: document d is tokens[offsets[d] : offsets[d + 1]] and ends with eos."""

    @property
    def tokens(self) -> Ids: ...  # (N,) unsigned integers, memory-mapped

    @property
    def offsets(self) -> NDArray[np.int64]: ...  # (D + 1,); a split may begin above 0


class TextSampler:
    """Draws texts of at most `length` tokens. A text is a pure function of the documents and the rng.

    * A document is drawn with probability proportional to its tokens (eos counted).
    * One that does not fit behind a [CLS] gives a stretch: a uniform start, which with probability
      1 - non_sentence_start moves to a sentence start, leftwards or rightwards with equal chance, at most length // 2
      tokens; the right side goes back to a sentence end unless less than half of the text would stay.
    * A shorter one is followed by further documents, each with its own [CLS] and cut to the room in the same way, until
      the text is full; with sample_one_document it stays alone.

    sentence_end (V,) bool: see `objective.spans`. accept: refuses documents by their first 1024 tokens (the place
    for a language filter); another is drawn instead. add_cls False leaves out the [CLS] (GLM-130B).
    Raises ConfigError for a length below 4, DataError when there is no document or `accept` refuses all.
    """

    def __init__(
        self,
        documents: Documents,
        special: SpecialIds,
        sentence_end: NDArray[np.bool_],
        *,
        length: int,
        non_sentence_start: float = 0.0,
        sample_one_document: bool = False,
        add_cls: bool = True,
        accept: Callable[[NDArray[np.int64]], bool] | None = None,
    ) -> None:
        if length < 4:
            raise ConfigError(f"a text of {length} tokens has no room for a blank; sequence_length must be at least 4")
        if not 0.0 <= non_sentence_start <= 1.0:
            raise ConfigError(f"non_sentence_start is {non_sentence_start}; it must be a probability in [0, 1]")
        self.documents, self.special, self.sentence_end, self.length = documents, special, sentence_end, length
        self.non_sentence_start, self.sample_one_document = non_sentence_start, sample_one_document
        self.add_cls, self.accept = add_cls, accept
        self._open()

    def _open(self) -> None:
        # Plain views: slicing a memmap object costs more than the copy of a text.
        self._tokens: Ids = np.asarray(self.documents.tokens)
        self._offsets: NDArray[np.int64] = np.asarray(self.documents.offsets)
        if len(self._offsets) < 2 or self._offsets[-1] <= self._offsets[0]:
            raise DataError("the split holds no tokens; prepare more text or change the split's share")
        self._eos, self._vocabulary = self.special.require("eos"), len(self.sentence_end)
        self._first = int(self._offsets[0])
        self._size = int(self._offsets[-1]) - self._first

    @property
    def mean_length(self) -> float:
        """Tokens of a document on average, eos included."""
        return self._size / (len(self._offsets) - 1)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_tokens", "_offsets")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()

    def draw(self, rng: Rng, length: int | None = None) -> TextSample:
        """One text of at most `length` tokens (the sampler's own length by default)."""
        length = self.length if length is None else min(length, self.length)
        cls = int(self.add_cls)
        document = self._document(rng)
        if len(document) + cls > length:
            start = self._start(document, length, rng)
            end = start + length - cls
            piece = document[start:end]
            return self._text([self._cut(piece, length - cls) if end < len(document) else piece], stretch=True)
        parts, used = [document], len(document) + cls
        while not self.sample_one_document and length - used > cls:
            room = length - used - cls
            document = self._document(rng)
            last = len(document) >= room
            if len(document) > room:
                document = self._cut(document[:room], room)
            parts.append(document)
            used += len(document) + cls
            if last:
                break
        return self._text(parts)

    def _document(self, rng: Rng) -> Ids:
        for _ in range(_MOST_REFUSALS):
            place = self._first + rng.randrange(self._size)
            index = int(self._offsets.searchsorted(place, side="right"))
            document = self._tokens[self._offsets[index - 1] : self._offsets[index]]
            if not len(document) or document[-1] != self._eos:
                raise _bad_document(self.documents, index - 1, int(self._offsets[index - 1]))
            if self.accept is None or self.accept(document[:1024].astype(np.int64)):
                return document
        raise DataError(f"{_MOST_REFUSALS} documents in a row were refused by the document filter; check its language")

    def _start(self, document: Ids, length: int, rng: Rng) -> int:
        """The first token of a stretch of a long document."""
        cls = int(self.add_cls)
        start = rng.randrange(len(document) + cls - length)
        if rng.random() <= self.non_sentence_start:
            return start
        reach = length // 2
        if rng.random() < 0.5:
            low = max(0, start - reach)
            marks = self._sentence_ends(document[low:start])
            return low + int(marks[-1]) + 1 if len(marks) else low
        if start == 0:  # already a sentence start; the reference moves on to the next one
            return 0
        marks = self._sentence_ends(document[start - 1 : start + reach - 1])
        return start + int(marks[0]) if len(marks) else min(start + reach, len(document) - 1)

    def _cut(self, document: Ids, room: int) -> Ids:
        """Go back to the last sentence end, unless less than half of the room would stay."""
        cls = int(self.add_cls)
        half = max(0, (room + cls) // 2 - cls - 1)
        marks = self._sentence_ends(document[half:])
        return document[: half + int(marks[-1]) + 1] if len(marks) else document

    def _sentence_ends(self, tokens: Ids) -> NDArray[np.intp]:
        """Places of tokens that end a sentence. Ids beyond the vocabulary count as its last: `_text` refuses them."""
        return self.sentence_end.take(tokens, mode="clip").nonzero()[0]

    def _text(self, parts: list[Ids], *, stretch: bool = False) -> TextSample:
        cls = int(self.add_cls)
        size = sum(map(len, parts)) + cls * len(parts)
        tokens, loss_mask = np.empty(size, np.int64), np.ones(size, np.bool_)
        column = 0
        for part in parts:
            if cls:
                tokens[column] = self.special.require("cls")
                loss_mask[column] = False
            end = column + cls + len(part)
            tokens[column + cls : end] = part
            column = end
        if tokens.max() >= self._vocabulary:
            raise self._bad_token(parts)
        return TextSample(tokens, loss_mask, stretch)

    def _bad_token(self, parts: list[Ids]) -> DataError:
        part = next(part for part in parts if (part >= self._vocabulary).any())
        inside = int((part >= self._vocabulary).argmax())
        place = (part.ctypes.data - self._tokens.ctypes.data) // self._tokens.itemsize + inside
        return _bad_token(self.documents, place, int(part[inside]), self._vocabulary)


class TextPieces:
    """Every token of the documents once, in order: each document in pieces of nearly equal size, each behind a [CLS].

    A sequence of TextSample for evaluation. length: the longest piece, [CLS] included. Documents of fewer than
    `shortest` tokens are left out: num_left_out tokens (by default those without a word in front of their eos).
    vocab_size: ids from there on are damage and raise DataError; None: not looked for.
    """

    def __init__(
        self,
        documents: Documents,
        special: SpecialIds,
        *,
        length: int,
        add_cls: bool = True,
        shortest: int = 2,
        vocab_size: int | None = None,
    ) -> None:
        self.documents, self.vocab_size = documents, vocab_size
        self._tokens: Ids = np.asarray(documents.tokens)
        self._offsets: NDArray[np.int64] = np.asarray(documents.offsets)
        self._cls = [special.require("cls")] if add_cls else []
        self._room = length - len(self._cls)
        if self._room < 1:
            raise ConfigError(f"pieces of {length} tokens hold no text; sequence_length must be at least 4")
        sizes = np.diff(self._offsets)
        counts = np.where(sizes < shortest, 0, -(-sizes // self._room))
        self.num_left_out = int(sizes[sizes < shortest].sum())
        self._firsts = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, index: int) -> TextSample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        document = int(self._firsts.searchsorted(index, side="right")) - 1
        start, end = int(self._offsets[document]), int(self._offsets[document + 1])
        first, count = int(self._firsts[document]), int(self._firsts[document + 1] - self._firsts[document])
        low = start + (end - start) * (index - first) // count
        high = start + (end - start) * (index - first + 1) // count
        tokens = np.concatenate([self._cls, self._tokens[low:high]]).astype(np.int64)
        if self.vocab_size is not None and tokens.max() >= self.vocab_size:
            inside = int((tokens >= self.vocab_size).argmax())
            raise _bad_token(self.documents, low + inside - len(self._cls), int(tokens[inside]), self.vocab_size)
        loss_mask = np.ones(len(tokens), np.bool_)
        loss_mask[: len(self._cls)] = False
        return TextSample(tokens, loss_mask)


def _bad_token(documents: object, place: int, token: int, vocab_size: int) -> DataError:
    """The error of an id beyond the vocabulary at token `place` of a split."""
    file, again = _named(documents, tokens_file)
    return DataError(
        f"{file}: token {place:,} is {token}, but the vocabulary has {vocab_size:,} tokens; the file is damaged",
        step=again,
        code="damaged",
    )


def _bad_document(documents: object, index: int, place: int) -> DataError:
    """The error of document `index`, from token `place` on, that is empty or does not end with eos as all do."""
    file, again = _named(documents, tokens_file)
    bounds, _ = _named(documents, offsets_file)
    return DataError(
        f"{file}: document {index:,}, from token {place:,} on, does not end with the end of a text; this file or "
        f"{bounds} is damaged",
        step=again,
        code="damaged",
    )


def _named(documents: object, name: Callable[[str], str]) -> tuple[str, str]:
    """(the file of a split, the next step)."""
    if not isinstance(documents, TokenStore):
        return "the documents", AGAIN
    return str(documents.directory / name(documents.name)), f"glm doctor {documents.directory} --check; {AGAIN}"
