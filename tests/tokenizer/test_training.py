"""Training: sizes, determinism, the sample, and what is refused."""

import os
import random
import subprocess
import sys

import pytest

from glmkit.errors import TokenizerError
from glmkit.tokenizer import training
from glmkit.tokenizer.pretokens import split_words
from glmkit.tokenizer.training import MIN_VOCAB_SIZE, TextSample, train_tokenizer
from support.shared import ROOT
from tokenizer.trained import CHINESE, CODE, ENGLISH, trained

kinds = pytest.mark.parametrize("kind", ["bpe", "unigram"])
TEXTS = [CODE * 3, CHINESE * 3, ENGLISH * 3]


@kinds
def test_the_same_texts_give_the_same_tokenizer_in_any_order_and_process(kind: str) -> None:
    expected = trained(kind, 400).fingerprint()
    assert train_tokenizer(reversed(TEXTS), vocab_size=400, kind=kind).fingerprint() == expected
    program = f"from tokenizer.trained import trained\nprint(trained({kind!r}, 400).fingerprint())"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": "tests", "RAYON_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == expected


@kinds
def test_other_texts_give_another_tokenizer(kind: str) -> None:
    assert (
        train_tokenizer([*TEXTS, "zebra " * 9], vocab_size=400, kind=kind).fingerprint()
        != trained(kind, 400).fingerprint()
    )


@kinds
def test_frequent_words_become_single_tokens(kind: str) -> None:
    tokenizer = train_tokenizer(TEXTS, kind=kind)
    for word in ("return", " dog", "\n    ", "不亦说乎", " first"):
        assert len(tokenizer.encode(word)) == 1, word


@kinds
def test_without_a_size_the_text_decides(kind: str) -> None:
    tokenizer = train_tokenizer(TEXTS, kind=kind)
    assert MIN_VOCAB_SIZE < tokenizer.vocab_size < 1000


@kinds
def test_the_smallest_vocabulary_is_specials_and_bytes(kind: str) -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=MIN_VOCAB_SIZE, kind=kind)
    assert tokenizer.vocab_size == 267
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode("aé")] == [b"a", b"\xc3", b"\xa9"]
    assert tokenizer.decode(tokenizer.encode(CHINESE)) == CHINESE


@kinds
def test_a_size_that_the_text_cannot_fill_is_refused_with_the_size_it_can(kind: str) -> None:
    most = train_tokenizer(TEXTS, kind=kind).vocab_size
    with pytest.raises(TokenizerError) as error:
        train_tokenizer(TEXTS, vocab_size=20_000, kind=kind)
    assert f"give a vocabulary of {most} tokens, fewer than the 20000 asked for; ask for at most {most}" in str(
        error.value
    )
    assert train_tokenizer(TEXTS, vocab_size=most, kind=kind).vocab_size == most


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(TokenizerError, match="vocabulary size is 266; it must be at least 267"):
        train_tokenizer(TEXTS, vocab_size=266)
    with pytest.raises(TokenizerError, match="'wordpiece'; choose one of bpe, unigram"):
        train_tokenizer(TEXTS, kind="wordpiece")  # type: ignore[arg-type]
    for empty in ([], [""]):
        with pytest.raises(TokenizerError, match="no text to train"):
            train_tokenizer(empty)
    with pytest.raises(TokenizerError, match="0 bytes; it must be at least 1"):
        TextSample(0)


def test_the_sample_is_everything_while_it_fits() -> None:
    sample = TextSample(10_000)
    for text in (*TEXTS, ""):
        sample.add(text)
    size = sum(len(text.encode()) for text in TEXTS)
    assert (sample.bytes_seen, sample.bytes_kept) == (size, size)
    assert sorted(sample.texts()) == sorted(TEXTS)


def test_the_sample_is_bounded_and_does_not_depend_on_order() -> None:
    numbers = random.Random(0)
    texts = [f"text {i} " * numbers.randrange(1, 40) for i in range(400)] + ["copied " * 20] * 9
    samples = []
    for seed in range(4):
        random.Random(seed).shuffle(texts)
        sample = TextSample(9_000)
        for text in texts:
            sample.add(text)
        assert 7_000 < sample.bytes_kept <= 9_000
        assert sample.bytes_seen == sum(map(len, texts))
        samples.append(list(sample.texts()))
    assert samples[0] == samples[1] == samples[2] == samples[3]
    assert sample.bytes_kept == sum(map(len, samples[0]))


def test_one_long_text_is_sampled_in_pieces() -> None:
    words = [f"word{i}" for i in range(60_000)]
    sample = TextSample(100_000)
    sample.add(" ".join(words))
    kept = list(sample.texts())
    assert 50_000 < sample.bytes_kept <= 100_000
    assert len(kept) >= 2
    assert all(text in " ".join(words) for text in kept)


def test_text_of_too_many_different_words_is_used_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_MAX_WORD_BYTES", 1000)
    sample, same = TextSample(), TextSample()
    for i in range(400):
        sample.add(f"word {'x' * (i % 50)}y{'z' * (i // 50)} ")
        same.add("the same few words " + "again " * (i % 30))
    assert len(list(same.texts())) == 400
    assert same.bytes_used == same.bytes_kept
    texts = list(sample.texts())
    different = {word for text in texts for word in split_words(text)}
    assert 1000 <= sum(map(len, different)) < 1100
    assert sample.bytes_used == sum(map(len, texts)) < sample.bytes_kept


def test_training_takes_a_sample_as_text() -> None:
    sample = TextSample(200)
    for text in TEXTS:
        sample.add(text)
    assert train_tokenizer(sample).fingerprint() != train_tokenizer(TEXTS).fingerprint()
    assert train_tokenizer(TEXTS, sample_bytes=200).fingerprint() == train_tokenizer(sample).fingerprint()
