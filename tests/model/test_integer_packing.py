"""Packed integers and scales, by hand and against the published files, number by number."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from glmkit.errors import CheckpointError
from glmkit.model.integer_packing import dequantize, pack_int4, quantize_rows, unpack_int4
from support.published import recording
from support.shared import shared_dir


def test_every_pair_of_4_bit_numbers() -> None:
    numbers = torch.arange(-8, 8, dtype=torch.int8)
    pairs = torch.cartesian_prod(numbers, numbers)
    packed = pack_int4(pairs)
    assert packed.dtype == torch.int8
    assert sorted(packed.flatten().tolist()) == list(range(-128, 128))
    assert torch.equal(unpack_int4(packed), pairs)


def test_the_even_column_is_in_the_high_half() -> None:
    assert pack_int4(torch.tensor([[1, 2, -1, 7, 0, -8]])).tolist() == [[0x12, 0xF7 - 256, 0x08]]


@pytest.mark.parametrize(
    ("values", "message"), [([[1, 2, 3]], "3 columns"), ([[8, 0]], "0 to 8"), ([[-9, 0]], "-9 to")]
)
def test_what_does_not_fit_is_refused(values: list[list[int]], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        pack_int4(torch.tensor(values))


def test_by_hand() -> None:
    weight = torch.tensor([[0.5, -1.0, 0.25, 0.125], [0.0, 0.0, 0.0, 0.0], [3.5, 1.5, -2.5, -0.5]])
    packed, scale = quantize_rows(weight, 4)
    third = float(torch.tensor(1 / 7).half())
    assert scale.flatten().tolist() == [third, 0.0, 0.5]
    # 0.5 / third is a little above 3.5
    assert unpack_int4(packed).tolist() == [[4, -7, 2, 1], [0, 0, 0, 0], [7, 3, -5, -1]]
    assert dequantize(packed, scale, 4)[2].tolist() == [3.5, 1.5, -2.5, -0.5]
    halves = torch.tensor([[127.0, 0.5, 1.5, -0.5, -2.5, 2.5]])
    assert quantize_rows(halves, 8)[0].tolist() == [[127, 0, 2, 0, -2, 2]]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_each_block_of_columns_has_its_own_scale(bits: int, blocks: int) -> None:
    weight = torch.randn(5, 24, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 1, 24)
    packed, scale = quantize_rows(weight, bits, blocks)
    assert scale.shape == (5, blocks)
    pieces = [quantize_rows(piece.contiguous(), bits) for piece in weight.chunk(blocks, 1)]
    assert torch.equal(packed, torch.cat([piece for piece, _ in pieces], 1))
    assert torch.equal(scale, torch.cat([each for _, each in pieces], 1))
    alone = torch.cat([dequantize(piece, each[:, 0], bits) for piece, each in pieces], 1)
    whole = dequantize(packed, scale, bits)
    assert torch.equal(whole, alone)
    limit = scale.float().repeat_interleave(24 // blocks, 1) * 0.5001
    assert ((whole - weight).abs() <= limit).all()


def test_weights_that_cannot_be_scaled_are_refused() -> None:
    for value in (float("nan"), float("inf"), 1e9):
        with pytest.raises(CheckpointError, match="cannot be quantised"):
            quantize_rows(torch.tensor([[1.0, value]]), 8)


MATRICES = ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]


@pytest.mark.parametrize("name", ["chatglm-6b-int8", "chatglm-6b-int4", "chatglm-6b-int4-qe"])
def test_the_published_files_byte_for_byte(name: str) -> None:
    """Both ways: their integers dequantise to the recorded floats, and the fp16 weights quantise to their integers."""
    folder, bits = shared_dir("fixtures", name), 8 if "int8" in name else 4
    stored = torch.load(folder / "pytorch_model.bin", weights_only=True)
    expected = np.load(folder / "expected.npz")
    source = load_file(shared_dir("fixtures", "chatglm-6b") / "model.safetensors")
    for key in expected.files:
        if key.startswith("dequant."):
            stem = key.removeprefix("dequant.")
            found = dequantize(stored[f"{stem}.weight"], stored[f"{stem}.weight_scale"], bits)
            assert found.dtype == torch.float32
            np.testing.assert_array_equal(found.numpy(), expected[key])
    stems = [f"transformer.layers.{layer}.{part}" for layer in range(3) for part in MATRICES]
    for stem in stems:
        packed, scale = quantize_rows(source[f"{stem}.weight"].half(), bits)
        assert torch.equal(packed, stored[f"{stem}.weight"]), stem
        assert torch.equal(scale[:, 0], stored[f"{stem}.weight_scale"]), stem


def test_two_ranks_have_two_scales_a_row() -> None:
    reference = recording("glm-130b-sat-int4-mp2", "glm-130b-sat")
    layer = reference.model.model.layers[0]
    assert layer.self_attn.o_proj.row_scale.shape == (2 * 64,)
    assert layer.mlp.up_proj.row_scale.shape == (176,)
    dense = reference.expected["dequant.transformer.layers.0.attention.dense.weight"]
    np.testing.assert_array_equal(layer.self_attn.o_proj.floats().numpy(), dense)
    fused = reference.expected["dequant.transformer.layers.0.mlp.dense_h_to_4h.weight"]
    ours = torch.cat([layer.mlp.up_proj.floats(), layer.mlp.gate_proj.floats()])
    np.testing.assert_array_equal(ours.numpy(), fused)
