"""Downloads from a fake ModelScope, by option or by GLMKIT_HUB; the cache of its own tool."""

from pathlib import Path

import huggingface_hub
import pytest

from glmkit.checkpoint.hub import local_directory
from glmkit.errors import HubError
from support.fake_hub import FakeHub

NAME = "ZhipuAI/chatglm3-6b.v2"
FILES = {
    "config.json": b"{}",
    "tokenizer.model": b"vocabulary",
    "configuration.json": b"{}",
    "model.safetensors": bytes(5000),
    "pytorch_model.bin": bytes(5000),
}
READ = ["config.json", "configuration.json", "model.safetensors", "tokenizer.model"]


@pytest.fixture
def model(hub: FakeHub) -> FakeHub:
    hub.repositories[NAME] = dict(FILES)
    return hub


def test_a_download(model: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = local_directory(NAME, hub="modelscope")
    assert directory == tmp_path / "modelscope" / "models" / "ZhipuAI" / "chatglm3-6b.v2"
    assert sorted(path.name for path in directory.iterdir()) == READ
    assert all((directory / name).read_bytes() == FILES[name] for name in READ)
    model.asked.clear()
    monkeypatch.setenv("GLMKIT_HUB", "modelscope")
    assert local_directory(NAME) == directory
    assert model.asked == []


def test_a_revision_has_a_folder_of_its_own(model: FakeHub, tmp_path: Path) -> None:
    directory = local_directory(f"{NAME}@v1.0", hub="modelscope")
    assert directory.name == "chatglm3-6b.v2@v1.0"
    assert any("repo/files" in path for path in model.asked)


@pytest.mark.parametrize("place", ["models/ZhipuAI/chatglm3-6b___v2", "ZhipuAI/chatglm3-6b___v2"])
def test_what_its_own_tool_has_downloaded(place: str, model: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "modelscope" / place
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    assert local_directory(NAME, hub="modelscope") == folder
    assert model.asked == []


def test_failures_are_one_line(model: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        HubError, match=r"^a/b is not a directory, and http.* has no public model a/b; check the spelling"
    ):
        local_directory("a/b", hub="modelscope")
    listing = f"/api/v1/models/{NAME}/repo/files"
    for answer, message in (
        (b'{"Code": 10010205001, "Message": "x"}', f"has no public model {NAME}; check the spelling"),
        (b'{"Code": 200, "Data": {}}', "is no list of files; is it a hub?; set MODELSCOPE_DOMAIN to another host"),
        (b"<html>", "no JSON; is it a hub?; set MODELSCOPE_DOMAIN to another host"),
    ):
        model.special[listing] = lambda handler, answer=answer: handler.reply(200, answer)
        with pytest.raises(HubError, match=message.replace("?", r"\?")):
            local_directory(NAME, hub="modelscope")
    model.special[listing] = lambda handler: handler.reply(502, b"")
    with pytest.raises(HubError, match=r"answers with status 502 .*try --hub huggingface"):
        local_directory(NAME, hub="modelscope")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids to ask ModelScope"):
        local_directory(NAME, hub="modelscope")


def test_other_bytes_are_never_used(model: FakeHub) -> None:
    model.special[f"/api/v1/models/{NAME}/repo"] = lambda handler: handler.reply(200, b"x" * 5000)
    with pytest.raises(HubError, match="other bytes than the hub announces"):
        local_directory(NAME, hub="modelscope")
