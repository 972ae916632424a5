"""Rows of one text by the kind of model: blanks, a continuation, plain text; what is too short."""

import pytest
import torch

from glmkit.config import GLMConfig
from glmkit.data.text_rows import WINDOW, text_batches
from glmkit.errors import RequestError
from glmkit.tokenizer.protocol import Tokenizer
from glmkit.tokenizer.training import train_tokenizer
from support.tiny import tiny_config, tiny_model

TEXT = (
    "One and one make two. Two and two make four; the rest is left to you.\n凯旋门是为纪念胜利而建的，位于巴黎。" * 60
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT], vocab_size=290)


def config_for(tokenizer: Tokenizer, **changes: object) -> GLMConfig:
    return tiny_config(vocab_size=512, max_positions=1024, special=tokenizer.special, **changes)


def test_a_model_of_blanks_reads_all_kinds_of_blanks(tokenizer: Tokenizer) -> None:
    batches = text_batches(tokenizer, config_for(tokenizer), TEXT, 6)
    assert [batch.num_samples for batch in batches] == [4, 2]
    seen = set()
    for batch in batches:
        assert batch.fill == 1.0
        ids = batch.input_ids[0]
        for _, start, prefix_end, end in batch.segments.bounds:
            part_a = ids[start:prefix_end].tolist()
            assert part_a[0] == tokenizer.special.cls
            masks = [token for token in part_a if token in tokenizer.special.mask_ids()]
            assert masks
            assert len(set(masks)) == 1
            seen.add(masks[0])
            assert batch.loss_mask[0, prefix_end:end].all()
            assert not batch.loss_mask[0, start:prefix_end].any()
            assert end - start <= WINDOW + 2 * len(masks) + 1
    assert seen == set(tokenizer.special.mask_ids())


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": "prefix", "blank_order": "gmask_first", "positions": "rope_2d"},
        {"mask": "prefix", "blank_order": "mask_first", "positions": "rope"},
        {"mask": "causal", "positions": "rope"},
    ],
)
def test_other_models_go_on_with_a_text(tokenizer: Tokenizer, changes: dict[str, object]) -> None:
    """Positions and masks are those that the model itself would infer of the ids."""
    config = config_for(tokenizer, **changes)
    model, special = (
        tiny_model(**config.to_dict() | {"special": tokenizer.special, "quantization": None}),
        config.special,
    )
    assert special is not None
    (batch,) = text_batches(tokenizer, config, TEXT, 3)
    expected = tokenizer.encode(TEXT)
    together = model.hidden(batch.input_ids, position_ids=batch.position_ids, segments=batch.segments)
    seen: list[int] = []
    for _, start, prefix_end, end in batch.segments.bounds:
        ids = batch.input_ids[:, start:end]
        torch.testing.assert_close(together[:, start:end], model.hidden(ids), rtol=1e-4, atol=1e-4)
        assert (prefix_end - start == 0) == (config.mask == "causal")
        words = [token for token in ids[0].tolist() if token not in (special.gmask, special.sop)]
        seen += words
        targets = batch.targets[:, start:end][batch.loss_mask[:, start:end]].tolist()
        assert targets == words[-len(targets) :]
        assert len(targets) == (WINDOW if config.mask == "causal" else WINDOW // 2)
    assert seen[:WINDOW] == expected[:WINDOW]


def test_windows_are_spread_over_the_text_and_never_change(tokenizer: Tokenizer) -> None:
    config = config_for(tokenizer, mask="causal", positions="rope")
    total = len(tokenizer.encode(TEXT)) // WINDOW
    assert total > 6
    first, again = (text_batches(tokenizer, config, TEXT, 3)[0] for _ in range(2))
    assert torch.equal(first.input_ids, again.input_ids)
    starts = [number * total // 3 * WINDOW for number in range(3)]
    ids = tokenizer.encode(TEXT)
    for start, (_, begin, _, _) in zip(starts, first.segments.bounds, strict=True):
        assert first.input_ids[0, begin + 2 : begin + 12].tolist() == ids[start : start + 10]
    assert sum(batch.num_samples for batch in text_batches(tokenizer, config, TEXT, 1000)) == total


def test_short_texts_and_short_models(tokenizer: Tokenizer) -> None:
    config = config_for(tokenizer)
    with pytest.raises(RequestError, match="the text of --calibrate has 0 tokens, 16 is the least") as caught:
        text_batches(tokenizer, config, "", 4, what="calibrate")
    assert caught.value.param == "calibrate"
    (one,) = text_batches(tokenizer, config, "One and one make two. Two and two make four.\n" * 2, 4)
    assert one.num_samples == 1
    short = tiny_config(vocab_size=512, max_positions=48, special=tokenizer.special)
    for batch in text_batches(tokenizer, short, TEXT, 9):
        assert int(batch.position_ids.max()) <= 48
