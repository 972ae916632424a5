"""Decoding in steps equals decoding of the whole: text filters, and ids one by one without broken characters."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import glmkit
from glmkit.families.family import family_named
from glmkit.tokenizer.incremental import (
    ByteText,
    Decodes,
    FilteredStream,
    IncrementalDecoder,
    Replace,
    ReplacePattern,
    TextFilter,
    clean_up_filters,
    whole_text,
)
from glmkit.tokenizer.trained import TrainedTokenizer
from support.shared import shared_dir
from tokenizer.trained import trained

CLEAN_UP = [" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"]


def in_steps(filters: Sequence[TextFilter], pieces: list[str]) -> str:
    class Letters:
        def feed(self, ids: Sequence[int]) -> str:
            return "".join(pieces[i] for i in ids)

        def finish(self) -> str:
            return ""

    stream = FilteredStream(Letters(), filters)
    return "".join([*(stream.feed([i]) for i in range(len(pieces))), stream.finish()])


@given(st.lists(st.text(st.sampled_from("ab "), max_size=4)), st.text(st.sampled_from("ab "), min_size=1, max_size=4))
def test_replace(pieces: list[str], old: str) -> None:
    assert in_steps([Replace(old, "X")], pieces) == "".join(pieces).replace(old, "X")


@given(st.lists(st.text(st.sampled_from(" .,?!'nmstver"), max_size=5)))
def test_clean_up(pieces: list[str]) -> None:
    text = "".join(pieces)
    for old in CLEAN_UP:
        text = text.replace(old, old.strip())
    assert in_steps(clean_up_filters(), pieces) == text


PATTERN = re.compile(r"<n>|<tab>|<\|b\|>")
STARTS = frozenset(name[:end] for name in ("<n>", "<tab>", "<|b|>") for end in range(1, len(name)))


@given(st.lists(st.text(st.sampled_from("<n>tab|x"), max_size=4)))
def test_replace_pattern(pieces: list[str]) -> None:
    change = ReplacePattern(PATTERN, lambda match: f"({len(match[0])})", STARTS)
    whole = PATTERN.sub(lambda match: f"({len(match[0])})", "".join(pieces))
    assert in_steps([change], pieces) == whole


@given(st.lists(st.binary(max_size=5)), st.booleans())
def test_bytes(pieces: list[bytes], each: bool) -> None:
    decoder = ByteText(each=each)
    text = "".join(decoder.feed(piece) for piece in pieces) + decoder.finish()
    whole = b"".join(pieces)
    if not each:
        assert text == whole.decode("utf-8", errors="replace")
    assert text.replace("\ufffd", "") == whole.decode("utf-8", errors="ignore").replace("\ufffd", "")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xe4\xbd", "\ufffd\ufffd"), (b"\xe4\xbda", "\ufffd\ufffda"), (b"\xff\xe4\xbd\xa0", "\ufffd你"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"), (b"\xf4\x90\x80\x80", "\ufffd" * 4), (b"\xc0\xaf", "\ufffd\ufffd"),
    ],
)  # fmt: skip
def test_each_wrong_byte_shows(data: bytes, text: str) -> None:
    decoder = ByteText(each=True)
    assert decoder.feed(data) + decoder.finish() == text
    assert "".join(decoder.feed(bytes([byte])) for byte in data) + decoder.finish() == text


def test_text_comes_out_early() -> None:
    clean = clean_up_filters()
    assert clean[0].feed("a b") == "a b"
    assert clean[0].feed(" ") == ""
    assert clean[0].feed("x.") == " x."


# --- ids one by one ---------------------------------------------------------------------------------------------------

VOCABULARY = 380
random_ids = st.lists(st.integers(0, VOCABULARY - 1), max_size=40)
# Mostly single bytes (ids 11 .. 266), of which characters are put together, wrong ones among them.
byte_ids = st.lists(st.one_of(st.integers(11, 266), st.just(3)), max_size=30)


@dataclass
class Foreign:
    """A tokenizer that cannot be fed id by id. longest: of the ids that it was given at once."""

    tokenizer: TrainedTokenizer
    longest: int = 0

    def decode(self, ids: Sequence[int], *, skip_specials: bool = True) -> str:
        self.longest = max(self.longest, len(ids))
        return self.tokenizer.decode(ids, skip_specials=skip_specials)


def pushed(decoder: IncrementalDecoder, ids: Sequence[int]) -> list[str]:
    return [decoder.push(index) for index in ids] + [decoder.flush()]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("skip", [True, False])
@settings(max_examples=120, deadline=None)
@given(st.one_of(random_ids, byte_ids))
def test_the_pieces_joined_are_the_whole(kind: str, skip: bool, ids: list[int]) -> None:
    tokenizer = trained(kind)
    for each in (tokenizer, Foreign(tokenizer)):
        pieces = pushed(IncrementalDecoder(each, skip_specials=skip), ids)
        assert "".join(pieces) == tokenizer.decode(ids, skip_specials=skip)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@settings(max_examples=120, deadline=None)
@given(st.text(st.sampled_from("ab 中鑫😀é\n\u0301"), max_size=30))
def test_valid_text_is_never_shown_broken(kind: str, text: str) -> None:
    tokenizer = trained(kind)
    pieces = pushed(IncrementalDecoder(tokenizer), tokenizer.encode(text))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_out_with_its_last_byte() -> None:
    tokenizer = trained("bpe")
    ids = [*tokenizer.encode("a"), *tokenizer.encode("😀"), *tokenizer.encode("b")]
    assert len(ids) == 6
    assert pushed(IncrementalDecoder(tokenizer), ids) == ["a", "", "", "", "😀", "b", ""]
    assert pushed(IncrementalDecoder(tokenizer), ids[:3]) == ["a", "", "", "\ufffd"]


def test_flush_starts_over() -> None:
    tokenizer = trained("bpe")
    decoder = IncrementalDecoder(tokenizer)
    half, rest = tokenizer.encode("中鑫")[-3:-1], tokenizer.encode("ok")
    assert "".join(pushed(decoder, half)) == "\ufffd"
    assert "".join(pushed(decoder, rest)) == "ok"


@dataclass
class DummySpace:
    """A tokenizer like SentencePiece: every word brings a space, the first of a text is dropped."""

    words: tuple[str, ...] = ("", " the", " dog", "gy", " ", "<special>")

    def decode(self, ids: Sequence[int], *, skip_specials: bool = True) -> str:
        return "".join(self.words[i] for i in ids if i != 5 or not skip_specials).removeprefix(" ")


@settings(max_examples=120, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3, 5]), max_size=12))
def test_tokenizers_that_drop_the_first_space_keep_the_others(ids: list[int]) -> None:
    tokenizer = DummySpace()
    decoder = IncrementalDecoder(tokenizer)  # type: ignore[arg-type]
    assert "".join(pushed(decoder, ids)) == tokenizer.decode(ids)


def test_the_window_stays_short() -> None:
    """The work of one step must not grow with the text."""
    watched = Foreign(trained("bpe"))
    ids = watched.tokenizer.encode("some text 中鑫😀 " * 50)
    assert "".join(pushed(IncrementalDecoder(watched), ids)) == "some text 中鑫😀 " * 50
    assert watched.longest <= 8


# --- a character that was cut -----------------------------------------------------------------------------------------

PUBLISHED = {
    "chatglm": "chatglm-6b", "glm-130b": "chatglm-6b", "chatglm2": "chatglm2-chatglm3",
    "chatglm3": "chatglm2-chatglm3", "glm-4": "glm4",
}  # fmt: skip


def vocabularies() -> dict[str, Decodes]:
    """A tokenizer of every kind that cuts characters into bytes."""
    found: dict[str, Decodes] = {kind: trained(kind) for kind in ("bpe", "unigram")}
    for family, folder in PUBLISHED.items():
        tokenizer = family_named(family).tokenizer(shared_dir("tokenizers", folder), None)
        assert tokenizer is not None
        found[family] = tokenizer
    for kind in ("gpt2", "roberta"):
        found[kind] = glmkit.load_tokenizer(shared_dir("tokenizers", "glm-english"), kind=kind)
    return found


def test_the_beginning_of_a_character_is_left_out() -> None:
    """Wherever an answer is cut, in steps and at once; a mark that was written stays."""
    for name, tokenizer in vocabularies().items():
        for text in ("好a😀", "a 👩‍👩‍👧‍👦 b", "“é𠮷”", "a \ufffd"):
            ids = tokenizer.encode(text)  # type: ignore[attr-defined]
            for end in range(len(ids) + 1):
                whole = whole_text(tokenizer, ids[:end])
                assert "".join(pushed(IncrementalDecoder(tokenizer, whole=True), ids[:end])) == whole
                assert whole == tokenizer.decode(ids[:end]).rstrip("\ufffd") or end == len(ids), (name, text, end)
            assert whole == tokenizer.decode(ids), (name, text)
