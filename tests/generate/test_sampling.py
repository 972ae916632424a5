"""The noise of sampling, the cuts on large vocabularies, and how often each token comes."""

import random
from collections import Counter
from typing import Any

import pytest
import torch

from glmkit.generate.sampling import (
    Sampling,
    _hash,
    _hash_of,
    _signed,
    gumbel,
    keep_top_k,
    keep_top_p,
    next_tokens,
    noise_keys,
    uniform,
)
from support.drawn import drawn, weights_kept

WORD = (1 << 64) - 1


def test_the_hash_is_splitmix64() -> None:
    def plain(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
        return x ^ (x >> 31)

    values = [0, 1, 2**31, 2**63 - 1, 2**63, 2**63 + 5, WORD]
    hashed = _hash(torch.tensor([_signed(value) for value in values])).tolist()
    assert [value & WORD for value in hashed] == [plain(value) for value in values]
    assert [_hash_of(value) for value in values] == hashed
    assert _hash_of((7 << 64) - 3) == _hash_of(-3) == _hash_of(WORD - 2)


def test_noise_is_gumbel_and_streams_are_unrelated() -> None:
    ids = torch.arange(20_000)[None]
    noise = gumbel(uniform(ids, noise_keys([3] * 50, range(50), ids.device)))
    ranks = (-(-noise.double()).exp()).exp().flatten().sort().values
    expected = torch.arange(1, len(ranks) + 1) / len(ranks)
    assert (ranks - expected).abs().max() * len(ranks) ** 0.5 < 1.63, "Kolmogorov-Smirnov at 1 %"
    seeds, places = [4, 3, 2, -3, 3 + (1 << 32)], [0, 1, 1, 0, 0]
    others = gumbel(uniform(ids, noise_keys(seeds, places, ids.device)))
    correlation = torch.corrcoef(torch.stack([noise[0], noise[0].roll(1), *others]))
    assert (correlation - torch.eye(7)).abs().max() < 5 / ids.numel() ** 0.5


@pytest.mark.parametrize("size", [300, 5000])
def test_a_filter_changes_a_choice_only_where_it_takes_the_token_away(size: int) -> None:
    logits = torch.randn(40, size, generator=torch.Generator().manual_seed(2))
    whole = next_tokens(logits, Sampling(temperature=1.0, seed=6), range(40))
    moved = 0
    for index, token in enumerate(whole.tolist()):
        one, p_V = logits[index : index + 1], logits[index].double().softmax(-1)
        before = float(p_V[p_V > p_V[token]].sum())
        for options in ({"top_p": before + 1e-5}, {"min_p": float(p_V[token] / p_V.max()) * 0.9999}):
            assert next_tokens(one, Sampling(temperature=1.0, seed=6, **options), [index]).item() == token
        for options in ({"top_p": max(before - 1e-5, 1e-9)}, {"min_p": float(p_V[token] / p_V.max()) * 1.0001}):
            if token != int(logits[index].argmax()):
                other = next_tokens(one, Sampling(temperature=1.0, seed=6, **options), [index]).item()
                assert p_V[other] > p_V[token]
                moved += 1
    assert moved > 60


def test_top_p_by_heads_equals_sorting_all() -> None:
    """Sets smaller and larger than the heads that are looked at first."""
    generator = torch.Generator().manual_seed(1)
    for spread in (0.0, 0.3, 3.0, 12.0):
        log_p = (torch.randn(3, 9000, generator=generator) * spread).log_softmax(-1)
        log_p[1] = torch.linspace(0, 1e-4, 9000).log_softmax(-1)
        for p in (0.01, 0.5, 0.9, 0.999):
            values, _ = log_p.softmax(-1).sort(dim=-1, descending=True)
            before = values.cumsum(-1) - values
            for row, kept in enumerate(keep_top_p(log_p, p) > -torch.inf):
                count = max(1, int((before[row] < p).sum()))
                assert abs(int(kept.sum()) - count) <= 1, "rounding of the sums decides on one token at most"
                assert values[row, : int(kept.sum())].sum() >= p - 1e-4
                p_V = log_p[row].softmax(-1)
                assert bool(kept.all()) or p_V[kept].min() >= p_V[~kept].max()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "cuts", [{}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_k": 9, "top_p": 0.5, "min_p": 0.2}]
)
def test_a_row_without_tokens_gives_id_0(cuts: dict[str, Any]) -> None:
    for size in (5, 9000):
        logits = torch.full((3, size), -torch.inf)
        logits[1, 4] = -7.0
        assert next_tokens(logits, Sampling(temperature=1.0, **cuts), range(3)).tolist() == [0, 4, 0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 40},
        {"top_p": 0.8},
        {"min_p": 0.05},
        {"top_k": 90, "top_p": 0.7, "min_p": 0.02},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [4, 700, 9001])
def test_frequencies_are_those_of_the_distribution(size: int, options: dict[str, Any]) -> None:
    """Chi-square of 2,500 draws over the likeliest tokens, the rest as one; nothing that is cut ever comes."""
    draws, options = 2500, {"temperature": 1.0, **options}
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(size)) * 2
    ids, weights, kept = weights_kept(logits[0], **options)
    weight = dict(zip(ids, weights, strict=True))
    sampling = Sampling(seed=11, **options)
    counts = Counter(next_tokens(logits.expand(draws, -1), sampling, range(draws)).tolist())
    assert counts.keys() <= set(kept)
    total = sum(weight[token] for token in kept)
    cells: list[tuple[float, float]] = []  # expected and found
    expected = found = 0.0
    for token in kept:
        expected, found = expected + draws * weight[token] / total, found + counts[token]
        if expected >= 20:
            cells.append((expected, found))
            expected = found = 0.0
    cells[-1] = (cells[-1][0] + expected, cells[-1][1] + found)
    square = sum((found - expected) ** 2 / expected for expected, found in cells)
    freedom = len(cells) - 1
    # Wilson and Hilferty 1931: the cube root of chi-square over its freedom is nearly normal.
    normal = ((square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5 if freedom else 0
    assert normal < 3.1, f"chi-square {square:.1f} of {freedom}, beyond 0.1 %"


def test_top_k_and_top_p_keep_what_they_say() -> None:
    log_p = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert torch.isfinite(keep_top_k(log_p, 2)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(keep_top_p(log_p, 0.79)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(keep_top_p(log_p, 0.81)).tolist() == [[True, True, True, False]]
    assert torch.isfinite(keep_top_p(log_p, 0.01)).tolist() == [[True, False, False, False]]


EXTREMES: list[dict[str, Any]] = [
    {"temperature": 1e-320},
    {"temperature": 1e-9, "top_p": 1e-9},
    {"temperature": 1e308},
    {"temperature": 1e308, "top_k": 3, "top_p": 0.999999},
    {"temperature": 1.0, "top_p": 5e-324},
    {"temperature": 1.0, "top_k": 10**9},
]


@pytest.mark.parametrize("options", EXTREMES, ids=str)
def test_extreme_sampling_never_gives_a_forbidden_token(options: dict[str, Any]) -> None:
    logits = 40 * torch.randn(8, 50, generator=torch.Generator().manual_seed(1))
    logits[:, ::2] = -torch.inf  # forbidden
    logits[:, 1] = 1e9  # far above the rest: greedy would overflow at tiny temperatures
    for seed in range(40):
        tokens = next_tokens(logits, Sampling(seed=seed, **options), range(8))
        assert (tokens % 2 == 1).all()
        if options["temperature"] < 1e-6 or options.get("top_p") == 5e-324:
            assert (tokens == 1).all()


def test_a_huge_temperature_draws_evenly_from_what_is_allowed() -> None:
    logits = torch.tensor([[5.0, -torch.inf, 0.0, -5.0]])
    sampling = Sampling(temperature=1e300, seed=3)
    counts = torch.zeros(4)
    for position in range(3000):
        counts[next_tokens(logits, sampling, [position])] += 1
    assert counts[1] == 0
    assert ((counts[[0, 2, 3]] / 3000 - 1 / 3).abs() < 4 * (2 / 9 / 3000) ** 0.5).all()


def _options(draw: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {"temperature": draw.choice([0.1, 0.7, 0.95, 1.0, 1.7])}
    for name, values in {
        "top_k": (1, 3, 40, 127, 128, 129, 500, 10**6),
        "top_p": (0.05, 0.5, 0.7, 0.9, 0.97, 0.9999),
        "min_p": (1e-30, 0.01, 0.1, 0.5, 1.0),
    }.items():
        if draw.random() < 0.45:
            options[name] = draw.choice(values)
    return options


@pytest.mark.sampled(4)
@pytest.mark.parametrize("size", [7, 130, 4095, 9000, 65_024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_token_is_that_of_a_look_at_all_of_them(size: int, dtype: torch.dtype) -> None:
    """Peaked and flat distributions, equal logits (which few bits give), forbidden tokens; rows alone and together."""
    draw, generator = random.Random(size), torch.Generator().manual_seed(size)
    for number in range(12 if size > 9000 else 40):
        logits = (torch.randn(3, size, generator=generator) * draw.choice([0.0, 0.02, 1.0, 3.0, 8.0, 40.0])).to(dtype)
        logits[1, torch.rand(size, generator=generator) < draw.choice([0.0, 0.5, 0.99])] = -torch.inf
        logits[1, draw.randrange(size)] = 0
        options, seed = _options(draw), draw.getrandbits(48)
        positions = [draw.randrange(9999) for _ in range(3)]
        plain = [drawn(logits[row : row + 1], seed, at, **options) for row, at in enumerate(positions)]
        assert next_tokens(logits, Sampling(seed=seed, **options), positions).tolist() == plain, options
        alone = next_tokens(logits[1:2], Sampling(seed=seed, **options), positions[1:2])
        assert alone.tolist() == plain[1:2], (number, options)


def test_as_many_equal_tokens_as_rounding_leaves_open() -> None:
    """The end of the cut lies among equal tokens, and the token that is drawn is one of them."""
    logits = torch.zeros(1, 3000)
    logits[0, 1000:1400] = 1.0
    for seed in range(60):
        for options in (
            {"top_p": 0.3},
            {"top_p": 0.04},
            {"top_k": 50, "top_p": 0.5},
            {"top_k": 500},
            {"min_p": 0.367879},
        ):
            expected = drawn(logits, seed, 4, temperature=1.0, **options)
            found = next_tokens(logits, Sampling(temperature=1.0, seed=seed, **options), [4])
            assert found.tolist() == [expected]
