"""Nothing leaves this machine: every verb as a process of its own, with every connection to another one refused.

Tests in this process are refused, too (conftest.py); here also what verbs start, and libraries when they are imported.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import glmkit
from glmkit.checkpoint.native import write_model
from glmkit.cli.main import VERBS
from support import outgoing
from support.chat import real_chat_model
from support.server import glm_serve, saved_base
from support.shared import ROOT, shared_dir

RECIPE = (
    "tiny",
    "--max_steps",
    "2",
    "--data.sequence_length",
    "64",
    "--evaluation.every",
    "1",
    "--evaluation.batches",
    "1",
)
TURNS = "hello\nstop\n"
COMMANDS: dict[str, tuple[str, ...]] = {
    "prepare": ("prepare", "texts", "--output", "data", "--vocab-size", "400", "--validation-share", "0.2"),
    "show": ("show", "data", "--count", "1"),
    "pretrain": ("pretrain", *RECIPE, "--data", "data", "--output", "run"),
    "pretrain with TensorBoard": (
        "pretrain", *RECIPE, "--data", "data", "--output", "run2", "--output.tensorboard", "true",
    ),
    "finetune": (
        "finetune", "lora", "--model", "base", "--data", "pairs.jsonl", "--output", "tuned", "--max_steps", "1",
        "--src_length", "16", "--tgt_length", "16",
    ),
    "merge": ("merge", "tuned", "--output", "merged"),
    "script": ("script", "cover_alpaca2jsonl.py", "--data_path", "alpaca.json", "--save_path", "alpaca.jsonl"),
    "doctor": ("doctor", "base"),
    "info": ("info", "base"),
    "convert": ("convert", "base", "converted", "--to", "megatron"),
    "quantize": ("quantize", "base", "int8", "--bits", "8"),
    "bench": ("bench", "base", "--prompt", "8", "--new", "2", "--rows", "1", "--repetitions", "1"),
    "fill": ("fill", "base", "a [MASK] b", "--max_tokens", "2"),
    "generate": ("generate", "base", "a", "--max_new_tokens", "2"),
    "generate a file": ("generate", "base", "--input", "rows.jsonl", "--output", "out.jsonl", "--max_new_tokens", "2"),
    "chat": ("chat", "chat", "--max_new_tokens", "2"),
    "demo": ("demo", "--output", "demo", "--minutes", "0.2", "--blanks", "20", "--library", "library"),
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "site").mkdir()
    shutil.copy(outgoing.__file__, folder / "site" / "sitecustomize.py")
    saved_base(folder / "base")
    shutil.copytree(ROOT / "src" / "glmkit", folder / "library", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "texts").mkdir()
    for path in (ROOT / "docs").glob("*.md"):
        shutil.copy(path, folder / "texts")
    (folder / "rows.jsonl").write_text('{"prompt": "a"}\n')
    (folder / "pairs.jsonl").write_text('{"prompt": "a b", "response": "c d"}\n' * 4)
    (folder / "alpaca.json").write_text('[{"instruction": "a", "input": "", "output": "b"}]\n')
    return folder


def environment(folder: Path) -> dict[str, str]:
    """No opt-outs and no caches of ours; whoever runs the tests may have set some."""
    kept = {name: value for name, value in os.environ.items() if not re.match("HF_|GRADIO_|DO_NOT|DISABLE_TEL", name)}
    paths = [str(folder / "site"), str(ROOT / "src"), str(ROOT / "tests")]
    extra = {"OMP_NUM_THREADS": "1", "HOME": str(folder), "GLMKIT_OUTGOING": str(folder / "attempts")}
    return {**kept, **extra, "PYTHONPATH": os.pathsep.join(paths)}


def attempts(folder: Path) -> str:
    path = folder / "attempts"
    return path.read_text() if path.exists() else ""


def test_the_opt_outs_are_set_by_importing_glmkit() -> None:
    names = ("DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED")
    assert glmkit.__version__
    found = {name: os.environ.get(name) for name in names}
    if "gradio" in sys.modules:  # which writes its own spelling of it
        found["HF_HUB_DISABLE_TELEMETRY"] = str(found["HF_HUB_DISABLE_TELEMETRY"]).replace("True", "1")
    assert found == {
        "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_ANALYTICS_ENABLED": "False",
    }  # fmt: skip


def test_a_connection_is_refused_and_seen() -> None:
    for host in ("192.0.2.1", "example.com"):
        with pytest.raises(OSError, match="the tests refuse"):
            socket.create_connection((host, 80), timeout=0.1)
    assert [attempt.split()[0] for attempt in outgoing.ATTEMPTS[-2:]] == ["socket.getaddrinfo"] * 2
    del outgoing.ATTEMPTS[-2:]
    assert all(map(outgoing.is_here, ("localhost", "127.0.0.1", "::1", b"localhost", None)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", COMMANDS)
def test_a_verb_asks_nobody(name: str, work: Path) -> None:
    """In the order of the table: later ones need what earlier ones have made."""
    if "chat" in COMMANDS[name]:
        chat_directory(work / "chat")
    done = subprocess.run(
        [sys.executable, "-m", "glmkit", *COMMANDS[name]],
        cwd=work, env=environment(work), input=TURNS, capture_output=True, text=True,
    )  # fmt: skip
    assert attempts(work) == ""
    assert done.returncode == 0, done.stderr


def chat_directory(folder: Path) -> None:
    """A tiny ChatGLM3 with its vocabulary."""
    if not folder.exists():
        lm = real_chat_model("chatglm3")
        folder.mkdir()
        write_model(folder, lm.config, lm.model.state_dict())
        shutil.copy(shared_dir("tokenizers", "chatglm2-chatglm3") / "tokenizer.model", folder)


@pytest.mark.exhaustive
def test_the_server_and_its_page_ask_nobody(work: Path) -> None:
    with glm_serve(work / "base", env=environment(work)) as server:
        for path in ("/", "/config", "/health", "/v1/models", "/openapi.json"):
            with urllib.request.urlopen(f"{server.url}{path}") as answer:
                assert answer.status == 200
        server.signal()
        assert server.ended() == 0
    assert attempts(work) == ""


@pytest.mark.exhaustive
def test_the_recorder_of_the_processes_works(work: Path) -> None:
    code = "import socket; socket.create_connection(('192.0.2.1', 80))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(work), capture_output=True, text=True)
    assert "the tests refuse" in done.stderr
    assert "192.0.2.1" in attempts(work)
    (work / "attempts").unlink()


def test_every_verb_is_tried() -> None:
    assert {command[0] for command in COMMANDS.values()} | {"serve"} == set(VERBS)
