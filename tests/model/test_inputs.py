"""What `forward` refuses, and what it infers from the ids."""

from typing import Any

import pytest
import torch

from glmkit.errors import RequestError
from glmkit.model import KVCache, Segments
from support.tiny import SPECIAL, random_ids, tiny_config, tiny_model

IDS = random_ids(2, 6)
ROW = [2, 20, SPECIAL.mask, 21, SPECIAL.gmask, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_ids": IDS.float()}, "float32; give whole numbers"),
        ({"input_ids": IDS[0]}, "give whole numbers"),
        ({"input_ids": IDS[:, :0]}, "T >= 1"),
        ({"input_ids": IDS.bool()}, "bool; give whole numbers"),
        ({"input_ids": torch.full((2, 6), 64)}, "id 64 is outside the vocabulary of 64"),
        ({"input_ids": torch.full((2, 6), -1)}, "id -1 is outside"),
        ({"input_ids": random_ids(1, 98)}, "position 97 is beyond this model's 96"),
        ({"position_ids": torch.zeros(2, 3, 6, dtype=torch.long)}, "position_ids has shape"),
        ({"position_ids": torch.zeros(2, 6)}, "position_ids are torch.float32"),
        ({"position_ids": torch.full((2, 6), -1)}, "position -1 is negative"),
        ({"prefix_length": torch.tensor([1])}, "prefix_length has shape"),
        ({"prefix_length": torch.tensor([7, 1])}, "from 0 to 6"),
        ({"prefix_length": torch.tensor([-1, 1])}, "from 0 to 6"),
        ({"prefix_length": torch.tensor([0.5, 1])}, "give whole numbers from 0 to 6"),
        ({"attention_mask": torch.ones(2, 6)}, "give booleans"),
        ({"attention_mask": torch.ones(2, 5, dtype=torch.bool)}, "attention_mask has shape"),
        ({"segments": Segments(((0, 0, 2, 6),))}, "packed rows need position_ids"),
        ({"logits_at": "first"}, "logits_at is 'first'"),
        ({"logits_at": torch.ones(6, dtype=torch.bool)}, "give booleans"),
        ({"logits_at": torch.ones(2, 6)}, "give booleans"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    model = tiny_model()
    with pytest.raises(RequestError, match=message):
        model(options.pop("input_ids", IDS), **options)


def test_a_cache_of_other_rows_or_without_room_is_refused() -> None:
    model = tiny_model()
    cache = KVCache(model.config, 3, 8, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(RequestError, match="the cache has 3 rows, input_ids 2"):
        model(IDS, cache=cache)
    cache = KVCache(model.config, 2, 8, dtype=torch.float32, device=torch.device("cpu"))
    model(IDS, cache=cache)
    with pytest.raises(RequestError, match="needs position_ids"):
        model(IDS[:, :1], cache=cache)
    with pytest.raises(RequestError, match="exceed the cache's 8 slots"):
        model(IDS, cache=cache, position_ids=torch.zeros(2, 6, dtype=torch.long))


def test_logits_at_selects_rows_of_the_whole() -> None:
    model = tiny_model()
    whole = model(IDS)
    marked = torch.zeros(2, 6, dtype=torch.bool)
    marked[0, 3] = marked[1, 5] = True
    torch.testing.assert_close(model(IDS, logits_at=marked), whole[marked])
    torch.testing.assert_close(model(IDS, logits_at="last"), whole[:, -1])


def test_one_rotary_stream_counts_on_after_gmask_and_stays_at_mask() -> None:
    """GLM-130B's rule for the positions of a span."""
    model = tiny_model(positions="rope")
    tail = [SPECIAL.sop, 30, 31]
    both = torch.tensor([ROW + tail + [SPECIAL.sop, 32]])
    explicit = torch.tensor([[*range(6), 2, 2, 2, 9, 10]])
    torch.testing.assert_close(model(both), model(both, position_ids=explicit, prefix_length=torch.tensor([6])))
    only = torch.tensor([[2, 20, SPECIAL.gmask, *tail]])
    running = torch.arange(6)[None]
    torch.testing.assert_close(model(only), model(only, position_ids=running, prefix_length=torch.tensor([3])))


def test_a_causal_model_is_causal_in_packed_rows_too() -> None:
    model = tiny_model(mask="causal")
    ids = random_ids(1, 20)
    positions = torch.stack([torch.arange(20), torch.zeros(20, dtype=torch.long)])[None]
    packed = model(ids, position_ids=positions, segments=Segments(((0, 0, 15, 20),)))
    torch.testing.assert_close(packed, model(ids), rtol=1e-5, atol=1e-5)


def test_the_config_round_trips_through_json() -> None:
    import json

    config = tiny_config(positions="rope_2d", residual="deepnorm", deepnorm_alpha=3.5)
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
