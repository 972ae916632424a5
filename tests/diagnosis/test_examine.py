"""The doctor against directories broken in every way that users report; it names the trouble and never crashes."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diagnosis.directories import (
    chatglm_directory,
    chatglm_settings,
    chatglm_tensors,
    glm_directory,
    glm_tensors,
    write_json,
)
from glmkit.diagnosis.examine import examine
from glmkit.diagnosis.finding import Finding
from glmkit.diagnosis.report import Report

pytestmark = pytest.mark.sampled(4)

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234567\n"
SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


def texts(report: Report, *levels: str) -> list[str]:
    return [f"{f.what} -> {f.next_step}" for f in report.findings if f.level in levels]


def only(report: Report, level: str, *words: str) -> Finding:
    """The one finding of a level that has all of `words` in it."""
    fitting = [
        f for f in report.findings if f.level == level and all(word in f"{f.what} {f.next_step}" for word in words)
    ]
    assert len(fitting) == 1, f"{words} in {report.findings}"
    return fitting[0]


def test_a_complete_directory_is_usable(tmp_path: Path) -> None:
    report = examine(chatglm_directory(tmp_path / "m"))
    assert report.usable, report.findings
    assert texts(report, "error") == []
    facts = report.facts
    assert (facts["family"], facts["layers"], facts["width"], facts["vocabulary"]) == ("chatglm", 2, 32, 96)
    assert facts["stored"] == ["float32"]
    tensors = chatglm_tensors()
    assert facts["tensor_bytes"] == sum(tensor.numel() * 4 for tensor in tensors.values())
    head, buffers = 96 * 32, 2 * 2  # the head repeats the table, the frequencies are no parameters
    assert facts["parameters"] == sum(tensor.numel() for tensor in tensors.values()) - head - buffers
    only(report, "ok", "36 tensors in 3 shards, all there") if len(tensors) == 36 else only(report, "ok", "3 shards")
    only(report, "warning", "no tokenizer files of ChatGLM-6B")
    json.dumps(report.to_dict())


def test_the_forecast_is_counted(tmp_path: Path) -> None:
    report = examine(glm_directory(tmp_path / "m"))
    total = sum(tensor.numel() for tensor in glm_tensors().values())
    uses = {use.name: use.num_bytes for use in report.forecast}
    assert uses["load as stored"] == uses["load in float32"] == 4 * total
    assert uses["load in bfloat16"] == 2 * total
    linears, rows = 12 * 32 * 32, 3 * 32 + 32 + 128 + 32
    table = len(glm_tensors()["glm.word_embeddings.weight"])
    rest = 2 * (total - 2 * linears - 32 * table) + 32 * table + 4 * table
    assert uses["load in INT8"] == rest + 2 * (linears + 4 * rows)
    assert uses["load in INT4"] == rest + 2 * (linears // 2 + linears // 32 + 4 * rows)
    assert uses["fine-tune everything"] == 16 * total
    assert uses["P-Tuning v2"] == 2 * total + 16 * 128 * 2 * 2 * 32
    assert uses["fine-tune with LoRA"] == 2 * total + 16 * 2 * 3 * 8 * (32 + 32)
    assert all(use.fits_ram for use in report.forecast)


# --- one thing broken -------------------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    write_json(path, values)


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


BROKEN: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "pointer": (lambda d: (d / SHARD).write_text(POINTER), ("git-lfs pointer", SHARD, "git lfs pull")),
    "pointer instead of the config": (lambda d: (d / "config.json").write_text(POINTER), ("git-lfs", "config.json")),
    "pointer instead of a tokenizer": (
        lambda d: (d / "ice_text.model").write_text(POINTER),
        ("git-lfs", "ice_text.model"),
    ),
    "web page": (lambda d: (d / SHARD).write_text("<!DOCTYPE html><html>404</html>"), ("web page", SHARD)),
    "empty shard": (lambda d: (d / SHARD).write_bytes(b""), ("empty", SHARD)),
    "missing shard": (lambda d: (d / SHARD).unlink(), ("1 of 3 shards", SHARD, "download")),
    "shard cut in the data": (lambda d: cut(d / SHARD, 0.7), (SHARD,)),
    "shard cut in the header": (lambda d: cut(d / SHARD, 0.01), (SHARD,)),
    "shard of noise": (lambda d: (d / SHARD).write_bytes(os.urandom(4096)), (SHARD,)),
    "another shard under its name": (
        lambda d: shutil.copy(d / "model-00001-of-00003.safetensors", d / SHARD),
        (f"{SHARD} lacks", "download both again"),
    ),
    "index of another type": (lambda d: (d / INDEX).write_text("[1]"), (INDEX, "not an object")),
    "index that is no json": (lambda d: (d / INDEX).write_text('{"weight_map": {'), (INDEX, "JSON")),
    "index that points outside": (
        lambda d: write_json(d / INDEX, {"weight_map": {"a": "../../etc/passwd"}}),
        ("no file beside the index",),
    ),
    "config that is no json": (lambda d: (d / "config.json").write_text("{"), ("config.json",)),
    "config that is a list": (lambda d: (d / "config.json").write_text("[]"), ("config.json",)),
    "config of an unknown model": (
        lambda d: write_json(d / "config.json", {"model_type": "gpt2", "vocab_size": 96}),
        ("gpt2",),
    ),
    "config without a size": (
        lambda d: rewrite(d / "config.json", lambda values: values.pop("hidden_size")),
        ("hidden_size",),
    ),
    "width that does not fit": (
        lambda d: rewrite(d / "config.json", lambda values: values.update(inner_hidden_size=64)),
        ("dense_h_to_4h",),
    ),
    "one layer too many": (
        lambda d: rewrite(d / "config.json", lambda values: values.update(num_layers=3)),
        ("layers.2",),
    ),
    "weights of the other vocabulary": (
        lambda d: write_json(d / "config.json", chatglm_settings(64, 50)),
        ("96", "64"),
    ),
    "ids of the other vocabulary": (
        lambda d: write_json(d / "config.json", chatglm_settings(96, 20090)),
        ("special id eos=20095", "96", "different releases"),
    ),
    "an unfinished conversion": (lambda d: (d / ".conversion.json").write_text("{}"), ("not finished", "glm convert")),
    "a broken link": (lambda d: ((d / SHARD).unlink(), (d / SHARD).symlink_to("gone")), (SHARD, "link")),
    "a pipe": (lambda d: os.mkfifo(d / "pipe.bin"), ("neither files nor directories", "pipe.bin")),
    "a pipe as config": (
        lambda d: ((d / "config.json").unlink(), os.mkfifo(d / "config.json")),
        ("neither files nor directories", "config.json"),
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_directory_is_explained(case: str, tmp_path: Path) -> None:
    directory = chatglm_directory(tmp_path / "m")
    damage, words = BROKEN[case]
    damage(directory)
    report = examine(directory)
    assert not report.usable
    errors = texts(report, "error")
    assert any(all(word in text for word in words) for text in errors), errors
    assert all("\n" not in text for text in errors)
    assert len(errors) <= 4, "one trouble, many messages"
    json.dumps(report.to_dict())


@pytest.mark.parametrize("case", BROKEN)
def test_deep_does_not_crash_either(case: str, tmp_path: Path) -> None:
    directory = chatglm_directory(tmp_path / "m")
    BROKEN[case][0](directory)
    assert not examine(directory, deep=True).usable


HARMLESS: dict[str, tuple[Callable[[Path], object], str, tuple[str, ...]]] = {
    "optimizer": (lambda d: (d / "optimizer.pt").write_bytes(b"x" * 2048), "note", ("optimizer.pt", "not used")),
    "leftover": (
        lambda d: (d / "x.safetensors.incomplete").write_bytes(b"x"),
        "warning",
        ("interrupted", "incomplete"),
    ),
    "surplus shard": (
        lambda d: shutil.copy(d / SHARD, d / "model-00004-of-00003.safetensors"),
        "warning",
        ("does not name", "model-00004"),
    ),
    "total size": (
        lambda d: rewrite(d / INDEX, lambda values: values["metadata"].update(total_size=7)),
        "warning",
        ("promises 7 bytes",),
    ),
    "pointers of another copy": (
        lambda d: [(d / f"pytorch_model-0000{n}-of-00003.bin").write_text(POINTER) for n in (1, 2, 3)],
        "ok",
        ("tensors in 3 shards",),
    ),
    "an empty note": (lambda d: (d / "requirements.txt").write_text(""), "warning", ("requirements.txt", "empty")),
    "a head of its own": (
        lambda d: torch.save({"score.weight": torch.ones(2, 32)}, d / "classifier.bin"),
        "note",
        ("not read", "classifier.bin"),
    ),
    "an adapter beside it": (
        lambda d: write_json(d / "adapter_config.json", {"r": 8}),
        "note",
        ("adapter lies beside", "adapter_config.json"),
    ),
    "a conversion beside it": (lambda d: d.with_name("m.partial").mkdir(), "note", ("m.partial",)),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_harmless_things_are_named(case: str, tmp_path: Path) -> None:
    directory = chatglm_directory(tmp_path / "m")
    change, level, words = HARMLESS[case]
    change(directory)
    report = examine(directory)
    assert report.usable, report.findings
    only(report, level, *words)


# --- no model at all --------------------------------------------------------------------------------------------------


def test_an_empty_directory(tmp_path: Path) -> None:
    only(examine(tmp_path), "error", "the directory is empty")


def test_something_else(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"\xff\xd8")
    only(examine(tmp_path), "error", "no model")


def test_a_config_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", chatglm_settings())
    only(examine(tmp_path), "error", "no weight files", "download")


@pytest.mark.parametrize("inner", ["chatglm-6b", "snapshots/0123abcd"])
def test_one_level_too_high(inner: str, tmp_path: Path) -> None:
    chatglm_directory(tmp_path / inner)
    only(examine(tmp_path), "error", f"give {tmp_path / inner} instead")


def test_a_pickle_that_would_run_something(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "harm"),)

    directory = glm_directory(tmp_path / "m")
    torch.save({**glm_tensors(), "bomb": Bomb()}, directory / "pytorch_model.bin", pickle_module=pickle)
    report = examine(directory)
    assert not report.usable
    assert any("pytorch_model.bin" in text and "mkdir" in text for text in texts(report, "error")), report.findings
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "name", ["\x1b[31mred.bin", "new\nline.bin", os.fsdecode(b"latin\xff.bin"), "[bold].bin", "模型.bin"]
)
def test_names_that_no_terminal_should_see(name: str, tmp_path: Path) -> None:
    directory = glm_directory(tmp_path / "m")
    (directory / name).write_bytes(b"")
    report = examine(directory)
    text = json.dumps(report.to_dict(), ensure_ascii=False)
    assert text.encode("utf-8")
    assert text.isprintable()
    assert report.usable


STRANGE: dict[str, Any] = {
    "text": {"vocab_size": "many"},
    "negative": {"num_layers": -3},
    "huge": {"num_layers": 10**12},
    "float": {"hidden_size": 32.5},
    "infinite": {"layernorm_epsilon": float("inf")},
    "null": {"num_attention_heads": None},
    "list": {"hidden_size": [32]},
    "nested": {"num_layers": {"a": {"b": 1}}},
    "bool": {"vocab_size": True},
    "type": {"model_type": ["glm"]},
    "escape": {"_name_or_path": "\ud800\x1b[2J"},
    "kind": {"model_type": 7, "architectures": 3},
}


@pytest.mark.parametrize("case", STRANGE)
def test_strange_settings(case: str, tmp_path: Path) -> None:
    directory = glm_directory(tmp_path / "m")
    rewrite(directory / "config.json", lambda values: values.update(STRANGE[case]))
    report = examine(directory)
    assert report.usable == (case == "escape"), report.findings
    assert not any("made a check fail" in finding.what for finding in report.findings), report.findings
    assert json.dumps(report.to_dict(), ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize("text", ["", "\x00\xff", "..", "../..", "/etc", "a/b", "x" * 5000, "nowhere"])
def test_strange_tags(text: str, tmp_path: Path) -> None:
    (tmp_path / "latest").write_bytes(text.encode("latin-1"))
    (tmp_path / "49300").mkdir()
    torch.save({"module": glm_tensors()}, tmp_path / "49300" / "mp_rank_00_model_states.pt")
    report = examine(tmp_path)
    assert json.dumps(report.to_dict(), ensure_ascii=False).encode("utf-8")
    assert not report.usable


def test_the_deepest_json(tmp_path: Path) -> None:
    directory = glm_directory(tmp_path / "m")
    (directory / "config.json").write_text('{"a":' + "[" * 100_000)
    (directory / "pytorch_model.bin.index.json").write_text("[" * 100_000)
    assert not examine(directory).usable


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_never_raises(seed: int, tmp_path: Path) -> None:
    """Flipped, cut and doubled files of every kind: a report, whatever it says."""
    generator = torch.Generator().manual_seed(seed)
    directory = (glm_directory if seed % 2 else chatglm_directory)(tmp_path / "m")
    for path in sorted(directory.iterdir()):
        data = bytearray(path.read_bytes())
        kind, place = torch.randint(0, 1 << 30, (2,), generator=generator).tolist()
        if kind % 3 == 0:
            for step in range(20):
                data[(place * (step + 1)) % len(data)] ^= 1 << step % 8
        elif kind % 3 == 1:
            data = data[: place % len(data)]
        path.write_bytes(bytes(data))
    json.dumps(examine(directory, deep=True).to_dict())


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_deep_finds_what_is_not_finite(tmp_path: Path) -> None:
    directory = glm_directory(tmp_path / "m")
    tensors = glm_tensors()
    tensors["glm.transformer.layers.1.mlp.dense_h_to_4h.weight"][3, 5:8] = float("nan")
    tensors["glm.transformer.layers.0.attention.dense.weight"][0, 0] = float("inf")
    tensors["glm.transformer.layers.0.attention.query_key_value.weight"].zero_()
    torch.save(tensors, directory / "pytorch_model.bin")
    assert examine(directory).usable
    seen: list[tuple[int, int]] = []
    report = examine(directory, deep=True, progress=lambda done, total: seen.append((done, total)))
    assert not report.usable
    finding = only(report, "error", "not finite")
    assert "layers.1.mlp.dense_h_to_4h.weight (3 of 4,096)" in finding.what
    assert "layers.0.attention.dense.weight (1 of 1,024)" in finding.what
    only(report, "warning", "zeros", "query_key_value")
    assert seen[-1][0] == seen[-1][1] == sum(tensor.numel() * 4 for tensor in tensors.values())
