"""`glm chat`: pipes, commands, Ctrl-C, the history file, JSON lines."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

import glmkit
from glmkit.checkpoint.native import write_model
from glmkit.cli.main import main
from glmkit.families.common.command_tokenizer import COMMANDS, CommandTokenizer
from glmkit.session import LM
from glmkit.tokenizer.sentencepiece import SentencePieceModel
from support.chat import chat_model, say
from support.served_models import small_chat
from tokenizer.small_vocabularies import sentencepiece_bytes

GREEDY = ["--temperature", "0", "--max_new_tokens", "6"]
CUT = "(cut at the longest length)\n"  # on stderr, for each reply of GREEDY


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat model of rounds whose greedy replies do not end by themselves."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = CommandTokenizer(SentencePieceModel(sentencepiece_bytes(rule="identity")), COMMANDS)
    lm = chat_model("chatglm2", tokenizer, seed=5, max_positions=40_000)
    write_model(folder, lm.config, dict(lm.model.named_parameters()))
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def lm(directory: Path) -> LM:
    return glmkit.load(directory, device="cpu")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "glmkit", "chat", *arguments]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Said(NamedTuple):
    """What a run said."""

    status: int
    out: str
    err: str


def glm_chat(lines: str | bytes, *arguments: str) -> Said:
    """In this process, with a pipe for its input."""
    data = lines if isinstance(lines, bytes) else lines.encode()
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        status = main(["chat", *arguments])
    return Said(status, out.getvalue(), err.getvalue())


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    pipe = subprocess.PIPE
    streams: dict[str, Any] = {"stdin": pipe, "stdout": pipe, "stderr": pipe, "bufsize": 0}
    with subprocess.Popen(command(*arguments), env=ENVIRONMENT, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
    assert stdin is not None
    assert stdout is not None
    assert stderr is not None
    return stdin, stdout, stderr


def replies(lm: LM, *queries: str) -> list[str]:
    history: list[Any] = []
    found = []
    for query in queries:
        response, history = lm.chat(query, history, temperature=0, max_new_tokens=6)
        assert isinstance(response, str)
        found.append(response)
    return found


@pytest.mark.exhaustive
def test_each_line_of_a_pipe_is_a_turn(lm: LM, directory: Path) -> None:
    expected = replies(lm, "the fox", "中文 again")
    with running(str(directory), *GREEDY) as process:
        out, err = process.communicate("the fox\n\n中文 again\n".encode(), timeout=120)
    assert out.decode() == "".join(f"{text}\n" for text in expected)
    assert (process.returncode, err) == (0, CUT.encode() * 2)
    for more in ([], ["--no_stream"]):
        result = glm_chat("the fox\n\n中文 again\n", str(directory), *GREEDY, *more)
        assert result.out == "".join(f"{text}\n" for text in expected)
        assert (result.status, result.err) == (0, CUT * 2)


def test_clear_stop_and_parameters_on_the_fly(lm: LM, directory: Path) -> None:
    lines = ["the fox", "clear", "the fox", "/max_new_tokens 2", "/clear", "the fox", "/retry", "stop", "not read"]
    result = glm_chat("\n".join(lines), str(directory), *GREEDY)
    (full,) = replies(lm, "the fox")
    short = lm.chat("the fox", temperature=0, max_new_tokens=2)[0]
    assert result.out == f"{full}\n{full}\n{short}\n{short}\n"
    assert result.err == f"{CUT}{CUT}max_new_tokens: 2\n{CUT}{CUT}"
    assert short != full


def test_ctrl_c_stops_the_answer_only(lm: LM, directory: Path, tmp_path: Path) -> None:
    history = tmp_path / "history.json"
    options = ["--temperature", "0", "--max_new_tokens", "30000", "--history", str(history)]
    with running(str(directory), *options) as process:
        stdin, stdout, stderr = pipes(process)
        stdin.write(b"the fox\n")
        stdin.flush()
        begun = stdout.read(8)  # it is answering
        process.send_signal(signal.SIGINT)
        assert stderr.readline() == b"(stopped)\n"
        stdin.write(b"/max_new_tokens 3\nand now\n/temperature 0.5\n")
        stdin.flush()
        assert stderr.readline() == b"max_new_tokens: 3\n"
        assert stderr.readline() == CUT.encode()
        assert stderr.readline() == b"temperature: 0.5\n"  # it waits for a line now
        process.send_signal(signal.SIGINT)
        assert stderr.readline() == b"\n"
        assert stderr.readline() == b"(Ctrl-C once more ends)\n"
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    first, second = (begun + rest).decode().splitlines()
    turns = json.loads(history.read_text())
    assert [query for query, _ in turns] == ["the fox", "and now"]
    assert turns[0][1].startswith(first[:6])
    assert 0 < len(first) < 60_000
    assert turns[1][1] == second == lm.chat("and now", turns[:1], temperature=0, max_new_tokens=3)[0]


@pytest.mark.exhaustive
def test_sigterm_ends_it(directory: Path) -> None:
    with running(str(directory), "--temperature", "0", "--max_new_tokens", "30000") as process:
        stdin, stdout, _ = pipes(process)
        stdin.write(b"the fox\n")
        stdin.flush()
        stdout.read(8)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors == b"glm chat: terminated\n"


def test_the_history_file_is_kept_and_read_again(lm: LM, directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    one, two = replies(lm, "the fox", "again")
    assert glm_chat("the fox\n", str(directory), *GREEDY, "--history", str(path)).status == 0
    assert json.loads(path.read_text()) == [["the fox", one]]
    result = glm_chat("again\n", str(directory), *GREEDY, "--history", str(path))
    assert result.out == f"{two}\n"
    assert json.loads(path.read_text()) == [["the fox", one], ["again", two]]
    assert glm_chat("clear\n", str(directory), *GREEDY, "--history", str(path)).status == 0
    assert json.loads(path.read_text()) == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["history.json"]


def test_json_lines(lm: LM, directory: Path) -> None:
    one, two = replies(lm, "the fox", "again")
    lines = 'the fox\n{"query": "again"}\n{"query": "x", "role": "tool"}\n{"query"\n{"say": 1}\n'
    result = glm_chat(lines, str(directory), *GREEDY, "--json")
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert answers[:2] == [
        {"query": "the fox", "response": one, "finish": "length", "tokens": 6},
        {"query": "again", "response": two, "finish": "length", "tokens": 6},
    ]
    reasons = ["was not taught to use tools", "is no JSON object", "and nothing else"]
    assert len(answers) == 5
    assert all(reason in answer["error"] for reason, answer in zip(reasons, answers[2:], strict=True))
    assert result.status == 2


def test_a_bad_line_does_not_end_a_pipe(lm: LM, directory: Path) -> None:
    (one,) = replies(lm, "the fox")
    result = glm_chat(b"\xff\xfe\n/nonsense\n//nonsense 1\nclear\nthe fox\n", str(directory), *GREEDY)
    errors = result.err.replace(CUT, "").splitlines()
    assert errors[0] == "glm chat: a line is not UTF-8 (byte 0)"
    assert errors[1] == "glm chat: there is no command /nonsense; /help lists them, //nonsense says it"
    assert errors[2:] == ["glm chat: 2 of the lines could not be answered"]
    assert result.out.splitlines()[1:] == [one]
    assert result.status == 2


# --- in this process --------------------------------------------------------------------------------------------------


def test_what_is_set_and_said_is_shown(lm: LM, directory: Path) -> None:
    lines = [
        "the fox",
        "/history",
        "/top_p",
        "/top_p 0.5",
        "/top_p",
        "/top_p default",
        "/top_k x",
        "/seed -1.5",
        "/help",
    ]
    lines += ["/temperature -2", "/system s", "/system"]
    result = glm_chat("\n".join(lines), str(directory), *GREEDY)
    (one,) = replies(lm, "the fox")
    said = result.err.replace(CUT, "").splitlines()
    assert said[:2] == ["user: the fox", f"assistant: {one}"]
    assert said[2:6] == ["top_p: default", "top_p: 0.5", "top_p: 0.5", "top_p: default"]
    assert said[6:8] == [
        "glm chat: top_k is 'x'; give a number or default",
        "glm chat: seed is '-1.5'; give a number or default",
    ]
    assert said[8].startswith("clear, /clear")
    assert said[-4] == "glm chat: temperature is -2.0; give at least 0"
    assert said[-3:] == ["system: s", "system: s", "glm chat: 3 of the lines could not be answered"]


def test_parameters_of_decoding(lm: LM, directory: Path) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 6}
    (one,) = replies(lm, "the fox")
    lines = ["the fox", "/repetition_penalty 1.8", "/clear", "the fox", "/repetition_penalty default", "/min_p"]
    lines += ["/no_repeat_ngram_size 1", "/clear", "the fox", "/frequency_penalty 9", "/min_new_tokens 7"]
    result = glm_chat("\n".join(lines), str(directory), *GREEDY, "--min_p", "0.5", "--stop", "never seen")
    penalised = lm.chat("the fox", repetition_penalty=1.8, **options)[0]
    once = lm.chat("the fox", no_repeat_ngram_size=1, **options)[0]
    assert result.out == f"{one}\n{penalised}\n{once}\n"
    said = result.err.replace(CUT, "").splitlines()
    assert said[:4] == [
        "repetition_penalty: 1.8",
        "repetition_penalty: default",
        "min_p: 0.5",
        "no_repeat_ngram_size: 1",
    ]
    assert said[4:6] == [
        "glm chat: frequency_penalty is 9.0; give from -2 to 2, 0 is off",
        "glm chat: min_new_tokens 7 is more than max_new_tokens 6; lower it",
    ]
    stop = one[2:4]
    result = glm_chat("the fox\n", str(directory), *GREEDY, "--stop", stop, "--json")
    answer = json.loads(result.out)
    assert (answer["response"], answer["finish"]) == (one[: one.index(stop)], "stop")


def test_tools_from_a_file(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, path = small_chat("chatglm3", max_positions=2048), tmp_path / "tools.json"
    monkeypatch.setattr("glmkit.cli.text_input.load", lambda *_, **__: lm)
    tools = [{"name": "track", "description": "d", "parameters": {"symbol": {"type": "string"}}}]
    path.write_text(json.dumps(tools))
    history = tmp_path / "history.json"
    expected, longer = lm.chat("the fox", tools=tools, temperature=0, max_new_tokens=6)
    result = glm_chat("the fox\n", "M", *GREEDY, "--tools", str(path), "--history", str(history), "--json")
    assert json.loads(result.out)["response"] == expected
    assert json.loads(history.read_text()) == longer
    assert longer[0]["tools"] == tools


@pytest.mark.parametrize("stream", [True, False])
def test_what_looks_like_a_call_is_text(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person reads what the model wrote, and not an object."""
    lm, text = small_chat("glm-4", max_positions=2048), "Thought: a\n\nAction: b\nObservation: 12"
    monkeypatch.setattr("glmkit.cli.text_input.load", lambda *_, **__: lm)
    stop = lm.chat_template.stop_ids(lm.tokenizer)[0]  # type: ignore[arg-type]
    options = [] if stream else ["--no_stream"]
    say(monkeypatch, [*lm.tokenizer.encode(text), stop])
    assert glm_chat("the fox\n", "M", *options) == (0, f"{text}\n", "")
    say(monkeypatch, [*lm.tokenizer.encode(text), stop])
    assert glm_chat("the fox\n", "M", "--stop", "Observation:", *options).out == text.partition("Obs")[0] + "\n"


@pytest.mark.parametrize(
    ("option", "content", "reason"),
    [
        ("--tools", "{", "is no JSON"),
        ("--tools", '{"name": "f"}', "holds dict, no list of tools"),
        ("--tools", "[1]", "no list of objects"),
        ("--tools", "[]", "use tools"),
        ("--history", "{", "is no JSON"),
        ("--history", '{"a": 1}', "holds dict, no list of turns"),
        ("--history", "[5]", "holds no history"),
        ("--history", "[1, 2]", "no h"),
    ],
)
def test_wrong_files(
    option: str, content: str, reason: str, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    assert main(["chat", str(directory), option, str(path)]) == 2
    assert reason in capsys.readouterr().err
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--history", "absent/history.json"], "give a file in an existing directory"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--max_new_tokens", "0"], "max_new_tokens is 0"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], reason: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", str(directory), *arguments]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_a_model_that_does_not_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str], lm: LM) -> None:
    write_model(tmp_path, replace(lm.config, family="glm"), dict(lm.model.named_parameters()))
    assert main(["chat", str(tmp_path)]) == 2
    assert "was not taught to chat; use fill or generate" in capsys.readouterr().err
