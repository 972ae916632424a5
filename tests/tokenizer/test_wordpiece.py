"""BERT's wordpieces."""

import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmkit.errors import TokenizerError
from glmkit.tokenizer.wordpiece import WordPiece
from support.text import run_text
from tokenizer.small_vocabularies import WORDS


def model() -> WordPiece:
    return WordPiece.from_text("\n".join(WORDS) + "\n")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("The QUICK foxes", ["the", "quick", "fox", "##es"]),
        ("unaffable", ["un", "##aff", "##able"]),
        ("the,the!'s", ["the", ",", "the", "!", "'", "[UNK]"]),
        ("中文the中", ["中", "文", "the", "中"]),
        ("café cafe\u0301", ["cafe", "cafe"]),
        ("the\u200bquick\x00fox \ufffd", ["[UNK]"]),
        ("the\u2028quick\u00a0fox\r\n", ["the", "quick", "fox"]),
        ("[MASK]", ["[", "[UNK]", "]"]),
        ("ΟΔΟΣ", ["οδος"]),
        ("the" + "e" * 97, ["the", *["##e"] * 97]),
        ("the" + "e" * 98, ["[UNK]"]),
        ("foxjump", ["[UNK]"]),
    ],
)
def test_words(text: str, tokens: list[str]) -> None:
    made = model()
    ids = made.encode(text)
    assert [made.token(index) for index in ids] == tokens
    assert made.encode(text) == ids, "the second time from the cache"
    assert made.encode_batch([text, text]) == [ids, ids]


def test_joined_again() -> None:
    made = model()
    assert run_text(made, made.encode("Foxes jumps!")) == "foxes jumps !"
    assert run_text(made, made.encode("foxes")[1:]) == "##es", "nothing to join it with"
    assert run_text(made, [made.find("the") or 0, made.find("##es") or 0]) == "thees"


@given(st.text(max_size=30))
def test_any_text_gives_words_of_the_vocabulary(text: str) -> None:
    made = model()
    if any(unicodedata.category(character) == "Cs" for character in text):
        with pytest.raises(TokenizerError):
            made.encode(text)
    else:
        assert all(0 <= index < made.size for index in made.encode(text))


def test_cased_and_pickled() -> None:
    cased = WordPiece(["[UNK]", "The", "the"], lower=False)
    assert cased.encode("The the THE") == [1, 2, 0]
    assert pickle.loads(pickle.dumps(cased)).encode("The the THE") == [1, 2, 0]


def test_mistakes() -> None:
    with pytest.raises(TokenizerError, match=r"no entry \[UNK\] among 2; not a BERT vocabulary"):
        WordPiece.from_text("a\nb\n", source="vocab.txt")
    with pytest.raises(TokenizerError, match="token id 99 is outside the vocabulary"):
        run_text(model(), [99])
