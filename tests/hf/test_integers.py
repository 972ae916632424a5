"""INT8 and INT4 as scripts ask for them: made, loaded, cast, trained under an adapter; always integers."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch.nn import functional
from transformers import AutoModel, BitsAndBytesConfig

from glmkit.errors import RequestError, UnreadWarning
from glmkit.loading import load_parts
from glmkit.quant.layers import QuantMatrix
from support.hf_models import BY_FAMILY, adapted, open_model, prompt_ids
from support.shared import shared_dir

STORED = [name for name in BY_FAMILY if name != "glm-hf"]  # GLM was never published in integers
pytestmark = [
    pytest.mark.filterwarnings("ignore::glmkit.errors.GuessWarning"),
    pytest.mark.filterwarnings("ignore:float16 on a CPU"),
]


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_comes_back(name: str, bits: int, tmp_path: Path) -> None:
    model = open_model(name)
    assert model.quantize(bits) is model
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_bit"] == bits
    core = load_parts(tmp_path, dtype="float32", compute="exact").model
    again, ids = open_model(tmp_path), prompt_ids(model)
    with torch.no_grad():
        wanted = model(ids).logits
        assert torch.equal(again(ids).logits, wanted)
        assert torch.equal(core(ids), wanted)
    assert again.quantize(bits) is again


@pytest.mark.parametrize("name", BY_FAMILY)
def test_the_order_of_casts_does_not_matter(name: str) -> None:
    """Integers and their scales are never cast; the rest computes in the dtype that was asked for last."""
    folder = shared_dir("fixtures", name)
    first = AutoModel.from_pretrained(folder, dtype=torch.float16).quantize(4).float()
    second = AutoModel.from_pretrained(folder, dtype=torch.float16).half().quantize(bits=4).half().float()
    ids = prompt_ids(first)
    with torch.no_grad():
        assert torch.equal(first.eval()(ids).logits, second.eval()(ids).logits)
    matrices = [module for module in first.modules() if isinstance(module, QuantMatrix)]
    assert len(matrices) == 4 * first.core.config.num_layers
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        first.to(dtype)
        assert first.dtype == first(ids).logits.dtype == dtype
        assert {matrix.weight.dtype for matrix in matrices} == {torch.uint8}
        assert {matrix.row_scale.dtype for matrix in matrices} == {torch.float32}


def test_numbers_of_bits() -> None:
    model = open_model("chatglm-6b")
    assert model.quantize(0) is model
    assert model.quantize(8).config.quantization_bit == 8
    with pytest.raises(RequestError, match="INT8 already"):
        model.quantize(4)
    with pytest.raises(RequestError, match="4 or 8"):
        open_model("chatglm-6b").quantize(3)
    assert isinstance(model.get_input_embeddings(), torch.nn.Embedding)
    assert isinstance(model.get_output_embeddings(), torch.nn.Linear)


def test_options_of_bitsandbytes_mean_our_integers() -> None:
    folder = shared_dir("fixtures", "chatglm2-6b")
    for options, bits in (
        ({"load_in_8bit": True}, 8),
        ({"load_in_4bit": True}, 4),
        ({"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}, 8),
        ({"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")}, 4),
    ):
        with pytest.warns(UnreadWarning, match=f"glmkit's INT{bits}") as told:
            model = AutoModel.from_pretrained(folder, **options)
        assert len(told) == 1
        wanted = AutoModel.from_pretrained(folder).quantize(bits)
        ids = prompt_ids(model)
        with torch.no_grad():
            assert torch.equal(model(ids).logits, wanted(ids).logits)
    with pytest.raises(RequestError, match="both 8 and 4"):
        AutoModel.from_pretrained(folder, load_in_8bit=True, load_in_4bit=True)


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("bits", [8, 4])
def test_an_adapter_learns_on_integers_as_in_the_core(name: str, bits: int, tmp_path: Path) -> None:
    """PEFT finds the integer layers; values and gradients are those of the core's quantised base."""
    base, lora = tmp_path / "base", tmp_path / "lora"
    open_model(name).quantize(bits).save_pretrained(base)
    names = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    model = get_peft_model(open_model(base), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=names))
    ids = adapted(model)
    model.save_pretrained(lora)
    parts = load_parts(base, adapter=lora, dtype="float32", compute="exact")
    with torch.no_grad():
        assert torch.allclose(parts.model(ids), model(input_ids=ids).logits, atol=1e-5)
    table = model.get_base_model().get_input_embeddings().weight.requires_grad_(True)
    core_table = parts.model.model.get_parameter("embed_tokens.weight").requires_grad_(True)
    model(input_ids=ids, labels=ids).loss.backward()
    functional.cross_entropy(parts.model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    assert table.grad is not None
    assert torch.allclose(table.grad, core_table.grad, atol=1e-6)  # type: ignore[arg-type]
    integers = [module for module in model.modules() if isinstance(module, QuantMatrix)]
    assert integers
    assert not any(each.requires_grad for module in integers for each in (module.weight, module.row_scale))


def test_what_prepares_a_model_for_training_on_integers() -> None:
    """It casts what is float to float32; mixed types run, and only the adapter learns."""
    model = AutoModel.from_pretrained(shared_dir("fixtures", "chatglm-6b"), dtype=torch.bfloat16).quantize(8)
    model = prepare_model_for_kbit_training(model)
    assert {value.dtype for value in model.parameters()} == {torch.float32, torch.uint8}
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["query_key_value"]))
    ids = prompt_ids(model.get_base_model())
    loss = model.train()(input_ids=ids, labels=ids).loss
    loss.backward()
    assert loss.dtype == torch.float32
    learning = {key for key, value in model.named_parameters() if value.grad is not None}
    assert learning
    assert all("lora_" in key for key in learning)


def test_a_model_with_adapters_is_not_quantised() -> None:
    model = get_peft_model(open_model("chatglm-6b"), LoraConfig(task_type="CAUSAL_LM", target_modules=["dense"]))
    with pytest.raises(RequestError, match="quantise it first"):
        model.get_base_model().quantize(8)
