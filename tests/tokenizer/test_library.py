"""A tokenizer.json of a stranger: only known parts reach the library, and its panics are errors."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from glmkit.errors import DataError, TokenizerError
from glmkit.tokenizer.bpe_ranks import SPLIT_PATTERN
from glmkit.tokenizer.byte_bpe import JsonVocabulary
from glmkit.tokenizer.library import checked_content, library_errors
from glmkit.tokenizer.pretokens import RUST_PATTERN
from glmkit.tokenizer.trained import SPECIAL_STRINGS, TrainedTokenizer
from support.hostile import PeakMemory
from tokenizer.trained import CODE, trained

Change = Callable[[dict[str, Any]], object]


def doubling(count: int) -> dict[str, Any]:
    steps = [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * count
    return {"type": "Sequence", "normalizers": steps}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def added(**fields: Any) -> Change:
    return lambda content: content["added_tokens"].append({**content["added_tokens"][0], **fields})


REFUSED: list[tuple[str, Change]] = [
    ("normalizer Replace is not one of", lambda c: c.update(normalizer=doubling(34)["normalizers"][0])),
    ("normalizer is no list of at most 8", lambda c: c.update(normalizer=doubling(34))),
    ("normalizer Replace is not one of", lambda c: c.update(normalizer=doubling(2))),
    ("normalizer Prepend is not one of", lambda c: c.update(normalizer={"type": "Prepend", "prepend": "x" * 10**6})),
    ("normalizer Sequence is not one of", lambda c: c.update(normalizer={**doubling(1), "normalizers": [doubling(2)]})),
    ("normalizer None is not one of", lambda c: c.update(normalizer={})),
    ("pre_tokenizer UnicodeScripts is not", lambda c: c.update(pre_tokenizer={"type": "UnicodeScripts"})),
    ("repeats a group", lambda c: c.update(pre_tokenizer=split("(a+)+$"))),
    ("repeats a group", lambda c: c.update(pre_tokenizer=split("(?:a|aa)*b"))),
    ("repeats a group", lambda c: c.update(pre_tokenizer=split("(a){2}"))),
    ("or something too often", lambda c: c.update(pre_tokenizer=split("a{1000000}"))),
    ("or something too often", lambda c: c.update(pre_tokenizer=split("a{50}b{50}"))),
    ("pattern that is no text", lambda c: c.update(pre_tokenizer=split("a" * 2000))),
    ("pattern that is no text", lambda c: c.update(pre_tokenizer={**split("a"), "pattern": {"Regex": 7}})),
    ("post_processor", lambda c: c.update(post_processor={"type": "Unknown\x1b[31m"})),
    ("decoder WordPiece is not", lambda c: c.update(decoder={"type": "WordPiece", "prefix": "#", "cleanup": True})),
    ("makes the ids of a text random", lambda c: c["model"].update(dropout=0.1)),
    ("model type WordLevel is not one of", lambda c: c["model"].update(type="WordLevel")),
    ("model type None is not one of", lambda c: c.update(model=[])),
    ("is no whole number", lambda c: c["model"]["vocab"].update(a=1.0)),
    ("is no whole number", lambda c: c["model"]["vocab"].update(a=True)),
    ("is no whole number", added(id=12.0)),
    ("is no whole number", added(id=1 << 40)),
    ("has no text", added(content="")),
    ("has no text", added(content="x" * 5000)),
    ("is no text of at most 4096", lambda c: c["model"]["vocab"].update({"x" * 5000: 7})),
    ("its model has no vocabulary", lambda c: c["model"].update(vocab="x")),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "change"), REFUSED)
def test_parts_that_are_not_known(reason: str, change: Change) -> None:
    content = json.loads(trained("bpe")._json)
    change(content)
    text = json.dumps(content)
    with PeakMemory() as memory:
        for read in (lambda: TrainedTokenizer(text, SPECIAL_STRINGS), lambda: JsonVocabulary(text.encode())):
            with pytest.raises(TokenizerError) as caught:
                read()
            assert reason in str(caught.value)
            assert str(caught.value).isprintable()
    assert memory.growth is None or memory.growth < 100 * 2**20


@pytest.mark.parametrize("depth", [200, 100_000])
def test_nesting_without_end(depth: int) -> None:
    text = '{"model": ' + "[" * depth
    for read in (lambda: TrainedTokenizer(text, SPECIAL_STRINGS), lambda: JsonVocabulary(text.encode())):
        with pytest.raises(TokenizerError, match=r"nested too deeply|not valid JSON"):
            read()


def test_what_is_published_and_what_is_ours_is_known() -> None:
    for pattern in (
        RUST_PATTERN,
        SPLIT_PATTERN,
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    ):
        content = json.loads(trained("bpe")._json)
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split(pattern), {"type": "ByteLevel"}]}
        assert checked_content(content, "x")["model"]["type"] == "BPE"
    for kind in ("bpe", "unigram"):
        checked_content(json.loads(trained(kind)._json), "x")
    for name in ("NFC", "NFKC"):
        content = json.loads(trained("bpe")._json)
        content["normalizer"] = {"type": name}
        assert TrainedTokenizer(json.dumps(content), SPECIAL_STRINGS).encode("a") == trained("bpe").encode("a")


def test_the_file_neither_cuts_nor_pads() -> None:
    content = json.loads(trained("bpe")._json)
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "x",
    }  # fmt: skip
    text = "\u0301 " + CODE  # an unusual character: the library is asked
    assert TrainedTokenizer(json.dumps(content), SPECIAL_STRINGS).encode(text) == trained("bpe").encode(text)


def test_a_panic_of_the_library_is_an_error() -> None:
    model = Tokenizer(models.BPE({"a": 0}, []))
    model.pre_tokenizer = pre_tokenizers.Split(Regex("(x+x+)+y"), "isolated")
    with pytest.raises(BaseException) as bare:
        model.encode("x" * 40)
    assert not isinstance(bare.value, Exception)
    with (
        pytest.raises(TokenizerError, match=r"^a text cannot be encoded \("),
        library_errors("a text cannot be encoded"),
    ):
        model.encode("x" * 40)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit])
def test_what_is_no_error_of_the_library_passes(error: type[BaseException]) -> None:
    with pytest.raises(error), library_errors("x"):
        raise error
    with pytest.raises(DataError, match="^ours$"), library_errors("x"):
        raise DataError("ours")
