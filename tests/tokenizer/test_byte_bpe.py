"""Byte-level BPE from GPT-2's files."""

import json
import pickle

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from glmkit.errors import TokenizerError
from glmkit.tokenizer.byte_bpe import ByteBPE
from support.text import run_text
from tokenizer.small_vocabularies import bpe_texts
from tokenizer.trained import CODE


def model() -> ByteBPE:
    return ByteBPE.from_text(*bpe_texts())


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_every_text_comes_back(text: str) -> None:
    made = model()
    ids = made.encode(text)
    assert run_text(made, ids) == text
    run = made.run()
    assert "".join([*(run.feed([index]) for index in ids), run.finish()]) == text


def test_merges_are_used_in_order() -> None:
    made = model()
    entries, merges = json.loads(bpe_texts()[0]), [tuple(line.split()) for line in bpe_texts()[1].splitlines()[1:]]
    first, second = merges[0]
    assert made.token(entries[first + second]) == first + second
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=entries, merges=merges))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert made.encode(CODE) == library.encode(CODE).ids
    assert len(made.encode(CODE)) < len(CODE.encode())


def test_entries() -> None:
    made = model()
    assert made.readable(made.encode(" second")[0]).startswith(" ")
    half = made.encode("鑫")[0]
    assert made.is_byte(half)
    assert made.readable(half) == f"<0x{'鑫'.encode()[0]:02X}>"
    assert made.find("<|endoftext|>") == made.size - 1
    assert made.find("no such entry") is None
    assert pickle.loads(pickle.dumps(made)).encode(CODE) == made.encode(CODE)
    with pytest.raises(TokenizerError, match="outside the vocabulary"):
        made.run().feed([made.size])


@pytest.mark.parametrize(
    ("entries", "merges", "message"),
    [
        ("{", "#v\na b\n", "vocab.json is not valid JSON"),
        ("[]", "#v\na b\n", "vocab.json: must be an object of entry -> id"),
        ('{"a": "b"}', "#v\na b\n", "must be an object of entry -> id"),
        ('{"a": 0, "b": 2, "ab": 3}', "#v\na b\n", "3 entries, but id 3 of 'ab' is out of line"),
        ('{"a": 0, "b": 0, "ab": 1}', "#v\na b\n", "id 0 of 'b' is out of line"),
        ('{"a": 0, "中": 1}', "#v\na b\n", "entry '中' is not byte-level BPE"),
        ('{"a": 0, "b": 1, "ab": 2}', "#v\na b c\n", "merges.txt: line 2 is 'a b c', not two entries"),
        ('{"a": 0, "b": 1, "ab": 2}', "#v\n", "merges.txt: no merges"),
        ('{"a": 0, "b": 1, "ab": 2}', "#v\na c\n", "merges.txt does not fit vocab.json"),
    ],
)
def test_damaged_files(entries: str, merges: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        ByteBPE.from_text(entries, merges, source="vocab.json", merges_source="merges.txt")
    assert "\n" not in str(caught.value)


def test_merges_that_were_cut_off() -> None:
    """They fit the vocabulary and would cut every text otherwise."""
    entries, merges = bpe_texts()
    kept = "\n".join(merges.split("\n")[:100])
    with pytest.raises(
        TokenizerError, match=r"m\.txt: no merge makes .* and \d+ other entries of v\.json; it is cut off"
    ):
        ByteBPE.from_text(entries, kept, source="v.json", merges_source="m.txt")
