"""The effect proof: what training did to a model, measured on what lies on disk, and the ways in which nothing did."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

import glmkit
from glmkit.adapters.adapter_files import RECORD
from glmkit.adapters.attach import new_adapter
from glmkit.adapters.directory import save_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.checkpoint.native import write_model
from glmkit.errors import CheckpointError, DataError, TrainingError
from glmkit.eval.effect import compare, prove_effect
from glmkit.eval.probes import BEFORE_FILE, Measured, Probes, measure, measure_before
from glmkit.model import GLM
from glmkit.session import LM
from glmkit.tokenizer.dialogue import EncodedRow
from glmkit.tokenizer.inputs import RowLayout
from support.kinds import make
from support.saved_adapters import draw
from support.tiny import random_ids


def row(seed: int, length: int = 12, answer: int = 4, *, prefix: int = 0) -> EncodedRow:
    ids = random_ids(length, seed=seed).tolist()
    counted = [place >= length - answer for place in range(length)]
    return EncodedRow(ids, counted, RowLayout(range(length), [0] * length, prefix))


PROBES = Probes({"held_out": [row(1), row(2, 9, 2)], "general": [row(3), row(4, 15, 6)]})


def exported(folder: Path, model: GLM) -> Path:
    folder.mkdir(parents=True)
    write_model(folder, model.config, model.state_dict())
    return folder


def load(directory: Path, adapter: Path | None = None) -> LM:
    return glmkit.load(directory, adapter=adapter, device="cpu", dtype="float32")


def with_lora(model: GLM, folder: Path, *, scale: float) -> Path:
    new_adapter(model, LoraOptions(["query_key_value"], rank=2, alpha=4))
    if scale:
        draw(model, 1, scale)
    save_adapter(model, folder)
    return folder


@pytest.mark.parametrize("kind", ["each", "gmask_first", "causal"])
def test_a_measurement_is_the_models_own_log_probabilities(kind: str) -> None:
    model, probe = make(kind), row(5, prefix=0 if kind == "causal" else 6)
    layout = probe.layout
    logits_1TV = model(
        torch.tensor([probe.ids]),
        position_ids=torch.tensor([[[*layout.positions], [*layout.blocks]]]),
        prefix_length=torch.tensor([layout.prefix]),
    )
    log_p_TV = functional.log_softmax(logits_1TV[0], dim=-1)
    measured = measure(model.train(), Probes({"held_out": [probe]}))
    assert model.training
    torch.testing.assert_close(measured.log_p_PV, log_p_TV[7:11], atol=1e-5, rtol=1e-5)
    expected = torch.stack([log_p_TV[place - 1, probe.ids[place]] for place in range(8, 12)])
    torch.testing.assert_close(measured.log_p_N, expected, atol=1e-5, rtol=1e-5)


def test_the_change_of_each_group_in_numbers() -> None:
    before, after = (measure(make("causal", seed), PROBES) for seed in (1, 2))
    change = compare(before, after, PROBES)["general"]
    assert (change.tokens, change.places) == (10, 10)
    old_PV, new_PV = before.log_p_PV[6:].double(), after.log_p_PV[6:].double()
    assert change.kl == pytest.approx(float(functional.kl_div(new_PV, old_PV, log_target=True, reduction="batchmean")))
    assert change.loss_after == pytest.approx(-float(after.log_p_N[6:].mean()))
    assert change.other_top == float((old_PV.argmax(-1) != new_PV.argmax(-1)).float().mean())


def test_an_exported_adapter_is_measured_against_its_base(tmp_path: Path) -> None:
    model = make("causal")
    base = exported(tmp_path / "base", model)
    before = measure(model, PROBES)
    adapter = with_lora(model, tmp_path / "model", scale=0.5)
    lm = load(base, adapter)
    effect = prove_effect(lm.model, PROBES, before)
    assert (effect.adapter, effect.tensors, effect.changed) == ("lora", 8, 8)
    assert effect.changes["held_out"].largest > 0.01
    assert effect.forgetting is not None
    assert effect.forgetting.kl > 1e-3
    expected = compare(measure(load(base).model, PROBES), measure(lm.model, PROBES), PROBES)
    assert effect.changes["general"].kl == pytest.approx(expected["general"].kl)


def test_an_adapter_that_changes_nothing_is_an_error(tmp_path: Path) -> None:
    model = make("causal")
    base = exported(tmp_path / "base", model)
    adapter = with_lora(model, tmp_path / "lora", scale=0.0)
    with pytest.raises(
        TrainingError, match=r"lora has no effect: .*; 6 of the adapter's 8 tensors are all 0; "
    ) as error:
        prove_effect(load(base, adapter).model, PROBES, where="lora")
    assert error.value.code == "no_effect"


def test_an_adapter_on_another_base_than_the_one_it_was_trained_on_is_an_error(tmp_path: Path) -> None:
    model = make("causal", 1)
    before = measure(model, PROBES)
    adapter = with_lora(model, tmp_path / "lora", scale=0.5)
    (adapter / RECORD).unlink()  # which would refuse it, too
    sister = exported(tmp_path / "sister", make("causal", 2))
    with pytest.raises(TrainingError, match="a log-probability differs by") as error:
        prove_effect(load(sister, adapter).model, PROBES, before)
    assert error.value.code == "other_base"


def test_full_tuning_is_compared_with_what_the_base_said_before(tmp_path: Path) -> None:
    model = make("each")
    before = measure(model, PROBES)
    same = exported(tmp_path / "same", model)
    with pytest.raises(TrainingError, match="no output of the model differs from the base's"):
        prove_effect(load(same).model, PROBES, before)
    with torch.no_grad():
        model.model.norm_weight.add_(0.1)
    other = exported(tmp_path / "other", model)
    effect = prove_effect(load(other).model, PROBES, before)
    assert effect.adapter == ""
    assert effect.changes["held_out"].kl > 0


def test_the_measurement_from_before_survives_a_resume_and_is_of_its_rows_alone(tmp_path: Path) -> None:
    first = measure_before(tmp_path, make("each", 1), PROBES)
    again = measure_before(tmp_path, make("each", 2), PROBES)  # by now the weights are others
    assert torch.equal(first.log_p_PV, again.log_p_PV)
    assert torch.equal(first.log_p_N, again.log_p_N)
    assert Measured.read(tmp_path / BEFORE_FILE, Probes({"held_out": [row(1)]})) is None
    (tmp_path / BEFORE_FILE).write_bytes(b"x" * 40)
    with pytest.raises(CheckpointError, match="is damaged"):
        Measured.read(tmp_path / BEFORE_FILE, PROBES)


def test_rows_without_a_counted_token_show_nothing() -> None:
    masked = EncodedRow([11, 12], [True, False], RowLayout([0, 1], [0, 0], 0))
    with pytest.raises(DataError, match="none of the rows to measure has a counted token"):
        Probes({"held_out": [masked]})
