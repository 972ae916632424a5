"""Byte pair encoding by ranks: cutting long texts and words changes no id."""

import pickle
import time
from itertools import pairwise

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from glmkit.errors import TokenizerError
from glmkit.tokenizer import bpe_ranks as ranks
from glmkit.tokenizer.bpe_ranks import SPLIT_PATTERN, RankVocabulary, looks_like_ranks, parse_ranks, segments
from support.shared import shared_dir
from tokenizer.tiny_ranks import rank_file

VOCABULARIES = [RankVocabulary(rank_file(seed)) for seed in range(6)]
words = st.text(st.sampled_from("ab中é"), min_size=1, max_size=120)


def by_hand(table: dict[bytes, int], word: bytes) -> list[int]:
    """Byte pair encoding as it is defined: join the pair of lowest rank, the leftmost of these, until none is left."""
    parts = [bytes([byte]) for byte in word]
    while True:
        pairs = [(table[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in table]
        if not pairs:
            return [table[part] for part in parts]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(VOCABULARIES), words, st.integers(3, 24))
def test_long_words_in_windows(vocabulary: RankVocabulary, word: str, window: int) -> None:
    table = {token: index for index, token in enumerate(vocabulary.token_bytes)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "_WINDOW", window)
        patch.setattr(ranks, "_LONG_WORD", max(map(len, table)))  # a word that is a token itself is looked up
        assert vocabulary.encode_word(word.encode()) in ([table.get(word.encode())], by_hand(table, word.encode()))


@settings(max_examples=400, deadline=None)
@given(st.text(st.sampled_from("aZ中 \n\r\t'sſ1,。!_\u00a0\u3000é\u0301😀"), max_size=60))
def test_cutting_a_text_leaves_its_words_alone(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "_SEGMENT", 2)
        pieces = list(segments(text))
    assert "".join(pieces) == text
    assert [word for piece in pieces for word in regex.findall(SPLIT_PATTERN, piece)] == regex.findall(
        SPLIT_PATTERN, text
    )


def test_texts_are_cut() -> None:
    assert max(map(len, segments("some words, 一些字。\n" * 2000))) < 2200
    assert list(segments(" " * 5000)) == [" " * 5000]


@pytest.mark.sampled(8)
@pytest.mark.parametrize("unit", ["a", "中", " ", "\n", "=", "7", "ab", "aé"])
def test_long_runs_come_back_in_time(unit: str) -> None:
    """A megabyte without a place to cut; the library alone overflows its stack on the one of spaces."""
    vocabulary = RankVocabulary(rank_file())
    text = unit * (1_000_000 // len(unit.encode()))
    began = time.monotonic()
    ids = vocabulary.encode(text)
    assert time.monotonic() - began < 30
    assert b"".join(vocabulary.token_bytes[index] for index in ids) == text.encode()
    run = vocabulary.run()
    assert run.feed(ids) + run.finish() == text


def test_the_long_way_gives_the_library_ids() -> None:
    published = RankVocabulary((shared_dir("tokenizers", "glm4") / "tokenizer.model").read_bytes())
    for text in ("床前明月光疑是地上霜" * 900, "internationalization" * 500, "=" * 9000, "ab'll 1234\n  x" * 900):
        assert published.encode(text) == published._native(text)


def test_pickled() -> None:
    copy = pickle.loads(pickle.dumps(VOCABULARIES[1]))
    assert copy.encode("abab 中é") == VOCABULARIES[1].encode("abab 中é")


def test_entries() -> None:
    vocabulary = VOCABULARIES[0]
    assert vocabulary.find("a") == vocabulary.encode("a")[0] == 97
    assert vocabulary.find("no such token") is None
    assert (vocabulary.token(97), vocabulary.token(0xE4)) == ("a", "<0xE4>")
    assert (vocabulary.is_byte(97), vocabulary.is_byte(0xE4)) == (False, True)
    for call in (vocabulary.token, lambda index: vocabulary.run().feed([index])):
        with pytest.raises(TokenizerError, match="outside the vocabulary of 321 tokens"):
            call(321)
    with pytest.raises(TokenizerError, match="lone surrogate U\\+D800"):
        vocabulary.encode("a\ud800")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw: b"\n\x0e\n\x05<unk>\x15", "it is a SentencePiece model"),
        (lambda raw: b"hello world", "lines of base64 and rank.*it begins with b'hello world'"),
        (lambda raw: raw + b"nonsense\n", "line 322 is not base64 and a rank"),
        (lambda raw: raw + b"?? 321\n", "line 322 is not base64 and a rank"),
        (lambda raw: raw + b"IQ== 900\n", "the ranks are not 0 .. 320"),
        (lambda raw: raw.replace(b"\nAQ== 1\n", b"\nAQEBAQEB 1\n"), "byte 1 is not in the vocabulary"),
    ],
)
def test_damaged_files(change: object, reason: str) -> None:
    raw = change(rank_file())  # type: ignore[operator]
    with pytest.raises(TokenizerError, match=f"f.model.*{reason}"):
        parse_ranks(raw, "f.model")


def test_what_a_rank_file_looks_like() -> None:
    assert looks_like_ranks(rank_file())
    assert not looks_like_ranks(b"")
    assert not looks_like_ranks(b"IQ==")
