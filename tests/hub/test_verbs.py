"""Names where a model directory is expected: in Python and in every verb that takes one."""

import json
from pathlib import Path

import pytest

import glmkit
from glmkit.checkpoint.hub import files_to_read
from glmkit.checkpoint.native import write_model
from glmkit.cli.main import main
from glmkit.families.family import all_families
from glmkit.tokenizer.training import train_tokenizer
from support.directories import huggingface_directory
from support.fake_hub import FakeHub
from support.shared import ROOT
from support.tiny import tiny_model

NAME = "someone/tuned"
OWN = "someone/own"


@pytest.fixture
def models(hub: FakeHub, tmp_path: Path) -> FakeHub:
    """A model in the layout of ChatGLM-6B, and one of glmkit's own with its tokenizer."""
    huggingface_directory(tmp_path / "published", "chatglm/huggingface")
    tokenizer = train_tokenizer([path.read_text() for path in sorted((ROOT / "tests").glob("*.py"))], vocab_size=300)
    model = tiny_model(special=tokenizer.special, vocab_size=300)
    (tmp_path / "own").mkdir()
    write_model(tmp_path / "own", model.config, model.state_dict())
    tokenizer.save(tmp_path / "own")
    for name, folder in ((NAME, "published"), (OWN, "own")):
        hub.repositories[name] = {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
    return hub


def test_load(models: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    lm = glmkit.load(NAME, device="cpu")
    assert lm.family == "chatglm"
    assert capsys.readouterr().err.startswith(f"downloading {NAME} from Hugging Face: ")
    models.asked.clear()
    assert repr(glmkit.load(NAME, device="cpu", dtype="bf16")).startswith("<LM chatglm of ")
    assert models.asked == []
    assert glmkit.load(OWN, tokenizer=OWN, adapter=None, hub="modelscope", device="cpu").tokenizer.vocab_size == 300
    assert all("/api/v1/" in path for path in models.asked)


def test_doctor_and_info(models: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", NAME, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "chatglm"
    assert not any(path.endswith((".safetensors", ".bin")) for path in models.asked)  # no weights for a table
    assert main(["doctor", NAME, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usable"]
    assert main(["info", "glm-10b", "--json"]) == 0  # a preset
    assert main(["doctor", NAME, "--hub", "x"]) == 2
    assert capsys.readouterr().err == "glm doctor: the hub is 'x'; give huggingface or modelscope\n"


def test_convert(models: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", NAME, "made", "--to", "glmkit", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "next: glm chat made"
    assert err == ""
    assert main(["convert", "someone/tunde", "made2", "--to", "glmkit"]) == 2
    assert capsys.readouterr().err.startswith("glm convert: someone/tunde is not a directory, and http")


def test_prepare_with_the_tokenizer_of_a_name(models: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.txt").write_text("one\ntwo\nthree\n")
    command = ["prepare", "a.txt", "--split-lines", "--output", "data", "--validation-share", "0", "--workers", "1"]
    assert main([*command, "--tokenizer", OWN, "--hub", "modelscope"]) == 0
    assert "a.txt" in json.dumps(json.loads(Path("data/manifest.json").read_text()))
    assert not any("safetensors" in path for path in models.asked if "FilePath" in path)


@pytest.mark.parametrize("verb", ["fill", "generate", "chat"])
def test_a_slip_in_a_path_is_told_by_every_verb(verb: str, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    Path("demo/model").mkdir(parents=True)
    assert main([verb, "demo/modle", *(["a [MASK]"] if verb != "chat" else [])]) == 2
    err = capsys.readouterr().err
    assert err == (
        f"glm {verb}: demo/modle is not a directory; did you mean demo/model? With --hub (hub=) it is looked for on "
        "Hugging Face\n"
    )
    assert hub.asked == []


def test_a_folder_above_a_model_points_to_it(
    models: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("demo").mkdir()
    (tmp_path / "own").rename("demo/model")
    for arguments in (["fill", "demo", "a [MASK]"], ["info", "demo"]):
        assert main(arguments) == 0
        said = capsys.readouterr()
        assert "demo holds no weights itself; demo/model is read" in said.out + said.err


def test_what_is_downloaded_is_what_is_read() -> None:
    names = [
        "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json",
        *(file for family in all_families().values() for file in family.tokenizer_files), "tokenization_chatglm.py",
        "modeling_chatglm.py",
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
        "adapter_config.json", "adapter_model.bin",
    ]  # fmt: skip
    others = [
        "pytorch_model.bin", "pytorch_model.bin.index.json", "training_args.bin", "optimizer.pt",
        "README.md", "LICENSE", "flax_model.msgpack", "onnx/model.onnx", "model.gguf", "runs/model.safetensors",
        "scheduler.pt", "rng_state_0.pth", ".gitattributes",
    ]  # fmt: skip
    assert set(files_to_read([*others, *names])) == set(names)
    weights = [name for name in names if name.endswith((".safetensors", ".bin", ".index.json"))]
    assert set(files_to_read([*others, *names], weights=False)) == {*names} - {*weights}


@pytest.mark.parametrize(
    "names",
    [
        ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
        ["latest", "49300/mp_rank_00_model_states.pt", "49300/mp_rank_01_model_states.pt"],
        ["model_state.tp00.pdparams", "model_state.tp01.pdparams", "model_config.json"],
        ["adapter_model.safetensors", "adapter_config.json"],
    ],
)
def test_other_containers(names: list[str]) -> None:
    assert set(files_to_read(["README.md", *names])) == set(names)
