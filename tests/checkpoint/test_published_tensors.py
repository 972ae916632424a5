"""The rules both ways on small random models, against hand-made cuts and without any file."""

from typing import Any

import pytest
import torch
from torch import Tensor

from glmkit.checkpoint.published_tensors import published_tensors
from glmkit.checkpoint.weights import DictWeights, expected_tensors
from glmkit.config import GLMConfig, Quantization
from glmkit.errors import CheckpointError
from glmkit.families.common.layout import Layout
from glmkit.families.common.native_layout import OWN
from glmkit.families.family import Family, all_families
from support.checkpoints import ALL, random_weights, reading, small_config, written

pytestmark = pytest.mark.sampled(8)

IDS = [f"{family.name}-{layout.name}" for family, layout in ALL]
BY_ID = dict(zip(IDS, ALL, strict=True))


def layout_of(name: str) -> Layout:
    return BY_ID[name][1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(("family", "layout"), ALL, ids=IDS)
def test_written_tensors_read_back_bit_for_bit(family: Family, layout: Layout, ranks: int, dtype: torch.dtype) -> None:
    config = small_config(layout, family.name)
    weights = random_weights(config, dtype=dtype)
    if ranks > 1 and not layout.parallel:
        with pytest.raises(CheckpointError, match="never cut"):
            published_tensors(layout, config, ranks, weights=weights)
        return
    found = reading(layout, config, written(layout, config, weights, ranks))
    assert sorted(found.names()) == sorted(weights.names())
    for name in weights.names():
        wanted = weights.read(name)
        assert found.info(name) == weights.info(name)
        assert torch.equal(found.read(name), wanted), name
        for start, stop in ((0, 1), (3, 29), (len(wanted) - 5, len(wanted))):
            assert torch.equal(found.read_rows(name, start, stop), wanted[start:stop]), (name, start)


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(("family", "layout"), [pair for pair in ALL if pair[1].quantized])
def test_quantised_tensors_read_back_bit_for_bit(
    family: Family, layout: Layout, ranks: int, bits: int, embeddings: bool
) -> None:
    if ranks > 1 and not layout.parallel:
        return
    config = small_config(layout, family.name, quantization=Quantization(bits, embeddings, ranks))
    weights = random_weights(config)
    found = reading(layout, config, written(layout, config, weights, ranks))
    for name in weights.names():
        assert torch.equal(found.read(name), weights.read(name)), name


def test_a_degree_inside_the_blocks_of_scales_is_exact_and_another_is_refused() -> None:
    layout = layout_of("glm-130b-sat")
    config = small_config(layout, "glm-130b", quantization=Quantization(4, column_blocks=2))
    weights = random_weights(config)
    name = "transformer.layers.1.mlp.dense_4h_to_h.weight"
    four = written(layout, config, weights, 4)
    scale = weights.read("model.layers.1.mlp.down_proj.weight_scale")
    for rank, tensors in enumerate(four):
        assert torch.equal(tensors[f"{name}_scale"], scale[:, rank // 2])
    packed = weights.read("model.layers.1.mlp.down_proj.weight")
    assert torch.equal(torch.cat([tensors[name] for tensors in four], 1), packed)
    with pytest.raises(CheckpointError, match="--requantize"):
        published_tensors(layout, config, 1, weights=weights)
    own = written(OWN, config, weights)[0]
    assert own["model.layers.1.mlp.down_proj.weight_scale"].shape == scale.shape


def test_a_layout_without_a_quantised_form_refuses() -> None:
    layout = layout_of("glm-huggingface")
    config = small_config(layout, quantization=Quantization(8))
    with pytest.raises(CheckpointError, match="no INT8 form"):
        published_tensors(layout, config, dtype=torch.float16)


# --- cuts made by hand ------------------------------------------------------------------------------------------------

HIDDEN, HEADS, WIDTH = 128, 8, 16


def qkv(weights: DictWeights, layer: int = 0, parameter: str = "weight") -> list[Tensor]:
    return [weights.read(f"model.layers.{layer}.self_attn.{x}_proj.{parameter}") for x in "qkv"]


def halves(tensor: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    return tensor.chunk(2, dim)


def small(name: str, **changes: Any) -> tuple[Layout, GLMConfig, DictWeights]:
    family, layout = BY_ID[name]
    config = small_config(layout, family.name, **changes)
    return layout, config, random_weights(config)


def test_megatron_cuts_inside_each_third() -> None:
    layout, config, weights = small("glm-megatron")
    whole = written(layout, config, weights)[0]
    name = "transformer.layers.0.attention.query_key_value"
    for parameter in ("weight", "bias"):
        assert torch.equal(whole[f"{name}.{parameter}"], torch.cat(qkv(weights, 0, parameter)))
        for rank, tensors in enumerate(written(layout, config, weights, 2)):
            wanted = torch.cat([halves(x)[rank] for x in qkv(weights, 0, parameter)])
            assert torch.equal(tensors[f"{name}.{parameter}"], wanted)
    for rank, tensors in enumerate(written(layout, config, weights, 2)):
        out, down = "transformer.layers.2.attention.dense", "transformer.layers.2.mlp.dense_4h_to_h"
        assert torch.equal(tensors[f"{out}.weight"], halves(whole[f"{out}.weight"], 1)[rank])
        assert torch.equal(tensors[f"{down}.bias"], whole[f"{down}.bias"])
        assert torch.equal(tensors["word_embeddings.weight"], halves(whole["word_embeddings.weight"])[rank])
        assert torch.equal(
            tensors["transformer.position_embeddings.weight"], weights.read("model.embed_positions.weight")
        )


def by_head(parts: list[Tensor]) -> Tensor:
    rows = []
    for head in range(HEADS):
        rows += [part[head * WIDTH : (head + 1) * WIDTH] for part in parts]
    return torch.cat(rows)


def test_sat_cuts_between_heads_and_inside_the_halves_of_the_gated_matrix() -> None:
    layout, config, weights = small("glm-130b-sat")
    fused = by_head(qkv(weights, 1))
    up, gate = (weights.read(f"model.layers.1.mlp.{x}_proj.weight") for x in ("up", "gate"))
    whole = written(layout, config, weights)[0]
    stem = "transformer.layers.1"
    assert torch.equal(whole[f"{stem}.attention.query_key_value.weight"], fused)
    assert torch.equal(whole[f"{stem}.mlp.dense_h_to_4h.weight"], torch.cat([up, gate]))
    for rank, tensors in enumerate(written(layout, config, weights, 2)):
        assert torch.equal(tensors[f"{stem}.attention.query_key_value.weight"], halves(fused)[rank])
        wanted = torch.cat([halves(up)[rank], halves(gate)[rank]])
        assert torch.equal(tensors[f"{stem}.mlp.dense_h_to_4h.weight"], wanted)
        frequencies = tensors["mixins.rotary-embedding.rotary_emb.inv_freq"]
        assert torch.equal(frequencies, whole["mixins.rotary-embedding.rotary_emb.inv_freq"].chunk(2)[rank])


def test_paddle_turns_linears_and_reorders_by_head_when_cut() -> None:
    layout, config, weights = small("glm-paddle")
    whole = written(layout, config, weights)[0]
    name = "glm.transformer.layers.0.attention.query_key_value"
    assert torch.equal(whole[f"{name}.weight"], torch.cat(qkv(weights)).t())
    assert torch.equal(whole["glm.word_embeddings.weight"], weights.read("model.embed_tokens.weight"))
    fused, bias = by_head(qkv(weights)).t(), by_head(qkv(weights, 0, "bias"))
    for rank, tensors in enumerate(written(layout, config, weights, 2)):
        assert torch.equal(tensors[f"{name}.weight"], halves(fused, 1)[rank])
        assert torch.equal(tensors[f"{name}.bias"], halves(bias)[rank])
        out = "glm.transformer.layers.0.attention.dense.weight"
        assert torch.equal(tensors[out], halves(whole[out], 0)[rank])


def test_grouped_keys_are_concatenated_and_the_head_is_turned_in_paddle() -> None:
    layout, config, weights = small("chatglm2-paddle")
    whole = written(layout, config, weights)[0]
    assert torch.equal(
        whole["chatglm_v2.encoder.layers.2.self_attention.query_key_value.weight"], torch.cat(qkv(weights, 2)).t()
    )
    gate, up = (weights.read(f"model.layers.2.mlp.{x}_proj.weight") for x in ("gate", "up"))
    assert torch.equal(whole["chatglm_v2.encoder.layers.2.mlp.dense_h_to_4h.weight"], torch.cat([gate, up]).t())
    assert torch.equal(whole["chatglm_v2.output_layer.weight"], weights.read("lm_head.weight").t())


def test_a_tied_head_is_written_twice_and_an_untied_one_once() -> None:
    layout, config, weights = small("chatglm-huggingface")
    whole = written(layout, config, weights)[0]
    assert torch.equal(whole["lm_head.weight"], whole["transformer.word_embeddings.weight"])
    assert next(iter(whole)) == "transformer.word_embeddings.weight"
    assert list(whole)[-1] == "lm_head.weight"
    layout, config, weights = small("chatglm-huggingface", tie_embeddings=False)
    assert torch.equal(written(layout, config, weights)[0]["lm_head.weight"], weights.read("lm_head.weight"))
    with pytest.raises(CheckpointError, match="no place for lm_head"):
        published_tensors(layout_of("chatglm-paddle"), config, weights=weights)


# --- what is a view, what is refused ----------------------------------------------------------------------------------


def test_thirds_are_views_and_pages_go_when_all_parts_are_done() -> None:
    layout, config, weights = small("glm-huggingface")
    ranks = written(layout, config, weights)
    found = reading(layout, config, ranks)
    fused = ranks[0]["glm.transformer.layers.0.attention.query_key_value.weight"]
    for index, letter in enumerate("qkv"):
        view = found.read(f"model.layers.0.self_attn.{letter}_proj.weight")
        assert view.data_ptr() == fused.data_ptr() + index * HIDDEN * HIDDEN * 4
        assert view.is_contiguous()
    file = found._ranks[0]["glm.word_embeddings.weight"].file
    for letter in "qk":
        found.release(f"model.layers.0.self_attn.{letter}_proj.weight")
    assert file.released == []  # type: ignore[attr-defined]
    found.release("model.layers.0.self_attn.v_proj.weight")
    assert file.released == ["glm.transformer.layers.0.attention.query_key_value.weight"]  # type: ignore[attr-defined]


def test_pieces_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmkit.checkpoint.published_tensors._PIECE", 4096)
    for name in ("glm-megatron", "glm-130b-sat", "glm-paddle", "chatglm-huggingface", "glm-4-transformers"):
        layout, config, weights = small(name)
        for tensor in published_tensors(layout, config, weights=weights)[0]:
            pieces = list(tensor.pieces(weights))
            limit = max(4096, 3 * 16 * 4 * 4 * HIDDEN)  # one head of all parts, or one row
            assert max(piece.nbytes for piece in pieces) <= limit, tensor.name
        found = reading(layout, config, written(layout, config, weights))
        assert all(torch.equal(found.read(n), weights.read(n)) for n in weights.names())


@pytest.mark.parametrize(
    ("name", "ranks", "message"),
    [("glm-megatron", 3, "cannot be cut over 3 ranks"), ("glm-130b-sat", 16, "8 heads|cannot be cut")],
)
def test_a_degree_that_does_not_divide(name: str, ranks: int, message: str) -> None:
    layout, config, weights = small(name)
    with pytest.raises(CheckpointError, match=message):
        published_tensors(layout, config, ranks, weights=weights)


def test_values_beyond_float16_are_refused() -> None:
    layout, config, weights = small("glm-megatron")
    weights.read("model.layers.1.mlp.up_proj.bias")[3] = 70000.0
    tensors = published_tensors(layout, config, dtype=torch.float16, weights=weights)[0]
    (bias,) = [t for t in tensors if t.name == "transformer.layers.1.mlp.dense_h_to_4h.bias"]
    with pytest.raises(CheckpointError, match="float16 cannot hold"):
        list(bias.pieces(weights))


def test_another_architecture_is_refused() -> None:
    layout = layout_of("glm-huggingface")
    config = small_config(layout, positions="rope")
    with pytest.raises(CheckpointError, match="positions is 'rope'"):
        published_tensors(layout, config, dtype=torch.float32)


@pytest.mark.parametrize(("family", "layout"), ALL, ids=IDS)
def test_resolve_knows_every_published_stem(family: Family, layout: Layout) -> None:
    config = small_config(layout, family.name)
    for tensor in written(layout, config, random_weights(config))[0]:
        stem, _, parameter = tensor.rpartition(".")
        if parameter == "inv_freq":
            continue
        found = layout.resolve(stem)
        assert found is not None, stem
        assert layout.resolve("module." + stem) is None or layout.resolve("module." + stem) == found
        if layout.base:
            assert layout.resolve(stem.removeprefix(layout.base)) == found


def test_every_layout_holds_its_whole_model() -> None:
    for family in all_families().values():
        assert family.layouts, family.name
        for layout in family.layouts:
            config = small_config(layout, family.name)
            names = set(expected_tensors(config))
            assert names == set(reading(layout, config, written(layout, config, random_weights(config))).names())
