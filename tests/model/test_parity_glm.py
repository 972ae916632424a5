"""Our GLM against logits, caches and tokens recorded from the two reference implementations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from glmkit.model import GLM, KVCache
from support.published import glm_options
from support.reference import load_reference
from support.shared import shared_dir

TOLERANCE = 1e-4  # the fixtures' own
REFERENCES = {"glm-hf": "erf", "glm-paddle": "tanh"}


class Reference:
    def __init__(self, name: str) -> None:
        self.folder: Path = shared_dir("fixtures", name)
        self.model: GLM = load_reference(self.folder, REFERENCES[name])
        self.inputs: dict[str, Any] = json.loads((self.folder / "inputs.json").read_text())
        self.expected = np.load(self.folder / "expected.npz")

    def tensors(self, case: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        values = self.inputs[case]
        return torch.tensor(values["input_ids"]), glm_options(values)


@pytest.fixture(scope="module", params=list(REFERENCES))
def reference(request: pytest.FixtureRequest) -> Reference:
    return Reference(request.param)


def close(actual: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", ["single_sep", "gmask_sep", "batch_sep"])
def test_logits(reference: Reference, case: str) -> None:
    ids, options = reference.tensors(case)
    close(reference.model(ids, **options), reference.expected[f"{case}.logits"])


def test_logits_of_a_left_padded_row(reference: Reference) -> None:
    ids, options = reference.tensors("mask4d_leftpad")
    logits = reference.model(ids, **options)
    assert torch.isfinite(logits).all()
    close(logits[:, 3:], reference.expected["mask4d_leftpad.logits"][:, 3:])  # the first three are padding


def test_split_attention_gives_the_same_logits(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmkit.model.language_model.SPLIT_FROM", 1)
    for case in ("single_sep", "gmask_sep", "batch_sep"):
        ids, options = reference.tensors(case)
        close(reference.model(ids, **options), reference.expected[f"{case}.logits"])


def test_every_layer(reference: Reference) -> None:
    key = "single_sep.mems" if "single_sep.mems" in reference.expected else "single_sep.cache"
    ids, options = reference.tensors("single_sep")
    layers: list[torch.Tensor] = []
    hidden = reference.model.hidden(ids, every_layer=layers, **options)
    close(torch.stack(layers), reference.expected[key])
    if "single_sep.last_hidden" in reference.expected:
        close(hidden, reference.expected["single_sep.last_hidden"])


def test_cached_greedy(reference: Reference) -> None:
    values = reference.inputs["greedy"]
    ids = torch.tensor(values["prompt"])
    positions = torch.tensor(values["position_ids"])
    start, steps = ids.shape[1], values["n"]
    cache = KVCache(reference.model.config, 1, start + steps, dtype=torch.float32, device=torch.device("cpu"))
    sep = torch.tensor([values["sep"]])
    tokens, step_logits = [], []
    new, options = ids, {"prefix_length": sep, "position_ids": positions[:, :, :start]}
    for step in range(steps):
        logits = reference.model(new, cache=cache, logits_at="last", **options)
        step_logits.append(logits)
        tokens.append(int(logits.argmax()))
        new = torch.tensor([[tokens[-1]]])
        options = {"position_ids": positions[:, :, start + step : start + step + 1]}
    recorded = reference.expected["greedy.tokens"].reshape(-1).tolist()
    assert tokens == recorded[-steps:]
    if "greedy.logits" in reference.expected:
        close(
            torch.stack(step_logits, 1).reshape(reference.expected["greedy.logits"].shape),
            reference.expected["greedy.logits"],
        )


@pytest.mark.parametrize("reference", ["glm-hf"], indirect=True)  # the recording that has it
def test_defaults_are_causal_with_running_positions(reference: Reference) -> None:
    ids, options = reference.tensors("defaults")
    close(reference.model(ids, **options), reference.expected["defaults.logits"])


@pytest.mark.parametrize("reference", ["glm-paddle"], indirect=True)  # the recording that has it
def test_recorded_loss(reference: Reference) -> None:
    values = reference.inputs["batch_sep"]
    ids, options = reference.tensors("batch_sep")
    logits = reference.model(ids, **options)
    mask = torch.tensor(values["loss_mask"]).bool()
    loss = functional.cross_entropy(logits[mask], torch.tensor(values["labels"])[mask])
    close(loss, reference.expected["batch_sep.loss"])


def test_multiple_choice_scores(reference: Reference) -> None:
    values = reference.inputs["multiple_choice"]
    options = {"position_ids": torch.tensor(values["position_ids"])}
    if "mask4d" in values:
        options["attention_mask"] = torch.tensor(values["mask4d"]).bool()
    log_probs = reference.model(torch.tensor(values["input_ids"]), **options).log_softmax(-1)
    scores = [
        [
            log_probs[row][indices, ids].sum().item()
            for ids, indices in zip(values["choice_ids"][row], values["choice_indices"][row], strict=True)
        ]
        for row in range(len(values["choice_ids"]))
    ]
    np.testing.assert_allclose(scores, reference.expected["multiple_choice.scores"], rtol=0, atol=5 * TOLERANCE)
