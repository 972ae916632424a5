"""What is saved is the same model again, here and in the core; what does not fit is never passed over."""

import copy
import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

import glmkit.hf
from glmkit.checkpoint.conversion.conversion import convert
from glmkit.errors import CheckpointError, ConfigError, RequestError, UnreadWarning
from glmkit.loading import load_parts
from support.hf_models import BY_FAMILY, adapted, open_model, prompt_ids
from support.shared import shared_dir

pytestmark = pytest.mark.filterwarnings("ignore::glmkit.errors.GuessWarning")


def published(name: str) -> dict[str, Tensor]:
    """The tensors of a fixture as they were published."""
    folder = shared_dir("fixtures", name)
    file = folder / "pytorch_model.bin"
    return torch.load(file) if file.exists() else load_file(folder / "model.safetensors")


def both_again(folder: Path, model: Any) -> None:
    """The directory has the model's logits, read here and by the core."""
    ids = prompt_ids(model)
    core = load_parts(folder, dtype="float32", compute="exact").model
    with torch.no_grad():
        wanted = model(ids).logits
        assert torch.equal(open_model(folder)(ids).logits, wanted)
        assert torch.equal(core(ids), wanted)


@pytest.mark.parametrize("name", BY_FAMILY)
def test_names_and_values_are_the_published_ones(name: str, tmp_path: Path) -> None:
    model = open_model(name)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    written = {key: value for file in files for key, value in load_file(file).items()}
    theirs = {key: value for key, value in published(name).items() if "inv_freq" not in key}
    assert written.keys() == theirs.keys()
    assert all(torch.equal(written[key], theirs[key]) for key in theirs)
    values, before = (json.loads((at / "config.json").read_text()) for at in (tmp_path, shared_dir("fixtures", name)))
    renamed = {"architectures", "torch_dtype", "transformers_version", "_name_or_path", "use_cache"}
    assert {key: values.get(key) for key in before if key not in renamed} == {
        key: value for key, value in before.items() if key not in renamed
    }
    both_again(tmp_path, model)


@pytest.mark.parametrize("name", ["chatglm-6b", "glm4-native"])
@pytest.mark.parametrize("typed", [True, False])
def test_glmkits_own_format(name: str, typed: bool, tmp_path: Path) -> None:
    """typed: with the model_type by which AutoConfig finds a class; earlier versions wrote none."""
    own, again = tmp_path / "own", tmp_path / "again"
    convert(shared_dir("fixtures", name), own, to="glmkit")
    if not typed:
        values = json.loads((own / "config.json").read_text())
        del values["model_type"]
        (own / "config.json").write_text(json.dumps(values))
    model = open_model(own, trust_remote_code=True)
    model.save_pretrained(again)
    both_again(again, model)
    assert json.loads((again / "config.json").read_text())["model_type"] == "glmkit"
    assert load_parts(again).generation == load_parts(own).generation


def test_strangers_stay_strangers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    with pytest.raises(ValueError, match="model_type"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["chatglm-6b-int8", "chatglm-6b-int4", "chatglm-6b-int4-qe"])
def test_published_integers_are_written_as_they_were(name: str, tmp_path: Path) -> None:
    model = open_model(name)
    model.save_pretrained(tmp_path)
    written, theirs = load_file(tmp_path / "model.safetensors"), published(name)
    assert written.keys() == {key for key in theirs if "inv_freq" not in key}
    for key, value in written.items():
        assert value.dtype == theirs[key].dtype or value.is_floating_point(), key
        assert torch.equal(value, theirs[key].to(value.dtype)), key
    both_again(tmp_path, model)


@pytest.mark.parametrize("damage", ["missing", "renamed", "NaN"])
def test_one_spoilt_tensor_raises_naming_it(damage: str, tmp_path: Path) -> None:
    open_model("chatglm2-6b").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    key = "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"
    value = weights.pop(key)
    if damage != "missing":
        weights[key + ("2" if damage == "renamed" else "")] = value * (float("nan") if damage == "NaN" else 1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="dense_4h_to_h"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", [*BY_FAMILY, "chatglm-6b-int4"])
def test_state_dicts(name: str) -> None:
    """Old files load strictly with their rotary tables; one wrong name raises; strict=False passes over nothing."""
    model = open_model(name)
    ids = prompt_ids(model)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    with torch.no_grad():
        before = model(ids).logits
        for parameter in model.parameters():
            parameter.zero_()
        model.load_state_dict(published(name))
        assert torch.equal(model(ids).logits, before)
        other = open_model(name)
        other.load_state_dict(torch.load(buffer))
        assert torch.equal(other(ids).logits, before)
    spoilt = "layers.1.mlp.dense_4h_to_h.weight"
    wrong = {f"{key}x" if key.endswith(spoilt) else key: value for key, value in published(name).items()}
    with pytest.warns(UnreadWarning, match="1 of .*dense_4h_to_h.weightx"):
        model.load_state_dict(wrong, strict=False)
    with pytest.warns(UnreadWarning), pytest.raises(RuntimeError, match="dense_4h_to_h.weightx"):
        model.load_state_dict(wrong)
    with pytest.warns(UnreadWarning, match=f"{len(wrong)} of {len(wrong)}"):
        model.load_state_dict({f"module.{key}": value for key, value in wrong.items()}, strict=False)


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """A ChatGLM-6B whose head is its word table, as in the release."""
    folder = tmp_path / "tied"
    folder.mkdir()
    shutil.copy(shared_dir("fixtures", "chatglm-6b") / "config.json", folder)
    state = published("chatglm-6b")
    torch.save({**state, "lm_head.weight": state["transformer.word_embeddings.weight"]}, folder / "pytorch_model.bin")
    return folder


def test_a_tied_head_is_stored_twice(tied: Path, tmp_path: Path) -> None:
    model = open_model(tied)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    model.save_pretrained(tmp_path / "again")
    written = load_file(tmp_path / "again" / "model.safetensors")
    assert torch.equal(written["lm_head.weight"], written["transformer.word_embeddings.weight"])
    both_again(tmp_path / "again", model)
    assert open_model(tmp_path / "again").num_parameters() == model.num_parameters()
    assert model.tie_weights() is None
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    model.resize_token_embeddings(300)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    model.save_pretrained(tmp_path / "resized")
    both_again(tmp_path / "resized", model)


def test_a_head_that_is_another_tensor_is_not_poured_over_the_table(tied: Path) -> None:
    with pytest.raises(CheckpointError, match="lm_head"):
        open_model(tied).load_state_dict(published("chatglm-6b"))


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm-6b-int4", "glm-hf"])
def test_copies_are_equal_and_independent(name: str) -> None:
    model = open_model(name)
    ids = prompt_ids(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        with torch.no_grad():
            before = model(ids).logits
            assert torch.equal(other(ids).logits, before)
            assert type(other) is type(model)
            other.get_input_embeddings().weight.zero_()
            assert torch.equal(model(ids).logits, before)
            assert not torch.equal(other(ids).logits, before)


def test_heads_of_old_scripts_are_written_under_their_published_names(tmp_path: Path) -> None:
    """A head in a wrapper, and one tensor under two names."""

    class CastOutputToFloat(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).float()

    first = AutoModel.from_pretrained(shared_dir("fixtures", "chatglm-6b"), dtype=torch.bfloat16)
    first.lm_head = CastOutputToFloat(first.lm_head)
    second = AutoModel.from_pretrained(shared_dir("fixtures", "chatglm2-6b"), dtype=torch.bfloat16)
    second.transformer.output_layer = CastOutputToFloat(second.transformer.output_layer)
    third = AutoModel.from_pretrained(shared_dir("fixtures", "chatglm2-6b"), dtype=torch.bfloat16)
    third.lm_head = third.transformer.output_layer
    ids = prompt_ids(first)
    for number, (model, dtype) in enumerate(((first, torch.float32), (second, torch.float32), (third, torch.bfloat16))):
        assert model(ids).logits.dtype == dtype
        model.save_pretrained(tmp_path / str(number))
        again = AutoModel.from_pretrained(tmp_path / str(number))
        assert again.state_dict().keys() == AutoModel.from_config(again.config).state_dict().keys()
        assert torch.equal(again(ids).logits.to(dtype), model(ids).logits)


def test_what_has_no_published_name_is_not_written(tmp_path: Path) -> None:
    model = open_model("chatglm-6b")
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["dense"]))
    with pytest.raises(RequestError, match="base_layer"):
        model.save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="never published in integers"):
        open_model("glm-hf").quantize(8).save_pretrained(tmp_path)


@pytest.mark.parametrize("name", BY_FAMILY)
def test_a_vocabulary_of_another_size(name: str, tmp_path: Path) -> None:
    model = open_model(name)
    ids, rows = prompt_ids(model), model.core.config.vocab_size
    before = model(ids).logits
    table = model.resize_token_embeddings(rows + 64)
    assert table is model.get_input_embeddings()
    assert model.core.config.vocab_size == model.config.vocab_size == rows + 64
    assert torch.allclose(model(ids).logits[..., :rows], before, atol=1e-5)
    model.save_pretrained(tmp_path)
    both_again(tmp_path, model)
    if model.core.config.special is not None:
        with pytest.raises(ConfigError, match="outside the vocabulary"):
            model.resize_token_embeddings(100)


def test_integers_are_not_resized() -> None:
    with pytest.raises(RequestError, match="before quantising"):
        open_model("chatglm-6b-int4-qe").resize_token_embeddings(300)


@pytest.mark.parametrize("name", BY_FAMILY)
def test_models_made_from_a_config(name: str) -> None:
    """First weights are the core's, whatever default dtype is set; loading does not depend on it."""
    folder = shared_dir("fixtures", name)
    fresh = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    core = fresh.core.config
    deviations = {key: float(value.detach().std()) for key, value in fresh.named_parameters() if value.dim() == 2}
    assert all(0.3 * core.init_std < found < 1.2 * core.init_std for found in deviations.values()), deviations
    loaded = AutoModel.from_pretrained(folder)
    torch.set_default_dtype(torch.float16)
    try:
        other = AutoModel.from_pretrained(folder)
        half = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    finally:
        torch.set_default_dtype(torch.float32)
    ids = prompt_ids(loaded)
    with torch.no_grad():
        assert torch.equal(other(ids).logits, loaded(ids).logits)
        assert torch.isfinite(half(ids).logits.float()).all()
    assert other.dtype == loaded.dtype


def test_numbers_that_tools_ask_for() -> None:
    model = open_model("chatglm-6b")
    count = sum(value.numel() for key, value in published("chatglm-6b").items() if "inv_freq" not in key)
    assert model.num_parameters() == count
    assert model.get_memory_footprint() == 4 * count
    assert model.device.type == "cpu"
    model.is_parallelizable = model.model_parallel = True
    model.set_input_embeddings(nn.Embedding.from_pretrained(model.get_input_embeddings().weight.detach() * 2))
    assert model.get_input_embeddings() is model.transformer.word_embeddings
    model.set_output_embeddings(nn.Linear(64, 256, bias=False))
    assert model.get_output_embeddings() is model.lm_head


def test_adapters_only_of_transformers_own_calls(tmp_path: Path) -> None:
    model = open_model("chatglm2-6b")
    model.add_adapter(LoraConfig(r=4, target_modules=["query_key_value"]))
    ids = adapted(model)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    again = open_model("chatglm2-6b")
    again.load_adapter(tmp_path)
    core = load_parts(shared_dir("fixtures", "chatglm2-6b"), adapter=tmp_path, dtype="float32").model
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-6)
        assert torch.allclose(core(ids), model(ids).logits, atol=1e-5)
    assert glmkit.hf.ChatGLMForConditionalGeneration.__name__ == type(again).__name__
    weights = load_file(tmp_path / "adapter_model.safetensors")
    renamed = {key.replace("self_attention", "attention"): value for key, value in weights.items()}
    save_file(renamed, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="fits nothing|is missing"):
        open_model("chatglm2-6b").load_adapter(tmp_path)
