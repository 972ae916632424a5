"""The paged cache against plain attention: blocks in any order, groups, shared heads, a tuned prefix, long chunks."""

import itertools

import pytest
import torch
from torch import Tensor

from glmkit.errors import RequestError
from glmkit.model.attention import DensePlan
from glmkit.model.paged import SHORT, Group, PagedCache, PagedStep
from support.kinds import KINDS, Prefix, make
from support.tiny import tiny_config, tiny_model

pytestmark = pytest.mark.sampled(4)

BLOCK = 4
DEVICE = torch.device("cpu")


def cache_of(heads: int, blocks: int, prefix: int = 0) -> PagedCache:
    config = tiny_config(num_kv_heads=heads, num_layers=2)
    cache = PagedCache(config, BLOCK, dtype=torch.float32, device=DEVICE)
    if prefix:
        model = tiny_model(num_kv_heads=heads)
        model.prefix = Prefix(model, prefix)
        cache.seed([model.tuned_prefix()])
    cache.grow(blocks)
    return cache


def slots_of(cache: PagedCache, blocks: list[int], start: int, stop: int) -> Tensor:
    places = range(start, stop)
    return cache.slots(
        torch.tensor([blocks[at // BLOCK] for at in places]), torch.tensor([at % BLOCK for at in places])
    )


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_what_is_written_is_gathered() -> None:
    cache = cache_of(2, 9)
    keys, values = numbers(1, 10, 2, 8), numbers(2, 10, 2, 8)
    for layer in (0, 1):
        cache.write(layer, slots_of(cache, [7, 2, 5], 0, 10), keys + layer, values + layer)
    cache.grow(20)
    assert cache.blocks == 20
    cache.copy([7, 2], [11, 7])  # both are read before any is written
    cache.clear([2])
    for layer in (0, 1):
        for table, kept in (([11, 7, 5], 10), ([11, 7, 5, 0], 10)):
            got = cache.gather(layer, cache.slabs(torch.tensor([table])), 1)
            for found, expected in zip(got, (keys + layer, values + layer), strict=True):
                assert torch.equal(found[:, :kept].transpose(0, 1), expected)
        found, _ = cache.gather(layer, cache.slabs(torch.tensor([[2], [0]])), 2)
        assert not found.any()
    assert PagedCache.token_bytes(tiny_config(), torch.bfloat16) == 2 * 2 * 32 * 2


@pytest.mark.parametrize("sizes", [[1], [4], [3, 5], [0, 8, 0, 2]], ids=str)
def test_tuned_prefixes_lie_in_front(sizes: list[int]) -> None:
    """One behind the other, each up to the end of its last block."""
    cache, model = cache_of(2, 5), tiny_model(num_kv_heads=2)
    prefixes = []
    for size in sizes:
        model.prefix = Prefix(model, size) if size else None
        prefixes.append(model.tuned_prefix())
    places = cache.seed(prefixes)
    counts = [-(-size // BLOCK) for size in sizes]
    assert [(place.tokens, len(place.blocks)) for place in places] == list(zip(sizes, counts, strict=True))
    assert [*itertools.chain(*(place.blocks for place in places))] == [*range(1, 1 + sum(counts))]
    assert cache.reserved == cache.blocks == 1 + sum(counts)
    for prefix_L, place in zip(prefixes, places, strict=True):
        for layer, pair in enumerate(prefix_L):
            got = cache.gather(layer, cache.slabs(torch.tensor([[*place.blocks]])), 1)
            for found, expected in zip(got, pair, strict=True):
                assert torch.equal(found[:, -place.tokens :].transpose(0, 1), expected)
                assert not found[:, : -place.tokens].any()
    assert cache.seed([[]])[0].tokens == 0
    assert (cache.reserved, cache.blocks) == (1, 1)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("fed", [1, 3, SHORT, SHORT + 1, 40])
@pytest.mark.parametrize("past", [0, 5, 8])
def test_groups_attend_as_dense_rows(heads: int, fed: int, past: int) -> None:
    """Two rows of different pasts in one group, and one that starts afresh with a part A, against a mask each."""
    cache = cache_of(heads, 40)
    pasts = [past, past + 6]
    tables = [[3 + 2 * index for index in range(14)], [30 - 2 * index for index in range(14)]]
    keys = [numbers(seed, count + fed, heads, 8) for seed, count in enumerate(pasts)]
    values = [numbers(seed + 9, count + fed, heads, 8) for seed, count in enumerate(pasts)]
    for row, count in enumerate(pasts):
        if count:
            cache.write(0, slots_of(cache, tables[row], 0, count), keys[row][:count], values[row][:count])
    fresh = numbers(5, 7, heads, 8), numbers(6, 7, heads, 8)
    query = numbers(7, 1, 2 * fed + 7, 4, 8)
    new_k = torch.cat([*(k[c:] for k, c in zip(keys, pasts, strict=True)), fresh[0]])[None]
    new_v = torch.cat([*(v[c:] for v, c in zip(values, pasts, strict=True)), fresh[1]])[None]
    own = [slots_of(cache, table, count, count + fed) for table, count in zip(tables, pasts, strict=True)]
    slots = torch.cat([*own, slots_of(cache, [31, 33], 0, 7)], 1)
    width = -(-(max(pasts) + fed) // BLOCK)
    columns = torch.arange(width * BLOCK)
    ends = torch.tensor([[count + at + 1 for at in range(fed)] for count in pasts])
    bias = torch.zeros(2, fed, len(columns)).masked_fill(columns >= ends[..., None], -torch.inf)
    slabs = cache.slabs(torch.tensor([table[:width] for table in tables]))
    groups = [Group(0, 2, fed, slabs=slabs, bias=bias), Group(2 * fed, 1, 7, part_a=4)]
    step = PagedStep(cache, slots, groups)
    step.write(0, new_k, new_v)
    got = step.attend(query, new_k, new_v, 0.0)
    expected = []
    for row, count in enumerate(pasts):
        mask = torch.ones(fed, count + fed, dtype=torch.bool).tril(count)[None, None]
        q = query[:, row * fed : (row + 1) * fed]
        expected.append(DensePlan(mask).attend(q, keys[row][None], values[row][None], 0.0))
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    mask[:, :4] = True
    expected.append(DensePlan(mask[None, None]).attend(query[:, 2 * fed :], fresh[0][None], fresh[1][None], 0.0))
    torch.testing.assert_close(got, torch.cat(expected, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_kernel_of_short_rows_gives_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a GPU: no products, shared heads as rows."""
    config = make(kind).config
    heads, width = config.kv_heads, config.head_dim
    cache = PagedCache(config, BLOCK, dtype=torch.float32, device=DEVICE)
    cache.grow(8)
    cache.write(
        1, slots_of(cache, [1, 2, 3, 4, 5, 6], 0, 24), numbers(1, 24, heads, width), numbers(2, 24, heads, width)
    )
    for fed in (1, 2):
        slabs = cache.slabs(torch.tensor([[1, 2, 3], [6, 5, 0]]))
        ends = torch.tensor([11, 8])[:, None, None] + torch.arange(fed)[None, :, None]
        bias = torch.zeros(2, fed, 12).masked_fill(torch.arange(12) >= ends, -torch.inf)
        group = Group(0, 2, fed, slabs=slabs, bias=bias)
        new = numbers(3, 1, 2 * fed, heads, width)
        query = numbers(4, 1, 2 * fed, config.num_heads, width)
        out = []
        for short in (SHORT, 0):
            monkeypatch.setattr("glmkit.model.paged.SHORT", short)
            step = PagedStep(cache, slots_of(cache, [7], 0, 2 * fed), [group])
            step.write(1, new, new)
            out.append(step.attend(query, new, new, 0.0))
        torch.testing.assert_close(*out, rtol=1e-5, atol=1e-5)


def test_mistakes() -> None:
    model = tiny_model()
    cache = PagedCache(model.config, BLOCK, dtype=torch.float32, device=DEVICE)
    step = PagedStep(cache, torch.zeros(2, 4, dtype=torch.long), [Group(0, 1, 1)])
    ids = torch.tensor([[20]])
    with pytest.raises(RequestError, match="needs position_ids"):
        model(ids, cache=step)
    model.train()
    with pytest.raises(RequestError, match="evaluation mode"):
        model(ids, cache=step, position_ids=torch.zeros(1, 2, 1, dtype=torch.long))
