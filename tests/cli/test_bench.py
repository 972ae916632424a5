"""`glm bench`: every key for scripts, numbers that agree with one another; never how fast this machine is."""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glmkit.checkpoint.native import write_model
from glmkit.cli import bench
from glmkit.cli.parser import OneLineParser
from glmkit.config import Quantization
from glmkit.diagnosis.speed import random_model, slower_than_floats, step_tensors
from glmkit.errors import ConfigError, RequestError
from glmkit.quant.layers import QuantMatrix
from glmkit.quant.native import library
from support.tiny import tiny_config, tiny_model

KEYS = {
    "model", "family", "random", "device", "dtype", "quantization", "compute", "kernels", "kernels_reason", "threads",
    "memory_nodes", "parameters", "weights_bytes", "step_bytes", "load_seconds", "first_token_seconds",
    "load_to_first_token_seconds", "rss_before_bytes", "peak_bytes", "prefill", "decode", "repetitions", "new_tokens",
    "notes",
}  # fmt: skip
SHORT = ("--prompt", "16,32", "--rows", "1,3", "--new", "6", "--repetitions", "1")
READS = library.kernels().there


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "m"
    folder.mkdir()
    model = tiny_model(hidden_size=64)
    write_model(folder, model.config, dict(model.named_parameters()))
    return folder


def run(*arguments: str) -> int:
    parser = OneLineParser(prog="glm bench")
    bench.add_arguments(parser)
    return bench.run(parser.parse_args(list(arguments)))


def measured(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(*arguments, "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    values: dict[str, Any] = json.loads(line)
    assert set(values) == KEYS
    return values


def check(values: dict[str, Any]) -> None:
    """Numbers of one report agree."""
    both = values["load_seconds"] + values["first_token_seconds"]
    assert values["load_to_first_token_seconds"] == pytest.approx(both)
    assert [row["tokens"] for row in values["prefill"]] == [16, 32]
    assert [row["rows"] for row in values["decode"]] == [1, 3]
    assert 0 < values["step_bytes"] <= values["weights_bytes"]
    assert values["peak_bytes"] >= values["rss_before_bytes"] >= 0
    assert values["kernels"] == library.kernels().level
    assert values["threads"] == library.thread_count()
    for row in values["decode"]:
        steps = row["tokens_per_second"] / row["rows"]
        assert row["bytes_per_second"] == pytest.approx(steps * values["step_bytes"])
        assert row["deviation"] == 0
        if READS:
            assert row["read_share"] == pytest.approx(row["bytes_per_second"] / row["read_bytes_per_second"])
        else:
            assert row["read_share"] is None


def test_a_float_directory(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = measured(capsys, str(directory), *SHORT)
    check(values)
    assert (values["random"], values["quantization"], values["compute"]) == (False, None, None)
    assert values["parameters"] == sum(p.numel() for p in tiny_model(hidden_size=64).parameters())
    assert values["dtype"] == "float32"


@pytest.mark.parametrize("compute", ["exact", "fast"])
def test_quantised_on_the_way_in(directory: Path, capsys: pytest.CaptureFixture[str], compute: str) -> None:
    values = measured(capsys, str(directory), "--quantize", "int4", "--compute", compute, *SHORT)
    check(values)
    assert values["compute"] == compute
    assert values["quantization"].startswith("int4, groups of 32")
    assert any(f"compute {compute}" in note for note in values["notes"])
    assert values["parameters"] == sum(p.numel() for p in tiny_model(hidden_size=64).parameters())


@pytest.mark.parametrize("quantize", [(), ("--quantize", "int8")])
def test_random_weights_of_a_shape(directory: Path, capsys: pytest.CaptureFixture[str], quantize: tuple[str]) -> None:
    values = measured(capsys, str(directory), "--random", "--dtype", "bfloat16", *quantize, *SHORT)
    check(values)
    assert values["random"]
    assert values["dtype"] == "bfloat16"
    assert (values["compute"] is None) == (not quantize)


def test_the_page_for_people(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(directory), *SHORT) == 0
    captured = capsys.readouterr()
    for words in ("prefill of 16", "decode, 1 row ", "decode, 3 rows", "of the read rate", "kernels", "first token"):
        assert words in captured.out
    assert captured.err.splitlines()[0] == "glm bench: loading"


def test_wrong_arguments_are_one_line(directory: Path) -> None:
    with pytest.raises(RequestError) as long:
        run(str(directory), "--prompt", "512")
    assert long.value.param == "prompt"
    with pytest.raises(RequestError) as adapter:
        run(str(directory), "--random", "--adapter", "x")
    assert adapter.value.param == "random"
    with pytest.raises(ConfigError):
        run("no-such-preset", "--random")
    with pytest.raises(RequestError):
        run(str(directory), "--rows", "0")


@pytest.mark.parametrize("tied", [True, False])
def test_tables_that_are_looked_up_are_no_bytes_of_a_step(tied: bool) -> None:
    model = tiny_model(tie_embeddings=tied)
    names = {tensor.data_ptr(): name for name, tensor in model.named_parameters()}
    read = {names[tensor.data_ptr()] for tensor in step_tensors(model)}
    tables = {name for name in names.values() if name.startswith("model.embed_")}
    assert read | tables == set(names.values())
    assert read & tables == ({"model.embed_tokens.weight"} if tied else set())


@pytest.mark.skipif(not READS, reason="needs a C compiler")
@pytest.mark.parametrize("streams", [1, 4])
def test_reading_covers_whole_lines(streams: int) -> None:
    tensors = [torch.zeros(count, dtype=torch.uint8) for count in (0, 63, 64, 1000, 1 << 20)]
    assert library.read(tensors, streams) == sum(len(tensor) // 64 * 64 for tensor in tensors)


def test_random_weights_differ_and_are_finite() -> None:
    config = tiny_config(hidden_size=64)
    model = random_model(config, torch.float32, None)
    ids = torch.arange(11, 27)[None]
    logits = model(ids).float()
    assert logits.isfinite().all()
    assert statistics.stdev(logits[0, -1].tolist()) > 0


def test_a_slow_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that lose against floats name the way out; a float model has nothing to tell."""
    config = replace(tiny_config(hidden_size=64), quantization=Quantization.usual(8))
    model = random_model(config, torch.float32, "exact")
    large = torch.ones(1024, 1024)
    monkeypatch.setattr(QuantMatrix, "product", lambda self, x: large @ large)
    one_row, prompt = slower_than_floats(model)
    assert "of one row" in one_row
    assert "without quantize" in prompt
    assert slower_than_floats(tiny_model()) == []
