"""Which parameter gets which optimizer, rate and decay; the arithmetic of one update; state by name."""

import pytest
import torch

from glmkit.errors import CheckpointError, ConfigError
from glmkit.train.optim import build_optimizers, clip_gradients, slots_per_parameter
from glmkit.train.run_config import OptimizerSection
from support.training import toy_model


def fill_gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def names_in(optimizers, part, model):
    names = {p: n for n, p in model.named_parameters()}
    return [({names[p] for p in g["params"]}, g["weight_decay"]) for g in optimizers.parts[part].param_groups]


def test_biases_and_norms_are_not_decayed_embeddings_are():
    model = toy_model()
    (decayed, rate), (plain, zero) = names_in(
        build_optimizers(model, OptimizerSection(weight_decay=0.1)), "adamw", model
    )
    assert (rate, zero) == (0.1, 0.0)
    assert plain == {n for n, _ in model.named_parameters() if n.endswith("bias") or "norm" in n}
    assert {"model.embed_tokens.weight", "model.embed_positions.weight"} <= decayed
    assert decayed | plain == {n for n, _ in model.named_parameters()}


def test_one_adamw_update_by_hand():
    model = toy_model()
    options = OptimizerSection(learning_rate=0.1, adam_beta1=0.9, adam_beta2=0.98, adam_eps=1e-6, weight_decay=0.1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizers = build_optimizers(model, options)
    fill_gradients(model)
    optimizers.set_rate(0.01)
    optimizers.step()
    for name, p in model.named_parameters():
        decay = 0.1 if p.dim() >= 2 else 0.0
        # After one step the bias-corrected moments are g and g^2.
        expected = before[name] * (1 - 0.01 * decay) - 0.01 * p.grad / (p.grad.abs() + 1e-6)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-6)


def test_muon_takes_the_matrices_of_the_blocks():
    model = toy_model()
    options = OptimizerSection(name="muon", learning_rate=1e-3, muon_learning_rate=2e-2, weight_decay=0.1)
    optimizers = build_optimizers(model, options)
    ((matrices, decay),) = names_in(optimizers, "muon", model)
    assert matrices == {n for n, p in model.named_parameters() if ".layers." in n and p.dim() == 2}
    assert decay == 0.1
    optimizers.set_rate(5e-4)
    assert optimizers.parts["muon"].param_groups[0]["lr"] == pytest.approx(1e-2)  # keeps its ratio through the schedule
    assert {g["lr"] for g in optimizers.parts["adamw"].param_groups} == {5e-4}
    assert "model.embed_tokens.weight" in names_in(optimizers, "adamw", model)[0][0]


def test_muon_update_is_orthogonal_and_scaled_like_adamw():
    model = toy_model()
    weight = model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    optimizers = build_optimizers(model, OptimizerSection(name="muon", learning_rate=1.0, weight_decay=0.0))
    fill_gradients(model)
    optimizers.set_rate(1.0)
    optimizers.step()
    update = (before - weight.detach()) / (0.2 * max(weight.shape) ** 0.5)
    singular = torch.linalg.svdvals(update)
    assert 0.5 < singular.min() < singular.max() < 1.5  # Newton-Schulz leaves them near 1


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_by_name_continues_exactly(name):
    options = OptimizerSection(name=name, learning_rate=1e-2)
    whole, first = toy_model(), toy_model()
    runs = [(whole, build_optimizers(whole, options)), (first, build_optimizers(first, options))]
    for model, optimizers in runs:
        fill_gradients(model, 1)
        optimizers.step()
    second = toy_model()
    second.load_state_dict(first.state_dict())
    resumed = build_optimizers(second, options)
    resumed.load_state_tensors({k: v.clone() for k, v in runs[1][1].state_tensors().items()})
    for model, optimizers in (runs[0], (second, resumed)):
        fill_gradients(model, 2)
        optimizers.step()
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_another_optimizer_is_refused():
    model = toy_model()
    optimizers = build_optimizers(model, OptimizerSection())
    fill_gradients(model)
    optimizers.step()
    state = optimizers.state_tensors()
    muon = build_optimizers(model, OptimizerSection(name="muon"))
    with pytest.raises(CheckpointError, match="does not train"):
        muon.load_state_tensors(state)
    missing = {k: v for k, v in state.items() if "embed_tokens" not in k}
    with pytest.raises(CheckpointError, match="nothing for model.embed_tokens.weight"):
        build_optimizers(model, OptimizerSection()).load_state_tensors(missing)
    state["adamw/exp_avg/model.embed_tokens.weight"] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError, match=r"shape \(3, 3\)"):
        build_optimizers(model, OptimizerSection()).load_state_tensors(state)


def test_only_trainable_parameters_count():
    model = toy_model()
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter is trainable"):
        build_optimizers(model, OptimizerSection())
    model.model.norm.weight.requires_grad_(True)
    assert build_optimizers(model, OptimizerSection()).parameters() == [model.model.norm.weight]
    with pytest.raises(ConfigError, match="muon"):
        build_optimizers(model, OptimizerSection(name="muon"))


def test_slots():
    model = toy_model()
    hidden = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and p.dim() == 2)
    everything = sum(p.numel() for p in model.parameters())
    assert slots_per_parameter(OptimizerSection(), model) == (2 * everything, everything)
    assert slots_per_parameter(OptimizerSection(name="muon"), model) == (2 * everything - hidden, everything)


def test_clipping():
    model = toy_model()
    fill_gradients(model)
    parameters = list(model.parameters())
    norm = torch.cat([p.grad.flatten() for p in parameters]).norm()
    assert clip_gradients(parameters, 0.0) == pytest.approx(norm.item(), rel=1e-5)
    assert torch.cat([p.grad.flatten() for p in parameters]).norm() == pytest.approx(norm.item(), rel=1e-5)
    assert clip_gradients(parameters, 1.5) == pytest.approx(norm.item(), rel=1e-5)
    assert torch.cat([p.grad.flatten() for p in parameters]).norm() == pytest.approx(1.5, rel=1e-4)
