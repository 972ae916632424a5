"""ChatGLM-6B (two rotary streams, DeepNorm, one blank) and GLM-130B against recordings, inferred from ids."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from support.published import Recording, close, greedy, recording
from support.reference import to_glmkit

# name -> tolerance on logits, as its README says
REFERENCES = {
    "chatglm-6b": 3e-5,
    "chatglm-paddle": 1e-4,
    "chatglm-6b-int8": 3e-5,
    "chatglm-6b-int4": 3e-5,
    "chatglm-6b-int4-qe": 3e-5,
}


@pytest.fixture(params=list(REFERENCES))
def reference(request: pytest.FixtureRequest) -> Recording:
    return recording(request.param)


def cases(reference: Recording) -> list[str]:
    return [case for case in reference.inputs if f"{case}.logits" in reference.expected]


def tolerance(reference: Recording) -> float:
    return REFERENCES[reference.folder.name]


def test_logits_from_ids_alone(reference: Recording) -> None:
    for case in cases(reference):
        real = reference.real(case)
        logits = reference.model(reference.ids(case), attention_mask=real)
        expected = reference.expected[f"{case}.logits"]
        if real is not None:
            logits, expected = logits[real], expected[real.numpy()]
        elif case == "long":
            logits = logits[:, -12:]
        close(logits, expected, tolerance(reference))


def test_inferred_positions_are_the_recorded_ones(reference: Recording) -> None:
    for case in cases(reference):
        ids, real = reference.ids(case), reference.real(case)
        prefix = reference.model._part_a(ids, None, real, None, None)
        places = reference.model._positions(ids, None, prefix, real, None, None)
        np.testing.assert_array_equal(places.numpy(), reference.expected[f"{case}.position_ids"])


def test_cached_greedy(reference: Recording) -> None:
    for case in cases(reference):
        if f"{case}.greedy_tokens" not in reference.expected:
            continue
        tokens, logits = recorded_greedy(reference, case)
        np.testing.assert_array_equal(tokens.numpy(), reference.expected[f"{case}.greedy_tokens"].reshape(tokens.shape))
        close(logits, reference.expected[f"{case}.greedy_logits"].reshape(logits.shape), 1e-4)


def recorded_greedy(reference: Recording, case: str) -> tuple[Tensor, Tensor]:
    """(B,n) tokens and (B,n,V) logits; the prompt ends with the start of the piece."""
    model, real = reference.model, reference.real(case)
    special = model.config.special
    assert special is not None
    ids = reference.ids(case)
    ids = ids[:, : int((ids[0] == special.sop).nonzero()[0, 0]) + 1]
    prefix = model._part_a(ids, None, real, None, None)
    place = model._positions(ids, None, prefix, real, None, None)[:, :, -1:]
    return greedy(model, ids, real, reference.expected[f"{case}.greedy_tokens"].shape[-1], place)


@pytest.mark.parametrize("reference", ["chatglm-6b", "chatglm-6b-int8", "chatglm-6b-int4-qe"], indirect=True)
def test_every_layer(reference: Recording) -> None:
    layers: list[Tensor] = []
    last = reference.model.hidden(reference.ids("gmask"), every_layer=layers)
    close(torch.stack([*layers[:-1], last]), reference.expected["gmask.hidden_states"], 3e-5)


@pytest.fixture
def reference_6b() -> Recording:
    return recording("chatglm-6b")


def loss_of(reference: Recording, case: str) -> Tensor:
    """Mean over the tokens after <sop>."""
    ids, special = reference.ids(case), reference.model.config.special
    assert special is not None
    answer = (ids == special.sop).cumsum(1).bool()[:, :-1]
    logits = reference.model(ids)[:, :-1]
    return functional.cross_entropy(logits[answer], ids[:, 1:][answer])


@pytest.mark.parametrize("case", ["gmask", "mask", "long"])
def test_loss(reference_6b: Recording, case: str) -> None:
    close(loss_of(reference_6b, case), reference_6b.expected[f"{case}.loss"], 3e-5)


def test_gradients(reference_6b: Recording) -> None:
    model = reference_6b.model
    recorded = np.load(reference_6b.folder / "grads.npz")
    model.zero_grad()
    loss_of(reference_6b, "gmask").backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    expected = {name[5:]: torch.from_numpy(recorded[name]) for name in recorded.files if name.startswith("grad.")}
    compared = 0
    for name, value in to_glmkit(expected, heads=model.config.num_heads).items():
        found = gradients[name]
        assert found is not None
        # The norm of a third of the fused matrix's gradient can be far below that of the whole (keys have no bias).
        assert (found - value).norm() <= 1e-4 * value.norm() + 1e-7, name
        compared += 1
    assert compared > 30
    head = gradients["lm_head.weight"]
    assert head is not None
    np.testing.assert_allclose(head.norm().item(), recorded["norm.lm_head.weight"], rtol=1e-4)


@pytest.mark.parametrize("name", ["glm-130b-sat", "glm-130b-sat-int8", "glm-130b-sat-int4", "glm-130b-sat-int4-mp2"])
def test_glm_130b_from_ids_alone(name: str) -> None:
    reference = recording(name, "glm-130b-sat")
    for case in ("gmask", "mask"):
        logits = reference.model(reference.ids(case).reshape(1, -1))
        close(logits, reference.expected[f"{case}.logits"], 1e-4)
    lengths = torch.tensor(reference.inputs["batch"]["lengths"])
    ids = reference.ids("batch")
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    logits = reference.model(ids, attention_mask=real)
    close(logits[real], reference.expected["batch.logits"][real.numpy()], 1e-4)
