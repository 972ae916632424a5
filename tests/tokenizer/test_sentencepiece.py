"""SentencePiece models: our step-by-step decoding against the library's, more pieces, damaged files."""

import pickle
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from glmkit.errors import TokenizerError
from glmkit.tokenizer.sentencepiece import SentencePieceModel, append_pieces, byte_pieces
from support.text import run_text
from tokenizer.small_vocabularies import sentencepiece_bytes

MODELS = [("unigram", True, "nmt_nfkc"), ("bpe", True, "identity"), ("unigram", False, "nmt_nfkc")]
each_model = pytest.mark.parametrize(("kind", "fallback", "rule"), MODELS)


def data_of(kind: str, fallback: bool, rule: str) -> bytes:
    return sentencepiece_bytes(kind, fallback=fallback, rule=rule)


@each_model
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_decoding_is_the_librarys(kind: str, fallback: bool, rule: str, draw: st.DataObject) -> None:
    data = data_of(kind, fallback, rule)
    model, library = SentencePieceModel(data), sentencepiece.SentencePieceProcessor(model_proto=data)
    assert model.leading == ("one" if rule == "identity" else "all")
    spaces = [i for i in range(model.size) if not model.token(i).strip("▁")]
    one = st.one_of(st.integers(0, model.size - 1), st.integers(0, min(260, model.size - 1)), st.sampled_from(spaces))
    ids = draw.draw(st.lists(one, max_size=12))
    assert run_text(model, ids) == library.DecodeIds(ids)
    run = model.run()
    assert "".join([*(run.feed([index]) for index in ids), run.finish()]) == library.DecodeIds(ids)


@each_model
def test_encoding_is_the_librarys(kind: str, fallback: bool, rule: str) -> None:
    data = data_of(kind, fallback, rule)
    model, library = SentencePieceModel(data), sentencepiece.SentencePieceProcessor(model_proto=data)
    texts = ["the quick  fox", "学而时习之", "", " ", "<n>\t\x00 😀", "鑫鑫", "Ａｂ１"]
    assert model.encode_batch(texts) == [model.encode(text) for text in texts] == library.EncodeAsIds(texts)
    assert model.encode_batch([]) == []
    for text in texts:
        assert model.pieces(text) == library.EncodeAsPieces(text)


def test_entries() -> None:
    model = SentencePieceModel(sentencepiece_bytes())
    assert model.find("<n>") is not None
    assert model.find("no such piece") is None
    assert model.find("<unk>") == 0
    assert [model.is_control(model.find(name) or 0) for name in ("<s>", "<pad>", "<n>")] == [True, True, False]
    assert model.is_unknown(0)
    assert model.is_byte(model.find("<0xE4>") or 0)
    for index in (-1, model.size):
        with pytest.raises(TokenizerError, match=f"token id {index} is outside the vocabulary of {model.size} tokens"):
            model.token(index)
        with pytest.raises(TokenizerError, match="outside"):
            run_text(model, [5, index])


def test_more_pieces() -> None:
    """Control pieces never come from text, user pieces always do, bytes make every character possible."""
    plain = sentencepiece_bytes(fallback=False)
    size = SentencePieceModel(plain).size
    more = append_pieces(plain, [("[MASK]", "control"), ("<|tab|>", "user"), ("quixotic", "normal"), *byte_pieces()])
    model = SentencePieceModel(more)
    assert model.size == size + 3 + 256
    assert [model.find(name) for name in ("[MASK]", "<|tab|>", "<0x00>", "<0xFF>")] == [
        size, size + 1, size + 3, size + 258
    ]  # fmt: skip
    assert model.is_control(size)
    assert size + 1 in model.encode("a<|tab|>b")
    assert size not in model.encode("a [MASK] b")
    ids = model.encode("鑫😀")
    assert 0 not in ids
    assert run_text(model, ids) == "鑫😀"
    assert run_text(SentencePieceModel(plain), SentencePieceModel(plain).encode("鑫")).strip() == "\u2047"


def test_pickled() -> None:
    model = SentencePieceModel(sentencepiece_bytes())
    copy = pickle.loads(pickle.dumps(model))
    assert copy.encode("the quick fox") == model.encode("the quick fox")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; copy or download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:5e97\nsize 2706249\n", "a git-lfs pointer"),
        (b"\n <!DOCTYPE html><html>", "a web page, not a vocabulary"),
        (b"just some words", "not a SentencePiece model, or a damaged one"),
        (sentencepiece_bytes()[:3000], "not a SentencePiece model, or a damaged one"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.model"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        SentencePieceModel.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"x\.model: no such file; copy it from the published model's directory"):
        SentencePieceModel.load(tmp_path / "x.model")
    with pytest.raises(TokenizerError, match="is a directory, not a file"):
        SentencePieceModel.load(tmp_path)


def test_lone_surrogates() -> None:
    model = SentencePieceModel(sentencepiece_bytes())
    with pytest.raises(TokenizerError, match=r"lone surrogate U\+D83D"):
        model.encode("a\ud83d")
    with pytest.raises(TokenizerError, match="lone surrogate"):
        model.encode_batch(["fine", "\udc00"])
