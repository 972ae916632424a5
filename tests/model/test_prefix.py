"""A tuned prefix: keys and values in front of every layer's own, without positions, seen by all."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glmkit.errors import RequestError
from glmkit.model import GLM, KVCache, Segments
from glmkit.model.attention import DensePlan
from glmkit.model.masks import open_columns
from support.published import close, greedy, recording
from support.shared import shared_dir
from support.tiny import SPECIAL, random_ids, tiny_model

MIXES: list[dict[str, Any]] = [
    {},
    {"positions": "rope_2d", "residual": "deepnorm", "blank_order": "gmask_first"},
    {"mask": "causal", "positions": "rope", "num_kv_heads": 2, "norm": "rms", "mlp": "swiglu", "bias": "qkv"},
]


class Fixed(nn.Module):
    """A prefix that is its own parameter (2,L,P,K,D)."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self) -> tuple[list[Tensor], list[Tensor]]:
        keys, values = self.values.unbind(0)
        return list(keys.unbind(0)), list(values.unbind(0))


def with_prefix(length: int = 5, **changes: Any) -> GLM:
    model = tiny_model(seed=1, **changes)
    config = model.config
    shape = (2, config.num_layers, length, config.kv_heads, config.head_dim)
    model.prefix = Fixed(torch.randn(shape, generator=torch.Generator().manual_seed(3)))
    return model


def by_cache(model: GLM, ids: Tensor, bounds: list[int], places: Tensor) -> Tensor:
    cache = KVCache(model.config, len(ids), ids.shape[1], dtype=torch.float32, device=torch.device("cpu"))
    none = torch.zeros(len(ids), dtype=torch.long)
    pieces = [
        model(ids[:, a:b], position_ids=places[:, :, a:b], prefix_length=none, cache=cache) for a, b in pairwise(bounds)
    ]
    assert (cache.length, cache.prefix, cache.capacity) == (ids.shape[1], 5, ids.shape[1])
    return torch.cat(pieces, 1)


def test_attention_with_a_prefix_written_out() -> None:
    model = with_prefix(num_kv_heads=2)
    attention = model.model.layers[0].self_attn
    assert model.prefix is not None
    own_k, own_v = (slots[0] for slots in model.prefix())
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(4))
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    found = attention(x, DensePlan(open_columns(mask[None, None], 5)), None, None, (own_k, own_v))
    q, k, v = (proj(x).unflatten(-1, (-1, 8)) for proj in (attention.q_proj, attention.k_proj, attention.v_proj))
    heads = []
    for head in range(4):
        keys = torch.cat([own_k[:, head // 2].expand(2, -1, -1), k[:, :, head // 2]], 1)
        values = torch.cat([own_v[:, head // 2].expand(2, -1, -1), v[:, :, head // 2]], 1)
        scores = q[:, :, head] @ keys.transpose(1, 2) / 8**0.5
        scores[:, :, 5:] = scores[:, :, 5:].masked_fill(~mask, -torch.inf)
        heads.append(scores.softmax(-1) @ values)
    expected = attention.o_proj(torch.stack(heads, 2).flatten(2))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_with_a_cache_equals_without(mix: dict[str, Any]) -> None:
    model = with_prefix(**mix)
    ids = random_ids(2, 12)
    places = torch.stack([torch.arange(12), torch.zeros(12, dtype=torch.long)]).expand(2, 2, 12)
    whole = model(ids, position_ids=places, prefix_length=torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(by_cache(model, ids, [0, 7, 8, 11, 12], places), whole, rtol=1e-4, atol=1e-4)


def test_positions_are_counted_without_it() -> None:
    model = with_prefix(mask="causal", positions="rope")
    ids, real = random_ids(2, 9), torch.arange(9) >= torch.tensor([[0], [4]])
    whole = model(ids, attention_mask=real)
    alone = model(ids[1:, 4:])
    torch.testing.assert_close(whole[1, 4:], alone[0], rtol=1e-4, atol=1e-4)
    cache = KVCache(model.config, 2, 9, dtype=torch.float32, device=torch.device("cpu"))
    pieces = [model(ids[:, :6], attention_mask=real[:, :6], cache=cache)]
    pieces += [model(ids[:, column : column + 1], cache=cache) for column in range(6, 9)]
    torch.testing.assert_close(torch.cat(pieces, 1)[real], whole[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_split_plan_packed_rows_and_a_4d_mask_agree(mix: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_prefix(**mix)
    ids = random_ids(2, 20)
    places = torch.randint(0, 30, (2, 2, 20), generator=torch.Generator().manual_seed(1))
    segments = Segments(((0, 0, 4, 11), (0, 13, 13, 20), (1, 0, 20, 20)))
    inside = torch.ones(2, 20, dtype=torch.bool)
    inside[0, 11:13] = False
    prefix = torch.tensor([6, 20])
    packed, rows = [], []
    for split_from in (1, 10_000):
        monkeypatch.setattr("glmkit.model.language_model.SPLIT_FROM", split_from)
        packed.append(model(ids, position_ids=places, segments=segments)[inside])
        rows.append(model(ids, position_ids=places, prefix_length=prefix))
    torch.testing.assert_close(*packed, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-4)
    part = 4 if model.config.mask == "prefix" else 0
    one = model(ids[:1, :11], position_ids=places[:1, :, :11], prefix_length=torch.tensor([part]))
    torch.testing.assert_close(packed[0][:11], one[0], rtol=1e-4, atol=1e-4)
    mask = torch.ones(20, 20, dtype=torch.bool).tril().expand(2, 1, 20, 20).clone()
    if model.config.mask == "prefix":
        mask[0, :, :, :6] = mask[1] = True
    given = model(ids, position_ids=places, attention_mask=mask)
    torch.testing.assert_close(given, rows[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("split_from", [1, 10_000])
def test_gradients_reach_it(dtype: torch.dtype, split_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmkit.model.language_model.SPLIT_FROM", split_from)
    model = with_prefix(init_std=0.1)
    model.requires_grad_(False)
    assert isinstance(model.prefix, Fixed)
    values = model.prefix.values.requires_grad_(True)
    ids, prefix = random_ids(2, 12), torch.tensor([6, 12])

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            return model(ids, prefix_length=prefix).float().square().mean()

    loss().backward()
    gradient = values.grad
    assert gradient is not None
    step = 1e-2 if dtype == torch.float32 else 0.2
    direction = gradient / gradient.norm()
    with torch.no_grad():
        values += step * direction
        up = loss()
        values -= 2 * step * direction
        down = loss()
    assert float((up - down) / (2 * step)) == pytest.approx(float(gradient.norm()), rel=0.02 if step < 0.1 else 0.1)


def test_a_cache_filled_without_it_is_refused() -> None:
    model = with_prefix(mask="causal", positions="rope")
    prefix, model.prefix = model.prefix, None
    cache = KVCache(model.config, 1, 8, dtype=torch.float32, device=torch.device("cpu"))
    ids = random_ids(1, 4)
    plain = model(ids, cache=cache)
    model.prefix = prefix
    with pytest.raises(RequestError, match="filled without the model's prefix"):
        model(ids, cache=cache)
    cache.truncate(0)
    tuned = model(ids, cache=cache)
    assert cache.prefix == 5
    model.prefix = None
    cache.truncate(0)
    torch.testing.assert_close(model(ids, cache=cache), plain)
    assert cache.prefix == 0
    assert not torch.allclose(tuned, plain, atol=1e-3)


def test_one_of_another_shape_is_refused() -> None:
    model = with_prefix(num_kv_heads=2)
    model.prefix = Fixed(torch.zeros(2, 2, 5, 4, 8))
    with pytest.raises(RequestError, match="made for another model"):
        model(random_ids(1, 4))
    model.prefix = Fixed(torch.zeros(2, 3, 5, 2, 8))
    with pytest.raises(RequestError, match="3 layers of"):
        model(random_ids(1, 4))


RECORDINGS = [
    ("chatglm-6b-ptuning-v2-embedding", "chatglm-6b", 3e-5),
    ("chatglm-6b-ptuning-v2-projection", "chatglm-6b", 3e-5),
    ("chatglm2-6b-ptuning-v2-embedding", "chatglm2-6b", 1e-4),
    ("chatglm2-6b-ptuning-v2-projection", "chatglm2-6b", 1e-4),
]


@pytest.mark.parametrize(("name", "base", "tolerance"), RECORDINGS)
def test_recorded_prefixes(name: str, base: str, tolerance: float) -> None:
    expected = np.load(shared_dir("fixtures", name) / "expected.npz")
    reference = recording(base)
    model = reference.model
    slots = torch.from_numpy(expected["past_key_values"])  # layers, 2, P, 1, K, D
    model.prefix = Fixed(slots[:, :, :, 0].transpose(0, 1).contiguous())
    try:
        for case in reference.inputs:
            if f"{case}.logits" not in expected:
                continue
            ids, real = reference.ids(case), reference.real(case)
            logits, recorded = model(ids, attention_mask=real), expected[f"{case}.logits"]
            logits = logits[:, -recorded.shape[1] :]
            keep = torch.ones(logits.shape[:2], dtype=torch.bool) if real is None else real
            close(logits[keep], recorded[keep.numpy()], tolerance)
        if model.config.mask == "causal":
            recorded = expected["single.greedy_tokens"].reshape(1, -1)
            assert greedy(model, reference.ids("single"), None, recorded.shape[1])[0].tolist() == recorded.tolist()
    finally:
        model.prefix = None


def test_special_ids_are_untouched() -> None:
    """The prefix is not part of the text: what is inferred from ids does not change with it."""
    model = with_prefix()
    ids = torch.tensor([[20, SPECIAL.mask, 21, SPECIAL.sop, 30]])
    places = torch.tensor([[[0, 1, 2, 1, 1], [0, 0, 0, 1, 2]]])
    explicit = model(ids, position_ids=places, prefix_length=torch.tensor([3]))
    torch.testing.assert_close(model(ids), explicit)
