"""LoRA against the real `peft`: what it saves we compute, what we save it computes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.published import TINY, Skeleton, adapter_delta, ids, tiny_model, transformers_pair, with_deltas
from glmkit.adapters.attach import attached, detach_adapter, merge_adapter
from glmkit.adapters.directory import apply_adapter, save_adapter
from glmkit.families.family import all_families

pytestmark = pytest.mark.sampled(4)

peft = pytest.importorskip("peft", reason="the extra [hf] is not installed")

FAMILIES = sorted(TINY)
CASES: dict[str, dict[str, Any]] = {
    "qkv": {"r": 4, "lora_alpha": 32, "targets": ["qkv"]},
    "all": {"r": 3, "lora_alpha": 2, "targets": ["qkv", "dense", "up", "down"]},
    "rslora": {"r": 4, "lora_alpha": 8, "targets": ["qkv", "up"], "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "targets": ["qkv", "down"],
        "rank_pattern": {r"layers\.1\..*query_key_value": 2, "dense_4h_to_h": 5},
        "alpha_pattern": {"query_key_value": 3},
    },
}


def made_by_peft(family: str, folder: Path, case: dict[str, Any], *, safe: bool = True) -> dict[str, Tensor]:
    """Save a random adapter; published stem -> the dense change of its matrix as PEFT computes it."""
    tiny = TINY[family]
    settings = {key: value for key, value in case.items() if key != "targets"}
    targets = [getattr(tiny, name).rpartition(".")[2] for name in case["targets"]]
    torch.manual_seed(3)
    pattern = "|".join(targets)
    config = peft.LoraConfig(target_modules=rf".*\.({pattern})", init_lora_weights=False, **settings)
    model = peft.get_peft_model(Skeleton(family), config)
    model.save_pretrained(folder, safe_serialization=safe)
    return {
        name.removeprefix("base_model.model."): module.double().get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    }


def close(one: Tensor, two: Tensor, limit: float = 1e-5) -> None:
    one, two = one.detach(), two.detach()
    assert float((one - two).abs().max()) <= limit * max(1.0, float(two.abs().max()))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_dense_update(family: str, case: str, tmp_path: Path) -> None:
    deltas = made_by_peft(family, tmp_path, CASES[case], safe=case != "all")
    model = tiny_model(family)
    tokens = ids(model.config)
    before = model(tokens)
    expected = with_deltas(family, model, deltas)(tokens)
    exact = with_deltas(family, copy.deepcopy(model).double(), deltas)(tokens)
    info = apply_adapter(model, tmp_path)
    assert float((copy.deepcopy(model).double()(tokens) - exact).detach().abs().max()) < 1e-10
    close(model(tokens), expected, 1e-4)
    assert float((expected - before).detach().abs().max()) > 0.1
    assert adapter_delta(model, tokens) == pytest.approx(float((model(tokens) - before).detach().abs().max()), rel=1e-4)
    assert (info.kind, info.naming, info.dtype) == ("lora", "huggingface", torch.float32)
    assert info.notes == ()
    layer = model.model.layers[1].self_attn
    if CASES[case]["targets"][0] == "qkv":
        assert layer.q_proj.lora_A is layer.k_proj.lora_A is layer.v_proj.lora_A
    assert detach_adapter(model) == info
    assert torch.equal(model(tokens), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_unmerged(family: str, tmp_path: Path) -> None:
    made_by_peft(family, tmp_path, CASES["all"])
    model = tiny_model(family)
    names = [name for name, _ in model.named_parameters()]
    tokens = ids(model.config)
    apply_adapter(model, tmp_path)
    unmerged = model(tokens)
    merge_adapter(model)
    close(model(tokens), unmerged)
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_published_export_is_bit_identical_and_loads_in_peft(family: str, case: str, tmp_path: Path) -> None:
    deltas = made_by_peft(family, tmp_path / "in", CASES[case])
    model = tiny_model(family)
    apply_adapter(model, tmp_path / "in")
    layout = all_families()[family].layouts[0]
    notes = save_adapter(model, tmp_path / "out", layout=layout)
    assert notes == []
    from safetensors.torch import load_file

    old = load_file(tmp_path / "in" / "adapter_model.safetensors")
    new = load_file(tmp_path / "out" / "adapter_model.safetensors")
    prefix = layout.base if family == "glm" else ""  # the rules name GLM's tensors as a head class does
    renamed = {name.replace(f"base_model.model.{prefix}", "base_model.model."): value for name, value in new.items()}
    assert renamed.keys() == old.keys()
    assert all(torch.equal(renamed[name], value) for name, value in old.items())
    if prefix:
        return
    again = peft.PeftModel.from_pretrained(Skeleton(family), tmp_path / "out")
    for stem, delta in deltas.items():
        module = again.base_model.model.get_submodule(stem)
        close(module.get_delta_weight("default"), delta, 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_export_under_our_names_loads_in_peft_on_the_bare_model(family: str, tmp_path: Path) -> None:
    made_by_peft(family, tmp_path / "in", CASES["patterns"])
    model = tiny_model(family)
    tokens = ids(model.config)
    apply_adapter(model, tmp_path / "in")
    expected = model(tokens)
    assert save_adapter(model, tmp_path / "out") == []
    again = tiny_model(family)
    info = apply_adapter(again, tmp_path / "out")
    assert torch.equal(again(tokens), expected)
    assert info.notes == ()
    layer = again.model.layers[0].self_attn
    assert layer.q_proj.lora_A is layer.v_proj.lora_A
    theirs = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path / "out")
    close(theirs(tokens), expected)


def test_a_half_precision_adapter_is_written_as_it_was_read(tmp_path: Path) -> None:
    made_by_peft("chatglm2", tmp_path / "in", CASES["qkv"])
    from safetensors.torch import load_file, save_file

    path = tmp_path / "in" / "adapter_model.safetensors"
    half = {name: value.half() for name, value in load_file(path).items()}
    save_file(half, path)
    model = tiny_model("chatglm2")
    info = apply_adapter(model, tmp_path / "in")
    assert info.dtype == torch.float16
    assert all(parameter.dtype == torch.float32 for parameter in attached(model).parameters())
    layout = all_families()["chatglm2"].layouts[0]
    assert save_adapter(model, tmp_path / "out", layout=layout) == []
    again = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(again[name].dtype == torch.float16 and torch.equal(again[name], half[name]) for name in half)
    with torch.no_grad():
        next(attached(model).parameters()).add_(1e-7)
    (note,) = save_adapter(model, tmp_path / "trained", layout=layout)
    assert "float32" in note
    assert load_file(tmp_path / "trained" / "adapter_model.safetensors").popitem()[1].dtype == torch.float32


@pytest.mark.parametrize("base_dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base(base_dtype: torch.dtype, tmp_path: Path) -> None:
    deltas = made_by_peft("chatglm2", tmp_path, CASES["qkv"])
    model = tiny_model("chatglm2").to(base_dtype)
    tokens = ids(model.config)
    exact = with_deltas("chatglm2", tiny_model("chatglm2"), deltas)(tokens)
    plain = tiny_model("chatglm2")(tokens)
    apply_adapter(model, tmp_path)
    logits = model(tokens)
    assert logits.dtype == base_dtype
    assert all(parameter.dtype == torch.float32 for parameter in attached(model).parameters())
    error, change = (logits.float() - exact).detach().abs().mean(), (plain - exact).detach().abs().mean()
    assert float(error) < 0.15 * float(change)


def test_biases_and_saved_modules_replace_the_base(tmp_path: Path) -> None:
    family, tiny = "chatglm", TINY["chatglm"]
    model = tiny_model(family)
    skeleton = Skeleton(family)
    skeleton.transformer.word_embeddings = torch.nn.Embedding(96, 32)  # type: ignore[union-attr]
    config = peft.LoraConfig(
        target_modules=["query_key_value"],
        init_lora_weights=False,
        r=2,
        bias="all",
        modules_to_save=["word_embeddings"],
    )
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(skeleton, config)
    table = torch.randn(96, 32)
    with torch.no_grad():
        wrapped.base_model.model.transformer.word_embeddings.modules_to_save.default.weight.copy_(table)
    wrapped.save_pretrained(tmp_path / "in")
    tokens = ids(model.config)
    before = model(tokens)
    info = apply_adapter(model, tmp_path / "in")
    assert any("replaces" in note for note in info.notes)
    assert torch.equal(model.model.embed_tokens.weight, table)
    linear = skeleton.get_submodule("transformer.layers.1.attention.query_key_value")
    bias = linear.base_layer.bias.view(4, 3, 8)[:, 1].flatten()
    assert torch.equal(model.model.layers[1].self_attn.k_proj.base.bias, bias)
    expected = model(tokens)
    save_adapter(model, tmp_path / "out", layout=all_families()[family].layouts[0])
    detach_adapter(model)
    assert torch.equal(model(tokens), before)
    apply_adapter(model, tmp_path / "out")
    assert torch.equal(model(tokens), expected)
    assert tiny.qkv in "".join(peft.PeftModel.from_pretrained(Skeleton2(), tmp_path / "out").state_dict())


class Skeleton2(Skeleton):
    def __init__(self) -> None:
        super().__init__("chatglm")
        self.transformer.word_embeddings = torch.nn.Embedding(96, 32)  # type: ignore[union-attr]


def test_transformers_model_with_peft_both_ways(tmp_path: Path) -> None:
    """Real forward passes on both sides: theirs to ours, ours to theirs."""
    transformers = pytest.importorskip("transformers", reason="the extra [dev] is not installed")
    reference, model = transformers_pair(transformers)
    plain = copy.deepcopy(reference)
    tokens = ids(model.config)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
    torch.manual_seed(2)
    settings = peft.LoraConfig(r=4, lora_alpha=2, target_modules=targets, init_lora_weights=False)
    adapted = peft.get_peft_model(reference, settings).eval()
    adapted.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = adapted(tokens).logits
        before = model(tokens)
        info = apply_adapter(model, tmp_path / "theirs")
        assert info.modules == 3 * 7
        close(model(tokens), expected, 1e-4)
        assert float((expected - before).abs().max()) > 0.1
        layout = next(layout for layout in all_families()["glm-4"].layouts if layout.name == info.naming)
        assert save_adapter(model, tmp_path / "ours", layout=layout) == []
        again = peft.PeftModel.from_pretrained(plain, tmp_path / "ours").eval()
        assert torch.equal(again(tokens).logits, expected)
