"""The word rule: what it cuts, that both engines agree, and that long texts may be cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from glmkit.tokenizer import pretokens

RUST = pre_tokenizers.Split(Regex(pretokens.RUST_PATTERN), behavior="isolated")


def rust_words(text: str) -> list[str]:
    return [word for word, _span in RUST.pre_tokenize_str(text)]


CASES = {
    "def foo_bar(self, x=12):\n    return  x": [
        "def", " foo_bar", "(", "self", ",", " x", "=", "1", "2", "):", "\n    ", "return", " ", " x",
    ],
    "a\n\n\tb": ["a", "\n\n\t", "b"],
    "x   \r\n  y": ["x", "   ", "\r\n  ", "y"],
    "GLM模型很好，不亦说乎？": ["GLM", "模型很好", "，", "不亦说乎", "？"],
    "\n　　话说": ["\n　　", "话说"],
    "don't I'll": ["don", "'t", " I", "'ll"],
    "[MASK]<|endoftext|><0x41>": ["[", "MASK", "]<|", "endoftext", "|><", "0", "x", "4", "1", ">"],
    "x2 = 3.5": ["x", "2", " =", " 3", ".", "5"],
}  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_words_of_code_and_chinese(text: str) -> None:
    assert rust_words(text) == CASES[text]
    assert pretokens.split_words(text) == CASES[text]


def test_both_engines_agree_on_every_usual_character() -> None:
    disagreeing = []
    for first, last in pretokens.USUAL_RANGES:
        for code in range(first, last + 1):
            c = chr(code)
            text = f"a{c}b {c}1{c}中{c}. {c}{c} 'x"
            if rust_words(text) != pretokens.split_words(text):
                disagreeing.append(hex(code))
    assert disagreeing == []


alphabet = st.one_of(
    st.sampled_from(list(" \t\n\r'’_.,()0159abZsé中国，。　😀")),
    st.sampled_from([chr(code) for first, last in pretokens.USUAL_RANGES for code in (first, last)]),
)


@settings(max_examples=120, deadline=None)
@given(st.text(alphabet, max_size=60))
def test_both_engines_agree_on_usual_texts(text: str) -> None:
    assert pretokens.is_usual(text)
    words = pretokens.split_words(text)
    assert words == rust_words(text)
    assert "".join(words) == text


@pytest.mark.parametrize("character", ["\0", "\x1c", "\x85", "²", "½", "\u0301", "\u200d\ufe0f", "Ⅷ", "\ud800"])
def test_other_characters_are_unusual(character: str) -> None:
    assert not pretokens.is_usual("a" + character)


@settings(max_examples=120, deadline=None)
@given(st.text(alphabet, max_size=80), st.integers(1, 20))
def test_cutting_changes_no_word(text: str, size: int) -> None:
    pieces = list(pretokens.cut_pieces(text, size))
    assert "".join(pieces) == text
    assert [word for piece in pieces for word in rust_words(piece)] == rust_words(text)


def test_pieces_are_near_the_size_asked_for() -> None:
    text = "some words of text\n" * 1000
    pieces = list(pretokens.cut_pieces(text, 100))
    assert all(100 <= len(piece) <= 106 for piece in pieces[:-1])
    assert list(pretokens.cut_pieces("x" * 1000, 100)) == ["x" * 1000]  # nowhere to cut
