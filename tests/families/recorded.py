"""Comparing a tokenizer with what the published one was recorded to do."""

import json
from typing import Any

import pytest

from glmkit.errors import TokenizerError
from glmkit.families.common.command_tokenizer import CommandTokenizer
from glmkit.tokenizer.incremental import IncrementalDecoder
from glmkit.tokenizer.inputs import InputTokenizer
from support.shared import shared_dir


def recorded(folder: str) -> dict[str, Any]:
    with open(shared_dir("fixtures", "tokenizers", folder) / "cases.json", encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
    return content


def streamed(tokenizer: InputTokenizer, ids: list[int], *, skip_specials: bool = False) -> str:
    decoder = IncrementalDecoder(tokenizer, skip_specials=skip_specials)
    return "".join([*(decoder.push(index) for index in ids), decoder.flush()])


def check_texts(tokenizer: InputTokenizer, data: dict[str, Any]) -> None:
    for case in data["cases"]:
        text = case["text"]
        assert tokenizer.encode(text, specials=True) == case["ids"], text
        assert tokenizer.encode_inputs(text) == case["ids_special"], text
        assert tokenizer.decode(case["ids"], skip_specials=False) == case["decoded"], text
        assert streamed(tokenizer, case["ids"]) == case["decoded"], text
        if "decoded_special" in case:
            assert tokenizer.decode(case["ids_special"], skip_specials=False) == case["decoded_special"], text
        skipped = case.get("decoded_skip", case["decoded"])
        assert tokenizer.decode(case["ids_special"]) == skipped, text
        assert streamed(tokenizer, case["ids_special"], skip_specials=True) == skipped, text


def check_decoding(tokenizer: InputTokenizer, data: dict[str, Any]) -> None:
    for case in data["decode_ids"]:
        for field, skip in (("decoded", False), ("skip_special", True)):
            if isinstance(case[field], dict):
                with pytest.raises(TokenizerError, match=f"token id {case['ids'][0]} is outside"):
                    tokenizer.decode(case["ids"], skip_specials=skip)
            else:
                assert tokenizer.decode(case["ids"], skip_specials=skip) == case[field], case["ids"]
                assert streamed(tokenizer, case["ids"], skip_specials=skip) == case[field], case["ids"]
    for case in data["prefix_decode"]:
        for length, text in enumerate(case["decoded_prefixes"], 1):
            assert tokenizer.decode(case["ids"][:length], skip_specials=False) == text


def check_batches(tokenizer: InputTokenizer, data: dict[str, Any]) -> None:
    for case in data["batches"]:
        options, expected = case["kwargs"], case["out"]
        texts = [text if case.get("pair") else (text, None) for text in case["texts"]]
        limit = options["max_length"] if options.get("truncation") else None
        if "error" in expected:
            with pytest.raises(TokenizerError):
                tokenizer.encode_inputs(*texts[0])
            continue
        rows = [tokenizer.encode_inputs(text, pair, max_length=limit) for text, pair in texts]
        if not options.get("padding"):
            one = not isinstance(expected["input_ids"][0], list)
            assert rows == ([expected["input_ids"]] if one else expected["input_ids"])
            continue
        length = options["max_length"] if options["padding"] == "max_length" else None
        batch = tokenizer.pad_batch(rows, length=length, multiple_of=options.get("pad_to_multiple_of"))
        assert batch.input_ids.tolist() == expected["input_ids"]
        assert batch.attention_mask.astype(int).tolist() == expected["attention_mask"]
        assert batch.position_ids[:, 0].tolist() == expected["position_ids"]
        assert not batch.position_ids[:, 1].any()


def check_truncation(tokenizer: InputTokenizer, data: dict[str, Any]) -> None:
    """Where the published class gives up and cuts nothing, or fails, ours raises."""
    for case in data["truncation"]:
        text, pair = (case["text"], None) if "text" in case else case["pair"]
        limit, expected = case.get("max_length"), case["ids_special"]
        options = {"max_length": limit, "strategy": case.get("strategy", "longest_first")}
        if "truncation_side" in case:
            options["truncation_side"] = case["truncation_side"]
        if isinstance(expected, dict) or (limit is not None and len(expected) > limit):
            with pytest.raises(TokenizerError):
                tokenizer.encode_inputs(text, pair, **options)
        else:
            assert tokenizer.encode_inputs(text, pair, **options) == expected, case
        if "ids" in case:
            ids = tokenizer.encode(text, specials=True)
            ids += tokenizer.encode(pair, specials=True) if pair is not None else []
            assert tokenizer.truncate(ids, None, limit or len(ids))[0] == case["ids"], case


def check_specials(tokenizer: InputTokenizer, data: dict[str, Any], *, missing: int | None) -> None:
    special = data["special"]
    attributes = special["attributes"]
    assert tokenizer.vocab_size == special["len"]
    assert (tokenizer.padding_side, tokenizer.truncation_side) == (special["padding_side"], special["truncation_side"])
    assert (tokenizer.pad_id, tokenizer.special.eos) == (attributes["pad_token_id"], attributes["eos_token_id"])
    for name, expected in special["ids"].items():
        index = tokenizer.token_to_id(name)  # type: ignore[attr-defined]
        assert (missing if index is None else index) == expected, name


def check_commands(tokenizer: CommandTokenizer, data: dict[str, Any]) -> None:
    """What the published class offers besides: ids of commands by name, its inner SentencePiece model."""
    for name, expected in data["commands"].items():  # of pad, bos and eos, whose pieces are the model's, too
        if not isinstance(expected, dict) and name not in ("<pad>", "<bos>", "<eos>"):
            assert tokenizer.token_to_id(name) == expected
    for case in data["sp_encode"]:
        ids = tokenizer.encode(case["text"])
        assert ids == case["encode"]
        assert [1, *ids, 2] == case["bos_eos"]
        assert tokenizer.decode(ids) == case["decode"]
