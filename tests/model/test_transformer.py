"""Stages and shards of a model from outside: a slice of the layers, a share of the heads."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glmkit.config import GLMConfig
from glmkit.model import GLM, KVCache
from glmkit.model.attention import Attention, DensePlan
from glmkit.model.paged import Group, PagedCache, PagedStep
from glmkit.model.positions import rotary_angles, running_positions
from support.kinds import KINDS, make
from support.tiny import random_ids, tiny_config

CPU = torch.device("cpu")
ROTARY: dict[str, Any] = {"positions": "rope", "mask": "causal", "num_heads": 4, "num_kv_heads": 2, "bias": "qkv"}


@pytest.mark.parametrize("kind", KINDS)
def test_two_stages_equal_the_whole(kind: str) -> None:
    """What a stage does not own is None; names and numbers of layers are those of the whole model."""
    whole = make(kind, num_layers=3)
    first, second = copy.deepcopy(whole.model), copy.deepcopy(whole.model)
    first.norm, second.embed_tokens = None, None
    for stage, others in ((first, (2,)), (second, (0, 1))):
        for layer in others:
            stage.layers[layer] = None  # type: ignore[assignment]
    assert {*first.state_dict()} | {*second.state_dict()} == {*whole.model.state_dict()}
    assert not any(name.startswith("layers.") for name in {*first.state_dict()} & {*second.state_dict()})
    assert torch.equal(first.norm_weight, whole.model.layers[1].post_attention_layernorm.weight)
    ids, positions = random_ids(2, 9), running_positions(2, 9)
    plan, rotary = DensePlan(causal=True), rotary_angles(positions, whole.config)
    states: list[Tensor] = []
    expected = whole.model(ids, positions, plan, rotary, every_layer=states)
    handed = first(ids, positions, plan, rotary)
    assert torch.equal(handed, states[2])
    cache = KVCache(whole.config, 2, 9, dtype=torch.float32, device=CPU)
    assert torch.equal(second(handed, positions, plan, rotary, cache), expected)


def shards(config: GLMConfig, ranks: int) -> tuple[Attention, list[Attention]]:
    """One layer's attention, and its share for each rank: some heads of every projection, a sum of outputs."""
    whole = Attention(config, 0)
    parts = [copy.deepcopy(whole) for _ in range(ranks)]
    for rank, part in enumerate(parts):
        for name in ("q_proj", "k_proj", "v_proj"):
            linear = getattr(part, name)
            linear.weight = nn.Parameter(linear.weight.chunk(ranks)[rank])
            linear.bias = nn.Parameter(linear.bias.chunk(ranks)[rank])
        part.o_proj.weight = nn.Parameter(part.o_proj.weight.chunk(ranks, 1)[rank])
    return whole, parts


@torch.no_grad()
@pytest.mark.parametrize("paged", [False, True])
def test_shards_have_the_heads_of_their_tensors(paged: bool) -> None:
    config = tiny_config(**ROTARY)
    whole, parts = shards(config, 2)
    assert [part.kv_heads for part in parts] == [1, 1]
    x_BTH, rotary = torch.randn(1, 6, config.hidden_size), rotary_angles(running_positions(1, 6), config)
    total = torch.zeros_like(x_BTH)
    for part in parts:
        if paged:
            arena = PagedCache(config, 8, dtype=torch.float32, device=CPU, kv_heads=part.kv_heads)
            arena.grow(2)
            slots = arena.slots(torch.ones(6, dtype=torch.long), torch.arange(6))
            bias_1TS = torch.full((6, 8), -torch.inf).triu(1)[None]
            step = PagedStep(arena, slots, [Group(0, 1, 6, slabs=arena.slabs(torch.tensor([[1]])), bias=bias_1TS)])
            total += part(x_BTH, step, rotary, step)
        else:
            cache = KVCache(config, 1, 6, dtype=torch.float32, device=CPU, kv_heads=part.kv_heads)
            total += part(x_BTH, DensePlan(causal=True), rotary, cache)
            assert cache.keys[0].shape == (1, 6, 1, config.head_dim)
    torch.testing.assert_close(total, whole(x_BTH, DensePlan(causal=True), rotary, None), rtol=1e-5, atol=1e-5)


def test_bytes_of_a_shard() -> None:
    config = tiny_config(**ROTARY)
    assert 2 * PagedCache.token_bytes(config, torch.float32, 1) == PagedCache.token_bytes(config, torch.float32)
    assert GLM(config).kv_heads == 2
