import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.corpus import Corpus, corpus, random_corpus, sampler
from glmkit.data.samples import TextPieces
from glmkit.errors import ConfigError, DataError
from glmkit.objective.counter_rng import CounterRng
from objective.toy import CLS, EOS, SENTENCE_END, SPECIAL, STEADY, ScriptedRng

#       place 0   1   2   3   4   5   6   7   8   9  10  11
LONG = [21, 22, 30, 23, 24, 25, 40, 26, 27, 28, 29, 31]  # sentence ends at 2 and 6; 13 tokens with eos


def test_short_documents_are_appended_with_their_own_cls_until_full() -> None:
    documents = corpus([[11, 12], [13, 14, 15], [16]])
    # Places 3, 0, 7 of the 9 tokens draw the documents 1, 0, 2. Room left after the first two: 12 - 5 - 4 = 3.
    text = sampler(documents, 12).draw(ScriptedRng(ints=[3, 0, 7]))
    assert text.tokens.tolist() == [CLS, 13, 14, 15, EOS, CLS, 11, 12, EOS, CLS, 16, EOS]
    assert text.loss_mask.tolist() == [token != CLS for token in text.tokens.tolist()]


def test_the_last_document_is_cut_to_the_room() -> None:
    documents = corpus([[11, 12], LONG])
    # [CLS] 11 12 eos leaves room for [CLS] and 7; the sentence end at place 6 is the 7th token: nothing to give back.
    rng = ScriptedRng(ints=[0, 5])
    assert sampler(documents, 12).draw(rng).tokens.tolist() == [CLS, 11, 12, EOS, CLS, *LONG[:7]]
    # Room for [CLS] and 5: back to the end at place 2, since [CLS] and 3 tokens are at least half of 6.
    rng = ScriptedRng(ints=[0, 5])
    assert sampler(documents, 10).draw(rng).tokens.tolist() == [CLS, 11, 12, EOS, CLS, *LONG[:3]]
    # Room for [CLS] and 3; exact already.
    rng = ScriptedRng(ints=[0, 5])
    assert sampler(documents, 8).draw(rng).tokens.tolist() == [CLS, 11, 12, EOS, CLS, *LONG[:3]]


def test_one_document_alone() -> None:
    documents = corpus([[11, 12], [13, 14, 15]])
    text = sampler(documents, 12, sample_one_document=True).draw(ScriptedRng(ints=[3]))
    assert text.tokens.tolist() == [CLS, 13, 14, 15, EOS]


def test_a_document_that_just_fits_stays_whole_and_one_more_token_cuts_it() -> None:
    documents = corpus([LONG])
    assert sampler(documents, 14).draw(ScriptedRng(ints=[0])).tokens.tolist() == [CLS, *LONG, EOS]
    # 13 tokens behind a [CLS] in 13 places: one start, two tokens to give up, back to the end at place 6.
    rng = ScriptedRng(ints=[0, 0], floats=[0.9, 0.2])
    assert sampler(documents, 13).draw(rng).tokens.tolist() == [CLS, *LONG[:7]]
    assert rng.ranges == [(0, 13), (0, 1)]


@pytest.mark.parametrize(
    ("floats", "start", "begins"),
    [
        ([0.2], 5, 5),  # 0.2 <= non_sentence_start: as drawn
        ([0.9, 0.2], 5, 3),  # leftwards, behind the end at 2
        ([0.9, 0.8], 4, 7),  # rightwards, behind the end at 6
        ([0.9, 0.8], 3, 3),  # stands at a sentence start already
        ([0.9, 0.2], 3, 3),
        ([0.9, 0.2], 2, 0),  # no end on the left: the document's start
        ([0.9, 0.8], 0, 0),  # which is a sentence start (the reference would go on to 3)
    ],
)
def test_where_a_stretch_begins(floats: list[float], start: int, begins: int) -> None:
    # Length 8: 13 + 1 - 8 = 6 starts, moves of at most 4.
    rng = ScriptedRng(ints=[0, start], floats=floats)
    text = sampler(corpus([LONG]), 8, non_sentence_start=0.5).draw(rng)
    assert rng.ranges[1] == (0, 6)
    assert text.tokens[:2].tolist() == [CLS, LONG[begins]]


def test_moves_end_after_half_a_text() -> None:
    flat = corpus([list(range(21, 29)) * 3])
    text = sampler(flat, 8).draw(ScriptedRng(ints=[0, 10], floats=[0.9, 0.2]))
    assert text.tokens.tolist() == [CLS, *(list(range(21, 29)) * 3)[6:13]]
    text = sampler(flat, 8).draw(ScriptedRng(ints=[0, 10], floats=[0.9, 0.8]))
    assert text.tokens.tolist() == [CLS, *(list(range(21, 29)) * 3)[14:21]]


@settings(STEADY, max_examples=60)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(4, 50), st.integers(0, 2**32), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_texts_are_stretches_of_documents(sizes: list[int], length: int, seed: int, alone: bool, add_cls: bool) -> None:
    documents = random_corpus(sizes, seed)
    text = sampler(documents, length, sample_one_document=alone, add_cls=add_cls).draw(CounterRng(seed))
    assert 1 + add_cls <= len(text) <= length
    np.testing.assert_array_equal(text.loss_mask, text.tokens != CLS)
    stored = "".join(map(chr, documents.tokens.tolist()))
    parts = "".join(map(chr, text.tokens.tolist())).split(chr(CLS))
    if add_cls:
        assert parts.pop(0) == ""
        assert all(part in stored for part in parts)
        assert all(part.endswith(chr(EOS)) for part in parts[:-1])
        assert not (alone and len(parts) > 1)
        if not alone and len(parts) == 1 and not parts[0].endswith(chr(EOS)):
            assert len(text) >= length // 2


def test_documents_are_drawn_by_length() -> None:
    documents = random_corpus([9, 29, 59])
    drawer = sampler(documents, 100, sample_one_document=True)
    counts = Counter(len(drawer.draw(CounterRng(1, index))) - 2 for index in range(5000))
    for size in (9, 29, 59):
        share = (size + 1) / 100
        assert abs(counts[size] - 5000 * share) < 4 * math.sqrt(5000 * share * (1 - share))


def test_a_split_that_starts_later_in_the_store() -> None:
    whole = corpus([[11, 12], [13, 14, 15], [16, 17]])
    part = Corpus(whole.tokens, whole.offsets[1:])
    drawn = {
        tuple(sampler(part, 6, sample_one_document=True).draw(CounterRng(1, i)).tokens.tolist()) for i in range(50)
    }
    assert drawn == {(CLS, 13, 14, 15, EOS), (CLS, 16, 17, EOS)}
    assert [piece.tokens.tolist() for piece in TextPieces(part, SPECIAL, length=6, shortest=1)] == [
        [CLS, 13, 14, 15, EOS],
        [CLS, 16, 17, EOS],
    ]


def test_a_document_filter() -> None:
    documents = random_corpus([9, 29, 59])
    drawer = sampler(documents, 100, sample_one_document=True, accept=lambda tokens: len(tokens) != 60)
    assert {len(drawer.draw(CounterRng(1, index))) for index in range(200)} == {11, 31}
    with pytest.raises(DataError, match="10000 documents in a row were refused"):
        sampler(documents, 100, accept=lambda tokens: False).draw(CounterRng(1))


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="a text of 3 tokens"):
        sampler(random_corpus([5]), 3)
    with pytest.raises(ConfigError, match="non_sentence_start is 1"):
        sampler(random_corpus([5]), 8, non_sentence_start=1.5)
    with pytest.raises(DataError, match="holds no tokens"):
        sampler(corpus([]), 8)


def test_texts_are_copies() -> None:
    documents = random_corpus([50])
    before = documents.tokens.copy()
    text = sampler(documents, 20).draw(CounterRng(1))
    text.tokens[:] = 7
    np.testing.assert_array_equal(documents.tokens, before)


@settings(STEADY)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(4, 50), st.integers(1, 10))
def test_pieces_hold_every_token_once(sizes: list[int], length: int, shortest: int) -> None:
    documents = random_corpus(sizes)
    pieces = TextPieces(documents, SPECIAL, length=length, shortest=shortest)
    texts = [pieces[index] for index in range(len(pieces))]
    kept = [size + 1 for size in sizes if size + 1 >= shortest]
    assert pieces.num_left_out == sum(size + 1 for size in sizes) - sum(kept)
    joined = np.concatenate([np.zeros(0, np.int64), *(text.tokens[1:] for text in texts)])
    ends = zip(documents.offsets, documents.offsets[1:], strict=False)
    expected = [documents.tokens[a:b] for a, b in ends if b - a >= shortest]
    np.testing.assert_array_equal(joined, np.concatenate([np.zeros(0, np.int64), *expected]))
    assert all(text.tokens[0] == CLS and len(text) <= length for text in texts)
    assert len(texts) == sum(-(-size // (length - 1)) for size in kept)
    with pytest.raises(IndexError):
        pieces[len(pieces)]


def test_the_table_and_the_corpus_of_these_tests_agree() -> None:
    assert [place for place, token in enumerate(LONG) if SENTENCE_END[token]] == [2, 6]
