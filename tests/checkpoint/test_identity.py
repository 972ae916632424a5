"""What a directory is, said by every way in: loading, conversion, info, doctor; and numbers of the variants."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import glmkit
from checkpoint.published import source_of
from glmkit.checkpoint.conversion.conversion import convert
from glmkit.checkpoint.open import open_checkpoint
from glmkit.cli.main import main
from glmkit.diagnosis.examine import examine
from glmkit.errors import CheckpointError, ConfigError, GuessWarning
from support.directories import huggingface_directory
from support.shared import shared_dir

IDS = torch.tensor([[22, 24, *range(10, 50)]])
# The published code of ChatGLM2-6B-32K with rope_ratio 50 on the weights of the fixture.
DIVIDED = torch.tensor([0.9520, 0.8086, 0.5614])


def copy(name: str, folder: Path, **changes: Any) -> Path:
    """A fixture with other values in its config; None removes a key."""
    shutil.copytree(shared_dir("fixtures", name), folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


def logits(folder: Path, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return glmkit.load(folder, **options).model(IDS)[0, -1]


def published(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


# --- interpolation ----------------------------------------------------------------------------------------------------


def test_generation_2_divides_the_position_by_rope_ratio(tmp_path: Path) -> None:
    name = "THUDM/chatglm2-6b-32k"
    folder = copy("chatglm2-6b", tmp_path / "m2", _name_or_path=name, rope_ratio=50)
    wanted = logits(folder)
    torch.testing.assert_close(wanted[:3], DIVIDED, rtol=0, atol=1e-4)
    assert (logits(folder, family="chatglm3") - wanted).abs().max() > 0.3  # generation 3 multiplies the base
    for layout in ("glmkit", "paddle", "huggingface"):
        there, back = tmp_path / layout, tmp_path / f"{layout}-back"
        convert(folder, there, to=layout)
        torch.testing.assert_close(logits(there), wanted, rtol=0, atol=1e-6)
        convert(there, back, to="huggingface")
        assert {key: published(back)[key] for key in ("_name_or_path", "rope_ratio")} == {
            "_name_or_path": name,
            "rope_ratio": 50,
        }
        torch.testing.assert_close(logits(back), wanted, rtol=0, atol=1e-6)


def test_later_generations_multiply_the_base(tmp_path: Path) -> None:
    folder = copy("chatglm3-6b", tmp_path / "m3", _name_or_path="THUDM/chatglm3-6b-32k", rope_ratio=50)
    config = open_checkpoint(folder).config
    assert (config.rope_base, config.rope_interpolation) == (500000.0, 1.0)
    convert(folder, tmp_path / "own", to="glmkit")
    convert(tmp_path / "own", tmp_path / "back", to="huggingface")
    values = published(tmp_path / "back")
    assert (values["_name_or_path"], values["rope_ratio"]) == ("THUDM/chatglm3-6b-32k", 50)


def test_linear_scaling_of_transformers_is_the_same_axis(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    folder = copy("glm4-native", tmp_path / "a", rope_parameters=rope)
    assert open_checkpoint(folder).config.rope_interpolation == 4.0
    old = {"rope_theta": 10000.0, "partial_rotary_factor": 0.5, "rope_scaling": {"type": "linear", "factor": 4.0}}
    other = copy("glm4-native", tmp_path / "b", rope_parameters=None, **old)
    assert open_checkpoint(other).config == open_checkpoint(folder).config
    convert(folder, tmp_path / "back", to="transformers")
    assert published(tmp_path / "back")["rope_parameters"]["factor"] == 4.0
    assert open_checkpoint(tmp_path / "back").config == open_checkpoint(folder).config


def test_a_layout_that_cannot_say_it_refuses(tmp_path: Path) -> None:
    folder = copy("chatglm3-6b", tmp_path / "m3", rope_ratio=50)
    convert(folder, tmp_path / "own", to="glmkit")
    path = tmp_path / "own" / "config.json"
    path.write_text(json.dumps(published(tmp_path / "own") | {"rope_interpolation": 2.0}))
    with pytest.raises(ConfigError, match="rope_interpolation 2 cannot be written in this layout"):
        convert(tmp_path / "own", tmp_path / "back", to="huggingface")


# --- guesses ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """ChatGLM3-6B-32K as a fine-tuning program saves it: a path for a name, no code."""
    folder = tmp_path / "merged"
    huggingface_directory(folder, "chatglm3/huggingface", rope_base=500000.0)
    path = folder / "config.json"
    path.write_text(json.dumps(published(folder) | {"_name_or_path": "/mnt/output/merged"}))
    return folder


def test_loading_warns_of_a_guess_until_the_family_is_said(merged: Path, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.warns(GuessWarning, match=r"taken for ChatGLM3-6B \(config.json: rope_ratio 50\).*--family chatglm2"):
        lm = glmkit.load(merged)
    assert (lm.config.family, lm.config.rope_base, lm.config.rope_interpolation) == ("chatglm3", 500000.0, 1.0)
    assert any("taken for ChatGLM3-6B" in note for note in lm.parts.notes)
    recwarn.clear()
    said = glmkit.load(merged, family="chatglm2").config
    assert (said.family, said.rope_base, said.rope_interpolation) == ("chatglm2", 10000.0, 50.0)
    assert not recwarn.list


@pytest.mark.parametrize("verb", ["info", "generate", "convert"])
def test_verbs_say_the_guess(verb: str, merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"info": [], "generate": ["text"], "convert": [str(tmp_path / "out"), "--to", "glmkit"]}[verb]
    main([verb, str(merged), *more])
    assert f"glm {verb}: warning: {merged}: taken for ChatGLM3-6B" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    main([verb, str(merged), *more, "--family", "chatglm3"])
    assert "taken for" not in capsys.readouterr().err


def test_info_says_it_of_a_config_alone(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (merged / "model.safetensors").unlink()
    assert main(["info", str(merged), "--json"]) == 0
    shown = capsys.readouterr()
    assert "taken for ChatGLM3-6B" in shown.err
    assert json.loads(shown.out)["rope_base"] == 500000.0


def test_a_conversion_keeps_the_name_and_says_the_family(merged: Path, tmp_path: Path) -> None:
    with pytest.warns(GuessWarning):
        report = convert(merged, tmp_path / "out", to="huggingface")
    assert any("taken for ChatGLM3-6B" in note for note in report.notes)
    values = published(tmp_path / "out")
    assert (values["_name_or_path"], values["glmkit_family"]) == ("/mnt/output/merged", "chatglm3")
    assert open_checkpoint(tmp_path / "out").guess is None


def test_doctor_has_three_findings_with_their_evidence(merged: Path) -> None:
    found = {f.what.partition(":")[0]: f for f in examine(shared_dir("fixtures", "chatglm2-6b")).findings}
    assert found["container"].what == "container: 1 file (.bin)"
    assert found["naming"].what.startswith("naming: huggingface, such as transformer.embedding.word_embeddings")
    assert found["family"].what == "family: ChatGLM2-6B, by config.json: _name_or_path 'THUDM/chatglm2-6b'"
    (doubt,) = [f for f in examine(merged).findings if "--family" in f.next_step]
    assert doubt.level == "warning"
    (cut,) = [f for f in examine(**_sat()).findings if f.what.startswith("container:")]
    assert cut.what == "container: 2 files (.pt), 2 tensor-parallel ranks"


def _sat() -> dict[str, Any]:
    given = source_of("glm-130b-sat-mp2")
    return {"directory": given["source"], "config": given["config"]}


def test_a_broken_config_still_says_its_family(tmp_path: Path) -> None:
    """Doctor does not take the family that could read the config for the one that it names."""
    name = "THUDM/chatglm2-6b-32k"
    found = examine(copy("chatglm2-6b", tmp_path / "m2", _name_or_path=name, rope_ratio=50, rope_theta=500000))
    assert found.facts["family"] == "chatglm2"
    assert not any("taken for" in finding.what for finding in found.findings)


def test_a_family_that_it_is_not(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"named as in ChatGLM3-6B, not as in the family 'glm'.*--family chatglm3"
    ):
        glmkit.load(copy("chatglm3-6b", tmp_path / "m3"), family="glm")


def test_a_part_of_the_other_kind_of_file_is_left_aside(tmp_path: Path) -> None:
    """A download of the .bin files that was broken off, beside the whole model.safetensors."""
    folder = copy("chatglm3-6b", tmp_path / "m3")
    (folder / "pytorch_model.bin").unlink()
    (folder / "pytorch_model-00001-of-00007.bin").write_bytes(bytes(50))
    assert "pytorch_model-*.bin is there as well and was not read" in open_checkpoint(folder).notes
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="shard number 2, 3, 4"):
        open_checkpoint(folder)
