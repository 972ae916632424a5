"""What the recorded GLM tokenizers have in common: batches and the inputs built from them."""

from typing import Any

import pytest

from glmkit.errors import DataError, TokenizerError
from glmkit.families.glm_text import GLMTokenizer
from glmkit.objective.choice_inputs import build_choice_inputs
from glmkit.objective.generation_inputs import build_generation_inputs


def check_glm_batches(tokenizer: GLMTokenizer, data: dict[str, Any]) -> None:
    for case in data["batches"]:
        options, expected = case["kwargs"], case["out"]
        limit = options["max_length"] if options.get("truncation") else None
        texts = [text if case.get("pair") else (text, None) for text in case["texts"]]
        if "error" in expected:
            with pytest.raises(TokenizerError, match="one text only"):
                tokenizer.encode_inputs(*texts[0])
            continue
        rows = [tokenizer.encode_inputs(text, pair, max_length=limit) for text, pair in texts]
        if options.get("padding"):
            length = options["max_length"] if options["padding"] == "max_length" else None
            batch = tokenizer.pad_batch(rows, length=length, multiple_of=options.get("pad_to_multiple_of"))
            assert batch.input_ids.tolist() == expected["input_ids"]
            assert batch.attention_mask.astype(int).tolist() == expected["attention_mask"]
        else:
            one = not isinstance(expected["input_ids"][0], list)
            assert (rows[0] if one else rows) == expected["input_ids"]


def check_generation_inputs(tokenizer: GLMTokenizer, data: dict[str, Any]) -> None:
    for case in data["build_inputs_for_generation"]:
        limit = case["encode_kwargs"].get("max_length")
        rows = [tokenizer.encode_inputs(text, max_length=limit) for text in case["texts"]]
        batch = tokenizer.pad_batch(rows, side=case["padding_side"])
        assert batch.input_ids.tolist() == case["encoded"]["input_ids"]
        assert batch.attention_mask.astype(int).tolist() == case["encoded"]["attention_mask"]
        texts = case.get("targets")
        texts = [texts] if isinstance(texts, str) else texts
        targets = None if texts is None else [tokenizer.encode(text, specials=True) for text in texts]
        options, expected = case["kwargs"], case["out"]
        if "error" in expected:
            with pytest.raises(DataError, match="has no mask"):
                build_generation_inputs(batch.input_ids, batch.attention_mask, tokenizer.special, **options)
            continue
        made = build_generation_inputs(
            batch.input_ids, batch.attention_mask, tokenizer.special, targets=targets, **options
        )
        mask = expected["generation_attention_mask" if targets is None else "attention_mask"]
        assert made.input_ids.tolist() == expected["input_ids"]
        assert made.position_ids.tolist() == expected["position_ids"]
        assert made.attention_mask.astype(int).tolist() == mask
        assert (None if made.labels is None else made.labels.tolist()) == expected.get("labels")


def check_choice_inputs(tokenizer: GLMTokenizer, data: dict[str, Any]) -> None:
    for case in data["build_inputs_for_multiple_choice"]:
        rows = [tokenizer.encode_inputs(text) for text in case["texts"]]
        batch = tokenizer.pad_batch(rows, side=case["padding_side"])
        choices = [[tokenizer.encode(text, specials=True) for text in texts] for texts in case["choices"]]
        made = build_choice_inputs(batch.input_ids, batch.attention_mask, choices, tokenizer.special)
        expected = case["out"]
        assert made.input_ids.tolist() == expected["input_ids"]
        assert made.position_ids.tolist() == expected["position_ids"]
        assert made.attention_mask.astype(int).tolist() == expected["attention_mask"]
        assert [[row.tolist() for row in rows] for rows in made.choice_ids] == expected["choice_ids"]
        assert [[row.tolist() for row in rows] for rows in made.choice_indices] == expected["choice_indices"]
