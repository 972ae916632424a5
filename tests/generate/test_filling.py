"""Filling: cached = uncached, batched = alone, and later blanks depend on earlier answers."""

import pytest
import torch

from glmkit.errors import RequestError
from glmkit.generate.filling import fill_rows
from glmkit.generate.sampling import Sampling, keep_top_k, keep_top_p, next_tokens
from glmkit.model import GLM
from support.tiny import SPECIAL, random_ids, tiny_model

NEVER = {SPECIAL.pad, SPECIAL.cls, SPECIAL.sop, *SPECIAL.mask_ids(), SPECIAL.dblock, SPECIAL.sep}
MIXES = [{}, {"positions": "rope"}, {"positions": "rope_2d", "residual": "deepnorm", "mlp": "geglu"}]


def row_with_blanks(length: int, blanks: list[int], seed: int) -> list[int]:
    row = random_ids(length, seed=seed).tolist()
    row[0], row[-1] = SPECIAL.cls, SPECIAL.eos
    for blank in blanks:
        row[blank] = SPECIAL.mask
    return row


def fill_without_cache(model: GLM, row: list[int], max_tokens: int) -> list[list[int]]:
    """The same decoding from scratch at every token: whole forward passes with explicit positions."""
    blanks = [i for i, token in enumerate(row) if token in SPECIAL.mask_ids()]
    tail: list[int] = []
    places: list[tuple[int, int]] = []
    spans: list[list[int]] = []
    for blank in blanks:
        span: list[int] = []
        tail.append(SPECIAL.sop)
        places.append((blank, 1))
        while True:
            ids = torch.tensor([row + tail])
            positions = torch.zeros(1, 2, ids.shape[1], dtype=torch.long)
            positions[0, 0, : len(row)] = torch.arange(len(row))
            positions[0, :, len(row) :] = torch.tensor(places).T
            logits = model(ids, position_ids=positions, prefix_length=torch.tensor([len(row)]), logits_at="last")[0]
            logits[list(NEVER)] = -torch.inf
            token = int(logits.argmax())
            if token in (SPECIAL.eop, SPECIAL.eos) or len(span) == max_tokens:
                break
            span.append(token)
            tail.append(token)
            places.append((blank, len(span) + 1))
        spans.append(span)
    return spans


@pytest.mark.parametrize("mix", MIXES)
def test_cached_equals_uncached_and_batched_equals_alone(mix: dict[str, str]) -> None:
    model = tiny_model(seed=3, **mix)
    rows = [
        row_with_blanks(20, [3, 9, 15], 1),
        row_with_blanks(9, [4], 2),
        row_with_blanks(33, [1, 2], 3),
        row_with_blanks(12, [10], 4),
    ]
    batched = fill_rows(model, rows, SPECIAL, max_tokens=5)
    alone = [fill_rows(model, [row], SPECIAL, max_tokens=5)[0] for row in rows]
    uncached = [fill_without_cache(model, row, 5) for row in rows]
    assert batched == alone == uncached
    assert [len(spans) for spans in batched] == [3, 1, 2, 1]
    assert any(len(span) == 5 for spans in batched for span in spans)


def test_the_second_blank_depends_on_the_answer_to_the_first() -> None:
    """Same text, same second blank; only what was written into the first blank differs (two seeds)."""
    model = tiny_model(seed=5)
    row = row_with_blanks(16, [4, 11], 7)
    hot = [
        fill_rows(model, [row], SPECIAL, max_tokens=3, sampling=Sampling(temperature=3.0, seed=s))[0] for s in (1, 2)
    ]
    assert hot[0][0] != hot[1][0]
    second_logits = []
    for first, _ in hot:
        tail = [SPECIAL.sop, *first, SPECIAL.sop]
        places = [[4] * (len(first) + 1) + [11], [*range(1, len(first) + 2), 1]]
        positions = torch.tensor([[[*range(16), *places[0]], [*[0] * 16, *places[1]]]])
        second_logits.append(
            model(
                torch.tensor([row + tail]), position_ids=positions, prefix_length=torch.tensor([16]), logits_at="last"
            )
        )
    assert (second_logits[0] - second_logits[1]).abs().max() > 1e-3
    # and greedy decoding of blank two alone, with the first one left open, is another distribution again
    closed = fill_rows(model, [row], SPECIAL, max_tokens=3)[0]
    only = fill_rows(model, [row], SPECIAL, max_tokens=3, blank=0)[0]
    assert closed[0] == only[0]
    assert len(only) == 1


def test_inference_of_positions_agrees_with_explicit_ones() -> None:
    model = tiny_model(seed=2)
    row = row_with_blanks(10, [2, 6], 1)
    ids = torch.tensor([[*row, SPECIAL.sop, 20, 21, SPECIAL.sop, 30]])
    positions = torch.tensor([[[*range(10), 2, 2, 2, 6, 6], [*[0] * 10, 1, 2, 3, 1, 2]]])
    explicit = model(ids, position_ids=positions, prefix_length=torch.tensor([10]))
    torch.testing.assert_close(model(ids), explicit, rtol=0, atol=0)


def test_sampling_noise_is_a_function_of_seed_and_position() -> None:
    model = tiny_model(seed=1)
    rows = [row_with_blanks(14, [3, 8], 1), row_with_blanks(22, [5], 2)]
    hot = Sampling(temperature=1.5, seed=11)
    together = fill_rows(model, rows, SPECIAL, max_tokens=6, sampling=hot)
    alone = [fill_rows(model, [row], SPECIAL, max_tokens=6, sampling=hot)[0] for row in rows]
    assert together == alone
    assert together != fill_rows(model, rows, SPECIAL, max_tokens=6, sampling=Sampling(temperature=1.5, seed=12))


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


def test_forbidden_tokens_never_appear() -> None:
    model = tiny_model(seed=9)
    rows = [row_with_blanks(18, [2, 7, 12], seed) for seed in range(6)]
    spans = fill_rows(model, rows, SPECIAL, max_tokens=8, sampling=Sampling(temperature=5.0), forbidden=range(40, 64))
    produced = {token for row in spans for span in row for token in span}
    assert len(produced) > 10
    assert not produced & (NEVER | set(range(40, 64)))


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


def test_spans_beyond_the_table_of_positions_stay_on_its_last_row() -> None:
    model = tiny_model(seed=3)
    row = row_with_blanks(96, [90], 1)
    for running in (False, True):
        span = fill_rows(model, [row], SPECIAL, max_tokens=120, sampling=Sampling(temperature=9.0), running=running)
        assert 0 < len(span[0][0]) <= 120


def test_noise_goes_on_from_call_to_call() -> None:
    """`drawn` makes a later call for the same text use other noise than an earlier one."""
    model = tiny_model(seed=3)
    row = row_with_blanks(12, [4], 1)
    hot = Sampling(temperature=1e30, seed=5)
    first, second = (fill_rows(model, [row], SPECIAL, max_tokens=8, sampling=hot, drawn=n)[0][0] for n in (0, 9))
    assert first != second


def test_no_rows_and_too_many_tokens() -> None:
    assert fill_rows(tiny_model(), [], SPECIAL) == []
    with pytest.raises(RequestError, match=r"no memory for 1 x .*; lower max_tokens \(1000000000000000\)"):
        fill_rows(tiny_model(), [row_with_blanks(20, [5], 1)], SPECIAL, max_tokens=10**15)


def test_mistakes_are_named() -> None:
    model = tiny_model()
    with pytest.raises(RequestError, match="no blank"):
        fill_rows(model, [[2, 20, 0]], SPECIAL)
    with pytest.raises(RequestError, match="200 tokens, the model takes 96"):
        fill_rows(model, [row_with_blanks(200, [5], 1)], SPECIAL)
    with pytest.raises(RequestError, match="max_tokens"):
        fill_rows(model, [row_with_blanks(20, [5], 1)], SPECIAL, max_tokens=0)
    with pytest.raises(RequestError, match="temperature"):
        Sampling(temperature=-1)


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_a_generation_mask_inside_a_text_counts_on_behind_the_text(seed: int) -> None:
    """With one rotary stream, as the model itself works positions out from the ids (`THUDM/GLM-130B:generation/`)."""
    model = tiny_model(seed, positions="rope", blank_order="mask_first", init_std=0.5)
    row = row_with_blanks(10, [], 3)
    row[3] = SPECIAL.gmask
    answer = fill_rows(model, [row], SPECIAL, max_tokens=5)[0][0]
    assert answer
    for length in range(len(answer)):
        logits = model(torch.tensor([[*row, SPECIAL.sop, *answer[:length]]]), logits_at="last")[0]
        logits[list(NEVER)] = -torch.inf
        assert int(logits.argmax()) == answer[length]
