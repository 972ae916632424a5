"""GLM-4-9B's tokenizer against the published one's recorded answers."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from families.recorded import (
    check_batches,
    check_decoding,
    check_specials,
    check_texts,
    check_truncation,
    recorded,
)
from glmkit.errors import TokenizerError
from glmkit.families.glm4_text import SPECIAL_TOKENS, load_tokenizer
from glmkit.tokenizer.byte_level import ByteLevelTokenizer
from support.shared import shared_dir


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return recorded("glm-4-9b")


@pytest.fixture(scope="module")
def tokenizer() -> ByteLevelTokenizer:
    loaded = load_tokenizer(shared_dir("tokenizers", "glm4"), None)
    assert loaded is not None
    return loaded


def test_special_ids(tokenizer: ByteLevelTokenizer, data: dict[str, Any]) -> None:
    check_specials(tokenizer, data, missing=None)
    assert list(data["special"]["added_tokens"].items()) == [
        (name, tokenizer.token_to_id(name)) for name in SPECIAL_TOKENS
    ]
    assert tokenizer.vocab_size - len(SPECIAL_TOKENS) == data["special"]["vocab_size"]


def test_texts(tokenizer: ByteLevelTokenizer, data: dict[str, Any]) -> None:
    check_texts(tokenizer, data)
    for case in data["cases"]:
        plain = tokenizer.encode(case["text"])
        assert plain == case.get("tiktoken_ids", case["ids"])
        assert tokenizer.decode(plain) == case.get("tiktoken_decoded", case["text"])
        if "decoded_no_spaces" in case:
            text = tokenizer.decode(case["ids_special"], skip_specials=False, spaced=False)
            assert text == case["decoded_no_spaces"]


def test_decoding(tokenizer: ByteLevelTokenizer, data: dict[str, Any]) -> None:
    check_decoding(tokenizer, data)


def test_batches_and_truncation(tokenizer: ByteLevelTokenizer, data: dict[str, Any]) -> None:
    check_batches(tokenizer, data)
    check_truncation(tokenizer, data)


def test_saved_pickled_and_explained(tokenizer: ByteLevelTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path, None)
    assert again is not None
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint() == again.fingerprint() == tokenizer.fingerprint()
    assert copy.encode("你好 12345") == again.encode("你好 12345")
    told = tokenizer.explain("👋<|user|>a")
    assert [(t.text, t.kind) for t in told[-2:]] == [("<|user|>", "special"), ("a", "text")]
    assert told[0].kind == "byte"


def test_the_special_tokens_of_the_file_beside(tokenizer: ByteLevelTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    table = {str(151329 + i): {"content": name, "special": True} for i, name in enumerate([*SPECIAL_TOKENS, "<|new|>"])}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": table}))
    loaded = load_tokenizer(tmp_path, None)
    assert loaded is not None
    assert loaded.encode("a<|new|>", specials=True) == [64, 151343]
    loaded.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer_config.json").read_bytes() == (
        tmp_path / "tokenizer_config.json"
    ).read_bytes()
    table["5"] = {"content": "<|low|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": table}))
    with pytest.raises(TokenizerError, match="'<|low|>' has the id 5 of an ordinary token"):
        load_tokenizer(tmp_path, None)


def test_absent_and_wrong_files(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path, None) is None
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15")
    with pytest.raises(TokenizerError, match="it is a SentencePiece model"):
        load_tokenizer(tmp_path, None)
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(TokenizerError, match="not a tokenizer.json"):
        load_tokenizer(tmp_path, None)
