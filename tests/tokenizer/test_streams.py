"""Text filters in steps equal the same change of the whole text."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmkit.tokenizer.streams import ByteText, FilteredStream, Replace, ReplacePattern, TextFilter, clean_up_filters

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
