"""Adapters on the command line: one for everything, or under names for the requests of a server."""

from argparse import Namespace
from pathlib import Path

import httpx
import openai
import pytest

import glmkit
from glmkit.checkpoint.taught import Taught
from glmkit.cli.main import main
from glmkit.cli.parser import OneLineParser
from glmkit.cli.text_input import add_load_arguments, named_adapter, open_with_adapters
from glmkit.errors import RequestError
from support.saved_adapters import record_taught, save_base, save_lora, save_prefix
from support.served_models import small_base
from support.server import glm_serve

pytestmark = pytest.mark.sampled(4)

TEXT = "The quick"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lm, found = small_base(), tmp_path_factory.mktemp("adapters")
    save_base(lm, found / "base")
    save_lora(lm.model, found / "ads", targets="v_proj o_proj down_proj")
    save_prefix(lm.model, found / "a=b")
    return found


def opened(folder: Path, *options: str) -> glmkit.LM:
    parser = OneLineParser("glm serve")
    add_load_arguments(parser)
    args = parser.parse_args([word for option in options for word in ("--adapter", option)])
    return open_with_adapters(Namespace(**vars(args), model=str(folder / "base")))


@pytest.mark.parametrize("verb", ["generate", "fill", "chat"])
@pytest.mark.parametrize("given", ["{}/ads", "ads={}/ads", "{}/a=b", "tuned={}/a=b"])
def test_one_adapter_with_or_without_a_name(
    verb: str, given: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(folder / "base")
    if verb == "chat":
        assert main(["chat", model, "--adapter", given.format(folder)]) == 2
        assert "was not taught to chat" in capsys.readouterr().err
        return
    text = TEXT if verb == "generate" else f"{TEXT} [MASK]"
    assert main([verb, model, text, "--adapter", given.format(folder)]) == 0
    lm = glmkit.load(model, adapter=folder / ("ads" if "ads" in given else "a=b"))
    right = TEXT + lm.generate(TEXT) if verb == "generate" else lm.fill(text).text
    assert capsys.readouterr().out == f"{right}\n"
    assert main([verb, model, text, "--adapter", "a=x", "--adapter", "b=y"]) == 2
    assert "2 adapters are given, and this uses one for everything; give one --adapter" in capsys.readouterr().err


def test_a_file_of_prompts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "The quick"}\n')
    arguments = ["generate", str(folder / "base"), "--input", str(tmp_path / "in.jsonl"), "--quiet"]
    arguments += ["--output", str(tmp_path / "out.jsonl"), "--adapter", f"ads={folder / 'ads'}"]
    assert main(arguments) == 0
    lm = glmkit.load(folder / "base", adapter=folder / "ads")
    assert lm.generate(TEXT) in (tmp_path / "out.jsonl").read_text()


def test_names_and_directories(folder: Path) -> None:
    assert named_adapter(f"{folder}/a=b") == (None, f"{folder}/a=b")
    assert named_adapter(f"x={folder}/a=b") == ("x", f"{folder}/a=b")
    assert named_adapter("org/name") == (None, "org/name")
    lm = opened(folder, f"ads={folder}/ads", f"tuned={folder}/a=b")
    assert [*lm.adapters] == ["ads", "tuned"]
    assert [*opened(folder, f"{folder}/ads").adapters] == []
    for wrong in ([f"{folder}/ads", f"x={folder}/ads"], [f"x={folder}/ads"] * 2, [f"{folder}/ads"] * 2):
        with pytest.raises(
            RequestError, match=r"of 2 adapters . have names of their own; give each as --adapter NAME="
        ):
            opened(folder, *wrong)


@pytest.mark.exhaustive
def test_a_server_with_adapters(folder: Path) -> None:
    adapters = ["--adapter", f"ads={folder}/ads", "--adapter", f"tuned={folder}/a=b"]
    own = record_taught(save_lora(glmkit.load(folder / "base").model, folder / "own"), Taught("chatglm_tuning"))
    adapters += ["--adapter", f"own={own}"]
    with glm_serve(folder / "base", *adapters, "--model_id", "m", "--no_page") as server:
        assert "model m, m:ads, m:tuned, m:own, cache" in server.line_with("cache")
        assert "m:own: template chatglm_tuning, as in training: " in server.line_with("template")
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
        lm = glmkit.load(folder / "base", adapters={"ads": folder / "ads", "tuned": folder / "a=b"})
        for name in (None, "ads", "tuned"):
            model = "m" if name is None else f"m:{name}"
            answer = client.completions.create(model=model, prompt=TEXT, max_tokens=8, temperature=0)
            assert answer.choices[0].text == lm.generate(TEXT, adapter=name, max_new_tokens=8)
        assert [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]] == [
            "m",
            "m:ads",
            "m:tuned",
            "m:own",
        ]
