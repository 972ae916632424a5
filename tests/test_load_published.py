"""Every recorded checkpoint through the loader alone: logits, cached decoding, loss, gradients, batches."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from glmkit.errors import CheckpointError
from glmkit.loading import Parts, load_parts
from glmkit.model import GLM
from glmkit.quant.layers import QuantMatrix
from support.published import close, glm_options, greedy, new_cache
from support.shared import shared_dir

pytestmark = pytest.mark.sampled(4)

TIGHT, LOOSE = 3e-5, 1e-4  # the recordings' own
# folder -> (folder of the inputs, tolerance)
CHATGLM = {
    "chatglm-6b": TIGHT,
    "chatglm-6b-int8": TIGHT,
    "chatglm-6b-int4": TIGHT,
    "chatglm-6b-int4-qe": TIGHT,
    "chatglm-6b-sharded": TIGHT,
    "chatglm-paddle": LOOSE,
}
CAUSAL = ("chatglm2-6b", "chatglm3-6b", "glm-4-9b-remote", "glm-native", "glm4-native", "chatglm2-paddle")
SAT = ("glm-130b-sat", "glm-130b-sat-mp2", "glm-130b-sat-int8", "glm-130b-sat-int4", "glm-130b-sat-int4-mp2")
GLM_FOLDERS = ("glm-hf", "glm-megatron", "glm-megatron-mp2", "glm-paddle", "glm-paddle-tp2")
RECORDED_AT = {
    "chatglm-6b-sharded": "chatglm-6b",
    "glm-130b-sat-mp2": "glm-130b-sat",
    "glm-megatron-mp2": "glm-megatron",
    "glm-paddle-tp2": "glm-paddle",
}
FAMILIES = {
    **dict.fromkeys(CHATGLM, "chatglm"),
    **dict.fromkeys(SAT, "glm-130b"),
    **dict.fromkeys(GLM_FOLDERS, "glm"),
    "chatglm2-6b": "chatglm2",
    "chatglm2-paddle": "chatglm2",
    "chatglm3-6b": "chatglm3",
    "glm-4-9b-remote": "glm-4",
    "glm-native": "glm-4",
    "glm4-native": "glm-4-0414",
}


def loaded(name: str, **options: Any) -> Parts:
    folder = shared_dir("fixtures", name)
    if "config" not in options and name in ("glm-megatron-mp2", "glm-130b-sat-mp2"):
        options["config"] = next(shared_dir("fixtures", RECORDED_AT[name]).glob("*config.json"))
    return load_parts(folder, **options)


def inputs_of(name: str) -> dict[str, Any]:
    folders = [shared_dir("fixtures", name), shared_dir("fixtures", RECORDED_AT.get(name, "glm-130b-sat"))]
    path = next(folder / "inputs.json" for folder in folders if (folder / "inputs.json").exists())
    return dict(json.loads(path.read_text()))


def expected_of(name: str) -> Any:
    return np.load(shared_dir("fixtures", RECORDED_AT.get(name, name)) / "expected.npz")


def real_of(values: dict[str, Any], ids: Tensor) -> Tensor | None:
    """(B,T) True = token of a left-padded batch, None without padding."""
    rows = values.get("sequences")
    if rows is None or all(len(row) == ids.shape[1] for row in rows):
        return None
    return torch.arange(ids.shape[1]) >= torch.tensor([ids.shape[1] - len(row) for row in rows])[:, None]


def ids_of(values: dict[str, Any]) -> Tensor:
    return torch.tensor(values.get("padded_input_ids", values.get("input_ids")))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_is_recognised(name: str) -> None:
    parts = loaded(name)
    assert parts.config.family == FAMILIES[name]
    assert parts.family is not None
    assert parts.family.name == FAMILIES[name]


# --- ChatGLM-6B -------------------------------------------------------------------------------------------------------


def chatglm_greedy(model: GLM, ids: Tensor, real: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
    """Cached argmax decoding; the prompt ends with the start of the piece, whose place the model infers."""
    special = model.config.special
    assert special is not None
    ids = ids[:, : int((ids[0] == special.sop).nonzero()[0, 0]) + 1]
    marks = torch.where((ids == special.gmask).any(1, keepdim=True), ids == special.gmask, ids == special.mask)
    pads = torch.zeros(len(ids), dtype=torch.long) if real is None else (~real).sum(1)
    place = torch.stack([marks.int().argmax(1) - pads, torch.ones(len(ids), dtype=torch.long)], 1)[:, :, None]
    return greedy(model, ids, real, steps, place)


def check_chatglm(model: GLM, inputs: dict[str, Any], expected: Any, tolerance: float) -> int:
    """Logits and decoding of every recorded case; returns how many arrays were compared."""
    compared = 0
    for case, values in inputs.items():
        if f"{case}.logits" not in expected:
            continue
        ids = ids_of(values)
        real = real_of(values, ids)
        logits, wanted = model(ids, attention_mask=real), expected[f"{case}.logits"]
        if real is not None:
            logits, wanted = logits[real], wanted[real.numpy()]
        close(logits[:, -12:] if case == "long" else logits, wanted, tolerance)
        compared += 1
        if f"{case}.greedy_tokens" in expected:
            recorded = expected[f"{case}.greedy_tokens"]
            tokens, steps = chatglm_greedy(model, ids, real, recorded.shape[-1])
            np.testing.assert_array_equal(tokens.numpy(), recorded.reshape(tokens.shape))
            close(steps, expected[f"{case}.greedy_logits"].reshape(steps.shape), LOOSE)
            compared += 2
        if f"{case}.loss" in expected:
            close(chatglm_loss(model, ids), expected[f"{case}.loss"], tolerance)
    return compared


def check_dequantized(parts: Parts, expected: Any) -> None:
    """The published fused matrices of the recording, put together from our parts, exactly."""
    assert parts.family is not None
    (layout,) = [layout for layout in parts.family.layouts if layout.name == parts.layout]
    config = parts.config
    for key in (key for key in expected.files if key.startswith("dequant.")):
        found = layout.resolve(key.removeprefix("dequant.").removesuffix(".weight"))
        assert found is not None
        rule, layer = found
        modules = dict(parts.model.named_modules())
        found = [modules.get(ours.replace("{i}", str(layer)), parts.model.model.embed_tokens) for ours in rule.ours]
        matrices = [module.floats() for module in found if isinstance(module, QuantMatrix)]
        assert len(matrices) == len(found)
        fused = torch.cat(matrices)
        if rule.order == "heads":
            fused = torch.stack([m.unflatten(0, (config.num_heads, -1)) for m in matrices], 1).flatten(0, 2)
        np.testing.assert_array_equal(fused.numpy(), expected[key])


def chatglm_loss(model: GLM, ids: Tensor) -> Tensor:
    """Mean cross entropy over the tokens after the start of the piece."""
    special = model.config.special
    assert special is not None
    answer = (ids == special.sop).cumsum(1).bool()[:, :-1]
    return functional.cross_entropy(model(ids)[:, :-1][answer], ids[:, 1:][answer])


@pytest.mark.parametrize("name", CHATGLM)
def test_chatglm(name: str) -> None:
    parts, expected = loaded(name), expected_of(name)
    assert check_chatglm(parts.model, inputs_of(name), expected, CHATGLM[name]) >= 9
    check_dequantized(parts, expected)


def test_chatglm_gradients() -> None:
    model = loaded("chatglm-6b").model
    recorded = np.load(shared_dir("fixtures", "chatglm-6b") / "grads.npz")
    chatglm_loss(model, ids_of(inputs_of("chatglm-6b")["gmask"])).backward()
    compared = 0
    for index, layer in enumerate(model.model.layers):
        heads = [getattr(layer.self_attn, f"{x}_proj").weight.grad.unflatten(0, (4, -1)) for x in "qkv"]
        fused = torch.stack(heads, 1).flatten(0, 2)
        key = f"grad.transformer.layers.{index}.attention.query_key_value.weight"
        if key in recorded.files:
            assert np.linalg.norm(fused.numpy() - recorded[key]) <= 1e-4 * np.linalg.norm(recorded[key])
            compared += 1
    assert compared
    head = model.get_parameter("lm_head.weight").grad
    assert head is not None
    np.testing.assert_allclose(head.norm().item(), recorded["norm.lm_head.weight"], rtol=1e-4)


@pytest.mark.parametrize("kind", ["embedding", "projection"])
@pytest.mark.parametrize("base", ["chatglm-6b", "chatglm2-6b"])
def test_prefix_adapters(base: str, kind: str) -> None:
    name = f"{base}-ptuning-v2-{kind}"
    folder = shared_dir("fixtures", name)
    model = loaded(base, adapter=folder).model
    expected = np.load(folder / "expected.npz")
    if base == "chatglm-6b":
        assert check_chatglm(model, inputs_of(name), expected, TIGHT) >= 9
    else:
        check_causal(model, inputs_of(base), expected)


def test_a_prefix_among_the_weights_is_applied(tmp_path: Path) -> None:
    """What older P-Tuning code saved: everything in one file."""
    name = "chatglm-6b-ptuning-v2-embedding"
    whole = torch.load(shared_dir("fixtures", "chatglm-6b") / "pytorch_model.bin")
    prefix = torch.load(shared_dir("fixtures", name) / "pytorch_model.bin")
    torch.save({**whole, **prefix}, tmp_path / "pytorch_model.bin")
    shutil.copy(shared_dir("fixtures", name) / "config.json", tmp_path)
    parts = load_parts(tmp_path)
    assert any("among the weights: a P-Tuning prefix" in note for note in parts.notes)
    assert check_chatglm(parts.model, inputs_of(name), expected_of(name), TIGHT) >= 9


def test_a_prefix_alone_is_no_model() -> None:
    folder = shared_dir("fixtures", "chatglm-6b-ptuning-v2-embedding")
    with pytest.raises(CheckpointError, match="P-Tuning prefix only.*adapter="):
        load_parts(folder)


# --- ChatGLM2/3, GLM-4 ------------------------------------------------------------------------------------------------


def check_causal(model: GLM, inputs: dict[str, Any], expected: Any) -> None:
    """Logits from ids and mask alone, then cached decoding with inferred positions."""
    for case in ("single", "batch", "long"):
        if f"{case}.logits" not in expected or case not in inputs:
            continue
        values = inputs[case]
        ids = ids_of(values)
        real = real_of(values, ids)
        logits, wanted = model(ids, attention_mask=real), expected[f"{case}.logits"]
        if real is not None:
            logits, wanted = logits[real], wanted[real.numpy()]
        close(logits[:, -12:] if case == "long" else logits, wanted, LOOSE)
        if f"{case}.loss" in expected:
            labels = torch.tensor(values["labels"])
            close(functional.cross_entropy(logits[0, :-1], labels[0, 1:]), expected[f"{case}.loss"], LOOSE)
        if f"{case}.greedy_tokens" not in expected:
            continue
        recorded = expected[f"{case}.greedy_tokens"].reshape(len(ids), -1)
        tokens, found = greedy(model, ids, real, recorded.shape[1])
        np.testing.assert_array_equal(tokens.numpy(), recorded)
        close(found, expected[f"{case}.greedy_logits"].reshape(found.shape), LOOSE)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal(name: str) -> None:
    model, inputs, expected = loaded(name).model, inputs_of(name), expected_of(name)
    check_causal(model, inputs, expected)
    if "single.hidden_states" in expected:
        layers: list[Tensor] = []
        last = model.hidden(ids_of(inputs["single"]), every_layer=layers)
        if "native" in name:  # the remote code lists the last block's output before the norm
            layers[-1] = last
        close(torch.stack(layers), expected["single.hidden_states"], LOOSE)


# --- GLM-130B ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAT)
def test_glm_130b(name: str) -> None:
    model, inputs, expected = loaded(name).model, inputs_of(name), expected_of(name)
    for case in ("gmask", "mask"):
        close(model(ids_of(inputs[case]).reshape(1, -1)), expected[f"{case}.logits"], LOOSE)
    ids, lengths = ids_of(inputs["batch"]), torch.tensor(inputs["batch"]["lengths"])
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    logits = model(ids, attention_mask=real)
    close(logits[real], expected["batch.logits"][real.numpy()], LOOSE)
    check_dequantized(loaded(name), expected)


def test_glm_130b_frequencies_can_be_overridden() -> None:
    model = loaded("glm-130b-sat", config={"rope_frequencies": "float32"}).model
    ids = ids_of(inputs_of("glm-130b-sat")["gmask"]).reshape(1, -1)
    expected = expected_of("glm-130b-sat")
    close(model(ids), expected["gmask.logits_fp32_inv_freq"], LOOSE)


@pytest.mark.parametrize("case", ["gmask", "mask"])
def test_glm_130b_cached(case: str) -> None:
    model, values = loaded("glm-130b-sat-mp2").model, inputs_of("glm-130b-sat")[case]
    expected = expected_of("glm-130b-sat")
    ids = ids_of(values).reshape(1, -1)[:, : values["context_length"]]
    recorded = expected[f"{case}.greedy_tokens"].reshape(-1).tolist()
    cache, tokens = new_cache(model, 1, ids.shape[1] + len(recorded)), []
    logits = model(ids, cache=cache, logits_at="last")
    for step in range(len(recorded)):
        tokens.append(int(logits.argmax()))
        close(logits[0], expected[f"{case}.greedy_logits"][0, step], LOOSE)
        place = ids.shape[1] + step if values["gmask"] else values["mask_position"]
        logits = model(
            torch.tensor([[tokens[-1]]]), position_ids=torch.tensor([[place]]), cache=cache, logits_at="last"
        )
    assert tokens == recorded


# --- GLM --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GLM_FOLDERS)
def test_glm(name: str) -> None:
    model, inputs, expected = loaded(name).model, inputs_of(name), expected_of(name)
    for case in ("single_sep", "gmask_sep", "batch_sep", "mask4d_leftpad", "defaults"):
        if f"{case}.logits" not in expected:
            continue
        logits, wanted = model(ids_of(inputs[case]), **glm_options(inputs[case])), expected[f"{case}.logits"]
        skip = 3 if case == "mask4d_leftpad" else 0  # rows of padding
        close(logits[:, skip:], wanted[:, skip:], LOOSE)
    if "batch_sep.loss" in expected:
        values = inputs["batch_sep"]
        mask = torch.tensor(values["loss_mask"]).bool()
        logits = model(ids_of(values), **glm_options(values))
        loss = functional.cross_entropy(logits[mask], torch.tensor(values["labels"])[mask])
        close(loss, expected["batch_sep.loss"], LOOSE)


@pytest.mark.parametrize("name", GLM_FOLDERS)
def test_glm_cached(name: str) -> None:
    model, values, expected = loaded(name).model, inputs_of(name)["greedy"], expected_of(name)
    ids, positions = torch.tensor(values["prompt"]), torch.tensor(values["position_ids"])
    start, steps = ids.shape[1], values["n"]
    cache, tokens = new_cache(model, 1, start + steps), []
    options = {"prefix_length": torch.tensor([values["sep"]]), "position_ids": positions[:, :, :start]}
    for step in range(steps):
        logits = model(ids, cache=cache, logits_at="last", **options)
        close(logits[0], expected["greedy.logits"].reshape(steps, -1)[step], LOOSE)
        tokens.append(int(logits.argmax()))
        ids, options = torch.tensor([[tokens[-1]]]), {"position_ids": positions[:, :, start + step : start + step + 1]}
    assert tokens == expected["greedy.tokens"].reshape(-1).tolist()[-steps:]


# --- the same weights in several layouts, and configs given -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("glm-megatron-mp2", "glm-megatron"),
        ("glm-paddle-tp2", "glm-paddle"),
        ("glm-130b-sat-mp2", "glm-130b-sat"),
        ("chatglm-6b-sharded", "chatglm-6b"),
    ],
)
def test_pieces_equal_the_whole(name: str, whole: str) -> None:
    first, second = loaded(name).model.state_dict(), loaded(whole).model.state_dict()
    assert list(first) == list(second)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def without_config(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    shutil.copytree(shared_dir("fixtures", name), folder)
    for path in folder.glob("*config.json"):
        path.unlink()
    return folder


@pytest.mark.parametrize(
    "name", [*SAT[::2], "glm-megatron", "glm-hf", "chatglm-6b", "glm-paddle-tp2", "glm-4-9b-remote"]
)
@pytest.mark.parametrize("form", ["published", "fields", "some fields"])
def test_config_deleted_and_given(name: str, form: str, tmp_path: Path) -> None:
    folder, whole = without_config(tmp_path, name), loaded(name)
    source = next(shared_dir("fixtures", name).glob("*config.json"))
    config: Any = source
    if form != "published":
        values = whole.config.to_dict()
        if form == "some fields":
            sizes = (
                "family",
                "vocab_size",
                "hidden_size",
                "num_layers",
                "num_heads",
                "num_kv_heads",
                "head_size",
                "ffn_size",
            )
            values = {key: values[key] for key in (*sizes, "max_positions", "rope_base", "norm_eps", "special")}
        config = tmp_path / "given.json"
        config.write_text(json.dumps({k: v for k, v in values.items() if k != "quantization" or v is not None}))
    parts = load_parts(folder, config=config)
    assert parts.config == whole.config
    for key, value in whole.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[key], value), key


def test_sat_without_any_config_reads_sizes_from_the_tensors(tmp_path: Path) -> None:
    whole = loaded("glm-130b-sat")
    for name in ("glm-130b-sat", "glm-130b-sat-int4-mp2"):
        parts = load_parts(without_config(tmp_path, name))
        assert (parts.config.num_heads, parts.config.inner_size) == (4, whole.config.inner_size)
        assert any("no config file" in note for note in parts.notes)


def test_megatron_without_config_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no config file.*config="):
        load_parts(without_config(tmp_path, "glm-megatron"))
