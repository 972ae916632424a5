"""The doctor on recorded checkpoints of every layout, whole and with parts taken away."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from diagnosis.directories import chatglm_settings, chatglm_tensors, write_json
from glmkit.diagnosis.examine import examine
from glmkit.diagnosis.report import Report
from support.shared import shared_dir

pytestmark = pytest.mark.sampled(4)

# directory -> (family, ranks, kind of stored numbers)
MODELS = {
    "glm-hf": ("glm", 1, "float32"),
    "glm-megatron": ("glm", 1, "float32"),
    "glm-paddle": ("glm", 1, "float32"),
    "glm-paddle-tp2": ("glm", 2, "float32"),
    "glm-130b-sat": ("glm-130b", 1, "float32"),
    "glm-130b-sat-int8": ("glm-130b", 1, "int8"),
    "glm-130b-sat-int4": ("glm-130b", 1, "int8"),
    "glm-130b-sat-int4-mp2": ("glm-130b", 2, "int8"),
    "chatglm-6b": ("chatglm", 1, "float32"),
    "chatglm-6b-sharded": ("chatglm", 1, "float32"),
    "chatglm-6b-int8": ("chatglm", 1, "int8"),
    "chatglm-6b-int4": ("chatglm", 1, "int8"),
    "chatglm-6b-int4-qe": ("chatglm", 1, "int8"),
    "chatglm-paddle": ("chatglm", 1, "float32"),
    "chatglm2-6b": ("chatglm2", 1, "float32"),
    "chatglm2-paddle": ("chatglm2", 1, "float32"),
    "chatglm3-6b": (None, 1, "float32"),
    "glm-4-9b-remote": ("glm-4", 1, "float32"),
    "glm-native": ("glm-4", 1, "float32"),
    "glm4-native": ("glm-4-0414", 1, "float32"),
}


def errors(report: Report) -> list[str]:
    return [f"{f.what} -> {f.next_step}" for f in report.findings if f.level == "error"]


@pytest.mark.parametrize("name", MODELS)
def test_a_recorded_checkpoint_is_usable(name: str) -> None:
    family, ranks, stored = MODELS[name]
    report = examine(shared_dir("fixtures", name))
    assert errors(report) == []
    assert report.usable
    assert report.facts["family"] == family or family is None
    assert report.facts["ranks"] == ranks
    assert stored in report.facts["stored"]
    assert ("int4" in name) == (report.facts["quantization"] == "int4")
    assert report.forecast
    assert report.next_command


@pytest.mark.parametrize("name", ["glm-hf", "chatglm-6b-int4", "glm-paddle-tp2", "glm-130b-sat-int4-mp2"])
def test_every_number_of_it_is_finite(name: str) -> None:
    assert errors(examine(shared_dir("fixtures", name), deep=True)) == []


ADAPTERS = ("chatglm-6b-ptuning-v2-embedding", "chatglm-6b-ptuning-v2-projection", "chatglm2-6b-ptuning-v2-embedding")


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_prefix_is_an_adapter(name: str) -> None:
    report = examine(shared_dir("fixtures", name))
    assert errors(report) == []
    assert (report.kind, report.usable) == ("adapter", True)
    assert report.facts["adapter"] == "prefix (torch)"
    assert report.facts["prefix_length"] == 4
    assert "chatglm" in report.facts["base"]
    assert "--adapter" in report.next_command


def copy(name: str, to: Path) -> Path:
    shutil.copytree(shared_dir("fixtures", name), to)
    for path in [to, *to.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return to


def test_a_megatron_directory_without_a_config(tmp_path: Path) -> None:
    report = examine(copy("glm-megatron-mp2", tmp_path / "m"))
    assert not report.usable
    assert any("config" in text for text in errors(report))
    assert any("--config" in f"{f.what} {f.next_step}" for f in report.findings)


def test_a_megatron_directory_with_a_config_named(tmp_path: Path) -> None:
    directory = copy("glm-megatron-mp2", tmp_path / "m")
    config = shared_dir("fixtures", "glm-megatron") / "config.json"
    report = examine(directory, config=config)
    assert errors(report) == []
    assert report.facts["ranks"] == 2


@pytest.mark.parametrize(
    ("name", "gone", "words"),
    [
        ("glm-paddle-tp2", "model_state.tp00.pdparams", ("model_state.tp00.pdparams", "missing")),
        ("glm-paddle-tp2", "model_state.tp01.pdparams", ("2 ranks", "rank 0")),
        ("glm-130b-sat-int4-mp2", "49300/mp_rank_00_model_states.pt", ("mp_rank_00_model_states.pt", "missing")),
        ("glm-130b-sat-int4-mp2", "49300", ("49300", "not here")),
    ],
)
def test_a_missing_rank_is_named(name: str, gone: str, words: tuple[str, ...], tmp_path: Path) -> None:
    directory = copy(name, tmp_path / "m")
    path = directory / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = errors(examine(directory))
    assert any(all(word in text for word in words) for text in found), found


def test_the_last_rank_is_missed_by_its_shapes(tmp_path: Path) -> None:
    directory = copy("glm-130b-sat-int4-mp2", tmp_path / "m")
    (directory / "49300" / "mp_rank_01_model_states.pt").unlink()
    report = examine(directory)
    assert not report.usable
    assert any("there were 2 ranks; here are 1" in text for text in errors(report))


# --- vocabularies of two generations ----------------------------------------------------------------------------------


def vocabulary_of(vocab: int, first_id: int, images: int, directory: Path) -> Path:
    directory.mkdir()
    write_json(directory / "config.json", chatglm_settings(vocab, first_id))
    save_file(chatglm_tensors(vocab), directory / "model.safetensors")
    shutil.copy(shared_dir("tokenizers", "chatglm-6b") / "ice_text.model", directory / "ice_text.model")
    write_json(directory / "tokenizer_config.json", {"num_image_tokens": images})
    return directory


def test_weights_and_tokenizer_of_two_releases(tmp_path: Path) -> None:
    report = examine(vocabulary_of(130528, 130000, 0, tmp_path / "new"))
    assert [f for f in report.findings if f.level in ("error", "warning")] == []
    assert report.next_command.startswith("glm chat")

    report = examine(vocabulary_of(130528, 130000, 20000, tmp_path / "mixed"))
    (finding,) = [f for f in report.findings if f.level in ("error", "warning")]
    assert "num_image_tokens" in finding.what
    assert "150001" in finding.what
    assert "130001" in finding.what
    assert finding.level == "warning"  # the weights decide

    report = examine(vocabulary_of(150528, 150000, 0, tmp_path / "old"))
    assert not report.usable
    assert any("num_image_tokens 0" in text and "one release" in text for text in errors(report)), errors(report)


def test_code_of_the_first_release_beside_later_weights(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", chatglm_settings(130528, 130000))
    save_file(chatglm_tensors(130528), tmp_path / "model.safetensors")
    (tmp_path / "modeling_chatglm.py").write_text("mask, gmask = 150000, 150001\ncontext = seq.index(150004)\n")
    report = examine(tmp_path)
    warnings = [f.what for f in report.findings if f.level == "warning"]
    assert any("modeling_chatglm.py" in text and "150004" in text and "chatglm-6b-v0" in text for text in warnings)
    assert report.usable


def test_a_config_of_the_first_release_beside_later_weights(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", chatglm_settings(150528, 150000))
    save_file(chatglm_tensors(130528), tmp_path / "model.safetensors")
    found = errors(examine(tmp_path))
    assert any("130528" in text and "150528" in text for text in found), found


@pytest.mark.parametrize(("files", "title"), [("glm4", "GLM-4"), ("chatglm-6b", "ChatGLM-6B")])
def test_tokenizer_files_of_another_family(files: str, title: str, tmp_path: Path) -> None:
    directory = copy("chatglm2-6b", tmp_path / "m")
    for path in shared_dir("tokenizers", files).iterdir():
        shutil.copy(path, directory / path.name)
    report = examine(directory)
    assert any(title in text for text in errors(report)), report.findings


# --- families whose weights have the same names -----------------------------------------------------------------------


def with_settings(directory: Path, **changes: object) -> Path:
    path = directory / "config.json"
    values = json.loads(path.read_text()) | changes
    write_json(path, {key: value for key, value in values.items() if value is not None})
    return directory


def test_config_and_tokenizer_code_of_two_families(tmp_path: Path) -> None:
    directory = copy("chatglm2-6b", tmp_path / "m")
    (directory / "tokenization_chatglm.py").write_text('special_tokens = ["<|user|>", "<|assistant|>"]\n')
    (warning,) = [f.what for f in examine(directory).findings if "the tokenizer files are those of" in f.what]
    assert "the config is that of ChatGLM2-6B" in warning
    assert "those of ChatGLM3-6B" in warning


def test_nothing_tells_two_families_apart(tmp_path: Path) -> None:
    directory = with_settings(copy("chatglm2-6b", tmp_path / "m"), _name_or_path=None)
    (note,) = [f for f in examine(directory).findings if "--family" in f.next_step]
    assert "taken for ChatGLM2-6B" in note.what
    assert "ChatGLM3-6B" in note.what
    assert examine(directory, family="chatglm3").facts["family"] == "chatglm3"


@pytest.mark.parametrize("name", ["chatglm2-6b", "chatglm3-6b", "glm-4-9b-remote"])
def test_a_name_tells_them_apart(name: str) -> None:
    assert not any("--family" in finding.next_step for finding in examine(shared_dir("fixtures", name)).findings)
