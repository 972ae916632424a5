"""Options of new LoRA adapters: which modules they mean, that each of them acts, and what is refused."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters.published import ids, tiny_model
from glmkit.adapters.attach import attached, detach_adapter, merge_adapter, new_adapter
from glmkit.adapters.directory import apply_adapter, save_adapter
from glmkit.adapters.lora.lora_adapter import LoraAdapter, LoraOptions
from glmkit.adapters.prefix.prefix_adapter import PrefixOptions
from glmkit.config import Quantization
from glmkit.errors import ConfigError
from glmkit.families.family import all_families, preset
from glmkit.filled_model import empty_model
from glmkit.model import GLM
from glmkit.quant import quantize_modules

pytestmark = pytest.mark.sampled(4)

EVERY = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


def lora(model: GLM) -> LoraAdapter:
    found = attached(model)
    assert isinstance(found, LoraAdapter)
    return found


def trained(model: GLM, options: LoraOptions, steps: int = 3) -> GLM:
    """A model whose new adapter was really trained for some steps."""
    new_adapter(model, options, seed=1)
    own = list(lora(model).parameters())
    optimizer = torch.optim.Adam(own, lr=0.05)
    tokens = ids(model.config)
    for _ in range(steps):
        optimizer.zero_grad()
        model(tokens).float().log_softmax(-1)[..., 5].mean().neg().backward()
        assert all(parameter.grad is not None for parameter in own)
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(
    ("name", "targets", "count"),
    [
        ("chatglm-6b", ("query_key_value",), 3_670_016),
        ("chatglm2-6b", ("query_key_value",), 1_949_696),
        ("chatglm3-6b", ("query_key_value",), 1_949_696),
        ("glm-4-9b", ("query_key_value",), 2_785_280),
        ("glm-4-9b", ("q_proj", "k_proj", "v_proj"), 5_406_720),
        ("chatglm-6b", ("attention.query_key_value",), 3_670_016),
        ("chatglm-6b", ("q_proj", "v_proj"), 28 * 2 * 8 * (4096 + 4096)),
    ],
)
def test_published_counts(name: str, targets: tuple[str, ...], count: int) -> None:
    model = empty_model(preset(name))
    new_adapter(model, LoraOptions(targets, rank=8))
    assert sum(parameter.numel() for parameter in lora(model).parameters()) == count


@pytest.mark.parametrize("family", ["chatglm", "chatglm2", "glm"])
def test_all_is_every_linear_of_the_layers_and_no_other(family: str) -> None:
    model, named = tiny_model(family), tiny_model(family)
    new_adapter(model, LoraOptions(("all",), rank=2))
    new_adapter(named, LoraOptions(EVERY, rank=2))
    assert lora(model).layers.keys() == lora(named).layers.keys()
    count = [sum(p.numel() for p in lora(m).parameters()) for m in (model, named)]
    assert count[0] == count[1]
    assert all(stem.startswith("model.layers.") for stem in lora(model).layers)
    detach_adapter(model)
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith("model.layers.")]
    assert set(linear) == set(lora(named).layers)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (LoraOptions(("q_proj", "c_attn", "W_pack")), r"'c_attn', 'W_pack' name no module.*known: .*q_proj.*, all"),
        (LoraOptions(("q_porj",)), "did you mean 'q_proj'"),
        (LoraOptions(("lm_head",)), "names no module"),
        (LoraOptions(("embed_tokens",)), "names no module"),
        (LoraOptions(()), "no targets"),
        (LoraOptions(("q_proj",), exclude_modules=("q_proj",)), "no module to act on"),
        (LoraOptions(exclude_modules=("nothing",)), "exclude_modules: 'nothing'"),
        (LoraOptions(layers_to_transform=(3,)), "layer 3, this model has 0 to 2"),
        (LoraOptions(rank_pattern={"down_proj": 4}), "rank_pattern names 'down_proj', which is no target"),
        (LoraOptions(rank_pattern={"q_proj": 4}), "one part of query_key_value"),
        (LoraOptions(alpha_pattern={"(": 4}), "is not read"),
        (LoraOptions(rank_pattern={"query_key_value": 0}), "rank is 0"),
        (LoraOptions(rank=0), "rank is 0"),
        (LoraOptions(dropout=1.0), "dropout is 1.0"),
        (LoraOptions(modules_to_save=("embed_tokens", "nope")), "'nope' names no module"),
        (LoraOptions(("q_proj",), modules_to_save=("q_proj",)), "which has an update"),
        (LoraOptions(new_tokens=("<x>",)), "'<x>' has no id"),
    ],
)
def test_what_cannot_act_is_refused(options: LoraOptions, words: str) -> None:
    model = tiny_model("chatglm2")
    before = {name: id(value) for name, value in model.named_parameters()}
    with pytest.raises(ConfigError, match=words):
        new_adapter(model, options)
    assert {name: id(value) for name, value in model.named_parameters()} == before


def test_a_tied_head_is_the_table_and_models_without_biases_have_none_to_train() -> None:
    with pytest.raises(ConfigError, match="tied.*name embed_tokens"):
        new_adapter(tiny_model("glm"), LoraOptions(modules_to_save=("lm_head",)))
    with pytest.raises(ConfigError, match="the targets have no biases"):
        new_adapter(tiny_model("chatglm2"), LoraOptions(("dense",), bias="lora_only"))


ACTING = {
    "patterns": LoraOptions(
        ("query_key_value", "down_proj"),
        rank=4,
        alpha=8,
        rank_pattern={r"layers\.1\..*query_key_value": 2, "down_proj": 5},
        alpha_pattern={"layers.2.mlp.down_proj": 3},
    ),
    "layers": LoraOptions(("all",), rank=2, layers_to_transform=(0, 2), exclude_modules=("k_proj", "mlp.up_proj")),
    "root": LoraOptions(rank=16, alpha=32, root=True),
    "biases": LoraOptions(rank=2, bias="lora_only"),
    "every bias": LoraOptions(rank=2, bias="all"),
    "whole": LoraOptions(rank=2, modules_to_save=("word_embeddings", "input_layernorm", "model.norm")),
}


@pytest.mark.parametrize("case", ACTING)
@pytest.mark.parametrize("family", ["chatglm", "glm"])
def test_every_option_acts_in_training_saving_and_merging(family: str, case: str, tmp_path: Path) -> None:
    plain, model = tiny_model(family), trained(tiny_model(family), ACTING[case])
    tokens = ids(model.config)
    expected, without = model(tokens), plain(tokens)
    assert float((expected - without).detach().abs().max()) > 0.01
    layout = all_families()[family].layouts[0]
    for number, written in enumerate((None, layout)):
        save_adapter(model, tmp_path / f"{number}", layout=written)
        again = tiny_model(family)
        apply_adapter(again, tmp_path / f"{number}")
        torch.testing.assert_close(again(tokens), expected, atol=1e-5, rtol=1e-5)
    names = [name for name, _ in sorted(plain.named_parameters())]
    merge_adapter(again)
    torch.testing.assert_close(again(tokens), expected, atol=1e-5, rtol=1e-5)
    assert [name for name, _ in sorted(again.named_parameters())] == names
    detach_adapter(model)
    assert torch.equal(model(tokens), without)
    state = plain.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_scales_ranks_and_layers() -> None:
    model = tiny_model("chatglm2")
    new_adapter(model, ACTING["root"])
    assert {layer.scale for layer in lora(model).layers.values()} == {8.0}
    detach_adapter(model)
    new_adapter(model, replace(ACTING["root"], root=False))
    assert {layer.scale for layer in lora(model).layers.values()} == {2.0}
    detach_adapter(model)
    new_adapter(model, ACTING["patterns"])
    layers = lora(model).layers
    assert [layers[f"model.layers.{i}.self_attn.q_proj"].rank for i in range(3)] == [4, 2, 4]
    assert [layers[f"model.layers.{i}.mlp.down_proj"].rank for i in range(3)] == [5, 5, 5]
    assert [layers[f"model.layers.{i}.mlp.down_proj"].scale for i in range(3)] == [8 / 5, 8 / 5, 3 / 5]
    detach_adapter(model)
    new_adapter(model, ACTING["layers"])
    stems = lora(model).layers
    assert not any(".layers.1." in stem or stem.endswith(("k_proj", "up_proj")) for stem in stems)
    assert "model.layers.2.mlp.gate_proj" in stems


def test_the_seed_decides_the_first_values() -> None:
    def values(seed: int, options: LoraOptions | PrefixOptions) -> list[Tensor]:
        model = tiny_model("chatglm2")
        torch.manual_seed(int(torch.randint(1000, ())))
        new_adapter(model, options, seed=seed)
        return [parameter.detach() for parameter in attached(model).parameters()]

    for options in (LoraOptions(("all",)), PrefixOptions(5), PrefixOptions(5, projection=True)):
        one, same, other = values(1, options), values(1, options), values(2, options)
        assert all(map(torch.equal, one, same))
        assert not all(map(torch.equal, one, other))
    table = values(1, PrefixOptions(64))[0]
    assert abs(float(table.mean())) < 0.05
    assert abs(float(table.std()) - 1) < 0.05
    a_RI = values(1, LoraOptions(("q_proj",), rank=64))[0]
    assert float(a_RI.abs().max()) <= 1 / a_RI.shape[1] ** 0.5
    assert float(a_RI.std()) > 0.55 / a_RI.shape[1] ** 0.5


@pytest.mark.parametrize("base", ["float16", "bfloat16", "int8", "int4 tables"])
def test_what_is_trained_is_float32_on_any_base(base: str, tmp_path: Path) -> None:
    def made() -> GLM:
        model = tiny_model("chatglm2", tie_embeddings=False)
        if base.startswith("int"):
            quantize_modules(model, Quantization(int(base[3]), embeddings="tables" in base))
            return model.bfloat16()
        return model.to(getattr(torch, base))

    options = LoraOptions(rank=2, bias="all", modules_to_save=("embed_tokens", "lm_head", "model.norm"))
    plain, model = made(), trained(made(), options)
    own = list(lora(model).parameters())
    assert {parameter.dtype for parameter in own} == {torch.float32}
    assert model.dtype == plain.dtype
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(names) == len(own)
    assert all("lora_" in name or "trained" in name for name in names)
    tokens = ids(model.config)
    expected, without = model(tokens), plain(tokens)
    assert float((expected - without).detach().abs().max()) > 0.01
    save_adapter(model, tmp_path / "a")
    again = made()
    info = apply_adapter(again, tmp_path / "a")
    assert info.dtype == torch.float32
    assert torch.equal(again(tokens), expected)
    for other in (model, again):
        detach_adapter(other)
        assert torch.equal(other(tokens), without)
    assert copy.deepcopy(model).state_dict().keys() == plain.state_dict().keys()


def test_new_lora_on_a_published_name_shares_one_a_matrix(tmp_path: Path) -> None:
    model = tiny_model("glm")
    before = model(ids(model.config))
    info = new_adapter(model, LoraOptions(("query_key_value", "dense"), rank=2, alpha=4))
    assert info.modules == 12
    assert torch.equal(model(ids(model.config)), before)
    assert model.model.layers[0].self_attn.q_proj.lora_A is model.model.layers[0].self_attn.k_proj.lora_A
    assert save_adapter(model, tmp_path / "a", layout=all_families()["glm"].layouts[0]) == []
    again = apply_adapter(tiny_model("glm"), tmp_path / "a")
    assert any("no effect" in note for note in again.notes)
    assert again.size == 2
    with pytest.raises(ConfigError, match="targets: 'nothing' names no module of this model; known: dense"):
        new_adapter(tiny_model("glm"), LoraOptions(("nothing",)))
    with pytest.raises(ConfigError, match="twice"):
        new_adapter(tiny_model("glm"), LoraOptions(("q_proj", "query_key_value")))
