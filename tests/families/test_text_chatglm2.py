"""ChatGLM2-6B's tokenizer against the published one's recorded answers."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from families.recorded import (
    check_batches,
    check_commands,
    check_decoding,
    check_specials,
    check_texts,
    check_truncation,
    recorded,
)
from glmkit.errors import TokenizerError
from glmkit.families.chatglm2_text import load_tokenizer_2 as load_tokenizer
from glmkit.families.common.command_tokenizer import CommandTokenizer
from support.shared import shared_dir


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return recorded("chatglm2-6b")


@pytest.fixture(scope="module")
def tokenizer() -> CommandTokenizer:
    loaded = load_tokenizer(shared_dir("tokenizers", "chatglm2-chatglm3"), None)
    assert loaded is not None
    return loaded


def test_special_ids(tokenizer: CommandTokenizer, data: dict[str, Any]) -> None:
    check_specials(tokenizer, data, missing=0)
    check_commands(tokenizer, data)


def test_texts(tokenizer: CommandTokenizer, data: dict[str, Any]) -> None:
    check_texts(tokenizer, data)


def test_decoding(tokenizer: CommandTokenizer, data: dict[str, Any]) -> None:
    check_decoding(tokenizer, data)


def test_batches_and_truncation(tokenizer: CommandTokenizer, data: dict[str, Any]) -> None:
    check_batches(tokenizer, data)
    check_truncation(tokenizer, data)


def test_nothing_in_a_text_is_special(tokenizer: CommandTokenizer) -> None:
    text = "[MASK][gMASK] sop <|user|> </s>"
    tokenizer.encode_special_tokens = True
    assert max(tokenizer.encode(text, specials=True)) < 64789
    tokenizer.encode_special_tokens = False


def test_saved_pickled_and_explained(tokenizer: CommandTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path, None)
    assert again is not None
    assert again.fingerprint() == tokenizer.fingerprint()
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint() == tokenizer.fingerprint()
    assert copy.encode("你好") == again.encode("你好") == [36474, 54591]
    told = tokenizer.explain("你好👋")
    assert [(t.id, t.text, t.kind) for t in told][:3] == [
        (36474, "你", "text"),
        (54591, "好", "text"),
        (243, "", "byte"),
    ]
    assert "".join(t.text for t in told) == "你好👋"


def test_absent_and_wrong_files(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path, None) is None
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(TokenizerError, match="tiktoken vocabulary.*SentencePiece model is expected"):
        load_tokenizer(tmp_path, None)
    (tmp_path / "tokenizer.model").write_bytes(b"something else")
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path, None)
