"""Quantised directories: written, opened, converted; what is refused; memory while they are made and loaded."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmkit import quantizing
from glmkit.checkpoint.conversion.conversion import convert
from glmkit.checkpoint.native import write_model
from glmkit.checkpoint.open import open_checkpoint
from glmkit.cli.main import main
from glmkit.config import GLMConfig, Quantization
from glmkit.data.text_rows import text_batches
from glmkit.errors import CheckpointError, ConfigError, RequestError
from glmkit.loading import load_parts
from glmkit.memory import weights_bytes
from glmkit.model import GLM, init_weights
from glmkit.quant import QuantLinear, compute_text, quantize_modules
from glmkit.quantizing import choose_form, quantize
from glmkit.streaming import StreamedModel
from glmkit.tokenizer.training import train_tokenizer
from glmkit.train.batch_loss import batch_loss
from support.quantised import packed_as
from support.shared import shared_dir
from support.tiny import random_ids, tiny_config, tiny_model

FORMS = [
    Quantization.usual(8),
    Quantization.usual(4),
    Quantization(4, packing="panels"),
    Quantization(4, True, 1, 128, "float16", packing="panels"),
    Quantization(8, True, 1, 64, "float16", 4, packing="panels"),
]


def fixture(name: str) -> Path:
    return shared_dir("fixtures", name)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_directory_is_what_quantising_in_memory_makes(form: Quantization, tmp_path: Path) -> None:
    report = quantize(fixture("chatglm-6b"), tmp_path / "q", form, rounding="nearest")
    expected = load_parts(fixture("chatglm-6b"), dtype="float32").model
    quantize_modules(expected, form)
    parts = load_parts(tmp_path / "q", dtype="float32")
    assert parts.config.quantization == form
    state = parts.model.state_dict()
    for name, value in expected.state_dict().items():
        assert torch.equal(state[name], value), name
    assert 0 < report.errors[0].relative < 0.2
    assert report.bytes < 0.4 * report.source_bytes
    assert not list(tmp_path.glob(".*"))


def test_panels_are_used_where_they_lie_in_the_file(tmp_path: Path) -> None:
    quantize(fixture("chatglm-6b"), tmp_path / "q", Quantization.usual(4))
    model = load_parts(tmp_path / "q", dtype="float32").model
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in maps if line.endswith(str(tmp_path / "q" / "model.safetensors"))]
    spans = [(int(start, 16), int(end, 16)) for start, end in ranges]
    matrices = [module for module in model.modules() if isinstance(module, QuantLinear)]
    assert matrices
    for matrix in matrices:
        (block,) = matrix.panels
        assert block.weight.data_ptr() % 64 == 0
        assert any(start <= block.weight.data_ptr() < end for start, end in spans)


@pytest.mark.parametrize("bits", [8, 4])
def test_into_a_published_layout_and_back(bits: int, tmp_path: Path) -> None:
    form = choose_form(bits, layout="huggingface")
    convert(fixture("chatglm-6b"), tmp_path / "half", to="huggingface", dtype="float16")
    quantize(tmp_path / "half", tmp_path / "hf", form, layout="huggingface", rounding="nearest")
    assert not list((tmp_path / "hf").glob(".*"))
    values = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert values["quantization_bit"] == bits
    published = load_parts(fixture(f"chatglm-6b-int{bits}"), dtype="float32").model.state_dict()
    for directory in ("hf", "own"):
        if directory == "own":
            convert(tmp_path / "hf", tmp_path / "own", to="glmkit")
        state = load_parts(tmp_path / directory, dtype="float32").model.state_dict()
        for name, value in published.items():
            # The published numbers were divided in float16: some that lie in the middle of two fell to the other side.
            assert value.dtype != torch.uint8 or (state[name] == value).double().mean() > 0.97
            assert value.dtype == torch.uint8 or torch.equal(state[name], value), name
    with pytest.raises(CheckpointError, match="groups of 32 fit glmkit's own layout only"):
        quantize(fixture("chatglm-6b"), tmp_path / "g", Quantization.usual(4))
        convert(tmp_path / "g", tmp_path / "h", to="huggingface")


@pytest.mark.parametrize("bits", [4, 8])
def test_directories_of_rows_still_load(bits: int, tmp_path: Path) -> None:
    """What was written before there were panels: int8 rows and float16 scales under our names."""
    rows = Quantization(bits, embeddings=True)
    config = tiny_config(quantization=replace(rows, packing="panels"))
    model = tiny_model(seed=3)
    quantize_modules(model, replace(rows, packing="panels"))
    state = packed_as("rows", dict(model.state_dict()), config)
    old = config.to_dict()["quantization"] | {"packing": "rows"}
    config = GLMConfig.from_dict({**config.to_dict(), "quantization": old})
    (tmp_path / "old").mkdir()
    write_model(tmp_path / "old", config, state)
    path = tmp_path / "old" / "config.json"
    values = json.loads(path.read_text())
    values["quantization"] = {"bits": bits, "embeddings": True, "column_blocks": 1}
    path.write_text(json.dumps(values))
    loaded = load_parts(tmp_path / "old", dtype="float32").model
    assert torch.equal(loaded(random_ids(2, 7)), model(random_ids(2, 7)))


def test_a_loaded_models_config_opens_its_directory_again(tmp_path: Path) -> None:
    """In memory the integers are panels; in the file they are what they are."""
    quantize(fixture("chatglm-6b"), tmp_path / "panels", Quantization.usual(4))
    for directory in (tmp_path / "panels", fixture("chatglm-6b-int4"), fixture("chatglm-6b-int8")):
        parts = load_parts(directory, dtype="float32")
        assert parts.config.quantization is not None
        assert parts.config.quantization.packing == "panels"
        again = load_parts(directory, dtype="float32", config=parts.config.to_dict())
        assert again.config == parts.config
        assert torch.equal(again.model(random_ids(1, 7)), parts.model(random_ids(1, 7)))
    with pytest.raises(CheckpointError, match="the config says INT4, but the tensors are not quantised"):
        load_parts(fixture("chatglm-6b"), config=load_parts(tmp_path / "panels").config.to_dict())


def test_word_table_and_head_stay_int8(tmp_path: Path) -> None:
    form = choose_form(4)
    assert (form.bits, form.group_size, form.scales, form.table_bits) == (4, 32, "byte", 8)
    model = tiny_model(tie_embeddings=False)
    quantize_modules(model, form)
    assert isinstance(model.lm_head, QuantLinear)
    assert (model.lm_head.form.bits, model.lm_head.form.group) == (8, 0)
    assert choose_form(4, head_bits=4).table_bits == 4
    assert not choose_form(4, head_bits=16).embeddings
    assert (choose_form(4, group=0).group_size, choose_form(8).group_size) == (0, 0)


def test_options_that_no_layout_holds() -> None:
    with pytest.raises(RequestError, match="huggingface layout holds one width"):
        choose_form(4, layout="huggingface", group=32)
    with pytest.raises(ConfigError, match="group_size is 48"):
        choose_form(4, group=48)
    with pytest.raises(ConfigError, match="scales are bytes"):
        choose_form(8, group=64, scales="byte")


@pytest.mark.parametrize("name", ["chatglm-6b-int4", "chatglm-6b-int8", "glm-130b-sat-int4"])
def test_quantised_sources_are_refused_by_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(fixture(name)), str(tmp_path / "q"), "--bits", "4"]) == 2
    error = capsys.readouterr().err
    assert f"{name} has INT{4 if 'int4' in name else 8} weights already" in error
    assert not (tmp_path / "q").exists()


def test_own_directories_are_refused_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize(fixture("chatglm-6b"), tmp_path / "q", Quantization.usual(4))
    assert main(["quantize", str(tmp_path / "q"), str(tmp_path / "r"), "--bits", "8"]) == 2
    assert "INT4 weights already (a glmkit directory)" in capsys.readouterr().err


def test_an_adapter_among_the_weights_is_told_of(tmp_path: Path) -> None:
    base, prefix = fixture("chatglm-6b"), fixture("chatglm-6b-ptuning-v2-embedding")
    (tmp_path / "s").mkdir()
    both = [torch.load(folder / "pytorch_model.bin") for folder in (base, prefix)]
    torch.save({**both[0], **both[1]}, tmp_path / "s" / "pytorch_model.bin")
    shutil.copy(prefix / "config.json", tmp_path / "s")
    report = quantize(tmp_path / "s", tmp_path / "q", Quantization.usual(4))
    assert "the base alone; left out, a P-Tuning prefix" in report.notes[0]


def test_a_text_for_nearest_rounding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nearest rounding") as caught:
        quantize(fixture("chatglm-6b"), tmp_path / "q", Quantization.usual(4), rounding="nearest", calibration="text")
    assert caught.value.param == "calibrate"


def test_what_a_killed_run_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a published layout: everything of a run lies in the one directory that the next run removes."""
    seen: list[list[str]] = []

    def stopped(own: Path, made: Path, **_: object) -> None:
        assert (own / "model.safetensors").exists()
        seen.append([path.name for path in tmp_path.iterdir()])
        raise KeyboardInterrupt

    monkeypatch.setattr(quantizing, "convert", stopped)
    form = choose_form(4, layout="huggingface")
    with pytest.raises(KeyboardInterrupt):
        quantize(fixture("chatglm-6b"), tmp_path / "q", form, layout="huggingface")
    assert seen == [[f".q.tmp-{os.getpid()}"]]
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_tells_integers_that_are_repacked_from_mapped_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(fixture("chatglm-6b"), tmp_path / "q", Quantization.usual(4))
    remarks = []
    for directory in (fixture("chatglm-6b-int4"), tmp_path / "q"):
        assert main(["doctor", str(directory), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["facts"]["compute"] == compute_text()
        remarks += [use["remark"] for use in report["forecast"] if use["name"] == "load as stored"]
    assert remarks == ["integers are repacked in memory", "memory-mapped: pages are read when used"]


def test_a_byte_that_no_scale_has_is_refused(tmp_path: Path) -> None:
    quantize(fixture("chatglm-6b"), tmp_path / "q", Quantization.usual(4))
    path = tmp_path / "q" / "model.safetensors"
    state = load_file(path)
    name = next(name for name in state if name.endswith("group_scale"))
    state[name][0, 0, 0] = 17
    save_file(state, path)
    with pytest.raises(CheckpointError, match=f"{name}: a scale is 17, 16 is the largest"):
        load_parts(tmp_path / "q")


def test_the_verb_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(fixture("chatglm-6b"))
    assert main(["quantize", source, str(tmp_path / "a"), "--bits", "4", "--group-size", "-1", "--quiet"]) == 0
    assert main(["quantize", source, str(tmp_path / "b"), "--bits", "4", "--group-size", "row", "--quiet"]) == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    out = capsys.readouterr().out
    assert "INT4, a scale per row, word table and head INT8" in out
    assert "error of the weights" in out
    assert main(["quantize", source, str(tmp_path / "c"), "--bits", "4", "--group-size", "x"]) == 2


def test_the_loss_is_that_of_the_whole_models(tmp_path: Path) -> None:
    """Layer by layer from the files, floats and integers, as in one piece."""
    text = "the loss is that of the whole model " * 40
    tokenizer = train_tokenizer([text], vocab_size=270)
    config = tiny_config(vocab_size=320, special=tokenizer.special)
    model = GLM(config)
    init_weights(model, config, 0)
    (tmp_path / "f").mkdir()
    write_model(tmp_path / "f", config, dict(model.state_dict()))
    quantize(tmp_path / "f", tmp_path / "q", Quantization.usual(4))
    batches = text_batches(tokenizer, config, text, 3)
    for name in ("f", "q"):
        whole = load_parts(tmp_path / name, dtype="float32").model
        (sums,) = [batch_loss()(whole, batch) for batch in batches]
        assert StreamedModel.open(open_checkpoint(tmp_path / name)).loss(batches) == pytest.approx(
            float(sums.cross_entropy_sum) / sums.num_targets, rel=1e-5
        )
    # Floats of which the matrices are rounded on the way are the same as those that were written.
    rounded = StreamedModel.open(open_checkpoint(tmp_path / "f"), open_checkpoint(tmp_path / "q").config)
    assert rounded.loss(batches) == StreamedModel.open(open_checkpoint(tmp_path / "q")).loss(batches)


# --- memory -----------------------------------------------------------------------------------------------------------

_WIDE = {"hidden_size": 768, "num_layers": 6, "num_heads": 12, "vocab_size": 8192, "ffn_size": 3072}
_MEASURE = """
import sys, torch
from glmkit.loading import load_parts
from glmkit.quantizing import quantize
from glmkit.config import Quantization
from glmkit.quant.native import library
import glmkit.session
library.kernels()
torch.randn(256, 256) @ torch.randn(256, 256)

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
kind, source, *rest = sys.argv[1:]
if kind == "load":
    model = load_parts(source, dtype="bfloat16", quantize=rest[0] or None).model
    model(torch.arange(8)[None])
else:
    quantize(source, rest[0], Quantization.usual(4))
print(status("VmHWM") - before)
"""


def peak(*arguments: str) -> int:
    """Bytes of memory, mapped pages among them, that a child process takes beyond what it had after its imports."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *arguments], capture_output=True, text=True, env=environment, check=True
    )
    return int(done.stdout)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 directory of 98 MB whose largest matrix has 12.6 MB."""
    folder = tmp_path_factory.mktemp("wide")
    config = tiny_config(**_WIDE)
    model = GLM(config).to(torch.bfloat16)
    write_model(folder, config, dict(model.state_dict()))
    return folder


_LARGEST = 8192 * 768 * 2
_SLACK = 24 << 20  # a block of rows in floats, activations, the allocator


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured through /proc")
def test_on_the_fly_never_holds_the_float_model(wide: Path) -> None:
    size = (wide / "model.safetensors").stat().st_size
    form = replace(open_checkpoint(wide).config, quantization=Quantization.usual(4))
    used = peak("load", str(wide), "int4")
    assert used <= weights_bytes(form, torch.bfloat16) + 2 * _LARGEST + _SLACK
    assert used < 0.9 * size


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured through /proc")
@pytest.mark.parametrize("bits", [8, 4])
def test_published_integers_are_repacked_without_doubling(bits: int, wide: Path, tmp_path: Path) -> None:
    quantize(wide, tmp_path / "q", Quantization(bits, True, packing="panels"))  # type: ignore[arg-type]
    size = (tmp_path / "q" / "model.safetensors").stat().st_size
    assert peak("load", str(tmp_path / "q"), "") <= 1.15 * size + _SLACK
    # The same in rows, as published layouts have it.
    checkpoint = open_checkpoint(tmp_path / "q")
    rows = GLMConfig.from_dict(
        {**checkpoint.config.to_dict(), "quantization": {"bits": bits, "embeddings": True, "packing": "rows"}}
    )
    state = {name: checkpoint.weights.read(name) for name in checkpoint.weights.names()}
    (tmp_path / "rows").mkdir()
    write_model(tmp_path / "rows", rows, packed_as("rows", state, checkpoint.config))
    assert peak("load", str(tmp_path / "rows"), "") <= 1.15 * size + _SLACK


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured through /proc")
def test_quantising_holds_a_matrix_at_a_time(wide: Path, tmp_path: Path) -> None:
    assert peak("quantize", str(wide), str(tmp_path / "q")) <= 2 * _LARGEST + _SLACK
