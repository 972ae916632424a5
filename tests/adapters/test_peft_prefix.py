"""Prefixes of PEFT: what `get_prompt` puts in front, by the real `peft` and by THUDM's table; other kinds are named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.published import TINY, encoder_of, ids, tiny_model, transformers_pair
from glmkit.adapters.attach import detach_adapter
from glmkit.adapters.directory import apply_adapter, save_adapter
from glmkit.adapters.prefix.encoder import prefix_width
from glmkit.config import GLMConfig
from glmkit.diagnosis.examine import examine
from glmkit.errors import CheckpointError
from glmkit.families.family import all_families
from glmkit.loading import load_parts
from support.shared import shared_dir

CONFIG = TINY["chatglm2"].config


def settings_of(config: GLMConfig, rows: int, **changes: Any) -> dict[str, Any]:
    """An adapter_config.json as PEFT's P-Tuning v2 of GLM-4's own scripts has it."""
    values = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": rows,
        "num_layers": config.num_layers,
        "num_attention_heads": config.kv_heads,
        "token_dim": config.kv_heads * config.head_dim,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": 16,
        "prefix_projection": False,
    }
    return {**values, **changes}


def write(folder: Path, tensors: dict[str, Tensor], settings: dict[str, Any] | None, name: str = "adapter") -> Path:
    folder.mkdir()
    if name == "adapter":
        save_file(tensors, folder / "adapter_model.safetensors")
    else:
        torch.save(tensors, folder / f"{name}.bin")
    if settings is not None:
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def table(config: GLMConfig, rows: int = 5) -> Tensor:
    return torch.randn(rows, prefix_width(config), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("family", ["chatglm", "chatglm2"])
def test_the_table_is_thudms(family: str, tmp_path: Path) -> None:
    config = TINY[family].config
    values = table(config)
    folder = write(tmp_path / "peft", {"prompt_embeddings": values}, settings_of(config, 5))
    theirs = tmp_path / "thudm"
    theirs.mkdir()
    torch.save({"transformer.prefix_encoder.embedding.weight": values}, theirs / "pytorch_model.bin")
    (theirs / "config.json").write_text(json.dumps({"pre_seq_len": 5}))
    model = tiny_model(family)
    assert apply_adapter(model, theirs).notes == ()
    expected = model(ids(config))
    detach_adapter(model)
    assert apply_adapter(model, folder).notes == ()
    assert torch.equal(model(ids(config)), expected)
    save_adapter(model, tmp_path / "again")
    detach_adapter(model)
    apply_adapter(model, tmp_path / "again")
    assert torch.equal(model(ids(config)), expected)
    report = examine(folder)
    assert report.usable, report.findings
    assert report.facts["adapter"] == "prefix (peft)"


def test_a_projection_was_applied_when_it_was_saved(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"prompt_embeddings": table(CONFIG)}, settings_of(CONFIG, 5, prefix_projection=True))
    model = tiny_model("chatglm2")
    (note,) = apply_adapter(model, folder).notes
    assert "what it made" in note
    assert encoder_of(model).trans is None


@pytest.mark.parametrize("name", ["pytorch_model", "last"])
def test_the_encoder_itself_in_a_trainers_file(name: str, tmp_path: Path) -> None:
    width, generator = prefix_width(CONFIG), torch.Generator().manual_seed(1)
    inner = {"0.weight": (16, 24), "0.bias": (16,), "2.weight": (width, 16), "2.bias": (width,)}
    drawn = {part: torch.randn(shape, generator=generator) for part, shape in inner.items()}
    first = torch.randn(5, 24, generator=generator)
    start = "base_model.prompt_encoder.default."
    tensors = {f"{start}embedding.weight": first, **{f"{start}transform.{part}": t for part, t in drawn.items()}}
    folder = write(tmp_path / "a", tensors, settings_of(CONFIG, 5, prefix_projection=True), name)
    model = tiny_model("chatglm2")
    apply_adapter(model, folder)
    made = torch.tanh(first @ drawn["0.weight"].T + drawn["0.bias"]) @ drawn["2.weight"].T + drawn["2.bias"]
    keys, _ = encoder_of(model).eval()()
    torch.testing.assert_close(keys[0], made[:, :24].view(5, 2, 12))


BAD = {
    "rows": ({"num_virtual_tokens": 6}, "5 rows, the settings say num_virtual_tokens 6"),
    "layers": ({"num_layers": 4}, "num_layers 4"),
    "width": ({"token_dim": 48}, "token_dim 48"),
    "heads": ({"num_attention_heads": 4}, "num_attention_heads 4"),
    "encoder-decoder": ({"num_transformer_submodules": 2}, "num_transformer_submodules 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_of_another_base(case: str, tmp_path: Path) -> None:
    changes, match = BAD[case]
    folder = write(tmp_path / "a", {"prompt_embeddings": table(CONFIG)}, settings_of(CONFIG, 5, **changes))
    model = tiny_model("chatglm2")
    with pytest.raises(CheckpointError, match=match) as error:
        apply_adapter(model, folder)
    assert "\n" not in str(error.value)
    assert model.prefix is None


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("PROMPT_TUNING", "with peft"),
        ("P_TUNING", "with peft"),
        ("IA3", "merge_and_unload"),
        ("ADALORA", "merge"),
        ("OFT", "merge"),
    ],
)
def test_other_kinds_are_named_with_a_way(kind: str, step: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"prompt_embeddings": torch.ones(3, 4)}, {"peft_type": kind})
    with pytest.raises(CheckpointError, match=f"peft_type is '{kind}'") as error:
        apply_adapter(tiny_model("chatglm2"), folder)
    assert step in (error.value.step or "")
    assert not examine(folder).usable


@pytest.mark.parametrize("fixture", ["chatglm-6b", "chatglm2-6b"])
def test_recorded_prefix_in_pefts_file(fixture: str, tmp_path: Path) -> None:
    """A published prefix, stored the way PEFT stores it: the loaded models are equal."""
    base = shared_dir("fixtures", fixture)
    published = shared_dir("fixtures", f"{fixture}-ptuning-v2-embedding")
    one = load_parts(base, adapter=published, device="cpu").model
    pairs = zip(*encoder_of(one)(), strict=True)
    values = torch.stack([tensor for pair in pairs for tensor in pair], 1).flatten(1).detach().contiguous()
    folder = write(tmp_path / "a", {"prompt_embeddings": values}, settings_of(one.config, len(values)))
    two = load_parts(base, adapter=folder, device="cpu").model
    tokens = torch.arange(20, 30)[None]
    assert torch.equal(one(tokens), two(tokens))


@pytest.mark.parametrize("projection", [False, True])
def test_logits_equal_pefts(projection: bool, tmp_path: Path) -> None:
    """transformers' own class counts the prefix's positions, which turning the keys back makes up for."""
    transformers = pytest.importorskip("transformers", reason="the extra [dev] is not installed")
    peft = pytest.importorskip("peft", reason="the extra [hf] is not installed")
    reference, model = transformers_pair(transformers)
    torch.manual_seed(3)
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=6, prefix_projection=projection, encoder_hidden_size=10
    )
    adapted = peft.get_peft_model(reference, config).eval()
    with torch.no_grad():
        for parameter in adapted.prompt_encoder.parameters():
            parameter.normal_()
    adapted.save_pretrained(tmp_path / "a")
    layout = next(layout for layout in all_families()["glm-4"].layouts if layout.name == "transformers")
    info = apply_adapter(model, tmp_path / "a", layout=layout)
    tokens = ids(model.config)
    with torch.no_grad():
        expected = adapted(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        assert float((model(tokens) - expected).abs().max()) < 1e-4
    assert any("turned back by 6 positions" in note for note in info.notes)
