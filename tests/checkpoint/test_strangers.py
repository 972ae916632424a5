"""Directories made to write, read or count beyond themselves: detection and conversion refuse them at once."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glmkit.checkpoint.conversion.conversion import convert
from glmkit.checkpoint.conversion.journal import JOURNAL_FILE, LOCK_FILE
from glmkit.checkpoint.conversion.outputs import check_names
from glmkit.checkpoint.conversion.transfer import Step
from glmkit.checkpoint.detect import detect, read_index, read_tag
from glmkit.checkpoint.open import open_checkpoint
from glmkit.diagnosis.examine import examine
from glmkit.errors import CheckpointError
from support.directories import huggingface_directory, rank_directory
from support.hostile import PeakMemory


def everything(folder: Path) -> dict[str, bytes | None]:
    """Names below a folder, and the contents of the files."""
    paths = sorted(folder.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def refusal(action: Callable[[], object]) -> str:
    with PeakMemory() as memory, pytest.raises(CheckpointError) as caught:
        action()
    assert memory.growth is None or memory.growth < 100 * 2**20
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 4500
    return str(caught.value)


# --- names out of the source ------------------------------------------------------------------------------------------

TAGS = [
    "/tmp/evil",
    "../evil",
    "../..",
    "..",
    ".",
    "a/b",
    "a\\b",
    "release\x1b[31m",
    "a\nb",
    "x" * 201,
    "",
    "\udcff",
    "a\0b",
]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("file", ["latest", "latest_checkpointed_iteration.txt"])
@pytest.mark.sampled(4)
def test_tags_that_lead_elsewhere(tmp_path: Path, file: str, tag: str) -> None:
    """Whatever the source's own layout: the tag beside it names the folder that is written."""
    source = tmp_path / "source"
    huggingface_directory(source, "glm/huggingface")
    data = tag.encode("utf-8", "surrogateescape")
    (source / file).write_bytes(data)
    before = everything(tmp_path)
    for tags in (lambda: read_tag(source), lambda: convert(source, tmp_path / "made", to="megatron", family="glm")):
        assert "is not the name of a folder beside it" in refusal(tags)
    assert everything(tmp_path) == before


def test_an_absolute_tag_overwrites_nothing(tmp_path: Path) -> None:
    source, victim = tmp_path / "source", tmp_path / "victim"
    rank_directory(source, "glm-130b/sat", 1)
    victim.mkdir()
    (victim / "mp_rank_00_model_states.pt").write_bytes(b"precious")
    (source / "latest").write_text(str(victim))
    for action in (lambda: convert(source, tmp_path / "made", to="sat"), lambda: open_checkpoint(source)):
        assert "is not the name of a folder" in refusal(action)
    assert (victim / "mp_rank_00_model_states.pt").read_bytes() == b"precious"
    report = examine(source)
    assert not report.usable
    assert (victim / "mp_rank_00_model_states.pt").read_bytes() == b"precious"


def test_a_plain_tag_is_kept(tmp_path: Path) -> None:
    rank_directory(tmp_path / "source", "glm-130b/sat", 1)
    (tmp_path / "source" / "49300").rename(tmp_path / "source" / "模型 7")
    (tmp_path / "source" / "latest").write_text("\ufeff模型 7\r\n")
    report = convert(tmp_path / "source", tmp_path / "made", to="sat")
    assert report.files == ["模型 7/mp_rank_00_model_states.pt"]
    assert detect(tmp_path / "made").ranks[0][0].parent.name == "模型 7"


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "..", "tag/\x1b", "x\ny"])
def test_the_guard_below_every_output(tmp_path: Path, name: str) -> None:
    assert "no plain name below the folder" in refusal(lambda: check_names(tmp_path, ["fine", "tag/fine"], [name]))


@pytest.mark.parametrize(
    "place", ["../x.bin", "/etc/passwd", "a/b.bin", "..", "a\\b", "a\nb", 7, None, ["a"], "x" * 500]
)
def test_an_index_that_leads_elsewhere(tmp_path: Path, place: object) -> None:
    (tmp_path / "i.json").write_text(json.dumps({"weight_map": {"\x1b[31ma": place}}))
    message = refusal(lambda: read_index(tmp_path / "i.json"))
    assert "no file beside the index" in message
    assert "\x1b" not in message


# --- links, pipes, folders --------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    huggingface_directory(tmp_path / "source", "glm/huggingface")
    return tmp_path / "source"


@pytest.mark.parametrize("name", ["README.md", "tokenizer.json", "LICENSE"])
def test_what_links_lead_to_outside_is_not_copied(source: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (source / name).symlink_to("../secret")
    before = everything(tmp_path)
    message = refusal(lambda: convert(source, tmp_path / "made", to="megatron", family="glm"))
    assert f"{name} is a link to {tmp_path / 'secret'}, outside of its folder" in message
    assert everything(tmp_path) == before
    (source / name).unlink()
    (source / "inner").mkdir()
    (source / "inner" / "file").write_text("fine")
    (source / name).symlink_to("inner/file")
    convert(source, tmp_path / "made", to="megatron", family="glm")
    assert (tmp_path / "made" / name).read_text() == "fine"
    assert not (tmp_path / "made" / name).is_symlink()


@pytest.mark.parametrize("name", ["README\x1b[31m.md", "README\n.md", "LICENSE\udcff"])
def test_names_that_a_terminal_would_obey_are_not_copied(source: Path, tmp_path: Path, name: str) -> None:
    os.close(os.open(source / name, os.O_CREAT | os.O_WRONLY))
    message = refusal(lambda: convert(source, tmp_path / "made", to="megatron", family="glm"))
    assert "has a name that is not copied" in message
    assert message.isprintable()
    assert not (tmp_path / "made.partial").exists()


def test_the_folder_under_work_as_a_link(source: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "made.partial").symlink_to("elsewhere")
    (tmp_path / "other").symlink_to("elsewhere")
    for place in ("made", "other"):
        assert "link" in refusal(lambda place=place: convert(source, tmp_path / place, to="paddle", family="glm"))  # type: ignore[misc]
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
@pytest.mark.parametrize("name", [LOCK_FILE, JOURNAL_FILE])
def test_lock_and_journal_that_are_none(source: Path, tmp_path: Path, name: str, kind: str) -> None:
    work = tmp_path / "made.partial"
    work.mkdir()
    (tmp_path / "victim").write_text("precious")
    make = {
        "link": lambda path: path.symlink_to("../victim"), "pipe": os.mkfifo, "folder": lambda path: path.mkdir(),
    }  # fmt: skip
    make[kind](work / name)  # type: ignore[no-untyped-call]
    message = refusal(lambda: convert(source, tmp_path / "made", to="paddle", family="glm"))
    assert name in message
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "made").exists()


JOURNALS = [
    "[" * 100_000,
    "[]",
    '{"plan": {}, "files": []}',
    '{"plan": {}, "files": {"../../x": {"size": 1, "crc32": 1}}}',
    '{"plan": {}, "files": {"/etc/passwd": {"size": 1, "crc32": 1}}}',
    '{"plan": {}, "files": {"a": {"size": 1.0, "crc32": 1}}}',
    '{"plan": {}, "files": {"a": {"size": true, "crc32": 1}}}',
    '{"plan": {}, "files": {"a": 7}}',
    "\xff",
]


@pytest.mark.parametrize("text", JOURNALS)
def test_journals_that_are_damaged(source: Path, tmp_path: Path, text: str) -> None:
    work = tmp_path / "made.partial"
    work.mkdir()
    (work / JOURNAL_FILE).write_bytes(text.encode("latin-1"))
    message = refusal(lambda: convert(source, tmp_path / "made", to="paddle", family="glm"))
    assert f"remove {work} and convert again" in message
    assert (work / JOURNAL_FILE).exists()


def test_a_folder_of_ranks_that_became_a_link(source: Path, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(step: Step) -> None:
        if step.stage == "verify":
            raise KilledError

    with pytest.raises(KilledError):
        convert(source, tmp_path / "made", to="megatron", family="glm", progress=kill)
    work = tmp_path / "made.partial"
    (work / "release").rename(tmp_path / "elsewhere")
    (work / "release").symlink_to("../elsewhere")
    before = everything(tmp_path / "elsewhere")
    assert "a link, which is not followed" in refusal(
        lambda: convert(source, tmp_path / "made", to="megatron", family="glm")
    )
    assert everything(tmp_path / "elsewhere") == before


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "anything"])
def test_pipes_beside_the_weights(source: Path, name: str) -> None:
    (source / name).unlink(missing_ok=True)
    os.mkfifo(source / name)
    message = refusal(lambda: open_checkpoint(source, family="glm"))
    assert f"{source / name} is neither a file nor a directory" in message
    assert any("neither files nor directories" in finding.what for finding in examine(source).findings)


def test_a_folder_in_the_place_of_a_file(source: Path) -> None:
    (source / "config.json").unlink()
    (source / "config.json").mkdir()
    assert "config.json is a directory, not a file" in refusal(lambda: open_checkpoint(source, family="glm"))
    assert not examine(source).usable


def test_a_sparse_config(source: Path) -> None:
    with open(source / "config.json", "r+b") as file:
        file.truncate(3 << 30)
    assert "such a file has at most 4.0 MiB" in refusal(lambda: open_checkpoint(source))
    with PeakMemory() as memory:
        assert not examine(source).usable
    assert memory.growth is None or memory.growth < 100 * 2**20


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_nesting_without_end(source: Path, name: str) -> None:
    (source / name).write_text('{"a":' * 100_000)
    if name.startswith("model"):
        (source / "model.safetensors").unlink()
    if name.startswith("generation"):
        assert any("nested too deeply" in note for note in open_checkpoint(source).notes)
    else:
        assert "is nested too deeply" in refusal(lambda: open_checkpoint(source))
    findings = examine(source).findings
    assert any("nested too deeply" in finding.what for finding in findings)


# --- numbers in names and settings ------------------------------------------------------------------------------------

NUMBERED = [
    ("mp_rank_99999999999_model_states.pt", "100,000,000,000"),
    ("mp_rank_4096_model_states.pt", "4,097"),
    ("model_state.tp9999999999.pdparams", "10,000,000,000"),
    ("model_state.tp4096.pdparams", "4,097"),
    ("model-00001-of-9999999999.safetensors", "9,999,999,999"),
    ("pytorch_model-00001-of-04097.bin", "4,097"),
    ("zero_pp_rank_99999999999_mp_rank_00_model_states.pt", "99,999,999,999"),
    (f"model-1-of-{'9' * 200}.safetensors", "99,999"),
]


@pytest.mark.parametrize(("name", "count"), NUMBERED)
def test_numbers_of_ranks_and_shards(tmp_path: Path, name: str, count: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    message = refusal(lambda: detect(tmp_path))
    assert f"is one of {count}" in message
    assert "4,096 are the limit" in message
    with PeakMemory() as memory:
        report = examine(tmp_path)
    assert not report.usable
    assert memory.growth is None or memory.growth < 100 * 2**20
    assert all(len(finding.what) < 2100 for finding in report.findings)


def test_missing_numbers_are_not_all_listed(tmp_path: Path) -> None:
    (tmp_path / "mp_rank_4095_model_states.pt").write_bytes(b"x")
    assert "but not number 0, 1, 2, 3, 4 and 4090 more" in refusal(lambda: detect(tmp_path))
    (tmp_path / "mp_rank_4095_model_states.pt").unlink()
    (tmp_path / "model-00001-of-04096.safetensors").write_bytes(b"x")
    assert "shard number 2, 3, 4, 5, 6 and 4090 more is missing, of 4096" in refusal(lambda: detect(tmp_path))


@pytest.mark.parametrize("degree", [10**15, 10**300])
def test_a_number_of_ranks_in_the_config(tmp_path: Path, degree: int) -> None:
    rank_directory(tmp_path, "glm-130b/sat", 1)
    config = json.loads(
        (tmp_path / "model_config.json").read_text() if (tmp_path / "model_config.json").exists() else "{}"
    )
    (tmp_path / "config.json").write_text(json.dumps({**config, "tensor_parallel_degree": degree}))
    with PeakMemory() as memory:
        examine(tmp_path)
    assert memory.growth is None or memory.growth < 100 * 2**20


@pytest.mark.parametrize("value", [2.0, True, "2", [2]])
@pytest.mark.parametrize("key", ["num_layers", "hidden_size", "vocab_size"])
@pytest.mark.sampled(3)
def test_whole_numbers_are_whole(source: Path, key: str, value: object) -> None:
    settings = json.loads((source / "config.json").read_text())
    assert key in settings
    (source / "config.json").write_text(json.dumps({**settings, key: value}))
    with pytest.raises(Exception, match=f"{key} is .*it must be a whole number"):
        open_checkpoint(source)


# --- names of tensors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\nb", "\u202eright to left", "a\u009bb", "\x07"])
def test_names_of_tensors_reach_no_terminal(tmp_path: Path, name: str) -> None:
    huggingface_directory(tmp_path, "glm/huggingface", change=lambda tensors: tensors.update({name: torch.ones(2, 2)}))
    message = refusal(lambda: open_checkpoint(tmp_path))
    report = examine(tmp_path)
    assert message.isprintable()
    assert all(finding.what.isprintable() and finding.where.isprintable() for finding in report.findings)


def test_a_name_of_a_megabyte(tmp_path: Path) -> None:
    name = "module." * 150_000
    huggingface_directory(tmp_path, "glm/huggingface", change=lambda tensors: tensors.update({name: torch.ones(2, 2)}))
    assert "a name in it has 1,050,000 characters; 1024 are the limit" in refusal(lambda: open_checkpoint(tmp_path))
    names = {f"{'x' * 1000}{number}": torch.ones(1) for number in range(50)}
    huggingface_directory(tmp_path, "glm/huggingface", change=lambda tensors: tensors.update(names))
    refusal(lambda: open_checkpoint(tmp_path))
    assert all(len(finding.what) < 2100 for finding in examine(tmp_path).findings)
