"""Opening with `config=`, inferring sizes, quantisation seen from the tensors, notes, and what stays untouched."""

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from glmkit.checkpoint.detect import detect
from glmkit.checkpoint.open import check, identify, match, open_checkpoint, open_files
from glmkit.checkpoint.weights import DictWeights, _one_layer
from glmkit.config import GLMConfig, Quantization
from glmkit.errors import CheckpointError, ConfigError
from glmkit.families.family import preset
from glmkit.model import GLM
from support.checkpoints import random_weights, small_config, written
from support.directories import huggingface_directory, layout_named, rank_directory, save_tensors


def test_the_stages_of_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value holds the one before and nothing is done twice: one model without memory says what to expect."""
    rank_directory(tmp_path, "glm/megatron", 2)
    built: list[GLMConfig] = []

    def build(config: GLMConfig) -> GLM:
        built.append(config)
        return GLM(config)

    monkeypatch.setattr("glmkit.checkpoint.weights.GLM", build)
    _one_layer.cache_clear()
    opened = open_files(detect(tmp_path))
    assert [sorted(rank) for rank in opened.ranks] == [sorted(file.keys()) for (file,) in opened.files]
    identified = identify(opened)
    assert (identified.opened, identified.layout.name, identified.config.num_layers) == (opened, "megatron", 3)
    matched = match(identified)
    assert (matched.identified, matched.extra, len(matched.sources)) == (identified, [], 2)
    checkpoint = check(matched)
    assert set(checkpoint.weights.names()) == set(matched.expected)
    assert len(built) == 1
    with pytest.raises(FrozenInstanceError):
        matched.bare = True  # type: ignore[misc]


def test_fields_override_the_config_beside_the_weights(tmp_path: Path) -> None:
    huggingface_directory(tmp_path, "glm/huggingface")
    assert open_checkpoint(tmp_path).config.gelu == "erf"
    checkpoint = open_checkpoint(tmp_path, config={"gelu": "tanh"})
    assert checkpoint.config == replace(open_checkpoint(tmp_path).config, gelu="tanh")
    assert any("gelu: as given" in note for note in checkpoint.notes)


@pytest.mark.parametrize("form", ["yaml", "json", "object", "mapping", "directory"])
def test_every_form_of_config(form: str, tmp_path: Path) -> None:
    rank_directory(tmp_path / "model", "glm/megatron", 2)
    whole = open_checkpoint(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    values = {**whole.config.to_dict(), "norm_eps": 0.00001}
    config: Any = {"object": whole.config, "mapping": values, "directory": tmp_path}.get(form)
    path.rename(tmp_path / "config.json")
    if config is None:
        config = tmp_path / f"given.{form}"
        config.write_text(yaml.safe_dump(values) if form == "yaml" else json.dumps(values))
    found = open_checkpoint(tmp_path / "model", config=config)
    assert found.config == whole.config
    for name in whole.weights.names():
        assert torch.equal(found.weights.read(name), whole.weights.read(name))


def test_configs_that_do_not_fit(tmp_path: Path) -> None:
    rank_directory(tmp_path, "glm/megatron", 2)
    with pytest.raises(ConfigError, match="'glm-larg' is no file, and no preset.*glm-large"):
        open_checkpoint(tmp_path, config="glm-larg")
    with pytest.raises(CheckpointError, match=r"has shape .* the config asks for"):
        open_checkpoint(tmp_path, config="glm-large")
    with pytest.raises(CheckpointError, match="of the family 'chatglm', but the tensors .* named as in GLM"):
        open_checkpoint(tmp_path, config="chatglm-6b")
    with pytest.raises(ConfigError, match="unknown key 'num_head'; did you mean 'num_heads'"):
        open_checkpoint(tmp_path, config={"num_head": 4})
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        open_checkpoint(tmp_path, config=tmp_path / "bad.yaml")


def test_a_preset_takes_what_the_layouts_reference_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"num_layers": 3, "hidden_size": 128, "num_heads": 8, "vocab_size": 256, "max_positions": 40}
    given = replace(preset("glm-large"), **small)  # type: ignore[arg-type]
    monkeypatch.setattr("glmkit.checkpoint.configure.preset", lambda name: given)
    huggingface_directory(tmp_path / "hf", "glm/huggingface", config=False)
    assert open_checkpoint(tmp_path / "hf", config="glm-large").config.gelu == "erf"
    rank_directory(tmp_path / "megatron", "glm/megatron", 2, config=False)
    assert open_checkpoint(tmp_path / "megatron", config="glm-large").config.gelu == "tanh"


def test_without_a_config(tmp_path: Path) -> None:
    rank_directory(tmp_path / "sat", "glm-130b/sat", 4, config=False)
    found = open_checkpoint(tmp_path / "sat")
    wanted = small_config(layout_named("glm-130b/sat")[1], "glm-130b")
    for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "inner_size", "positions", "mlp", "residual"):
        assert getattr(found.config, name) == getattr(wanted, name)
    assert any("sizes are read from the tensors (heads of 16)" in note for note in found.notes)
    rank_directory(tmp_path / "megatron", "glm/megatron", 2, config=False)
    with pytest.raises(CheckpointError, match="has no config file.*give config="):
        open_checkpoint(tmp_path / "megatron")
    huggingface_directory(tmp_path / "hf", "glm-4/transformers", config=False)
    with pytest.raises(CheckpointError, match="has no config file.*give config="):
        open_checkpoint(tmp_path / "hf")


def test_megatron_sizes_of_a_preset_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heads are not in the tensors; sizes that only a published model has say them."""
    from glmkit.families.family import all_families

    wanted = small_config(layout_named("glm/megatron")[1], "glm")
    family = all_families()["glm"]
    monkeypatch.setitem(all_families(), "glm", replace(family, presets={"tiny": replace(wanted, special=None)}))
    rank_directory(tmp_path, "glm/megatron", 2, config=False)
    found = open_checkpoint(tmp_path)
    assert found.config.num_heads == 8
    assert any("the sizes are those of tiny" in note for note in found.notes)


@pytest.mark.parametrize(("bits", "embeddings"), [(8, False), (4, False), (4, True)])
def test_quantisation_is_seen_from_the_tensors(bits: int, embeddings: bool, tmp_path: Path) -> None:
    quantization = Quantization(bits, embeddings)
    huggingface_directory(tmp_path / "hf", "chatglm/huggingface", quantization=quantization)
    assert open_checkpoint(tmp_path / "hf").config.quantization == quantization
    path = tmp_path / "hf" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in values.items() if not k.startswith("quantization")}))
    found = open_checkpoint(tmp_path / "hf")
    assert found.config.quantization == quantization
    assert any(f"the tensors are INT{bits}" in note for note in found.notes)
    path.write_text(json.dumps({**values, "quantization_bit": 12 - bits}))
    with pytest.raises(CheckpointError, match=f"says INT{12 - bits}, but the tensors are INT{bits}"):
        open_checkpoint(tmp_path / "hf")
    rank_directory(tmp_path / "sat", "glm-130b/sat", 2, config=False, quantization=Quantization(bits, False, 2))
    assert open_checkpoint(tmp_path / "sat").config.quantization == Quantization(bits, False, 2)


def test_bookkeeping_and_generation_settings(tmp_path: Path) -> None:
    rank_directory(tmp_path / "ranks", "glm-130b/sat", 2)
    notes = open_checkpoint(tmp_path / "ranks").notes
    assert any("training bookkeeping left out: iteration=7" in note for note in notes)
    assert any("follows from the config: mixins.rotary" in note for note in notes)
    huggingface_directory(tmp_path / "hf", "glm-4/transformers")
    assert open_checkpoint(tmp_path / "hf").generation.stop_ids == (2,)
    settings = {"eos_token_id": [5, 6], "pad_token_id": 4, "temperature": 0.8}
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps(settings))
    generation = open_checkpoint(tmp_path / "hf").generation
    assert (generation.stop_ids, generation.pad_id) == ((5, 6), 4)


def test_own_weights_without_our_config(tmp_path: Path) -> None:
    config = small_config(layout_named("glm/huggingface")[1], "glm")
    weights = random_weights(config)
    save_tensors(tmp_path, {name: weights.read(name) for name in weights.names()}, "safetensors")
    with pytest.raises(CheckpointError, match="was not written by glmkit.*give config="):
        open_checkpoint(tmp_path)
    found = open_checkpoint(tmp_path, config=config)
    assert found.layout.name == "glmkit"
    assert all(torch.equal(found.weights.read(name), weights.read(name)) for name in weights.names())


def test_published_files_of_both_kinds_are_the_same(tmp_path: Path) -> None:
    tensors = huggingface_directory(tmp_path / "a", "chatglm3/huggingface")
    huggingface_directory(tmp_path / "b", "chatglm3/huggingface", kind="bin")
    first, second = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    held = DictWeights({name: first.weights.read(name) for name in first.weights.names()})
    layout = layout_named("chatglm3/huggingface")[1]
    (again,) = written(layout, first.config, held)
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor), name
    assert all(torch.equal(held.read(name), second.weights.read(name)) for name in held.names())
