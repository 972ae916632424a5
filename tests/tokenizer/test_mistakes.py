"""What is no text or no id is a mistake of one line for every kind of tokenizer; numbers of NumPy and torch are ids."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from glmkit.errors import TokenizerError
from glmkit.families.common.command_tokenizer import COMMANDS, CommandTokenizer
from glmkit.families.glm_text import GLMTokenizer
from glmkit.tokenizer.byte_bpe import ByteBPE
from glmkit.tokenizer.incremental import IncrementalDecoder
from glmkit.tokenizer.protocol import Tokenizer
from glmkit.tokenizer.sentencepiece import SentencePieceModel
from glmkit.tokenizer.wordpiece import WordPiece
from tokenizer.small_vocabularies import WORDS, bpe_texts, sentencepiece_bytes
from tokenizer.tiny_ranks import tiny_tokenizer
from tokenizer.trained import trained


@cache
def tokenizers() -> dict[str, Tokenizer]:
    pieces = SentencePieceModel(sentencepiece_bytes())
    return {
        "bpe": trained("bpe"),
        "unigram": trained("unigram"),
        "wordpiece": GLMTokenizer("bert", WordPiece(WORDS), {}),
        "gpt2": GLMTokenizer("gpt2", ByteBPE.from_text(*bpe_texts()), {}),
        "sentencepiece": GLMTokenizer("chinese", pieces, {}, reading="hub"),
        "commands": CommandTokenizer(pieces, COMMANDS),
        "ranks": tiny_tokenizer(),
    }


each = pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece", "gpt2", "sentencepiece", "commands", "ranks"])


def refused(message: str, call: Any, *arguments: Any, **options: Any) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@each
@pytest.mark.parametrize("text", [None, b"x", 3, ["a"], ("a",)], ids=repr)
def test_no_text(kind: str, text: Any) -> None:
    tokenizer = tokenizers()[kind]
    for specials in (False, True):
        refused("^a text is .*; give a text", tokenizer.encode, text, specials=specials)
        refused("^a text is .*; give a text", tokenizer.explain, text, specials=specials)
    refused("^a text is .*; give a text", tokenizer.encode_batch, ["a", text])


@each
@pytest.mark.parametrize("texts", [None, "a", b"a", 3], ids=repr)
def test_no_list_of_texts(kind: str, texts: Any) -> None:
    refused("^texts are .*; give a list of texts", tokenizers()[kind].encode_batch, texts)


@each
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "[MASK]\ud800"])
def test_lone_surrogates(kind: str, text: str) -> None:
    tokenizer = tokenizers()[kind]
    for specials in (False, True):
        refused(r"lone surrogate U\+D", tokenizer.encode, text, specials=specials)
    refused(r"lone surrogate U\+D", tokenizer.encode_batch, ["a", text])


@each
@pytest.mark.parametrize("ids", [None, 5, ["a"], [1.5], [None], [[5]], [*[3] * 500, None]], ids=lambda x: repr(x)[:9])
def test_no_ids(kind: str, ids: Any) -> None:
    tokenizer = tokenizers()[kind]
    refused("^token ids are .*; give a list of whole numbers", tokenizer.decode, ids)
    if isinstance(ids, list) and len(ids) == 1:
        refused("^token ids are", tokenizer.id_to_token, ids[0])
        refused("^token ids are", IncrementalDecoder(tokenizer).push, ids[0])


@each
def test_numbers_of_other_libraries(kind: str) -> None:
    tokenizer = tokenizers()[kind]
    ids = tokenizer.encode("the quick fox")
    assert len(ids) > 2
    text = tokenizer.decode(ids)
    for others in (np.array(ids), torch.tensor(ids), tuple(ids), iter(ids), [np.int32(index) for index in ids]):
        assert tokenizer.decode(others) == text  # type: ignore[arg-type]
    assert tokenizer.id_to_token(np.int64(ids[0])) == tokenizer.id_to_token(ids[0])
    refused("outside the vocabulary", tokenizer.id_to_token, tokenizer.vocab_size)
    refused("outside the vocabulary", tokenizer.id_to_token, -1)


@each
def test_saving_where_nothing_can_be(kind: str, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    tokenizer = tokenizers()[kind]
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        refused("file.* cannot be written .*; choose another directory", tokenizer.save, target)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_row_length_that_is_no_number() -> None:
    tokenizer = tiny_tokenizer()
    for length in ("8", 2.5, [8]):
        refused("^max_length is .*; give a whole number", tokenizer.encode_inputs, "ab", max_length=length)
    assert len(tokenizer.encode_inputs("ab ab ab ab ab", max_length=np.int64(4))) == 4
