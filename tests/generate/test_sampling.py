"""The noise of sampling, the cuts on large vocabularies, and how often each token comes."""

import torch

from glmkit.generate.sampling import Sampling, _gumbel, _hash, _signed, keep_top_p, next_tokens

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
    ids = torch.arange(20_000)
    noise = torch.stack([_gumbel(ids, 3, position) for position in range(50)])
    ranks = (-(-noise.double()).exp()).exp().flatten().sort().values
    expected = torch.arange(1, len(ranks) + 1) / len(ranks)
    assert (ranks - expected).abs().max() * len(ranks) ** 0.5 < 1.63, "Kolmogorov-Smirnov at 1 %"
    others = [_gumbel(ids, seed, at) for seed, at in ((4, 0), (3, 1), (2, 1), (-3, 0), (3 + (1 << 32), 0))]
    correlation = torch.corrcoef(torch.stack([noise[0], noise[0].roll(1), *others]))
    assert (correlation - torch.eye(7)).abs().max() < 5 / len(ids) ** 0.5


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
