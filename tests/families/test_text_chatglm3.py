"""ChatGLM3-6B's tokenizer against the published one's recorded answers."""

from functools import cache
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
from glmkit.families.chatglm2_text import load_tokenizer_2 as load_chatglm2
from glmkit.families.chatglm2_text import load_tokenizer_3 as load_tokenizer
from glmkit.families.common.command_tokenizer import CommandTokenizer
from support.shared import shared_dir


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return recorded("chatglm3-6b")


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


def test_role_tokens_in_a_text_only_when_asked_for(tokenizer: CommandTokenizer, data: dict[str, Any]) -> None:
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


def test_the_two_tokenizers_of_one_file_differ(tokenizer: CommandTokenizer) -> None:
    other = load_chatglm2(shared_dir("tokenizers", "chatglm2-chatglm3"), None)
    assert other is not None
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
def loaded(named: bool) -> tuple[CommandTokenizer, Any]:
    directory = shared_dir("tokenizers", "chatglm2-chatglm3")
    tokenizer = (load_tokenizer if named else load_chatglm2)(directory, None)
    assert tokenizer is not None
    return tokenizer, sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))


@pytest.mark.parametrize("named", [False, True], ids=["chatglm2", "chatglm3"])
@settings(max_examples=300, deadline=None)
@given(ids_lists)
def test_any_ids_decode_as_published(named: bool, ids: list[int]) -> None:
    """The published classes turn ids into pieces, special ones into "" or their names, and join them in the library."""
    tokenizer, library = loaded(named)
    names = {0: "", 1: "", 2: ""} | {i: tokenizer.id_to_token(i) if named else "" for i in range(64789, 64794)}
    expected = library.DecodePieces([names[i] if i in names else library.IdToPiece(i) for i in ids]) if ids else ""
    assert tokenizer.decode(ids) == expected
    assert streamed(tokenizer, ids) == expected
