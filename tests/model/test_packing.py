"""Packed rows, split attention and plain masks give the same numbers as samples one by one."""

import pytest
import torch

from glmkit.errors import RequestError
from glmkit.model import GLM, Segments, attention
from glmkit.objective.loss import linear_cross_entropy
from support.tiny import SPECIAL, random_ids, tiny_model

pytestmark = pytest.mark.sampled(4)

LENGTHS = [(7, 19), (1, 5), (12, 12), (3, 40), (10, 11)]  # (part A, whole sample)
MIXES = [{}, {"positions": "rope_2d", "residual": "deepnorm"}]


def samples() -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    made = []
    for seed, (prefix, length) in enumerate(LENGTHS):
        ids = random_ids(1, length, seed=seed)
        tail = torch.arange(1, length - prefix + 1)
        row0 = torch.cat([torch.arange(prefix), torch.full_like(tail, prefix - 1)])
        row1 = torch.cat([torch.zeros(prefix, dtype=torch.long), tail])
        made.append((ids, torch.stack([row0, row1])[None], prefix))
    return made


def pack(gap: int) -> tuple[torch.Tensor, torch.Tensor, Segments]:
    """Two rows of samples with `gap` padding tokens after each."""
    ids = torch.full((2, 100), SPECIAL.pad)
    positions = torch.zeros(2, 2, 100, dtype=torch.long)
    bounds, row, column = [], 0, 0
    for number, (sample, places, prefix) in enumerate(samples()):
        if number == 3:
            row, column = 1, 0
        end = column + sample.shape[1]
        ids[row, column:end], positions[row, :, column:end] = sample[0], places[0]
        bounds.append((row, column, column + prefix, end))
        column = end + gap
    return ids, positions, Segments(tuple(bounds))


def losses_alone(model: GLM) -> list[float]:
    values = []
    for ids, positions, prefix in samples():
        hidden = model.hidden(ids, position_ids=positions, prefix_length=torch.tensor([prefix]))
        values.append(float(linear_cross_entropy(hidden[0], model.head_weight, ids[0].roll(-1)).loss_sum.detach()))
    return values


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize("split", [False, True])
def test_packed_losses_equal_one_by_one(
    mix: dict[str, str], gap: int, split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glmkit.model.language_model.SPLIT_FROM", 1 if split else 10_000)
    model = tiny_model(seed=1, **mix)
    ids, positions, segments = pack(gap)
    hidden = model.hidden(ids, position_ids=positions, segments=segments)
    packed = [
        float(
            linear_cross_entropy(
                hidden[row, start:end], model.head_weight, ids[row, start:end].roll(-1)
            ).loss_sum.detach()
        )
        for row, start, _, end in segments.bounds
    ]
    assert packed == pytest.approx(losses_alone(model), rel=1e-5)


def test_gradients_of_split_and_dense_attention_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(seed=4)
    ids, positions, segments = pack(2)
    grads = []
    for split_from in (1, 10_000):
        monkeypatch.setattr("glmkit.model.language_model.SPLIT_FROM", split_from)
        model.zero_grad()
        hidden = model.hidden(ids, position_ids=positions, segments=segments)
        inside = torch.zeros(ids.shape, dtype=torch.bool)
        for row, start, _, end in segments.bounds:
            inside[row, start:end] = True
        hidden[inside].square().mean().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert len(grads[0]) > 20
    for name, value in grads[0].items():
        torch.testing.assert_close(value, grads[1][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("prefix", [0, 1, 5, 20, 33, 40])
def test_split_attention_equals_the_dense_mask(prefix: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(seed=2)
    ids = random_ids(3, 40)
    prefix_B = torch.tensor([prefix, 7, 31])
    outputs = []
    for split_from in (1, 10_000):
        monkeypatch.setattr("glmkit.model.language_model.SPLIT_FROM", split_from)
        outputs.append(model(ids, prefix_length=prefix_B))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


def test_right_padding_does_not_change_a_row() -> None:
    model = tiny_model(seed=6)
    short, long = random_ids(1, 9, seed=1), random_ids(1, 17, seed=2)
    batch = torch.full((2, 17), SPECIAL.pad)
    batch[0, :9], batch[1] = short[0], long[0]
    real = torch.arange(17) < torch.tensor([[9], [17]])
    together = model(batch, attention_mask=real, prefix_length=torch.tensor([9, 17]))
    torch.testing.assert_close(together[0, :9], model(short, prefix_length=torch.tensor([9]))[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together[1], model(long, prefix_length=torch.tensor([17]))[0], rtol=1e-5, atol=1e-5)


def test_a_later_sample_never_sees_an_earlier_one() -> None:
    model = tiny_model(seed=3)
    ids, positions, segments = pack(0)
    before = model.hidden(ids, position_ids=positions, segments=segments)
    _, start, _, end = segments.bounds[0]
    changed = ids.clone()
    changed[0, start:end] = random_ids(end - start, seed=99)
    after = model.hidden(changed, position_ids=positions, segments=segments)
    assert (before[0, start:end] - after[0, start:end]).abs().max() > 1e-3
    assert torch.equal(before[0, end:], after[0, end:])


def test_overlapping_segments_are_refused() -> None:
    model = tiny_model()
    ids, positions, _ = pack(0)
    with pytest.raises(RequestError, match="segment"):
        model.hidden(ids, position_ids=positions, segments=Segments(((0, 0, 5, 10), (0, 9, 12, 20))))
    with pytest.raises(RequestError, match="segments already say"):
        model(ids, position_ids=positions, segments=pack(0)[2], prefix_length=torch.tensor([1, 1]))


def test_plain_products_equal_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on short rows in bf16 takes plain products; in fp32 both ways can be compared to the last digits."""
    model = tiny_model(seed=8)
    ids, positions, segments = pack(2)
    outputs = [model.hidden(ids, position_ids=positions, segments=segments)]

    def by_products(q, k, v, mask, causal, dropout):  # type: ignore[no-untyped-def]
        return attention.products(q, k, v, attention.as_bias(mask, q.dtype), dropout)

    monkeypatch.setattr(attention, "_sdpa", by_products)
    outputs.append(model.hidden(ids, position_ids=positions, segments=segments))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("split_from", [1, 10_000])
@pytest.mark.parametrize("short", [0, 256])
def test_bfloat16_training_stays_near_fp32(short: int, split_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SHORT", short)
    monkeypatch.setattr("glmkit.model.language_model.SPLIT_FROM", split_from)
    model = tiny_model(seed=8, init_std=0.1)
    ids, positions, segments = pack(2)
    inside = torch.zeros(ids.shape, dtype=torch.bool)
    for row, start, _, end in segments.bounds:
        inside[row, start:end] = True
    exact = model.hidden(ids, position_ids=positions, segments=segments)[inside]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.hidden(ids, position_ids=positions, segments=segments)[inside]
    assert (exact - rounded).norm() / exact.norm() < 0.02  # bf16 keeps 8 bits; two layers
