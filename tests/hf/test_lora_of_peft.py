"""LoRA by PEFT on the published names: learned here, read by the core, and the reverse; nothing is lost silently."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file

from glmkit.adapters.attach import new_adapter
from glmkit.adapters.directory import save_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.errors import CheckpointError, RequestError, UnreadWarning
from glmkit.loading import load_parts
from support.hf_models import BY_FAMILY, adapted, open_model, prompt_ids
from support.shared import shared_dir

NAMES = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
pytestmark = pytest.mark.filterwarnings("ignore::glmkit.errors.GuessWarning")


def lora(name: str | Any, **options: Any) -> Any:
    """A LoRA of rank 4 on a fixture, or on a model."""
    model = open_model(name) if isinstance(name, str) else name
    settings = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": NAMES, **options}
    return get_peft_model(model, LoraConfig(**settings))


@pytest.mark.parametrize("name", BY_FAMILY)
def test_learned_here_read_everywhere(name: str, tmp_path: Path) -> None:
    base = open_model(name)
    config = base.core.config
    model = lora(base)
    gates = 2 if config.mlp == "swiglu" else 1
    width, heads = config.hidden_size, config.num_heads * config.head_dim
    fused = heads + 2 * config.kv_heads * config.head_dim
    sizes = width + fused + heads + width + width + gates * config.inner_size + config.inner_size + width
    assert model.get_nb_trainable_parameters()[0] == 4 * sizes * config.num_layers  # one A for q, k and v
    before = base(prompt_ids(base)).logits
    ids = adapted(model)
    model.save_pretrained(tmp_path / "lora")
    again = PeftModel.from_pretrained(open_model(name), tmp_path / "lora")
    core = load_parts(shared_dir("fixtures", name), adapter=tmp_path / "lora", dtype="float32").model
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        assert not torch.allclose(wanted, before, atol=1e-2)
        assert torch.equal(again(input_ids=ids).logits, wanted)
        assert torch.allclose(core(ids), wanted, atol=1e-5)
        merged = again.merge_and_unload()
        assert torch.allclose(merged(ids).logits, wanted, atol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        core = load_parts(tmp_path / "merged", dtype="float32").model
        assert torch.allclose(core(ids), merged(ids).logits, atol=1e-6)


@pytest.mark.parametrize("name", BY_FAMILY)
@pytest.mark.parametrize("targets", [("query_key_value",), ("query_key_value", "dense_h_to_4h", "dense_4h_to_h")])
def test_learned_by_the_core_read_by_peft(name: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    parts = load_parts(shared_dir("fixtures", name), dtype="float32")
    remote = next(own for own in parts.family.layouts if own.remote is not None)
    new_adapter(parts.model, LoraOptions(rank=4, targets=targets), family=parts.family, layout=remote, seed=0)
    ids = adapted_core(parts.model)
    save_adapter(parts.model, tmp_path / "lora", layout=remote)
    model = PeftModel.from_pretrained(open_model(name), tmp_path / "lora")
    with torch.no_grad():
        wanted = parts.model(ids)
        assert torch.allclose(model(input_ids=ids).logits, wanted, atol=1e-5)
        assert not torch.allclose(open_model(name)(ids).logits, wanted, atol=1e-2)


def adapted_core(core: Any) -> torch.Tensor:
    """Train the adapter of a model of the core, and return the ids."""
    ids = prompt_ids(type("Model", (), {"core": core}))
    chosen = [each for each in core.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(chosen, 0.5)
    for _ in range(3):
        torch.nn.functional.cross_entropy(core(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return ids


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b", "glm-4-9b-remote"])
def test_no_targets_given(name: str) -> None:
    """PEFT knows the published name by the model_type."""
    model = lora(name, target_modules=None)
    found = {key.split(".lora_A")[0].rsplit(".")[-1] for key, _ in model.named_parameters() if "lora_A" in key}
    assert found == {"query_key_value"}


def test_names_of_no_module_are_told() -> None:
    with pytest.raises(ValueError, match="not found"):
        lora("chatglm-6b", target_modules=["q_proj", "v_proj"])
    with pytest.warns(UnreadWarning, match="target_modules: o_proj .*query_key_value"):
        lora("chatglm-6b", target_modules=["query_key_value", "o_proj"])
    with pytest.warns(UnreadWarning, match="modules_to_save: embed_tokens"):
        lora("chatglm2-6b", modules_to_save=["embed_tokens"])


@pytest.mark.parametrize(
    ("name", "module"),
    [("chatglm-6b", "lm_head"), ("chatglm-6b", "word_embeddings"), ("chatglm2-6b", "output_layer")],
)
def test_whole_modules_beside_an_adapter(name: str, module: str, tmp_path: Path) -> None:
    model = lora(name, modules_to_save=[module])
    ids = adapted(model)
    model.save_pretrained(tmp_path)
    whole = [key for key in load_file(tmp_path / "adapter_model.safetensors") if "lora_" not in key]
    assert [key.rsplit(".")[-2] for key in whole] == [module]
    again = PeftModel.from_pretrained(open_model(name), tmp_path)
    core = load_parts(shared_dir("fixtures", name), adapter=tmp_path, dtype="float32").model
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        assert torch.equal(again(input_ids=ids).logits, wanted)
        assert torch.allclose(core(ids), wanted, atol=1e-5)


def test_an_adapter_of_another_model_raises(tmp_path: Path) -> None:
    """PEFT warns of what it misses, and adapts nothing."""
    model = lora("chatglm-6b", target_modules=["dense"])
    adapted(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="attention.dense.lora_A.* fits nothing"):
        PeftModel.from_pretrained(open_model("chatglm2-6b"), tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    renamed = {key.replace("layers.1.", "blocks.1."): value for key, value in weights.items()}
    save_file(renamed, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="blocks.1"):
        PeftModel.from_pretrained(open_model("chatglm-6b"), tmp_path)


@pytest.mark.parametrize("old", [False, True])
def test_chatglm_lora_files(old: bool) -> None:
    """What learns, saved by named_parameters, and read back with strict=False; PEFT before 0.3 named no adapter."""
    model = lora("chatglm-6b")
    ids = adapted(model)
    saved = {key: value for key, value in model.named_parameters() if value.requires_grad}
    if old:
        saved = {key.replace(".default.", "."): value for key, value in saved.items()}
    again = lora("chatglm-6b").eval()
    assert again.load_state_dict(saved, strict=False).unexpected_keys == []
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    with pytest.raises(CheckpointError, match="fits nothing"):
        lora("chatglm-6b", target_modules=["query_key_value"]).load_state_dict(saved, strict=False)
    bare = {key.removeprefix("base_model.model."): value for key, value in saved.items()}
    with pytest.warns(UnreadWarning, match=f"{len(saved)} of {len(saved)}"):
        open_model("chatglm-6b").load_state_dict(bare, strict=False)


@pytest.mark.parametrize("name", BY_FAMILY)
@pytest.mark.parametrize("settings", [PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig])
def test_prompts_that_peft_learns_are_refused(name: str, settings: Any) -> None:
    """Their positions are nobody's: with prefix masks in every call, elsewhere once tokens are generated."""
    model = get_peft_model(open_model(name), settings(task_type="CAUSAL_LM", num_virtual_tokens=4))
    ids = prompt_ids(model.get_base_model())
    prefix = model.get_base_model().core.config.mask == "prefix"
    if prefix or settings is PrefixTuningConfig:
        with pytest.raises(RequestError, match="P-Tuning v2|give input_ids"):
            model(input_ids=ids, labels=ids)
    with pytest.raises(RequestError, match="P-Tuning v2"):
        model.generate(input_ids=ids, max_new_tokens=2)
    base = open_model(name)
    assert base.generate(ids, max_new_tokens=2).shape[1] == ids.shape[1] + 2
