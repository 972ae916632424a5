"""Whatever is missing, too much, of another shape or not a number is reported by name; nothing is left to chance."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from glmkit.checkpoint.open import open_checkpoint
from glmkit.checkpoint.sources import Source, same_bytes
from glmkit.errors import CheckpointError, GLMKitError
from glmkit.loading import load_parts
from support.checkpoints import MemoryFile
from support.directories import Change, huggingface_directory, rank_directory

pytestmark = pytest.mark.sampled(4)

HUGGINGFACE = (
    "glm/huggingface",
    "chatglm/huggingface",
    "chatglm2/huggingface",
    "chatglm3/huggingface",
    "glm-4/huggingface",
    "glm-4/transformers",
    "glm-4-0414/transformers",
)


@pytest.mark.parametrize("name", HUGGINGFACE)
def test_every_learned_tensor_is_needed(name: str, tmp_path: Path) -> None:
    tensors = huggingface_directory(tmp_path, name)
    load_parts(tmp_path)
    ends = {re.sub(r"layers\.\d+", "layers.1", key) for key in tensors}
    for key in sorted(ends):
        if key.endswith("inv_freq") or (key == "lm_head.weight" and name == "chatglm/huggingface"):
            continue

        def drop(changed: dict[str, Tensor], key: str = key) -> None:
            del changed[key]

        huggingface_directory(tmp_path, name, change=drop)
        with pytest.raises(CheckpointError, match=re.escape(f"{key} is missing")):
            open_checkpoint(tmp_path)


def renamed(changed: dict[str, Tensor]) -> None:
    changed["transformer.layers.1.attention.query_key_valu.bias"] = changed.pop(
        "transformer.layers.1.attention.query_key_value.bias"
    )


def added(changed: dict[str, Tensor]) -> None:
    changed["transformer.layers.3.input_layernorm.weight"] = torch.zeros(128)


def reshaped(changed: dict[str, Tensor]) -> None:
    changed["transformer.layers.0.mlp.dense_h_to_4h.weight"] = torch.zeros(511, 128)


def turned(changed: dict[str, Tensor]) -> None:
    key = "transformer.layers.0.mlp.dense_h_to_4h.weight"
    changed[key] = changed[key].t().contiguous()


def other_heads(changed: dict[str, Tensor]) -> None:
    for layer in range(3):
        changed[f"transformer.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(8)


def twice(changed: dict[str, Tensor]) -> None:
    changed["word_embeddings.weight"] = changed["transformer.word_embeddings.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, "query_key_value.bias is missing; the file has transformer.layers.1.attention.query_key_valu.bias"),
        (renamed, "query_key_valu.bias is not part of this model; closest: transformer.layers.1.*query_key_value.bias"),
        (added, "layers.3.input_layernorm.weight is not part of this model; closest: transformer.layers"),
        (reshaped, r"dense_h_to_4h.weight has shape \(511, 128\), the config asks for \(512, 128\)"),
        (turned, r"dense_h_to_4h.weight has shape \(128, 512\), the config asks for \(512, 128\)"),
        (other_heads, "8 rotary frequencies, the config's heads of 16 channels have 4; check the number of heads"),
        (twice, "are both transformer.word_embeddings.weight"),
    ],
)
def test_differences_are_named(change: Change, message: str, tmp_path: Path) -> None:
    huggingface_directory(tmp_path, "chatglm/huggingface", change=change)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("transformer.layers.2.attention.query_key_value.weight", "model.layers.2.self_attn.k_proj.weight"),
        ("transformer.layers.0.mlp.dense_4h_to_h.bias", "model.layers.0.mlp.down_proj.bias"),
        ("transformer.word_embeddings.weight", "model.embed_tokens.weight"),
    ],
)
def test_a_single_bad_number_is_found(key: str, ours: str, value: float, dtype: str, tmp_path: Path) -> None:
    def spoil(changed: dict[str, Tensor]) -> None:
        changed[key] = changed[key].clone()
        changed[key].view(-1)[16 * changed[key].view(len(changed[key]), -1).shape[1]] = value

    huggingface_directory(tmp_path, "chatglm/huggingface", change=spoil)
    with pytest.raises(CheckpointError, match=f"NaN or infinite values in.*{re.escape(ours)}"):
        load_parts(tmp_path, dtype=dtype)  # type: ignore[arg-type]


def test_large_numbers_are_no_bad_numbers(tmp_path: Path) -> None:
    def enlarge(changed: dict[str, Tensor]) -> None:
        for key in list(changed):
            changed[key] = changed[key].half()
        changed["transformer.layers.0.mlp.dense_4h_to_h.weight"].fill_(60000.0)

    huggingface_directory(tmp_path, "chatglm/huggingface", change=enlarge)
    for dtype in ("float16", "float32"):
        weight = load_parts(tmp_path, dtype=dtype).model.model.layers[0].get_parameter("mlp.down_proj.weight")
        assert weight.eq(60000.0).all()


def test_a_head_that_differs_is_loaded_as_its_own(tmp_path: Path) -> None:
    def train(changed: dict[str, Tensor]) -> None:
        changed["lm_head.weight"] = changed["lm_head.weight"] + 1

    tensors = huggingface_directory(tmp_path, "chatglm/huggingface", change=train)
    parts = load_parts(tmp_path)
    assert not parts.config.tie_embeddings
    assert any("lm_head.weight differs" in note for note in parts.notes)
    assert torch.equal(parts.model.head_weight, tensors["lm_head.weight"] + 1)


def test_a_missing_copy_of_the_head_is_noted(tmp_path: Path) -> None:
    def forget(changed: dict[str, Tensor]) -> None:
        del changed["lm_head.weight"]

    huggingface_directory(tmp_path, "chatglm/huggingface", change=forget)
    parts = load_parts(tmp_path)
    assert parts.config.tie_embeddings
    assert any("lm_head.weight is not stored" in note for note in parts.notes)


def test_config_and_weights_of_different_releases(tmp_path: Path) -> None:
    huggingface_directory(tmp_path, "chatglm/huggingface")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_bit": 4}))
    with pytest.raises(CheckpointError, match="config says INT4, but the tensors are not quantised"):
        open_checkpoint(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "glm"}))
    with pytest.raises(CheckpointError, match="model_type 'glm', but the tensors are named as in ChatGLM-6B"):
        open_checkpoint(tmp_path)


def test_ranks_that_disagree_are_noted_and_missing_ranks_refused(tmp_path: Path) -> None:
    rank_directory(tmp_path / "one", "glm-130b/sat", 4)
    path = tmp_path / "one" / "49300" / "mp_rank_02_model_states.pt"
    content = torch.load(path)
    content["module"]["transformer.layers.0.input_layernorm.bias"][0] += 0.01
    torch.save(content, path)
    notes = open_checkpoint(tmp_path / "one").notes
    assert any("layers.0.input_layernorm.bias differs a little between ranks" in note for note in notes)
    path.unlink()
    with pytest.raises(CheckpointError, match="not number 2; every rank is needed"):
        open_checkpoint(tmp_path / "one")
    (tmp_path / "one" / "49300" / "mp_rank_03_model_states.pt").unlink()
    with pytest.raises(CheckpointError, match=r"there were 4 ranks, and here are 2; copy mp_rank_02_model_states.pt"):
        open_checkpoint(tmp_path / "one")


def test_a_wrong_number_of_heads_for_sat_is_caught(tmp_path: Path) -> None:
    rank_directory(tmp_path / "sat", "glm-130b/sat", 2)
    with pytest.raises(GLMKitError, match=r"rotary frequencies.*check the number of heads"):
        open_checkpoint(tmp_path / "sat", config={"num_heads": 4})


def test_copies_are_compared_byte_for_byte_wherever_they_start() -> None:
    """Two stored copies need not be aligned alike; NaN equals itself."""
    bytes_of = torch.arange(0, 240, dtype=torch.uint8)
    for first, second in ((0, 8), (2, 8), (2, 6), (4, 8)):
        whole = torch.cat([bytes_of, bytes_of, torch.zeros(16, dtype=torch.uint8)])
        one = whole[first : first + 200].view(torch.float16)
        two = torch.cat([torch.zeros(second, dtype=torch.uint8), whole[first : first + 200]])[second:].view(
            torch.float16
        )
        files = MemoryFile({"a": one, "b": two, "c": two + 1})
        assert same_bytes(Source(files, "a"), Source(files, "b"), step=3)
        assert not same_bytes(Source(files, "a"), Source(files, "c"))


def test_an_absurd_number_of_layers_is_refused_at_once(tmp_path: Path) -> None:
    huggingface_directory(tmp_path, "chatglm/huggingface")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_layers": 10**7}))
    with pytest.raises(CheckpointError, match="says 10000000 layers, the file has 4"):
        open_checkpoint(tmp_path)


def test_frequencies_that_a_tool_cut_unevenly_are_accepted(tmp_path: Path) -> None:
    rank_directory(tmp_path, "glm-130b/sat", 4, head_size=None, num_heads=8, hidden_size=80)  # 5 frequencies
    name = "mixins.rotary-embedding.rotary_emb.inv_freq"
    for rank, path in enumerate(sorted((tmp_path / "49300").glob("*.pt"))):
        content = torch.load(path)
        assert len(content["module"][name]) == 5
        content["module"][name] = content["module"][name][2 * rank : 2 * rank + 2] if rank < 3 else torch.zeros(0)
        torch.save(content, path)
    assert open_checkpoint(tmp_path).config.head_dim == 10
    (tmp_path / "model_config.json").unlink()
    assert open_checkpoint(tmp_path).config.head_dim == 10
