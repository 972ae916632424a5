"""Each script under examples/ does what its first lines say, on a small model."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glmkit.session import LM
from support.served_models import small_base, small_chat
from support.shared import ROOT

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script with arguments, on a model that `load` gives; what it printed."""

    def call(name: str, *arguments: str, lm: LM | None = None) -> str:
        if lm is not None:
            monkeypatch.setattr("glmkit.load", lambda directory: lm)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capsys.readouterr()
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return call


def test_all_scripts_have_a_test() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in SCRIPTS if f'"{path.name}", ' not in tests] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_first_lines_show_a_command(path: Path) -> None:
    assert f"python examples/{path.name} " in path.read_text(encoding="utf-8").split('"""')[1]


def test_fill_blanks(run: Run) -> None:
    printed = run("fill_blanks.py", "model", r"The [MASK]\nfox [MASK]", "[MASK]", "--max_tokens", "5", lm=small_base())
    filled = small_base().fill("The [MASK]\nfox [MASK]", max_tokens=5)
    assert f"The [MASK]\nfox [MASK]\nbecomes\n{filled.text}\n  blank 1: {filled.blanks[0]!r}" in printed
    assert printed.count("  blank ") == 3


def test_stream(run: Run) -> None:
    printed = run("stream.py", "model", "The quick", "--temperature", "1", "--seed", "4", lm=small_base())
    whole = small_base().generate("The quick", max_new_tokens=64, temperature=1.0, seed=4)
    assert printed.startswith("The quick")
    written = printed.removeprefix("The quick")[:-1]
    assert whole.startswith(written)
    assert written == whole or "\n" in written


def test_chat(run: Run) -> None:
    queries, options = ["abc" * 12, "cba"], {"temperature": 0, "max_new_tokens": 6}
    printed = run(
        "chat.py", "model", *queries, "--max_new_tokens", "6", "--temperature", "0", lm=small_chat("chatglm2")
    )
    lm, history, wanted = small_chat("chatglm2"), [], ""
    for query in queries:
        *_, last = lm.chat_steps(query, history, **options)
        reply, history = lm.chat(query, history, **options)
        wanted += f"> {query}\n{reply}\n  ({last.tokens} tokens, ended by {last.finish})\n"
    *turns, cached = printed.strip().splitlines()
    assert [line.rstrip() for line in turns] == [line.rstrip() for line in wanted.splitlines()]
    assert int(cached.split()[0]) > 0, "the second turn begins as the first"


def test_batch(run: Run) -> None:
    printed = run("batch.py", "model", "The quick", "fox", "--answers", "3", "--seed", "2", lm=small_base())
    options = {"n": 3, "temperature": 0.8, "seed": 2, "max_new_tokens": 24}
    for prompt, answers in zip(
        ["The quick", "fox"], small_base().answers(["The quick", "fox"], **options), strict=True
    ):
        assert f"{prompt!r}\n" in printed
        assert all(repr(answer.text) in printed for answer in answers)
    scores = [float(line.split()[0]) for line in printed.splitlines() if line.startswith("  ")]
    assert scores == [*sorted(scores[:3], reverse=True), *sorted(scores[3:], reverse=True)]


def test_serve_client(run: Run) -> None:
    live = pytest.importorskip("support.live", reason="needs the extra [serve] and the openai client")
    with live.serving(small_base) as server:
        printed = run("serve_client.py", "--url", server.url, "--complete", "The quick", "--fill", "The [MASK] fox")
    whole = small_base().generate("The quick", max_new_tokens=32)
    assert printed == f"The quick{whole}\n{small_base().fill('The [MASK] fox', max_tokens=64).text}\n"
    with live.serving(lambda: small_chat("chatglm3")) as server:
        assert run("serve_client.py", "--url", server.url, "--chat", "abc").endswith("\n")
