"""The noise of sampling, the cuts on large vocabularies, and how often each token comes."""

import pytest
import torch

from glmkit.generate.cuts import keep_top_k, keep_top_p
from glmkit.generate.noise import _hash, _signed, gumbel, noise_keys, uniform
from glmkit.generate.sampling import Sampling, next_tokens

WORD = (1 << 64) - 1


def test_the_hash_is_splitmix64() -> None:
    def plain(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
        return x ^ (x >> 31)

    values = [0, 1, 2**31, 2**63 - 1, 2**63, 2**63 + 5, WORD]
    hashed = _hash(torch.tensor([_signed(value) for value in values])).tolist()
    assert [value & WORD for value in hashed] == [plain(value) for value in values]


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


def test_noise_of_a_token_does_not_depend_on_the_others() -> None:
    """So a cut changes a choice only where it removes the token that would have come."""
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(2))
    whole = next_tokens(logits, Sampling(temperature=1.0, seed=6), range(4))
    for index, token in enumerate(whole.tolist()):
        rank = int((logits[index] > logits[index, token]).sum()) + 1
        one = logits[index : index + 1]
        assert next_tokens(one, Sampling(temperature=1.0, seed=6, top_k=rank), [index]).item() == token
        if rank > 1:
            assert next_tokens(one, Sampling(temperature=1.0, seed=6, top_k=rank - 1), [index]).item() != token


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


def test_a_row_without_tokens_gives_id_0() -> None:
    logits = torch.full((1, 5), -torch.inf)
    assert next_tokens(logits, Sampling(temperature=1.0), [0]).tolist() == [0]


def test_sampled_frequencies_follow_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    draws = 4000
    counts = torch.zeros(4)
    for position in range(draws):
        counts[next_tokens(logits, Sampling(temperature=1.0, seed=4), [position])] += 1
    expected = logits[0].softmax(-1)
    standard_error = (expected * (1 - expected) / draws).sqrt()
    assert ((counts / draws - expected).abs() < 4 * standard_error).all()


def test_top_k_and_top_p_keep_what_they_say() -> None:
    log_p = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert torch.isfinite(keep_top_k(log_p, 2)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(keep_top_p(log_p, 0.79)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(keep_top_p(log_p, 0.81)).tolist() == [[True, True, True, False]]
    assert torch.isfinite(keep_top_p(log_p, 0.01)).tolist() == [[True, False, False, False]]


EXTREMES = [
    {"temperature": 1e-320},
    {"temperature": 1e-9, "top_p": 1e-9},
    {"temperature": 1e308},
    {"temperature": 1e308, "top_k": 3, "top_p": 0.999999},
    {"temperature": 1.0, "top_p": 5e-324},
    {"temperature": 1.0, "top_k": 10**9},
]


@pytest.mark.parametrize("options", EXTREMES, ids=str)
def test_extreme_sampling_never_gives_a_forbidden_token(options: dict[str, float]) -> None:
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
