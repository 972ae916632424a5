"""Equalities behind fine-tuning: packed = alone, any batch size and padding side, recomputed = kept, any base."""

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from glmkit.adapters.adapter import NewAdapter
from glmkit.adapters.attach import new_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.adapters.prefix.prefix_adapter import PrefixOptions
from glmkit.data.packing import pack
from glmkit.data.tuning_batches import TuningBatches, TuningLayout
from glmkit.data.tuning_epochs import Epochs
from glmkit.loading import load_parts
from glmkit.model import GLM
from glmkit.objective.sample import Sample
from glmkit.parallel.apply import ParallelPlan, apply
from glmkit.parallel.mesh import Ranks
from glmkit.tokenizer.inputs import RowLayout, pad_rows
from glmkit.train.batch_loss import batch_loss
from glmkit.train.optim import build_optimizers
from glmkit.train.run_config import OptimizerSection
from glmkit.train.trainer import Objective
from support.shared import shared_dir
from support.tuned import METHODS, NETWORKS, Method, alone, assert_equal_gradients, gradients, tuned
from support.tuning import numbered

sampled = pytest.mark.sampled(9)
BASES: list[dict[str, Any]] = [{"dtype": torch.bfloat16}, {"dtype": torch.float16}, {"bits": 4}, {"bits": 8}]
PUBLISHED = {  # parts of a layer as published, and ours
    "mlp.dense_h_to_4h": "mlp.up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
    "attention.dense": "self_attn.o_proj",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
}


def packed(count: int, blocks: bool) -> TuningBatches:
    rows = numbered(count, blocks=blocks)
    layout = TuningLayout(micro_batch_size=1, batch_size=count, layout="packed", row_length=100)
    return TuningBatches(Epochs([rows], seed=1), layout)


# --- packed rows (30) -------------------------------------------------------------------------------------------------


@sampled
@pytest.mark.parametrize("split_from", [1, 10_000])
@pytest.mark.parametrize("method", [*METHODS, "projection"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_pack_is_its_samples_alone(
    network: str, method: Method, split_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glmkit.model.language_model.SPLIT_FROM", split_from)
    model = tuned(network, method, spread=0.1)
    plan = packed(9, blocks=model.config.mask == "prefix")
    packs = [plan.batch(index) for index in range(plan.micro_batches(0))]
    assert max(batch.num_samples for batch in packs) > 2
    assert sum(batch.num_samples for batch in packs) == 9
    together, found = gradients(model, packs)
    one_by_one, expected = gradients(model, alone(plan.epochs.sets[0]))
    assert together == pytest.approx(one_by_one, rel=1e-5)
    assert_equal_gradients(expected, found, 1e-5)


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_samples_of_a_pack_do_not_see_each_other(method: Method) -> None:
    model = tuned("chatglm", method, spread=0.1)
    rows = numbered(3)
    samples = [rows.sample(number) for number in range(3)]
    other = numbered(1, first=20).sample(0)
    losses = batch_loss()
    first, second = (
        [losses(model, pack([[pair[0], s, pair[1]]])).loss_sum.item() for s in (samples[1], other)]
        for pair in ((samples[0], samples[2]), (samples[2], samples[0]))
    )
    alone_of = {id(s): losses(model, pack([[s]])).loss_sum.item() for s in (*samples, other)}
    for found, middle in zip(first, (samples[1], other), strict=True):
        expected = alone_of[id(samples[0])] + alone_of[id(middle)] + alone_of[id(samples[2])]
        assert found == pytest.approx(expected, rel=1e-5)
    assert second == pytest.approx(first, rel=1e-5)


def test_positions_of_a_pack_start_anew() -> None:
    """The page's rows of ChatGLM-6B, 你好/在 and 早上好/好的, each without the last id, which is no input."""
    layouts = [([0, 1, 2, 2, 2], [0, 0, 0, 1, 2]), ([0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3])]
    samples = []
    for places in layouts:
        size = len(places[0])
        ids = np.arange(11, 11 + size)
        samples.append(Sample(ids, ids, np.ones(size, np.int64), np.array(places), 3, "tuning"))
    batch = pack([samples])
    assert batch.position_ids[0].tolist() == [
        [0, 1, 2, 2, 2, 0, 1, 2, 2, 2, 2],
        [0, 0, 0, 1, 2, 0, 0, 0, 1, 2, 3],
    ]
    assert batch.segments.bounds == ((0, 0, 3, 5), (0, 5, 8, 11))


# --- batch size and padding side (31) ---------------------------------------------------------------------------------


def row_losses(model: GLM, samples: list[Sample], side: Any) -> list[float]:
    """The loss of each row in one padded batch with masks, as inference and evaluation give it."""
    layouts = [RowLayout(*s.position_ids.tolist(), s.prefix_length) for s in samples]
    batch = pad_rows([s.input_ids.tolist() for s in samples], layouts, pad_id=1, side=side, multiple_of=8)
    hidden = model.hidden(
        torch.from_numpy(batch.input_ids),
        position_ids=torch.from_numpy(batch.position_ids),
        prefix_length=torch.from_numpy(batch.prefix_lengths),
        attention_mask=torch.from_numpy(batch.attention_mask),
    )
    losses = []
    for row, sample in enumerate(samples):
        own = hidden[row, torch.from_numpy(batch.attention_mask[row])]
        log_p = model.head(own).float().log_softmax(-1)
        targets = torch.from_numpy(sample.targets)
        counted = torch.from_numpy(sample.loss_mask).bool()
        losses.append(-log_p[torch.arange(len(targets)), targets][counted].sum().item())
    return losses


@sampled
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_batch_size_and_padding_side_change_no_row(network: str, method: Method) -> None:
    model = tuned(network, method, spread=0.1).eval()
    rows = numbered(16, blocks=model.config.mask == "prefix")
    samples = [rows.sample(number) for number in range(16)]
    loss = batch_loss()
    with torch.no_grad():
        expected = [loss(model, pack([[sample]])).loss_sum.item() for sample in samples]
        for size in (1, 2, 16):
            for side in ("left", "right"):
                parts = [row_losses(model, samples[i : i + size], side) for i in range(0, 16, size)]
                assert [*chain(*parts)] == pytest.approx(expected, rel=1e-5, abs=1e-5), (size, side)
            sums = [
                loss(model, pack([[sample] for sample in samples[i : i + size]], pad_to_multiple=8)).loss_sum.item()
                for i in range(0, 16, size)
            ]
            assert sums == pytest.approx([sum(expected[i : i + size]) for i in range(0, 16, size)], rel=1e-5)


# --- recomputation (37), precision (38) -------------------------------------------------------------------------------


@sampled
@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("method", ["lora", "prefix", "projection"])
@pytest.mark.parametrize("network", ["chatglm", "chatglm2", "glm"])
def test_recomputed_gradients_are_those_of_kept_activations(network: str, method: Method, bits: int | None) -> None:
    found = []
    for recompute in (False, True):
        model = tuned(network, method, bits=bits)
        assert not any(p.requires_grad for name, p in model.named_parameters() if "embed_tokens" in name)
        apply(Objective(model, batch_loss()), ParallelPlan(recompute=recompute), Ranks())
        batch = pack([[numbered(2, blocks=model.config.mask == "prefix").sample(i)] for i in range(2)])
        found.append(gradients(model, [batch]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert_equal_gradients(found[0][1], found[1][1], 1e-6)
    assert_every_part_learns(found[1][1])


def assert_every_part_learns(found: dict[str, Tensor]) -> None:
    """Every lora_B, and every row of a prefix, has a gradient."""
    watched = [name for name in found if "lora_B" in name or name.endswith("prefix.embedding.weight")]
    assert watched
    for name in watched:
        rows = found[name] if "prefix" in name else found[name][None]
        assert all(bool(row.any()) for row in rows), name


OPTIONS: dict[str, NewAdapter] = {
    "lora": LoraOptions(("q_proj", "v_proj")),
    "prefix": PrefixOptions(4, dropout=0.0),
    "modules to save": LoraOptions(("q_proj",), modules_to_save=("lm_head", "embed_tokens")),
}


@sampled
@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("fixture", ["chatglm-6b", "chatglm-6b-int4", "chatglm-6b-int8", "chatglm2-6b", "chatglm3-6b"])
def test_published_models_learn_with_recomputation(fixture: str, method: str) -> None:
    found = []
    for recompute in (False, True):
        model = load_parts(shared_dir("fixtures", fixture), dtype="float32").model.train()
        torch.manual_seed(0)
        new_adapter(model, OPTIONS[method])
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        apply(Objective(model, batch_loss()), ParallelPlan(recompute=recompute), Ranks())
        rows = numbered(3, blocks=model.config.mask == "prefix")
        found.append(gradients(model, [pack([[rows.sample(i)] for i in range(3)])]))
    assert_equal_gradients(found[0][1], found[1][1], 1e-6)
    assert_every_part_learns(found[1][1])
    if method == "modules to save":
        assert sum("lm_head" in name or "embed_tokens" in name for name in found[1][1]) == 2


@pytest.mark.parametrize("method", ["lora", "prefix", "projection"])
@pytest.mark.parametrize("base", BASES, ids=str)
def test_what_is_trained_and_its_state_are_float32(base: dict[str, Any], method: Method) -> None:
    model = tuned("chatglm", method, **base)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizers = build_optimizers(model, OptimizerSection(learning_rate=1e-2))
    optimizers.set_rate(1e-2)
    gradients(model, alone(numbered(2)))
    optimizers.step()
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.grad.dtype for p in trained.values() if p.grad is not None} == {torch.float32}
    assert {state.dtype for state in optimizers.state_tensors().values()} == {torch.float32}
    assert any(not torch.equal(before[name], p) for name, p in trained.items())
    assert all(torch.equal(frozen[name], p) for name, p in model.named_parameters() if name in frozen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_modules_to_save_are_float32_on_a_half_base(dtype: torch.dtype) -> None:
    model = tuned("chatglm", "full", dtype=dtype)
    new_adapter(model, OPTIONS["modules to save"])
    _, found = gradients(model, alone(numbered(2)))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert all(bool(gradient.any()) for name, gradient in found.items() if "lora" not in name)


@pytest.mark.parametrize("method", ["lora", "prefix"])
@pytest.mark.parametrize("bits", [8, 4])
def test_an_integer_base_keeps_no_floats_for_the_backward_pass(bits: int, method: Method) -> None:
    """Kept tensors are activations: none has the shape of a matrix, and a wider base changes nothing per token."""
    model = tuned("chatglm", method, bits=bits)
    shapes = {
        tuple(part.floats().shape) for part in model.modules() if hasattr(part, "floats") and hasattr(part, "num_rows")
    }
    kept: list[tuple[int, ...]] = []
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        batch_loss()(model, pack([[numbered(1).sample(0)]]))
    assert kept
    assert not [shape for shape in kept if shape in shapes or shape[::-1] in shapes]


# --- reference numbers ------------------------------------------------------------------------------------------------


def test_gradients_are_the_references() -> None:
    """`chatglm-6b/grads.npz`: the mean loss after <sop>, through the training loss."""
    folder = shared_dir("fixtures", "chatglm-6b")
    recorded = np.load(folder / "grads.npz")
    expected = np.load(folder / "expected.npz")
    ids = np.array([158, 196, 85, 96, 86, 188, 18, 81, 166, 251, 254, 76, 87, 29, 114, 97])
    places = expected["gmask.position_ids"][0]
    counted = np.arange(15) >= 10  # from <sop> on
    sample = Sample(ids[:-1], ids[1:], counted.astype(np.int64), places[:, :-1], 10, "tuning")
    model = load_parts(folder, dtype="float32").model.train().requires_grad_()
    sums = batch_loss()(model, pack([[sample]]))
    mean = sums.loss_sum / sums.num_targets
    assert mean.item() == pytest.approx(float(expected["gmask.loss"]), abs=1e-5)
    mean.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for theirs, name in PUBLISHED.items():
        for kind in ("weight", "bias"):
            reference = torch.from_numpy(recorded[f"grad.transformer.layers.0.{theirs}.{kind}"])
            gradient = found[f"model.layers.0.{name}.{kind}"]
            assert (gradient - reference).norm() <= 1e-4 * reference.norm(), (name, kind)
        for layer in range(3):
            norm = recorded[f"norm.transformer.layers.{layer}.{theirs}.weight"].item()
            assert found[f"model.layers.{layer}.{name}.weight"].norm().item() == pytest.approx(norm, rel=1e-4)
    for layer in range(3):
        fused = torch.cat([found[f"model.layers.{layer}.self_attn.{x}_proj.weight"] for x in "qkv"]).norm().item()
        norm = recorded[f"norm.transformer.layers.{layer}.attention.query_key_value.weight"].item()
        assert fused == pytest.approx(norm, rel=1e-4)
    table = torch.from_numpy(recorded["grad.transformer.word_embeddings.weight"])
    assert (found["model.embed_tokens.weight"] - table).norm() <= 1e-4 * table.norm()
