"""Names: a path on this machine first; what looks like a slip in a path is never asked for on a hub."""

from pathlib import Path

import pytest

from glmkit.checkpoint.hub import local_directory
from glmkit.errors import CheckpointError, RequestError
from glmkit.hub.names import HubName, nearby, read_name
from support.fake_hub import FakeHub

STEP = "give the path of a model directory, or a hub name (org/name)"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("THUDM/glm-10b", HubName("THUDM/glm-10b")),
        ("THUDM/chatglm2-6b@v1.0", HubName("THUDM/chatglm2-6b", "v1.0")),
        ("a/GLM-4-9B-0414", HubName("a/GLM-4-9B-0414")),
        ("a/b@refs/pr/1", HubName("a/b", "refs/pr/1")),
        ("a/b.v2", HubName("a/b.v2")),
    ],
)
def test_what_is_a_name(text: str, name: HubName) -> None:
    assert read_name(text) == name
    assert str(name) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "glm", "a/b/c", "/a/b", "./a", "../a", "a/..", "../..", "~/a", "a\\b", "a/b/", "a//b", "a b/c", "a/b c",
        "a/b@", "a/b@../../x", "a/b@/etc", "a/b@x/../..", "a/.b", "a/b.", "a./b", "a/-b", "a/b--c", "a/b..c", "模型/甲",
        "m/pytorch_model.bin", "m/config.json", "m/x.gguf", "m/x.tar", "m/model.SAFETENSORS",
        "https://hf.co/a/b", "a/b\x00",
    ],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    assert read_name(text) is None


def test_the_path_most_like_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("demo/model", "runs/tiny/model", "demo/.hidden"):
        Path(name).mkdir(parents=True)
    found = {
        name: nearby(Path(name)) for name in ("demo/modle", "dmeo/model", "Demo/Model", "runs/tny/model", "x/model")
    }
    assert found == {
        "demo/modle": Path("demo/model"),
        "dmeo/model": Path("demo/model"),
        "Demo/Model": Path("demo/model"),
        "runs/tny/model": Path("runs/tiny/model"),
        "x/model": None,
    }
    assert nearby(tmp_path / "demo" / "mod") == tmp_path / "demo" / "model"
    assert nearby(Path("demo/hidden")) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("demo/modle", "demo/modle is not a directory; did you mean demo/model?"),
        ("dmeo/model", "dmeo/model is not a directory; did you mean demo/model?"),
        ("demo/zzz", "demo/zzz is not a directory; demo has model"),
        ("demo/modle/", "demo/modle/ is not a directory; did you mean demo/model?"),
        ("./demo/modle", "./demo/modle is not a directory; did you mean demo/model?"),
        ("no/such/path", f"no/such/path is not a directory; {STEP}"),
        ("glm", f"glm is not a directory; {STEP}"),
        ("demo/file", "demo/file is a file, not a directory; give the directory it lies in"),
        ("demo/model.bin", "demo/model.bin is not a directory; did you mean demo/model?"),
        ("", "the name is empty; give the path of a directory"),
        ("https://hf.co/THUDM/glm-10b", "https://hf.co/THUDM/glm-10b is an address; give the name alone: THUDM/"),
        ("x" * 5000, "x" * 1333 + " ... x"),
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_a_slip_in_a_path_asks_no_hub(name: str, message: str, hub: FakeHub) -> None:
    Path("demo/model").mkdir(parents=True)
    Path("demo/file").touch()
    with pytest.raises(CheckpointError) as caught:
        local_directory(name)
    assert str(caught.value).startswith(message)
    assert caught.value.param == "source"
    assert hub.asked == []


def test_a_path_of_this_machine_comes_first(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("org/name").mkdir(parents=True)
    hub.repositories["org/name"] = {"config.json": b"{}"}
    monkeypatch.setenv("HOME", str(tmp_path / "work"))
    assert local_directory("org/name", hub="huggingface") == Path("org/name")
    assert local_directory("~/org/name") == tmp_path / "work" / "org" / "name"
    assert hub.asked == []


@pytest.mark.parametrize("value", [None, 3, b"org/name"])
def test_what_is_no_text(value: object) -> None:
    with pytest.raises(RequestError, match="give a path or a hub name"):
        local_directory(value)  # type: ignore[arg-type]


def test_an_unknown_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="the hub is 'hf'; give huggingface or modelscope"):
        local_directory("org/name", hub="hf")
    monkeypatch.setenv("GLMKIT_HUB", "x")
    with pytest.raises(RequestError, match="GLMKIT_HUB is 'x'; give huggingface or modelscope"):
        local_directory("org/name")
