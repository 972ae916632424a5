"""A tokenizer alone: whose vocabulary lies in a directory, and what to say when that is not certain."""

import json
from pathlib import Path
from typing import Any

import pytest

import glmkit
from glmkit.errors import ConfigError, TokenizerError
from glmkit.families.family import preset
from glmkit.tokenizer.sentencepiece import SentencePieceModel
from tokenizer.small_vocabularies import WORDS, bpe_texts, sentencepiece_bytes
from tokenizer.tiny_ranks import rank_file
from tokenizer.trained import trained

ICE = {"ice_text.model": sentencepiece_bytes(fallback=False)}
PIECES = {"tokenizer.model": sentencepiece_bytes()}
# Entries, with the special tokens, white-space pieces and bytes that are put behind the pieces of the first.
PIECES_OF = {
    "ice_text.model": SentencePieceModel(ICE["ice_text.model"]).size + 8 + 80 + 256,
    "tokenizer.model": SentencePieceModel(PIECES["tokenizer.model"]).size,
}


def folder(place: Path, files: dict[str, bytes], **beside: Any) -> Path:
    for name, content in files.items():
        (place / name).write_bytes(content)
    for name, values in beside.items():
        (place / f"{name}.json").write_text(json.dumps(values))
    return place


@pytest.mark.parametrize(
    ("files", "roles"),
    [
        ({"vocab.txt": "\n".join(WORDS).encode()}, {"sop": 0, "eop": 1}),
        ({"vocab.json": bpe_texts()[0].encode(), "merges.txt": bpe_texts()[1].encode()}, {"cls": 2, "gmask": 6}),
        ({"cog-pretrain.model": sentencepiece_bytes()}, {"eos": 0, "gmask": 9}),
        ({"tokenizer.model": rank_file()}, {"eos": 0, "gmask": 2, "sop": 4}),
    ],
    ids=["bert", "gpt2", "chinese", "ranks"],
)
def test_the_vocabulary_says_whose_it_is(tmp_path: Path, files: dict[str, bytes], roles: dict[str, int]) -> None:
    tokenizer = glmkit.load_tokenizer(folder(tmp_path, files))
    for role, behind in roles.items():
        assert getattr(tokenizer.special, role) == tokenizer.model.size + behind, role  # type: ignore[attr-defined]
    assert tokenizer.fingerprint() == glmkit.load_tokenizer(tmp_path).fingerprint()


def test_a_tokenizer_of_our_own(tmp_path: Path) -> None:
    trained("bpe").save(tmp_path)
    assert glmkit.load_tokenizer(tmp_path).fingerprint() == trained("bpe").fingerprint()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (ICE, "the vocabulary of ChatGLM-6B and of GLM-130B; say which with family='chatglm' or family='glm-130b'"),
        (PIECES, "the vocabulary of ChatGLM2-6B and of ChatGLM3-6B; say which with family='chatglm2' or"),
    ],
)
def test_two_families_of_one_vocabulary(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        glmkit.load_tokenizer(folder(tmp_path, files))


@pytest.mark.parametrize(
    ("files", "beside", "added"),
    [
        (PIECES, {"config": {"model_type": "chatglm", "_name_or_path": "THUDM/chatglm2-6b"}}, 5),
        (PIECES, {"config": {"model_type": "chatglm", "_name_or_path": "THUDM/chatglm3-6b"}}, 9),
        (PIECES, {"tokenizer_config": {"name_or_path": "THUDM/chatglm2-6b"}}, 5),
        (PIECES, {"tokenizer_config": {"additional_special_tokens": ["<|user|>", "<|observation|>"]}}, 9),
        (PIECES, {"config": {"glmkit_format": 1, "family": "chatglm3"}}, 9),
        (ICE, {"config": {"model_type": "chatglm"}}, 0),
        (ICE, {"model_config": {"model_class": "GLM130B"}}, 20000),
        (ICE, {"tokenizer_config": {"name_or_path": "THUDM/chatglm-6b", "num_image_tokens": 20000}}, 20000),
        (ICE, {"tokenizer_config": {"name_or_path": "THUDM/chatglm-6b", "num_image_tokens": 0}}, 0),
    ],
)
def test_files_beside_it_decide(tmp_path: Path, files: dict[str, bytes], beside: dict[str, Any], added: int) -> None:
    tokenizer = glmkit.load_tokenizer(folder(tmp_path, files, **beside))
    assert tokenizer.vocab_size == PIECES_OF[next(iter(files))] + added


def test_asked_for_by_name(tmp_path: Path) -> None:
    place = folder(tmp_path, ICE)
    plain = glmkit.load_tokenizer(place, family="chatglm")
    first = glmkit.load_tokenizer(place, config="chatglm-6b-v0")
    assert first.vocab_size == plain.vocab_size + 20000
    assert glmkit.load_tokenizer(place, config=preset("chatglm-6b")).fingerprint() == plain.fingerprint()
    assert [index + 20000 for index in plain.encode("the fox")] == first.encode("the fox")
    assert glmkit.load_tokenizer(place, family="glm-130b").encode("the fox") == first.encode("the fox")


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({}, {}, r"has no vocabulary; looked for .*ice_text\.model, tokenizer\.model"),
        ({}, {"family": "chatglm"}, r"has no vocabulary; looked for ice_text\.model$"),
        ({"tokenizer.model": b"\x00"}, {"family": "chatglm2"}, r"tokenizer\.model: not a SentencePiece model"),
        ({"tokenizer.model": b"\x00"}, {}, r"tokenizer\.model: "),
        (PIECES, {"config": "chatglm2-6b"}, r"entries, but the vocabulary of a model with 65024 rows has 64789"),
    ],
)
def test_mistakes(tmp_path: Path, files: dict[str, bytes], options: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        glmkit.load_tokenizer(folder(tmp_path, files), **options)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_vocabularies_of_one_family(tmp_path: Path) -> None:
    entries, merges = (text.encode() for text in bpe_texts())
    files = {"gpt2-vocab.json": entries, "gpt2-merges.txt": merges, "bert-vocab.txt": "\n".join(WORDS).encode()}
    with pytest.raises(TokenizerError, match=r"several vocabularies \(bert-vocab\.txt; gpt2-vocab\.json, gpt2-merges"):
        glmkit.load_tokenizer(folder(tmp_path, files))
    assert glmkit.load_tokenizer(tmp_path, kind="bert").encode("the fox") == [5, 7]
    assert glmkit.load_tokenizer(tmp_path, kind="gpt2").vocab_size == len(json.loads(entries)) + 9
    with pytest.raises(TokenizerError, match=r"has no vocabulary; looked for vocab\.txt, vocab\.json"):
        glmkit.load_tokenizer(tmp_path, kind="chinese")
    with pytest.raises(TokenizerError, match="kind is 'gpt3'; use one of bert, gpt2, roberta, chinese"):
        glmkit.load_tokenizer(tmp_path, kind="gpt3")


def test_wrong_names(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="is no directory; give the one that holds the vocabulary files"):
        glmkit.load_tokenizer(tmp_path / "nothing")
    with pytest.raises(TokenizerError, match="the directory is None; give a path"):
        glmkit.load_tokenizer(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no family is called 'chatglm4'"):
        glmkit.load_tokenizer(tmp_path, family="chatglm4")
    with pytest.raises(ConfigError, match="no preset is called 'glm-11b'"):
        glmkit.load_tokenizer(tmp_path, config="glm-11b")
