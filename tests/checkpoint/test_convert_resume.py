"""Killed conversions go on; mistakes are refused; nothing half done is left. Needs no recorded checkpoints."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint.published import assert_same_ranks, read_ranks
from glmkit.checkpoint.conversion import conversion
from glmkit.checkpoint.conversion.conversion import convert
from glmkit.checkpoint.conversion.journal import JOURNAL_FILE
from glmkit.checkpoint.conversion.transfer import Step
from glmkit.checkpoint.native import write_model
from glmkit.checkpoint.open import open_checkpoint
from glmkit.checkpoint.weights import expected_tensors
from glmkit.config import GLMConfig, Quantization
from glmkit.errors import CheckpointError
from glmkit.families.family import all_families, family_named, preset


class KilledError(Exception):
    pass


def small(config: GLMConfig) -> GLMConfig:
    """A published size, scaled down; special ids moved into the small vocabulary."""
    special = config.special
    if special is not None:
        ids = {name: value for name, value in special.__dict__.items() if value is not None}
        places = {value: number for number, value in enumerate(sorted(set(ids.values())))}
        special = replace(special, **{name: places[value] for name, value in ids.items()})
    kv_heads = None if config.num_kv_heads is None else 2
    return replace(
        config, vocab_size=96, hidden_size=64, num_layers=3, num_heads=8, head_size=8, num_kv_heads=kv_heads,
        ffn_size=256, max_positions=64, special=special,
    )  # fmt: skip


def random_state(config: GLMConfig, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    expected = expected_tensors(config, dtype)
    return {name: torch.randn(info.shape, generator=generator).to(dtype) for name, info in expected.items()}


def own_directory(directory: Path, config: GLMConfig, dtype: torch.dtype = torch.float16) -> Path:
    directory.mkdir()
    write_model(directory, config, random_state(config, dtype))
    return directory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return own_directory(tmp_path / "source", small(preset("glm-large")))


def presets() -> list[str]:
    return [next(iter(family.presets)) for family in all_families().values() if family.presets]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", presets())
def test_every_family_to_all_its_layouts_and_back(name: str, tmp_path: Path) -> None:
    config = small(preset(name))
    source = own_directory(tmp_path / "source", config)
    layouts = family_named(config.family).layouts
    assert layouts
    for layout in layouts:
        for ranks in (1, 4) if layout.parallel else (1,):
            there, back = tmp_path / f"{layout.name}-{ranks}", tmp_path / f"{layout.name}-{ranks}-back"
            if config.tie_embeddings is False and not layout.aliases:
                continue
            report = convert(source, there, to=layout.name, tensor_parallel=ranks, family=config.family)
            assert report.ranks == len(read_ranks(there)) == ranks
            convert(there, back, to="glmkit", family=config.family)
            assert_same_ranks(read_ranks(back), read_ranks(source))


def test_eight_ranks_to_four_to_one(tmp_path: Path) -> None:
    config = small(preset("glm-130b"))
    source = own_directory(tmp_path / "source", config)
    convert(source, tmp_path / "eight", to="sat", tensor_parallel=8)
    convert(tmp_path / "eight", tmp_path / "four", to="sat", tensor_parallel=4)
    convert(tmp_path / "four", tmp_path / "one", to="sat", tensor_parallel=1)
    convert(tmp_path / "eight", tmp_path / "back", to="glmkit")
    four = read_ranks(tmp_path / "four")
    name = "transformer.layers.1.mlp.dense_h_to_4h.weight"
    eight = [rank[name].chunk(2) for rank in read_ranks(tmp_path / "eight")]
    assert torch.equal(four[0][name], torch.cat([eight[0][0], eight[1][0], eight[0][1], eight[1][1]]))
    assert_same_ranks(read_ranks(tmp_path / "back"), read_ranks(source))
    convert(source, tmp_path / "direct", to="sat", tensor_parallel=1)
    assert_same_ranks(read_ranks(tmp_path / "one"), read_ranks(tmp_path / "direct"))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kill_after", [0, 1, 3])
@pytest.mark.parametrize(
    ("to", "options"), [("huggingface", {"shard_size": "60KB"}), ("megatron", {"tensor_parallel": 4})]
)
def test_killed_conversion_goes_on(
    source: Path, tmp_path: Path, to: str, options: dict[str, Any], kill_after: int
) -> None:
    whole = tmp_path / "whole"
    report = convert(source, whole, to=to, **options)
    assert len(report.files) >= 4

    def kill(step: Step) -> None:
        if step.stage == "write" and step.file == report.files[kill_after]:
            raise KilledError

    destination, work = tmp_path / "made", tmp_path / "made.partial"
    with pytest.raises(KilledError):
        convert(source, destination, to=to, **options, progress=kill)
    assert not destination.exists()
    finished = report.files[:kill_after]
    before = {name: (work / name).stat() for name in finished}
    assert sorted(path for path in before) == sorted(
        str(path.relative_to(work)) for path in work.rglob("*") if path.suffix in (".safetensors", ".pt")
    )
    if finished:  # a hard kill leaves half a file
        (work / f".{report.files[-1].rpartition('/')[2]}.tmp-99999999").write_bytes(b"half")
    else:
        assert not work.exists()
    again = convert(source, destination, to=to, **options)
    assert again.resumed == finished
    assert not work.exists()
    for name, stat in before.items():
        now = (destination / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*"))
    assert sorted(str(path.relative_to(destination)) for path in destination.rglob("*")) == names
    for name in names:
        if (whole / name).is_file():
            assert (destination / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_damaged_finished_file_is_written_again(source: Path, tmp_path: Path) -> None:
    def kill(step: Step) -> None:
        if step.stage == "verify":
            raise KilledError

    with pytest.raises(KilledError):
        convert(source, tmp_path / "made", to="megatron", progress=kill)
    path = tmp_path / "made.partial" / "release" / "mp_rank_00_model_states.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    report = convert(source, tmp_path / "made", to="megatron")
    assert report.resumed == []
    convert(tmp_path / "made", tmp_path / "back", to="glmkit")
    assert_same_ranks(read_ranks(tmp_path / "back"), read_ranks(source))


def test_another_plan_is_refused_or_begun_again(source: Path, tmp_path: Path) -> None:
    def kill(step: Step) -> None:
        raise KilledError

    made = tmp_path / "made"
    with pytest.raises(KilledError):
        convert(source, made, to="paddle", progress=kill)
    # Nothing was finished, so nothing of the first plan stays.
    convert(source, tmp_path / "other", to="megatron", tensor_parallel=4)

    def kill_late(step: Step) -> None:
        if step.stage == "verify":
            raise KilledError

    with pytest.raises(KilledError):
        convert(source, made, to="paddle", progress=kill_late)
    with pytest.raises(CheckpointError, match=r'made.partial holds .* \(to was "paddle", now "megatron"\); --restart'):
        convert(source, made, to="megatron")
    (source / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"files: model.safetensors has changed"):
        convert(source, made, to="paddle")
    assert convert(source, made, to="megatron", restart=True).resumed == []
    assert not list(made.glob("*.pdparams"))


def test_foreign_partial_directory_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "made.partial").mkdir()
    (tmp_path / "made.partial" / "thesis.txt").write_text("precious")
    for restart in (False, True):
        with pytest.raises(CheckpointError, match="thesis.txt"):
            convert(source, tmp_path / "made", to="paddle", restart=restart)
    assert (tmp_path / "made.partial" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_that_are_not_finite_are_named(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    config = small(preset("glm-large"))
    state = random_state(config, dtype)
    state["model.layers.1.mlp.down_proj.weight"][5, 17] = value
    (tmp_path / "source").mkdir()
    write_model(tmp_path / "source", config, state)
    with pytest.raises(CheckpointError, match=r"model.layers.1.mlp.down_proj.weight.*(NaN|finite|inf)"):
        convert(tmp_path / "source", tmp_path / "made", to="paddle")
    assert not (tmp_path / "made").exists()


def test_values_too_large_for_float16(tmp_path: Path) -> None:
    config = small(preset("glm-large"))
    state = random_state(config, torch.float32)
    state["model.layers.0.mlp.up_proj.weight"][3, 1] = 70000.0
    (tmp_path / "source").mkdir()
    write_model(tmp_path / "source", config, state)
    with pytest.raises(CheckpointError, match="layers.0.mlp.dense_h_to_4h.weight.*float16"):
        convert(tmp_path / "source", tmp_path / "made", to="megatron", dtype="float16")
    convert(tmp_path / "source", tmp_path / "made", to="megatron", dtype="bfloat16", restart=True)


def test_verification_finds_one_changed_bit(source: Path, tmp_path: Path) -> None:
    def flip(step: Step) -> None:
        if step.stage == "verify" and step.done < step.total // 2:
            path = tmp_path / "made.partial" / "model_state.pdparams"
            with open(path, "r+b") as file:
                file.seek(path.stat().st_size * 4 // 5)
                byte = file.read(1)
                file.seek(-1, 1)
                file.write(bytes([byte[0] ^ 1]) if byte[0] not in (0x7B, 0x7C) else byte)

    with pytest.raises(CheckpointError, match="differs from the source in row"):
        convert(source, tmp_path / "made", to="paddle", progress=flip)
    assert not (tmp_path / "made").exists()


def test_mistakes_are_one_line(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str, **options: Any) -> None:
        values = {"source": source, "destination": tmp_path / "made", "to": "paddle", **options}
        with pytest.raises(CheckpointError, match=match) as error:
            convert(**values)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "made").exists()
        assert not (tmp_path / "made.partial").exists()

    refused("choose one of glmkit, huggingface, megatron, paddle", to="sat")
    refused("dtype 'int8' is unknown", dtype="int8")
    refused("cannot be cut over 3 ranks", tensor_parallel=3)
    refused("is not at least 1", tensor_parallel=0)
    refused("never cut over ranks", to="huggingface", tensor_parallel=2)
    refused("shard size 'big' is no size", to="huggingface", shard_size="big")
    refused("pdparams or safetensors only", weights="bin")
    refused("--weights bin means nothing here", to="megatron", weights="bin")
    refused("hold whole tensors", weights="safetensors", tensor_parallel=2)
    refused("--shard-size 1GB means nothing here", shard_size="1GB")
    refused("safetensors only", to="glmkit", weights="bin")
    refused("'gguf' is no kind of file", to="huggingface", weights="gguf")
    refused("same or one lies in the other", destination=source)
    refused("same or one lies in the other", destination=source / "made")
    (tmp_path / "there").mkdir()
    refused("there exists", destination=tmp_path / "there")
    refused("is not a directory", source=tmp_path / "nowhere")
    refused("is not a directory; make it first", destination=tmp_path / "no" / "made")
    usage = conversion.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    refused("0.0 GB free, the conversion needs 0.1 GB")


def quantized_state(config: GLMConfig) -> dict[str, torch.Tensor]:
    """Random packed integers, scales between 0.5 and 1.5 hundredths."""
    generator = torch.Generator().manual_seed(3)
    state = random_state(config, torch.float16)
    for name, info in expected_tensors(config, torch.float16).items():
        if info.dtype == torch.int8:  # numbers -7..7, as quantising makes them
            high, low = (torch.randint(-7, 8, info.shape, generator=generator) for _ in range(2))
            state[name] = (high * 16 + (low & 15)).to(torch.int8)
        elif name.endswith("_scale"):
            state[name] = (0.005 + 0.01 * torch.rand(info.shape, generator=generator)).half()
    return state


def test_int4_of_eight_ranks(tmp_path: Path) -> None:
    """To 16 ranks nothing changes; to 4 and 2 the matrices cut by columns do, by less than half a step."""
    config = small(preset("glm-130b"))
    config = replace(config, num_heads=16, head_size=4, quantization=Quantization(4, column_blocks=8))
    state = quantized_state(config)
    (tmp_path / "source").mkdir()
    write_model(tmp_path / "source", config, state)
    eight = tmp_path / "eight"
    convert(tmp_path / "source", eight, to="sat", tensor_parallel=8)
    report = convert(eight, tmp_path / "sixteen", to="sat", tensor_parallel=16, requantize=True)
    assert report.requantized == []
    assert "nothing had to be requantised" in report.notes
    found = open_checkpoint(tmp_path / "sixteen").weights
    name = "model.layers.2.mlp.down_proj.weight"
    assert torch.equal(found.read(name), state[name])
    assert torch.equal(found.read(f"{name}_scale"), state[f"{name}_scale"].repeat_interleave(2, dim=1))
    for ranks in (4, 2):
        with pytest.raises(CheckpointError, match="--requantize"):
            convert(eight, tmp_path / str(ranks), to="sat", tensor_parallel=ranks)
        report = convert(eight, tmp_path / str(ranks), to="sat", tensor_parallel=ranks, requantize=True)
        assert [(error.kind, error.matrices) for error in report.requantized] == [("o_proj", 3), ("down_proj", 3)]
        for error in report.requantized:
            assert 0 < error.rms <= error.largest <= 0.015 / 2 + 1e-4  # half of the largest scale, and fp16 rounding
            assert 0.01 < error.relative < 0.15
        found = open_checkpoint(tmp_path / str(ranks)).weights
        other = "model.layers.2.mlp.up_proj.weight"
        assert torch.equal(found.read(other), state[other])


def test_what_layouts_decide_differently_is_said(source: Path, tmp_path: Path) -> None:
    report = convert(source, tmp_path / "hub", to="huggingface")
    assert 'gelu is "tanh" in the source and "erf" in the huggingface layout' in report.notes
    assert convert(source, tmp_path / "paddle", to="paddle").notes == []
    chat = own_directory(tmp_path / "chat", small(preset("chatglm-6b")))
    notes = convert(chat, tmp_path / "chat-paddle", to="paddle").notes
    assert notes == [
        'rope_frequencies is "float16" in the source and "float32" in the paddle layout',
        f"deepnorm_alpha is {56**0.5} in the source and {6**0.5} in the paddle layout",  # of 3 layers, not 28
    ]


def test_second_copies_and_derived_tensors(tmp_path: Path) -> None:
    source = own_directory(tmp_path / "source", small(preset("chatglm-6b")))
    report = convert(source, tmp_path / "hub", to="huggingface", weights="bin")
    assert report.duplicated == ["lm_head.weight"]
    assert report.recomputed == [f"transformer.layers.{i}.attention.rotary_emb.inv_freq" for i in range(3)]
    (tensors,) = read_ranks(tmp_path / "hub")
    assert torch.equal(tensors["lm_head.weight"], tensors["transformer.word_embeddings.weight"])
    frequencies = tensors["transformer.layers.2.attention.rotary_emb.inv_freq"]
    assert frequencies.dtype == torch.float16
    assert torch.equal(frequencies, (1.0 / 10000 ** (torch.arange(0, 4, 2) / 4)).half())


def test_only_one_conversion_at_a_time(source: Path, tmp_path: Path) -> None:
    tried = []

    def again(step: Step) -> None:
        if not tried:
            tried.append(True)
            with pytest.raises(CheckpointError, match="another process is converting into"):
                convert(source, tmp_path / "made", to="paddle")

    convert(source, tmp_path / "made", to="paddle", progress=again)
    assert tried


def test_own_files(source: Path, tmp_path: Path) -> None:
    """Generation settings and tokenizer go along; the journal does not stay."""
    (source / "generation.json").write_text('{"add_cls": true}\n')
    (source / "tokenizer.json").write_text("{}")
    (source / "notes.tmp").write_text("not ours")
    report = convert(source, tmp_path / "made", to="glmkit", dtype="bfloat16", verify=False)
    assert report.verify_seconds is None
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "config.json", "generation.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert not (tmp_path / "made" / JOURNAL_FILE).exists()
    assert json.loads((tmp_path / "made" / "generation.json").read_text()) == {"add_cls": True}
    assert open_checkpoint(tmp_path / "made").config == open_checkpoint(source).config
