"""LoRA directories of other tools, training, quantised bases, and everything that must be refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.paddle_files import write_paddle
from adapters.published import TINY, adapter_delta, ids, matrix_shapes, tiny_model, with_deltas
from glmkit.adapters.adapter import AdapterInfo, Origin
from glmkit.adapters.attach import attached, detach_adapter, merge_adapter, new_adapter
from glmkit.adapters.directory import apply_adapter, save_adapter
from glmkit.adapters.lora.layer import LoraLinear, LowRank, grouped_to_dense, join_rows, split_rows
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.adapters.prefix.prefix_adapter import PrefixOptions
from glmkit.checkpoint.taught import Taught
from glmkit.config import Quantization
from glmkit.errors import CheckpointError, ConfigError, GLMKitError, RequestError
from glmkit.families.family import all_families
from glmkit.model import GLM
from glmkit.quant.apply import quantize_modules
from glmkit.quant.layers import QuantMatrix
from support.saved_adapters import draw

pytestmark = pytest.mark.sampled(4)

PEFT = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["query_key_value"]}


def matrices(family: str, names: tuple[str, ...], rank: int = 3, seed: int = 1) -> dict[str, tuple[Tensor, Tensor]]:
    """Published stem -> random (A, B)."""
    generator = torch.Generator().manual_seed(seed)
    tiny, shapes = TINY[family], matrix_shapes(family)
    return {
        tiny.layer.format(layer) + name: (
            torch.randn(rank, shapes[name][1], generator=generator) * 0.3,
            torch.randn(shapes[name][0], rank, generator=generator) * 0.3,
        )
        for layer in range(tiny.config.num_layers)
        for name in names
    }


def write(folder: Path, tensors: dict[str, Tensor], settings: dict[str, Any] | None, name: str = "safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    if name == "safetensors":
        save_file(tensors, folder / "adapter_model.safetensors")
    else:
        torch.save(tensors, folder / "adapter_model.bin")
    if settings is not None:
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def stored(
    pairs: dict[str, tuple[Tensor, Tensor]], start: str = "base_model.model.", mid: str = ""
) -> dict[str, Tensor]:
    result = {}
    for stem, (a, b) in pairs.items():
        result[f"{start}{stem}.lora_A.{mid}weight"] = a
        result[f"{start}{stem}.lora_B.{mid}weight"] = b
    return result


def plain(family: str, tmp_path: Path, **settings: Any) -> Path:
    pairs = matrices(family, (TINY[family].qkv,))
    return write(tmp_path / "plain", stored(pairs), {**PEFT, **settings})


def check(
    family: str, folder: Path, deltas: dict[str, Tensor], *, alpha: float | None = None, atol: float = 1e-4
) -> AdapterInfo:
    """Load an adapter and compare with a model whose matrices are changed by hand."""
    model = tiny_model(family)
    expected = with_deltas(family, model, deltas)(ids(model.config))
    info = apply_adapter(model, folder, alpha=alpha)
    torch.testing.assert_close(model(ids(model.config)), expected, atol=atol, rtol=1e-4)
    return info


# --- other spellings and other tools ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "mid"),
    [("base_model.model.", "default."), ("", ""), ("module.base_model.model.", ""), ("base_model.", "")],
)
def test_spellings_of_names(start: str, mid: str, tmp_path: Path) -> None:
    pairs = matrices("chatglm", ("attention.query_key_value", "mlp.dense_4h_to_h"))
    folder = write(tmp_path / "a", stored(pairs, start, mid), PEFT, "bin")
    assert check("chatglm", folder, {stem: 2 * b @ a for stem, (a, b) in pairs.items()}).modules == 3 * 4


@pytest.mark.parametrize("prefix", ["", "glm."])
def test_names_of_the_base_class_and_of_a_head_class(prefix: str, tmp_path: Path) -> None:
    pairs = matrices("glm", ("attention.query_key_value",))
    folder = write(tmp_path / "a", stored(pairs, f"base_model.model.{prefix}"), PEFT)
    check("glm", folder, {stem: 2 * b @ a for stem, (a, b) in pairs.items()})


def test_transformers_names_with_a_fused_gate(tmp_path: Path) -> None:
    config = replace(TINY["chatglm2"].config, family="glm-4")
    model = tiny_model("chatglm2", family="glm-4")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 32, generator=generator), torch.randn(80, 2, generator=generator)
    q_a, q_b = torch.randn(2, 32, generator=generator), torch.randn(48, 2, generator=generator)
    pairs = {"model.layers.0.mlp.gate_up_proj": (a, b), "model.layers.0.self_attn.q_proj": (q_a, q_b)}
    folder = write(tmp_path / "a", stored(pairs), {**PEFT, "r": 2, "use_rslora": True, "layers_to_transform": 0})
    expected = GLM(config).eval()
    expected.load_state_dict(model.state_dict())
    scale = 6 / math.sqrt(2)
    with torch.no_grad():
        expected.model.layers[0].mlp.gate_proj.weight += scale * b[:40] @ a
        expected.model.layers[0].mlp.up_proj.weight += scale * b[40:] @ a
        expected.model.layers[0].self_attn.q_proj.weight += scale * q_b @ q_a
    apply_adapter(model, folder)
    torch.testing.assert_close(model(ids(config)), expected(ids(config)), atol=1e-4, rtol=1e-4)


def test_a_directory_without_settings_needs_alpha(tmp_path: Path) -> None:
    pairs = matrices("chatglm", ("attention.query_key_value",), rank=8)
    folder = write(tmp_path / "a", stored(pairs), None, "bin")
    with pytest.raises(CheckpointError, match="is missing.*give alpha=32 for mymusise/ChatGLM-Tuning, or write"):
        apply_adapter(tiny_model("chatglm"), folder)
    info = check("chatglm", folder, {stem: 4 * b @ a for stem, (a, b) in pairs.items()}, alpha=32)
    assert "adapter_config.json is missing" in info.notes[0]


def test_alpha_beside_settings_is_refused(tmp_path: Path) -> None:
    model = tiny_model("glm")
    with pytest.raises(GLMKitError, match="would have no effect"):
        apply_adapter(model, plain("glm", tmp_path), alpha=32)


@pytest.mark.parametrize("family", ["glm", "chatglm"])
@pytest.mark.parametrize("enabled", [[True, False, True], [False, True, True], [True, True, True]])
def test_grouped_convolution_of_old_peft(family: str, enabled: list[bool], tmp_path: Path) -> None:
    """peft 0.2 `MergedLinear`: A (r*k, in), B the (out/3*k, r*k/2, 1) weight of Conv1d(groups=2); thirds of rows."""
    generator = torch.Generator().manual_seed(3)
    kept, rank, tiny = sum(enabled), 4, TINY[family]
    shapes = matrix_shapes(family)
    tensors, deltas = {}, {}
    for layer in range(3):
        stem = tiny.layer.format(layer) + tiny.qkv
        a = torch.randn(rank * kept, 32, generator=generator) * 0.3
        b = torch.randn(shapes[tiny.qkv][0] // 3 * kept, rank * kept // 2, 1, generator=generator) * 0.3
        tensors[f"base_model.model.{stem}.lora_A.weight"], tensors[f"base_model.model.{stem}.lora_B.weight"] = a, b
        rows = torch.nn.functional.conv1d(a[None], b, groups=2)[0]  # (kept rows, in)
        full = torch.zeros(3, 32, 32)
        full[torch.tensor(enabled)] = rows.view(kept, 32, 32)
        deltas[stem] = 6 / rank * full.view(96, 32)
    settings = {**PEFT, "r": rank, "enable_lora": enabled, "fan_in_fan_out": True, "merge_weights": False}
    folder = write(tmp_path / "a", tensors, settings, "bin")
    check(family, folder, deltas)


def test_grouped_matrices_without_the_parts_are_refused(tmp_path: Path) -> None:
    name = "base_model.model.transformer.layers.0.attention.query_key_value"
    tensors = {f"{name}.lora_A.weight": torch.ones(8, 32), f"{name}.lora_B.weight": torch.ones(64, 4, 1)}
    model = tiny_model("glm")
    with pytest.raises(CheckpointError, match="no enable_lora says which parts"):
        apply_adapter(model, write(tmp_path / "a", tensors, {**PEFT, "r": 4}))


@pytest.mark.parametrize("family", ["glm", "chatglm"])
def test_paddle_lora(family: str, tmp_path: Path) -> None:
    pairs = matrices(family, ("attention.query_key_value", "mlp.dense_h_to_4h"))
    start = {"glm": "glm.", "chatglm": "chatglm."}[family]
    tensors = {}
    for stem, (a, b) in pairs.items():
        tensors[f"{start}{stem}.lora_A"], tensors[f"{start}{stem}.lora_B"] = a.T, b.T
    settings = {
        "r": 3,
        "lora_alpha": 8,
        "target_modules": [".*query_key_value.*"],
        "scaling": 8 / 3,
        "lora_dropout": 0.0,
    }
    folder = write_paddle(tmp_path / "p", "lora", tensors, settings)
    assert check(family, folder, {stem: 8 / 3 * b @ a for stem, (a, b) in pairs.items()}).naming == "paddle"


def test_paddle_lora_is_written_as_it_is_read(tmp_path: Path) -> None:
    """One rank and alpha for all: the rest is padded and folded into B."""
    model = tiny_model("chatglm")
    torch.manual_seed(0)
    new_adapter(model, LoraOptions(("query_key_value", "down_proj"), rank=2, alpha=6))
    draw(model, 1, 0.3)
    layout = next(layout for layout in all_families()["chatglm"].layouts if layout.container == "paddle")
    expected = model(ids(model.config))
    assert save_adapter(model, tmp_path / "a", layout=layout) == []
    again = tiny_model("chatglm")
    assert apply_adapter(again, tmp_path / "a").naming == "paddle"
    assert torch.equal(again(ids(model.config)), expected)
    settings = json.loads((tmp_path / "a" / "lora_config.json").read_text())
    assert settings["target_modules"] == [r".*\.dense_4h_to_h", r".*\.query_key_value"]
    model.model.layers[1].mlp.down_proj.scale = 0.5
    expected = model(ids(model.config))
    (note,) = save_adapter(model, tmp_path / "b", layout=layout)
    assert "differ between modules" in note
    detach_adapter(again)
    apply_adapter(again, tmp_path / "b")
    torch.testing.assert_close(again(ids(model.config)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head_dim", [None, 8])
def test_paddle_merged_groups(head_dim: int | None, tmp_path: Path) -> None:
    """Queries and values only. Its first form orders rows by part, its second (head_dim stated) by head, then part."""
    generator = torch.Generator().manual_seed(4)
    rank, tensors, deltas = 2, {}, {}
    for layer in range(3):
        stem = f"transformer.layers.{layer}.attention.query_key_value"
        a = torch.randn(32, 2 * rank, generator=generator)
        tensors[f"glm.{stem}.lora_A"] = a
        full = torch.zeros(3, 4, 8, 32)  # part, head, channel, input
        if head_dim is None:
            b = torch.randn(64, rank, generator=generator)
            for index, part in enumerate((0, 2)):
                cut = slice(index * rank, (index + 1) * rank)
                full[part] = (b[index * 32 : (index + 1) * 32] @ a.T[cut]).view(4, 8, 32)
            deltas[stem] = 4 / rank * full.flatten(0, 2)
        else:
            b = torch.randn(rank, 64, generator=generator)
            by_part = b.view(rank, 4, 2, 8)
            for index, part in enumerate((0, 2)):
                cut = slice(index * rank, (index + 1) * rank)
                full[part] = torch.einsum("rhd,ri->hdi", by_part[:, :, index], a.T[cut])
            deltas[stem] = 4 / rank * full.transpose(0, 1).flatten(0, 2)
        tensors[f"glm.{stem}.lora_B"] = b
    settings: dict[str, Any] = {
        "r": rank,
        "lora_alpha": 4,
        "enable_lora_list": [[True, False, True]],
        "head_dim": head_dim,
    }
    check("glm", write_paddle(tmp_path / "p", "lora", tensors, settings), deltas, atol=1e-3)


# --- fusing and exporting ---------------------------------------------------------------------------------------------


def product(update: LowRank) -> torch.Tensor:
    return update.scale * (update.b_OR @ update.a_RI)


def test_join_is_the_inverse_of_split() -> None:
    rows = [torch.tensor([0, 1, 6]), torch.tensor([2, 3, 4]), torch.tensor([5])]
    fused = LowRank(torch.randn(2, 5), torch.randn(7, 2), 1.5)
    parts = split_rows(fused, rows)
    assert all(part.a_RI is fused.a_RI for part in parts)
    again = join_rows(parts, rows)
    assert again.a_RI is fused.a_RI
    assert torch.equal(again.b_OR, fused.b_OR)
    other = [parts[0], LowRank(torch.randn(3, 5), torch.randn(3, 3), 0.5), None]
    stacked = join_rows(other, rows)
    assert stacked.rank == 5
    dense = torch.zeros(7, 5)
    dense[rows[0]], dense[rows[1]] = product(parts[0]), product(other[1])  # type: ignore[arg-type]
    torch.testing.assert_close(product(stacked), dense)


def test_untied_updates_are_stacked_on_export_and_said_so(tmp_path: Path) -> None:
    model = tiny_model("chatglm2")
    torch.manual_seed(0)
    new_adapter(model, LoraOptions(("q_proj", "v_proj", "up_proj"), rank=2, alpha=4))
    draw(model, 1, 1.0)
    tokens = ids(model.config)
    expected = model(tokens)
    layout = all_families()["chatglm2"].layouts[0]
    notes = save_adapter(model, tmp_path / "a", layout=layout)
    assert any("stacked at rank 4" in note for note in notes)
    assert any("zero rows" in note and "k_proj" in note for note in notes)
    again = tiny_model("chatglm2")
    apply_adapter(again, tmp_path / "a")
    torch.testing.assert_close(again(tokens), expected, atol=1e-4, rtol=1e-4)
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["dense_h_to_4h", "query_key_value"]


def test_the_record_says_which_base(tmp_path: Path) -> None:
    model = tiny_model("glm")
    new_adapter(model, LoraOptions(("q_proj",), rank=2))
    save_adapter(
        model, tmp_path / "a", origin=Origin("THUDM/glm-large", "/models/glm-large", Taught("belle", (), (7,)))
    )
    record = json.loads((tmp_path / "a" / "glmkit_adapter.json").read_text())
    assert record["base"]["family"] == "glm"
    assert record["base"]["dtype"] == "float32"
    assert (record["base"]["name"], record["base"]["path"]) == ("THUDM/glm-large", "/models/glm-large")
    assert record["taught"] == {"template": "belle", "quirks": [], "stop_ids": [7]}
    with pytest.raises(CheckpointError, match="not empty"):
        save_adapter(model, tmp_path / "a")
    save_adapter(model, tmp_path / "a", replace=True)
    info = apply_adapter(tiny_model("glm").bfloat16(), tmp_path / "a")
    assert any("dtype 'float32', this one has 'bfloat16'" in note for note in info.notes)
    bigger = tiny_model("glm", vocab_size=128)
    with pytest.raises(CheckpointError, match="vocab_size 96, this model has 128"):
        apply_adapter(bigger, tmp_path / "a")


# --- training and quantised bases -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(TINY))
def test_only_the_adapter_learns(family: str, tmp_path: Path) -> None:
    model = tiny_model(family).train()
    apply_adapter(model, plain(family, tmp_path), trainable=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = list(attached(model).parameters())
    assert len(own) == 3 * 4  # one A and three B a layer
    optimizer = torch.optim.SGD(own, lr=0.1)
    model(ids(model.config)).float().square().mean().backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {name for name, _ in model.named_parameters() if "lora_" in name}
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    detach_adapter(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def quantised(source: GLM, bits: int) -> GLM:
    """The model in integers; `source` becomes what it stands for in floats."""
    config = replace(source.config, quantization=Quantization(bits))
    model = GLM(config)
    assert config.quantization is not None
    model.load_state_dict(source.state_dict())
    quantize_modules(model, config.quantization)
    for name, module in model.named_modules():
        if isinstance(module, QuantMatrix):
            source.get_parameter(f"{name}.weight").data.copy_(module.floats())
    return model.eval()


@pytest.mark.parametrize("bits", [8, 4])
def test_lora_on_a_quantised_base(bits: int, tmp_path: Path) -> None:
    source = tiny_model("chatglm")
    model = quantised(source, bits)
    folder = plain("chatglm", tmp_path)
    tokens = ids(model.config)
    apply_adapter(source, folder)
    apply_adapter(model, folder, trainable=True)
    torch.testing.assert_close(model(tokens), source(tokens), atol=1e-4, rtol=1e-4)
    assert adapter_delta(model, tokens) > 0.1
    model(tokens).float().mean().backward()
    assert all(parameter.grad is not None for parameter in attached(model).parameters())
    with pytest.raises(RequestError, match="quantised weights.*without quantisation"):
        merge_adapter(model)
    assert attached(model).info.modules == 9
    detach_adapter(model)
    assert not any(isinstance(module, LoraLinear) for module in model.modules())


@pytest.mark.parametrize("bits", [8, 4])
def test_prefix_on_a_quantised_base(bits: int, tmp_path: Path) -> None:
    source = tiny_model("chatglm")
    model = quantised(source, bits)
    new_adapter(model, PrefixOptions(3, dropout=0.0))
    save_adapter(model, tmp_path / "a")
    info = apply_adapter(source, tmp_path / "a")
    assert any("quantization" in note for note in info.notes)
    torch.testing.assert_close(model(ids(model.config)), source(ids(model.config)), atol=1e-4, rtol=1e-4)


# --- refusals ---------------------------------------------------------------------------------------------------------


def renamed(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): value for name, value in tensors.items()}


BAD: dict[str, Any] = {
    "unknown": (lambda t: renamed(t, "layers.2.", "layers.7."), {}, "layers.7.attention.query_key_value is no module"),
    "another model": (lambda t: renamed(t, "transformer", "gpt_neox"), {}, "0 of 3 match"),
    "no B": (lambda t: {n: v for n, v in t.items() if "layers.1" not in n or "lora_A" in n}, {}, "has no lora_B"),
    "rank": (lambda t: t, {"r": 5}, "another rank than the settings say, 5"),
    "rows": (
        lambda t: {n: v[:-3] if "lora_B" in n else v for n, v in t.items()},
        {},
        "lora_B \\(93, 3\\), this model needs \\(r, 32\\) and \\(96, r\\)",
    ),
    "columns": (lambda t: {n: v[:, :-1] if "lora_A" in n else v for n, v in t.items()}, {}, "needs \\(r, 32\\)"),
    "nan": (lambda t: {n: v * float("nan") if "2.attention" in n else v for n, v in t.items()}, {}, "NaN"),
    "whole numbers": (lambda t: {n: v.int() for n, v in t.items()}, {}, "floating point"),
    "two adapters": (
        lambda t: {n.replace(".weight", f".{x}.weight"): v + 0 for n, v in t.items() for x in ("a", "b")},
        {},
        "several adapters \\(a, b\\)",
    ),
    "embedding": (lambda t: {**t, "base_model.model.x.lora_embedding_A": torch.ones(2, 2)}, {}, "LoRA on an embedding"),
    "dora": (lambda t: t, {"use_dora": True}, "use_dora asks for DoRA"),
    "dora vector": (lambda t: {**t, "base_model.model.x.lora_magnitude_vector": torch.ones(2)}, {}, "not supported"),
    "kind": (lambda t: t, {"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "pissa": (lambda t: t, {"init_lora_weights": "pissa_niter_4"}, "changed the base's weights"),
    "pattern": (lambda t: t, {"rank_pattern": {"(": 2}}, "is not read from character 2 on"),
    "bias": (lambda t: t, {"bias": "some"}, "known are none, all and lora_only"),
    "alpha": (lambda t: t, {"lora_alpha": "x"}, "lora_alpha is 'x'"),
    "dropout": (lambda t: t, {"lora_dropout": 1.0}, "must be in \\[0, 1\\)"),
    "infinite": (lambda t: t, {"lora_alpha": float("inf")}, "must be a number"),
    "whole size": (
        lambda t: {**t, "base_model.model.transformer.word_embeddings.weight": torch.ones(97, 32)},
        {},
        "shape \\(97, 32\\), this model needs \\(96, 32\\)",
    ),
    "empty": (
        lambda t: {"base_model.model.transformer.word_embeddings.weight": torch.ones(96, 32)},
        {},
        "no LoRA matrices",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_directories_are_refused_and_nothing_changes(name: str, tmp_path: Path) -> None:
    change, settings, message = BAD[name]
    tensors = stored(matrices("chatglm", ("attention.query_key_value",)))
    folder = write(tmp_path / "a", change(tensors), {**PEFT, **settings})
    model = tiny_model("chatglm")
    before = dict(model.state_dict())
    with pytest.raises(CheckpointError, match=message) as caught:
        apply_adapter(model, folder)
    assert "\n" not in str(caught.value)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_unknown_setting_is_noted(tmp_path: Path) -> None:
    model = tiny_model("glm")
    more = {"target_modules": ["query_key_value", "c_attn"], "modules_to_save": ["classifier"]}
    info = apply_adapter(model, plain("glm", tmp_path, brand_new_option=3, peft_version="9.9", **more))
    assert info.notes == (
        "adapter_config.json: brand_new_option 3 is not known and was ignored",
        "target_modules names c_attn, for which the file has nothing",
        "modules_to_save names classifier, for which the file has nothing; the base's own is used",
    )


def test_a_directory_without_weights(tmp_path: Path) -> None:
    model = tiny_model("glm")
    (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT))
    with pytest.raises(CheckpointError, match="adapter_model.safetensors is missing"):
        apply_adapter(model, tmp_path)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "lora_model_state.tp00.pdparams").touch()
    (tmp_path / "p" / "lora_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="per tensor-parallel rank"):
        apply_adapter(model, tmp_path / "p")


def test_lora_shapes_are_checked() -> None:
    layer = torch.nn.Linear(4, 6)
    with pytest.raises(ConfigError, match="4 inputs and 6 outputs"):
        LoraLinear(layer, torch.nn.Parameter(torch.ones(2, 5)), torch.nn.Parameter(torch.ones(6, 2)), 1.0)
    with pytest.raises(ConfigError, match="do not divide"):
        grouped_to_dense(torch.ones(5, 4), torch.ones(6, 2), [True, False, True])


def test_head_adapters_are_refused(tmp_path: Path) -> None:
    model = tiny_model("chatglm2")
    tensors = stored({"transformer.output_layer": (torch.ones(3, 32), torch.ones(96, 3))})
    with pytest.raises(CheckpointError, match="only on layers"):
        apply_adapter(model, write(tmp_path / "a", tensors, PEFT))
    assert "lora_A" in "".join(load_file(tmp_path / "a" / "adapter_model.safetensors"))
