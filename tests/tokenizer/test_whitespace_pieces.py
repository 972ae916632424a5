"""White space as pieces, and ids in front of the text's."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmkit.errors import TokenizerError
from glmkit.tokenizer.sentencepiece import SentencePieceModel, append_pieces
from glmkit.tokenizer.whitespace_pieces import WhitespacePieces, white_space_pieces
from support.text import run_text
from tokenizer.small_vocabularies import sentencepiece_bytes

DATA = append_pieces(sentencepiece_bytes(), [(name, "user") for name in white_space_pieces()])


def pieces(offset: int = 0) -> WhitespacePieces:
    return WhitespacePieces(SentencePieceModel(DATA), offset=offset)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("\n", ["▁", "<n>"]),
        ("\t\t", ["▁", "<|tab|>", "<|tab|>"]),
        ("  \n", ["▁", "<|blank_2|>", "<n>"]),
        (" " * 80, ["▁", "<|blank_80|>"]),
        (" " * 83, ["▁", "<|blank_80|>", "<|blank_3|>"]),
    ],
)
def test_white_space(text: str, tokens: list[str]) -> None:
    model = pieces()
    ids = model.encode(text)
    assert [model.token(index) for index in ids] == tokens
    assert run_text(model, ids) == text
    assert pieces(1000).encode(text) == [index + 1000 for index in ids]
    assert pieces(1000).encode_batch([text]) == [[index + 1000 for index in ids]]


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab \n\t中<n>|"), max_size=20))
def test_white_space_inside_a_text_comes_back(text: str) -> None:
    text = f"a{text}b"
    expected = text.replace("<n>", "\n")
    assert run_text(pieces(), pieces().encode(text)) == expected


def test_switches() -> None:
    model = pieces()
    assert model.encode("a\nb", linebreak=False) == model.encode("a b")
    assert model.encode("a  \tb", whitespaces=False) == model.encode("a b")
    assert model.encode("ab", dummy_prefix=False) == model.encode("\nab")[2:]


def test_image_codes() -> None:
    model = pieces(1000)
    assert (model.token(12), model.find("<image_12>"), model.find("<image_1000>")) == ("<image_12>", 12, None)
    assert model.find("<n>") == 1000 + (pieces().find("<n>") or 0)
    assert run_text(model, [12, *model.encode("a")]) == "<image_12> a"
    assert not model.is_byte(12)
    for index in (-1, model.size):
        with pytest.raises(TokenizerError, match=f"token id {index} is outside"):
            run_text(model, [index])
    assert pickle.loads(pickle.dumps(model)).encode("a\n") == model.encode("a\n")
