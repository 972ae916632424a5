"""ChatGLM2/3-6B, GLM-4-9B and GLM-4-0414 against recordings: grouped keys, RMSNorm, SwiGLU, interleaved pairs."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from support.published import CAUSAL, Recording, close, greedy, recording

TOLERANCE = 1e-4  # the recordings' own


@pytest.fixture(params=CAUSAL)
def reference(request: pytest.FixtureRequest) -> Recording:
    return recording(request.param)


def test_logits(reference: Recording) -> None:
    close(reference.model(reference.ids("single")), reference.expected["single.logits"], TOLERANCE)
    if "long.logits" in reference.expected and "long" in reference.inputs:
        close(reference.model(reference.ids("long"))[:, -12:], reference.expected["long.logits"], TOLERANCE)


def test_a_left_padded_batch_from_ids_and_mask_alone(reference: Recording) -> None:
    ids, real = reference.ids("batch"), reference.real("batch")
    assert real is not None
    places = reference.model._positions(ids, None, torch.zeros(len(ids), dtype=torch.long), real, None, None)
    np.testing.assert_array_equal(places[:, 0].numpy(), reference.inputs["batch"]["position_ids"])
    logits = reference.model(ids, attention_mask=real)
    assert torch.isfinite(logits).all()
    close(logits[real], reference.expected["batch.logits"][real.numpy()], TOLERANCE)


@pytest.mark.parametrize("case", ["single", "batch"])
def test_cached_greedy_without_position_ids(reference: Recording, case: str) -> None:
    if f"{case}.greedy_tokens" not in reference.expected:
        assert reference.folder.name == "chatglm2-paddle"
        return
    model, new, real = reference.model, reference.ids(case), reference.real(case)
    recorded = reference.expected[f"{case}.greedy_tokens"].reshape(len(new), -1)
    tokens, found = greedy(model, new, real, recorded.shape[1])
    np.testing.assert_array_equal(tokens.numpy(), recorded)
    close(found, reference.expected[f"{case}.greedy_logits"].reshape(found.shape), TOLERANCE)


def test_every_layer_and_loss(reference: Recording) -> None:
    if "single.hidden_states" not in reference.expected:
        assert reference.folder.name == "chatglm2-paddle"
        return
    layers: list[Tensor] = []
    ids = reference.ids("single")
    last = reference.model.hidden(ids, every_layer=layers)
    if "native" in reference.folder.name:  # the remote code lists the last block's output before the norm
        layers[-1] = last
    close(torch.stack(layers), reference.expected["single.hidden_states"], TOLERANCE)
    labels = torch.tensor(reference.inputs["single"]["labels"])
    loss = functional.cross_entropy(reference.model(ids)[0, :-1], labels[0, 1:])
    close(loss, reference.expected["single.loss"], TOLERANCE)
