"""Calibration from end to end on small models: losses, the report, kills, texts that help little, memory."""

import gc
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmkit.adapters.adapter import Base
from glmkit.adapters.base_facts import base_facts, compare_bases
from glmkit.checkpoint.native import write_model
from glmkit.checkpoint.open import open_checkpoint
from glmkit.cli.main import main
from glmkit.config import Quantization
from glmkit.data.packing import Batch
from glmkit.data.text_rows import text_batches
from glmkit.errors import CheckpointError, RequestError
from glmkit.loading import load_parts
from glmkit.quant.calibration import Method, layer
from glmkit.quant.calibration.gptq import Factor, factor
from glmkit.quantizing import choose_form, quantize
from glmkit.streaming import StreamedModel
from glmkit.tokenizer.training import train_tokenizer
from support.tiny import tiny_model

METHODS: list[Method] = ["weighted", "gptq", "awq", "awq-gptq"]
ROW = Quantization(4, packing="panels")  # a scale per row: where rounding costs most
BLANKS: dict[str, Any] = {"positions": "rope_2d"}
CHAT: dict[str, Any] = {
    "mask": "causal",
    "positions": "rope",
    "mlp": "swiglu",
    "norm": "rms",
    "bias": "qkv",
    "num_kv_heads": 2,
    "tie_embeddings": False,
}


def source_text(name: str, size: int) -> str:
    """The beginning of a module of the standard library: real text that every machine has."""
    return (Path(json.__file__).parents[1] / name).read_text(encoding="utf-8")[:size]


CALIBRATION, HELD_OUT = source_text("argparse.py", 9_000), source_text("shutil.py", 6_000)


def write_small(
    folder: Path, kind: dict[str, Any], *, outliers: bool = False, dtype: torch.dtype = torch.float32
) -> None:
    """A model whose words lie along few directions, as trained ones do; outliers: of some channels of the norms."""
    tokenizer = train_tokenizer([CALIBRATION], vocab_size=320)
    model = tiny_model(
        **{"hidden_size": 96, **kind}, vocab_size=320, max_positions=512, special=tokenizer.special, init_std=0.15
    )
    random = torch.Generator().manual_seed(0)
    table = model.model.embed_tokens
    assert table is not None
    width = model.config.hidden_size
    turned = torch.linalg.qr(torch.randn(width, width, generator=random)).Q
    table.weight.data = 0.5 * torch.randn(320, width, generator=random) * torch.logspace(0, -1.5, width) @ turned
    if outliers:
        for name, value in model.named_parameters():
            if "layernorm" in name and "bias" not in name:
                value.data[::24] *= 15
    folder.mkdir()
    write_model(folder, model.config, dict(model.to(dtype).state_dict()))
    tokenizer.save(folder)


@pytest.fixture(scope="module")
def blanks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "blanks"
    write_small(folder, BLANKS)
    return folder


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "chat"
    write_small(folder, CHAT, outliers=True, dtype=torch.bfloat16)
    return folder


def own_words(directory: Path) -> list[Batch]:
    """Held-out rows whose targets the float model has drawn: any other model has a larger loss on them."""
    parts = load_parts(directory, dtype="float32")
    made = []
    random = torch.Generator().manual_seed(0)
    for batch in text_batches(parts.tokenizer, parts.config, HELD_OUT, 40):
        logits = parts.model(batch.input_ids, position_ids=batch.position_ids, segments=batch.segments)
        drawn = torch.multinomial(logits[0].softmax(-1), 1, generator=random).T
        made.append(replace(batch, targets=drawn))
    return made


def loss(directory: Path, batches: list[Batch]) -> float:
    return StreamedModel.open(open_checkpoint(directory)).loss(batches)


@pytest.mark.parametrize(("model", "scaled"), [("blanks", False), ("chat", True)])
def test_calibrated_models_lose_less(model: str, scaled: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Of the loss that rounding to the nearest costs, GPTQ leaves less than half; scaling helps where outliers are."""
    source = request.getfixturevalue(model)
    batches = own_words(source)
    before = loss(source, batches)
    quantize(source, tmp_path / "nearest", ROW, rounding="nearest")
    nearest = loss(tmp_path / "nearest", batches) - before
    lost = {}
    for method in METHODS if scaled else METHODS[:2]:
        report = quantize(source, tmp_path / method, ROW, calibration=CALIBRATION, method=method)
        assert report.method == method
        assert [error.outputs is None for error in report.errors].count(False) == 2
        lost[method] = loss(tmp_path / method, batches) - before
    assert 0 < lost["gptq"] < 0.5 * nearest
    assert lost["gptq"] < lost["weighted"] < nearest
    if scaled:
        assert lost["awq-gptq"] < 0.5 * nearest
        assert lost["awq"] < 0.9 * lost["weighted"]


def test_the_same_inputs_give_the_same_bytes_and_the_source_keeps_its_own(blanks: Path, tmp_path: Path) -> None:
    stored = (blanks / "model.safetensors").read_bytes()
    for name in ("a", "b"):
        quantize(blanks, tmp_path / name, Quantization.usual(4), calibration=CALIBRATION[:2000], method="awq-gptq")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert (blanks / "model.safetensors").read_bytes() == stored


def test_the_verb_prints_errors_and_losses_beside_those_of_the_nearest(
    chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("calibration", CALIBRATION[:3000]), ("text", HELD_OUT)):
        (tmp_path / name).write_text(text)
    files = ["--calibrate", str(tmp_path / "calibration"), "--text", str(tmp_path / "text")]
    assert main(["quantize", str(chat), str(tmp_path / "q"), "--bits", "4", *files, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == "gptq"
    assert [error["name"] for error in report["errors"]] == ["tables", "layer 0", "layer 1"]
    assert all(0 < error["outputs"] < error["relative"] for error in report["errors"][1:])
    quantize(chat, tmp_path / "nearest", Quantization.usual(4), rounding="nearest")
    (batches,) = [text_batches(load_parts(chat).tokenizer, load_parts(chat).config, HELD_OUT, 8)]
    losses = [loss(path, batches) for path in (chat, tmp_path / "q", tmp_path / "nearest")]
    assert [report[f"loss_{name}"] for name in ("before", "after", "nearest")] == pytest.approx(losses, rel=1e-6)
    assert main(["quantize", str(chat), str(tmp_path / "r"), "--bits", "4", *files, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "rounding: gptq on the text, scales searched" in out
    assert "error of the outputs on the calibration text" in out
    assert (
        f"{losses[1]:.4f} ({100 * (losses[1] / losses[0] - 1):+.2f} %); rounded to the nearest {losses[2]:.4f}" in out
    )


def test_an_adapter_of_the_float_model_is_warned_about_scaled_inputs_alone(chat: Path, tmp_path: Path) -> None:
    recorded, told = base_facts(Base(load_parts(chat, dtype="float32").model)), {}
    for method in METHODS[1:3]:
        quantize(chat, tmp_path / method, Quantization.usual(4), calibration=CALIBRATION[:3000], method=method)
        here = base_facts(Base(load_parts(tmp_path / method, dtype="float32").model))
        told[method] = [text for text in compare_bases(recorded, here, "a").warnings if "other weights" in text]
    assert told["gptq"] == []
    assert "input_layernorm" in told["awq"][0]


def test_a_published_layout_holds_calibrated_numbers(blanks: Path, tmp_path: Path) -> None:
    """Numbers as they were made; the scales, which were searched, in float16."""
    form = choose_form(4, layout="huggingface")
    source = tmp_path / "chatglm"
    write_small(source, {"positions": "rope_2d", "residual": "deepnorm", "blank_order": "gmask_first", "num_layers": 2})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "family": "chatglm"}))
    made = {}
    for layout in ("glmkit", "huggingface"):
        own = replace(form, packing="panels")
        quantize(source, tmp_path / layout, own, layout=layout, calibration=CALIBRATION[:2000], method="gptq")
        made[layout] = load_parts(tmp_path / layout, dtype="float32").model.state_dict()
    for name, value in made["glmkit"].items():
        other = made["huggingface"][name]
        assert torch.equal(value, other) if value.dtype == torch.uint8 else torch.allclose(value, other, rtol=1e-3)


# --- texts and models that something is wrong with --------------------------------------------------------------------


@pytest.mark.parametrize(("text", "words"), [("", "has 0 tokens, 16 is the least"), ("two words", "give a longer one")])
def test_a_text_that_is_too_short_is_refused(
    text: str, words: str, blanks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text(text)
    verb = ["quantize", str(blanks), str(tmp_path / "q"), "--bits", "4", "--calibrate", str(tmp_path / "text")]
    assert main(verb) == 2
    error = capsys.readouterr().err
    assert "--calibrate" in error
    assert words in error
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_one_line_is_enough_and_said_to_be_little(blanks: Path, tmp_path: Path) -> None:
    line = "    def add_argument(self, *names, metavar=None, default=None, help='one of the values'):"
    report = quantize(blanks, tmp_path / "q", Quantization.usual(4), calibration=line)
    assert "fewer than the 96 columns of a row" in report.notes[-1]
    assert all(error.outputs is None or error.outputs < 0.2 for error in report.errors)
    load_parts(tmp_path / "q")


def test_a_loss_on_the_calibration_text_is_told(blanks: Path, tmp_path: Path) -> None:
    form = Quantization.usual(4)
    report = quantize(blanks, tmp_path / "q", form, calibration=CALIBRATION[:2500], text=CALIBRATION[:2000])
    assert any("measured on the calibration text itself" in note for note in report.notes)
    report = quantize(blanks, tmp_path / "r", form, calibration=CALIBRATION[:2500], text=HELD_OUT)
    assert not any("calibration text itself" in note for note in report.notes)


def test_a_method_needs_a_text(blanks: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the method gptq needs a calibration text") as caught:
        quantize(blanks, tmp_path / "q", ROW, method="gptq")
    assert caught.value.param == "method"


def test_a_model_without_a_tokenizer_cannot_read_a_text(blanks: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((blanks / name).read_bytes())
    with pytest.raises(RequestError, match="has no tokenizer for the calibration text"):
        quantize(tmp_path / "bare", tmp_path / "q", ROW, calibration=CALIBRATION)


def damaged(source: Path, made: Path, name: str, value: float) -> Path:
    made.mkdir()
    for path in source.iterdir():
        (made / path.name).write_bytes(path.read_bytes())
    state = load_file(made / "model.safetensors")
    state[name].view(-1)[7] = value
    save_file(state, made / "model.safetensors", metadata={"format": "pt"})
    return made


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize(
    ("value", "told"), [(1e30, "layer 0: the inputs of mlp.down_proj"), (3e38, "layer [01]: the in")]
)
def test_inputs_that_overflow_are_refused_with_their_layer(
    method: Method, value: float, told: str, blanks: Path, tmp_path: Path
) -> None:
    source = damaged(blanks, tmp_path / "s", "model.layers.0.mlp.up_proj.bias", value)
    with pytest.raises(RequestError, match=told) as caught:
        quantize(source, tmp_path / "q", ROW, calibration=CALIBRATION[:2000], method=method)
    assert caught.value.param == "calibrate"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_weight_that_is_none_is_refused_by_its_name(blanks: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    source = damaged(blanks, tmp_path / "s", name, float("nan"))
    with pytest.raises(CheckpointError, match=f"NaN or infinite values in {name}"):
        quantize(source, tmp_path / "q", ROW, calibration=CALIBRATION[:2000])
    assert not (tmp_path / "q").exists()


def test_a_layer_whose_inputs_are_zero_is_rounded_to_the_nearest_and_named(blanks: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for path in blanks.iterdir():
        (tmp_path / "s" / path.name).write_bytes(path.read_bytes())
    state = load_file(blanks / "model.safetensors")
    for part in ("weight", "bias"):
        state[f"model.layers.1.post_attention_layernorm.{part}"].zero_()
    save_file(state, tmp_path / "s" / "model.safetensors", metadata={"format": "pt"})
    for method in METHODS:
        report = quantize(tmp_path / "s", tmp_path / method, ROW, calibration=CALIBRATION[:2000], method=method)
        told = [note for note in report.notes if note.startswith("layer 1: mlp.up_proj: rounded to the nearest")]
        assert len(told) == method.endswith("gptq")
        model = load_parts(tmp_path / method, dtype="float32").model
        assert model(torch.arange(20)[None]).isfinite().all()


_RUN = """
import sys
from glmkit.config import Quantization
from glmkit.quantizing import quantize

def show(label, done, total):
    print(label, flush=True)

quantize(sys.argv[1], sys.argv[2], Quantization.usual(4), calibration=open(sys.argv[3]).read(), progress=show)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive)])
def test_a_killed_run_leaves_nothing_that_looks_like_a_model(
    number: signal.Signals, blanks: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text(CALIBRATION[:3000])
    command = [sys.executable, "-c", _RUN, str(blanks), str(tmp_path / "q"), str(tmp_path / "text")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "quantising layer 1":
                process.send_signal(number)
                break
    assert not (tmp_path / "q").exists()
    quantize(blanks, tmp_path / "q", Quantization.usual(4), calibration=CALIBRATION[:3000])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q", "text"]
    load_parts(tmp_path / "q")


# --- memory -----------------------------------------------------------------------------------------------------------


def test_one_layer_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twelve layers: the floats of one, a Gram matrix or two, and the rows' hidden states."""
    write_small(tmp_path / "s", {**BLANKS, "num_layers": 12}, dtype=torch.bfloat16)
    held: list[int] = []

    def counted(gram_CC: torch.Tensor) -> Factor | None:
        found = {
            value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
            for value in gc.get_objects()
            if type(value) in (torch.Tensor, torch.nn.Parameter) and value.dtype == torch.float32 and not value.is_meta
        }
        held.append(sum(found.values()))
        return factor(gram_CC)

    gc.collect()
    before = len(held)
    monkeypatch.setattr(layer, "factor", counted)
    batches = text_batches(load_parts(tmp_path / "s").tokenizer, load_parts(tmp_path / "s").config, CALIBRATION, 64)
    gc.collect()
    counted(torch.eye(2))
    quantize(tmp_path / "s", tmp_path / "q", Quantization.usual(4), calibration=CALIBRATION)
    others, *during = held[before:]
    assert len(during) == 12 * 4
    one, widest, hidden = 13 * 96**2 * 4, (4 * 96) ** 2 * 4, sum(batch.num_tokens for batch in batches) * 96 * 4
    assert max(during) - others < one + 2 * widest + 2 * hidden
    assert max(during[24:]) - others < 1.1 * (max(during[:24]) - others)  # later layers hold no more
