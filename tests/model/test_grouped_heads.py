"""Keys and values shared by groups of query heads: the same numbers as repeating them, by every path."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from glmkit.model import GLM, KVCache, Segments, attention
from support.tiny import random_ids, tiny_model

MIXES: list[dict[str, Any]] = [
    {"num_kv_heads": 2},
    {"num_kv_heads": 1, "positions": "rope_2d", "head_size": 12, "residual": "sandwich"},
    {"num_kv_heads": 2, "mask": "causal", "positions": "rope", "rope_fraction": 0.5, "rope_pairs": "interleaved"},
]


def expanded(model: GLM) -> GLM:
    """The same function with as many heads of keys and values as of queries."""
    whole = tiny_model(**_options(model))
    groups = model.config.num_heads // model.config.kv_heads
    state = {}
    for name, value in model.state_dict().items():
        if ".k_proj." in name or ".v_proj." in name:
            heads = value.unflatten(0, (model.config.kv_heads, model.config.head_dim))
            value = heads.repeat_interleave(groups, 0).flatten(0, 1)
        state[name] = value
    whole.load_state_dict(state)
    return whole


def _options(model: GLM) -> dict[str, Any]:
    names = ("mask", "positions", "rope_fraction", "rope_pairs", "head_size", "residual")
    return {name: getattr(model.config, name) for name in names}


@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize("split_from", [1, 10_000])
def test_equals_repeated_heads(mix: dict[str, Any], split_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmkit.model.language_model.SPLIT_FROM", split_from)
    model = tiny_model(seed=2, **mix)
    whole = expanded(model)
    assert model.model.layers[0].self_attn.k_proj.weight.numel() < whole.model.layers[0].self_attn.k_proj.weight.numel()
    ids = random_ids(2, 30)
    segments = Segments(((0, 0, 5, 12), (0, 14, 14, 30), (1, 0, 29, 30)))
    positions = torch.randint(0, 40, (2, 2, 30), generator=torch.Generator().manual_seed(1))
    inside = torch.ones(2, 30, dtype=torch.bool)
    inside[0, 12:14] = False
    for options in (
        {},
        {"attention_mask": torch.arange(30) >= torch.tensor([[0], [7]])},
        {"segments": segments, "position_ids": positions},
    ):
        torch.testing.assert_close(model(ids, **options)[inside], whole(ids, **options)[inside], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_cached_steps_equal_the_whole(mix: dict[str, Any]) -> None:
    model = tiny_model(seed=3, **mix)
    ids = random_ids(2, 14)
    places = torch.stack([torch.arange(14), torch.zeros(14, dtype=torch.long)]).expand(2, 2, 14)
    whole = model(ids, position_ids=places)
    cache = KVCache(model.config, 2, 14, dtype=torch.float32, device=torch.device("cpu"))
    assert cache.keys[0].shape == (2, 14, model.config.kv_heads, model.config.head_dim)
    bounds = [0, 6, 7, 8, 12, 13, 14]
    pieces = [model(ids[:, a:b], position_ids=places[:, :, a:b], cache=cache) for a, b in pairwise(bounds)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-4)


def test_plain_products_take_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 9, 6, 8, generator=generator)
    k, v = (torch.randn(2, 9, 2, 8, generator=generator) for _ in range(2))
    mask = torch.ones(9, 9, dtype=torch.bool).tril(2)
    by_hand = []
    for head in range(6):
        scores = q[:, :, head] @ k[:, :, head // 3].transpose(1, 2) / 8**0.5
        by_hand.append(scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v[:, :, head // 3])
    expected = torch.stack(by_hand, 2)
    bias = attention.as_bias(mask, torch.float32)
    torch.testing.assert_close(attention.products(q, k, v, bias, 0.0), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(attention._sdpa(q, k, v, mask, False, 0.0), expected, rtol=1e-5, atol=1e-5)
    last = attention._sdpa(q[:, -1:], k, v, mask[None, None, -1:], False, 0.0)
    torch.testing.assert_close(last, expected[:, -1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("split_from", [1, 10_000])
def test_bfloat16_training_stays_near_fp32(split_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmkit.model.language_model.SPLIT_FROM", split_from)
    model = tiny_model(seed=4, init_std=0.1, num_kv_heads=2)
    ids, prefix = random_ids(3, 40), torch.tensor([20, 3, 39])
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            model(ids, prefix_length=prefix).float().square().mean().backward()
        grad = model.model.layers[0].self_attn.k_proj.weight.grad
        assert grad is not None
        gradients.append(grad.clone())
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 0.05
