"""ChatGLM2-6B's and ChatGLM3-6B's tokenizers, two of one file, against the published ones' recorded answers."""

import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from families.recorded import (
    check_batches,
    check_commands,
    check_decoding,
    check_specials,
    check_texts,
    check_truncation,
    recorded,
    streamed,
)
from glmkit.errors import TokenizerError
from glmkit.families.chatglm2_text import load_tokenizer_2, load_tokenizer_3
from glmkit.families.common.command_tokenizer import CommandTokenizer
from support.shared import shared_dir

LOADERS = {"chatglm2-6b": load_tokenizer_2, "chatglm3-6b": load_tokenizer_3}


@cache
def loaded(name: str) -> CommandTokenizer:
    tokenizer = LOADERS[name](shared_dir("tokenizers", "chatglm2-chatglm3"), None)
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize("name", LOADERS)
def test_the_published_answers(name: str) -> None:
    tokenizer, data = loaded(name), recorded(name)
    check_specials(tokenizer, data, missing=0)
    check_commands(tokenizer, data)
    check_texts(tokenizer, data)
    check_decoding(tokenizer, data)
    check_batches(tokenizer, data)
    check_truncation(tokenizer, data)


def test_nothing_in_a_text_is_special() -> None:
    tokenizer = loaded("chatglm2-6b")
    text = "[MASK][gMASK] sop <|user|> </s>"
    tokenizer.encode_special_tokens = True
    assert max(tokenizer.encode(text, specials=True)) < 64789
    tokenizer.encode_special_tokens = False


def test_saved_pickled_and_explained(tmp_path: Path) -> None:
    tokenizer = loaded("chatglm2-6b")
    tokenizer.save(tmp_path)
    again = load_tokenizer_2(tmp_path, None)
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
    assert load_tokenizer_2(tmp_path, None) is None
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(TokenizerError, match="tiktoken vocabulary.*SentencePiece model is expected"):
        load_tokenizer_2(tmp_path, None)
    (tmp_path / "tokenizer.model").write_bytes(b"something else")
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        load_tokenizer_2(tmp_path, None)


def test_role_tokens_in_a_text_only_when_asked_for() -> None:
    tokenizer, data = loaded("chatglm3-6b"), recorded("chatglm3-6b")
    cases = [case for case in data["cases"] if "ids_encode_special_tokens" in case]
    assert len(cases) >= 2
    tokenizer.encode_special_tokens = True
    try:
        for case in data["cases"]:
            expected = case.get("ids_encode_special_tokens", case["ids"])
            assert tokenizer.encode(case["text"], specials=True) == expected
            assert tokenizer.encode(case["text"]) == case["ids"]
    finally:
        tokenizer.encode_special_tokens = False


def test_the_two_tokenizers_of_one_file_differ() -> None:
    other, tokenizer = loaded("chatglm2-6b"), loaded("chatglm3-6b")
    assert other.fingerprint() != tokenizer.fingerprint()
    assert other.decode([64790, 36474]) == "你"
    assert tokenizer.decode([64790, 36474]) == "[gMASK] 你"


# --- any ids ----------------------------------------------------------------------------------------------------------

ids_lists = st.lists(
    st.one_of(
        st.integers(0, 64788), st.integers(3, 258), st.sampled_from([0, 1, 2, 13, 30910]), st.integers(64789, 64793)
    ),
    max_size=25,
)


@cache
def library() -> Any:
    model = shared_dir("tokenizers", "chatglm2-chatglm3") / "tokenizer.model"
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


@pytest.mark.parametrize("name", LOADERS)
@settings(max_examples=300, deadline=None)
@given(ids_lists)
def test_any_ids_decode_as_published(name: str, ids: list[int]) -> None:
    """The published classes turn ids into pieces, special ones into "" or their names, and join them in the library."""
    tokenizer, named = loaded(name), name == "chatglm3-6b"
    names = {0: "", 1: "", 2: ""} | {i: tokenizer.id_to_token(i) if named else "" for i in range(64789, 64794)}
    pieces = [names[i] if i in names else library().IdToPiece(i) for i in ids]
    expected = library().DecodePieces(pieces) if ids else ""
    assert tokenizer.decode(ids) == expected
    assert streamed(tokenizer, ids) == expected
