"""Downloads from a fake Hugging Face hub: what is asked for, where it lies, every way in which it can go wrong."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from glmkit.checkpoint.hub import local_directory
from glmkit.errors import HubError
from glmkit.hub import snapshot, transfer
from support.fake_hub import COMMIT, FakeHub, Handler

NAME = "org/chatglm"
LISTING = f"/api/models/{NAME}/revision/main"
FILES = {
    "config.json": b'{"model_type": "chatglm"}',
    "ice_text.model": b"vocabulary",
    "modeling_chatglm.py": b"raise SystemExit",
    "tokenization_chatglm.py": b"# text",
    "README.md": b"# hello",
    "model-00001-of-00002.safetensors": bytes(range(256)) * 40,
    "model-00002-of-00002.safetensors": b"two" * 1000,
    "pytorch_model.bin": b"again" * 1000,
    "training_args.bin": b"x",
}
READ = [
    "config.json", "ice_text.model", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    "modeling_chatglm.py", "tokenization_chatglm.py",
]  # fmt: skip
LARGE = "model-00001-of-00002.safetensors"
LARGE_PATH = f"/cdn/{NAME}/resolve/{COMMIT}/{LARGE}"


@pytest.fixture
def model(hub: FakeHub) -> FakeHub:
    hub.repositories[NAME] = dict(FILES)
    return hub


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def refused(name: str = NAME, **options: Any) -> str:
    begun = time.monotonic()
    with pytest.raises(HubError) as caught:
        local_directory(name, **options)
    assert time.monotonic() - begun < 5
    assert caught.value.step
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_download_has_what_is_read_and_lies_in_the_cache(
    model: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = local_directory(NAME)
    assert directory == tmp_path / "cache" / "models--org--chatglm" / "snapshots" / COMMIT
    assert sorted(path.name for path in directory.iterdir()) == READ
    assert all((directory / name).read_bytes() == FILES[name] for name in READ)
    assert (directory.parents[1] / "refs" / "main").read_text() == COMMIT
    assert huggingface_hub.snapshot_download(
        NAME, cache_dir=tmp_path / "cache", local_files_only=True, allow_patterns=["*.json"]
    )
    said = lines(capsys)
    assert said[0] == f"downloading {NAME} from Hugging Face: 13.0 KiB into {directory}"
    asked = len(model.asked)
    assert local_directory(NAME) == local_directory(f"{NAME}@main") == local_directory(f"{NAME}@{COMMIT}") == directory
    assert len(model.asked) == asked  # the cache needs no request
    assert lines(capsys) == []


def test_offline_the_cache_is_used_and_nothing_else(model: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = local_directory(NAME)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model.asked.clear()
    assert local_directory(NAME) == directory
    message = refused("org/other")
    assert message == (
        "org/other is not a directory, it is not in the cache, and HF_HUB_OFFLINE forbids to ask Hugging Face; unset "
        "it, or download the model by hand and give its directory"
    )
    (directory / LARGE).unlink()
    assert f"it is not complete in the cache ({directory})" in refused()
    assert model.asked == []


def test_settings_and_vocabulary_alone(model: FakeHub) -> None:
    small = ["config.json", "ice_text.model", "modeling_chatglm.py", "tokenization_chatglm.py"]
    for need in ("tokenizer", "config"):
        directory = local_directory(NAME, need=need)  # type: ignore[arg-type]
        assert sorted(path.name for path in directory.iterdir()) == small
    assert (
        sorted(path.name for path in local_directory(NAME).iterdir()) == READ
    )  # the weights come when they are needed


def test_a_revision_is_kept_apart(model: FakeHub) -> None:
    directory = local_directory(f"{NAME}@refs/pr/1")
    assert (directory.parents[1] / "refs" / "refs" / "pr" / "1").read_text() == COMMIT
    assert not (directory.parents[1] / "refs" / "main").exists()
    assert refused(f"{NAME}@v9") == f"{NAME} has no revision 'v9' on Hugging Face; leave it out"


def test_a_token_goes_to_the_hub_alone(model: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    local_directory(NAME)
    sent = {
        path.split()[0]: headers.get("Authorization") for path, headers in zip(model.asked, model.seen, strict=True)
    }
    assert sent[LISTING] == "Bearer secret"
    assert sent[f"/{NAME}/resolve/{COMMIT}/{LARGE}"] == "Bearer secret"
    assert sent[LARGE_PATH] is None  # another host
    assert all(headers["User-Agent"] == "glmkit" for headers in model.seen)


Answer = Callable[[Handler], None]
NO_MODEL = "has no model of that name, or a private one; check the spelling"
GATED = f"{NAME} is gated on Hugging Face; accept its terms at "
MIRROR = f" when asked for {NAME}; set HF_ENDPOINT to a mirror"
NO_JSON = "answers with something that is no JSON; is it a hub?; set HF_ENDPOINT"
NO_LIST = "answers with something that is no list of files; is it a hub?; set HF_ENDPOINT"
FAILURES: dict[str, tuple[Answer, str]] = {
    "no such model": (lambda h: h.reply(401, b"", X_Error_Code="RepoNotFound"), NO_MODEL),
    "no such path": (lambda h: h.reply(404, b""), NO_MODEL),
    "gated": (lambda h: h.reply(401, b"", X_Error_Code="GatedRepo"), GATED),
    "gated, refused": (lambda h: h.reply(403, b"", X_Error_Code="GatedRepo"), GATED),
    "too many": (lambda h: h.reply(429, b""), f"answers with status 429{MIRROR}"),
    "broken": (lambda h: h.reply(500, b"<html>"), f"answers with status 500{MIRROR}"),
    "silent": (lambda h: h.silence(), "does not answer (nothing came for 0.5 seconds); set HF_ENDPOINT to a mirror"),
    "hotel": (lambda h: h.reply(200, b"<html>log in"), NO_JSON),
    "no list": (lambda h: h.reply(200, b"[]"), NO_LIST),
    "deep": (lambda h: h.reply(200, b"[" * 100_000), NO_JSON),
    "foreign commit": (lambda h: h.reply(200, b'{"sha": "../../x", "siblings": []}'), NO_LIST),
    "half a list": (lambda h: h.half(b'{"sha": "0123", "siblings": []}'), NO_JSON),
    "round and round": (lambda h: h.reply(302, b"", Location=LISTING), "answers with status 302"),
    "to a file": (lambda h: h.reply(302, b"", Location="file:///etc/passwd"), "answers with status 302"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_list_that_cannot_be_had(
    kind: str, model: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.special[LISTING], message = FAILURES[kind]
    assert message in refused()
    assert len(model.asked) == (5 if kind == "round and round" else 1)  # one attempt
    assert not (tmp_path / "cache").exists()
    assert lines(capsys) == []


def test_a_list_without_end(model: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_MOST_LISTING", 1000)
    model.special[LISTING] = lambda handler: handler.reply(200, b" " * 5000)
    assert "sends no list of files, but 4.9 KiB and more" in refused()


def test_nobody_is_there(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert refused().startswith(
        "http://127.0.0.1:9 does not answer (Connection refused); set HF_ENDPOINT to a mirror, "
    )
    for address in ("file:///etc", "hf-mirror.com", "http://"):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        assert refused() == f"the hub's address is {address!r}; give one that begins with https://"


def test_a_file_that_breaks_off_is_gone_on_with(model: FakeHub) -> None:
    model.special[LARGE_PATH] = lambda handler: handler.half(FILES[LARGE])
    for _ in range(2):
        assert f"{LARGE} broke off at 5,120 of 10,240 bytes; the same command goes on from there; set HF_" in refused()
    del model.special[LARGE_PATH]
    model.asked.clear()
    directory = local_directory(NAME)
    assert (directory / LARGE).read_bytes() == FILES[LARGE]
    assert any("bytes=" in path for path in model.asked)
    assert sorted(path.name for path in directory.iterdir()) == READ


def test_a_hub_that_cannot_go_on_sends_the_whole(model: FakeHub) -> None:
    model.special[LARGE_PATH] = lambda handler: handler.half(FILES[LARGE])
    refused()
    model.special[LARGE_PATH] = lambda handler: handler.reply(200, FILES[LARGE])
    assert (local_directory(NAME) / LARGE).read_bytes() == FILES[LARGE]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(FILES[LARGE][:-1] + b"x", id="one byte changed"),
        pytest.param(FILES[LARGE] + b"x", id="too long"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", id="a pointer"),
    ],
)
def test_other_bytes_than_announced_are_never_used(content: bytes, model: FakeHub) -> None:
    model.special[LARGE_PATH] = lambda handler: handler.reply(200, content)
    for _ in range(2):
        assert LARGE in refused()
    (cache,) = Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("snapshots/*")
    assert not (cache / LARGE).exists()
    del model.special[LARGE_PATH]
    if content.startswith(b"version"):
        assert LARGE in refused()  # the pointer's bytes are gone on with, and found to be wrong
    assert (local_directory(NAME) / LARGE).read_bytes() == FILES[LARGE]


def test_a_wrong_size_in_the_list(model: FakeHub) -> None:
    model.claims[LARGE] = 20_000
    assert f"{LARGE} broke off at 10,240 of 20,000 bytes" in refused()
    assert "answers with status 416" in refused()  # there is no more, and what was there is thrown away
    model.claims.clear()
    assert (local_directory(NAME) / LARGE).read_bytes() == FILES[LARGE]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda handler: handler.reply(403, b""), f"answers with status 403 when asked for {LARGE}"),
        (lambda handler: handler.reply(500, b""), f"answers with status 500 when asked for {LARGE}"),
        (lambda handler: handler.silence(), "does not answer (nothing came for 0.5 seconds)"),
    ],
    ids=["403", "500", "silent"],
)
def test_a_file_that_cannot_be_had(answer: Answer, message: str, model: FakeHub) -> None:
    model.special[LARGE_PATH] = answer
    assert message in refused()
    assert "is not complete" not in refused()


def test_an_unfinished_download_is_not_taken_for_a_model(model: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks of which one has come: complete by its names."""
    model.repositories[NAME] = {f"mp_rank_0{rank}_model_states.pt": bytes(100 + rank) for rank in range(2)}
    path = f"/{NAME}/resolve/{COMMIT}/mp_rank_01_model_states.pt"
    model.special[path] = lambda handler: handler.reply(500, b"")
    refused()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "it is not in the cache" in refused()
    assert "it is not complete in the cache" in refused(f"{NAME}@{COMMIT}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    model.special.clear()
    assert len(list(local_directory(NAME).glob("mp_rank_*"))) == 2


def test_names_in_the_list_lead_nowhere_else(model: FakeHub, tmp_path: Path) -> None:
    for path in (
        "../../../../x.json",
        "/etc/x.json",
        "a/../../x.json",
        "..",
        "a/b/c.json",
        "a\\..\\x.json",
        "",
        ".x.json",
    ):
        assert not snapshot.is_plain(path)
        model.repositories[NAME][path] = b"{}"
    directory = local_directory(NAME)
    assert sorted(path.name for path in directory.iterdir()) == READ
    assert [path.name for path in tmp_path.rglob("*x.json")] == []


def test_a_repository_without_anything_to_read(hub: FakeHub) -> None:
    hub.repositories[NAME] = {"README.md": b"x", "model.gguf": b"x"}
    assert refused() == f"{NAME} on Hugging Face has nothing that is read here; it has README.md, model.gguf"


def test_a_full_disk_is_said_before(model: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = snapshot.shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(snapshot.shutil, "disk_usage", lambda path: usage)
    assert f"{NAME} needs 13.0 KiB more on disk, 100 B are free in " in refused()


def test_two_processes_do_not_write_one_file(model: FakeHub) -> None:
    model.special[LARGE_PATH] = lambda handler: handler.half(FILES[LARGE])
    refused()
    (mark,) = Path(huggingface_hub.constants.HF_HUB_CACHE).rglob(".downloading")
    with mark.open("ab") as file:
        assert snapshot.try_lock(file.fileno(), Path(file.name))
        assert refused() == f"another process is downloading {NAME}; wait until it is done"


def test_a_copy_of_another_tool_is_used(model: FakeHub, tmp_path: Path) -> None:
    """Links into `blobs`, and only what a half-done download has: no shard is missing by the index's word."""
    folder = tmp_path / "cache" / "models--org--chatglm"
    for part in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for number, name in enumerate(READ):
        (folder / "blobs" / str(number)).write_bytes(FILES[name])
        (folder / "snapshots" / COMMIT / name).symlink_to(f"../../blobs/{number}")
    assert local_directory(NAME) == folder / "snapshots" / COMMIT
    assert model.asked == []
    (folder / "snapshots" / COMMIT / LARGE).unlink()
    assert (local_directory(NAME) / LARGE).read_bytes() == FILES[LARGE]
    assert model.asked != []
