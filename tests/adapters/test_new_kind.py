"""A new kind of adapter needs its own sub-package and nothing else: it is found, applied, trained, saved, diagnosed."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import glmkit
from adapters.published import adapter_delta, ids, tiny_model
from glmkit import adapters
from glmkit.adapters.adapter import all_kinds
from glmkit.adapters.attach import (
    adapter_off,
    attached,
    detach_adapter,
    merge_adapter,
    new_adapter,
    set_trainable,
)
from glmkit.adapters.directory import apply_adapter, save_adapter
from glmkit.checkpoint.native import write_model
from glmkit.diagnosis.examine import examine
from glmkit.errors import CheckpointError, RequestError
from glmkit.model import GLM

NAME = "glmkit.adapters.scaling"


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The package of the third kind, found beside the shipped ones."""
    monkeypatch.setattr(adapters, "__path__", [*adapters.__path__, str(Path(__file__).parent / "kinds")])
    all_kinds.cache_clear()
    yield importlib.import_module(NAME)
    all_kinds.cache_clear()
    sys.modules.pop(NAME)


def trained(scaling: ModuleType) -> GLM:
    model = tiny_model("chatglm2")
    new_adapter(model, scaling.ScalingOptions(["k_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in attached(model).parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return model


def test_the_kinds_are_found(scaling: ModuleType) -> None:
    assert list(all_kinds()) == ["lora", "prefix", "scaling"]
    assert all_kinds()["scaling"] is scaling.ADAPTER


def test_put_on_switched_off_taken_off(scaling: ModuleType) -> None:
    plain, model = tiny_model("chatglm2"), trained(scaling)
    tokens = ids(model.config)
    expected, without = model(tokens), plain(tokens)
    assert adapter_delta(model, tokens) > 0.01
    with adapter_off(model):
        assert torch.equal(model(tokens), without)
    assert torch.equal(model(tokens), expected)
    with pytest.raises(RequestError, match="carries an adapter already"):
        new_adapter(model, scaling.ScalingOptions(["k_proj"]))
    detach_adapter(model)
    assert torch.equal(model(tokens), without)
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_only_the_adapter_learns_until_told_otherwise(scaling: ModuleType) -> None:
    model = trained(scaling)
    model(ids(model.config)).square().mean().backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {name for name, _ in model.named_parameters() if name.endswith(".scale")}
    set_trainable(model, False)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == learned


def test_merged_equals_unmerged(scaling: ModuleType) -> None:
    model = trained(scaling)
    expected = model(ids(model.config))
    assert merge_adapter(model).modules == 6
    torch.testing.assert_close(model(ids(model.config)), expected, atol=1e-5, rtol=1e-5)
    assert not any(name.endswith(".scale") for name, _ in model.named_parameters())
    with pytest.raises(RequestError, match="no adapter"):
        attached(model)


def test_saved_loaded_and_diagnosed(scaling: ModuleType, tmp_path: Path) -> None:
    plain, model = tiny_model("chatglm2"), trained(scaling)
    expected = model(ids(model.config))
    base = tmp_path / "base"
    base.mkdir()
    write_model(base, plain.config, plain.state_dict())
    folder = tmp_path / "adapter"
    assert save_adapter(model, folder) == []
    record = json.loads((folder / "glmkit_adapter.json").read_text())
    assert (record["kind"], record["base"]["hidden_size"]) == ("scaling", plain.config.hidden_size)

    found = glmkit.load(base, adapter=folder, device="cpu")
    assert torch.equal(found.model(ids(model.config)), expected)
    assert attached(found.model).info.kind == "scaling"
    with pytest.raises(RequestError, match="alpha=3 has no effect on the scaling"):
        glmkit.load(base, adapter=folder, alpha=3, device="cpu")
    with pytest.raises(CheckpointError, match="hidden_size 32, this model has"):
        apply_adapter(tiny_model("chatglm2", hidden_size=48, head_size=12), folder)

    report = examine(folder)
    assert (report.kind, report.facts["adapter"]) == ("adapter", "scaling (torch)")
    assert any(finding.what == "6 scaled layers" for finding in report.findings)


def test_without_the_package_its_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    model = tiny_model("chatglm2")
    torch.save({"x.ia3_l": torch.ones(2)}, tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="peft_type is 'IA3', not supported.*merge_and_unload"):
        apply_adapter(model, tmp_path)
