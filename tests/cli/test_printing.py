"""Streams that cannot carry every character, and options that are no numbers a machine can count: never a traceback."""

import io
import json
import sys

import pytest

from glmkit.cli import printing
from glmkit.cli.main import main
from glmkit.cli.parser import OneLineParser
from glmkit.cli.printing import print_json
from glmkit.errors import RequestError


def stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


def written(stream: io.TextIOWrapper) -> bytes:
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue()


@pytest.mark.parametrize(
    ("encoding", "shown"), [("gbk", r"你好\U0001f600é"), ("ascii", r"\u4f60\u597d\U0001f600\xe9")], ids=["gbk", "ascii"]
)
def test_what_a_stream_lacks_is_escaped(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = stream(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", stream(encoding))
    assert main(["--version"]) == 0
    print("你好😀é")
    assert written(out).decode(encoding).splitlines()[1] == shown
    assert main(["fill", "nowhere/😀", "你好 [MASK]"]) == 2  # the error names it, escaped


@pytest.mark.parametrize("encoding", ["gbk", "ascii", "utf-8", "utf-16"])
@pytest.mark.parametrize("text", ["你好", "😀", "é", "\ud800"])
def test_json_is_json_in_every_encoding(encoding: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = stream(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    print_json({"text": text})
    line = written(out).decode(encoding)
    assert json.loads(line) == {"text": text}
    assert ("\\u" in line) == (text == "\ud800" or not _carries(encoding, text))


def _carries(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--whole", "99999999999999999999", "argument --whole: 99999999999999999999 is beyond 9223372036854775807"),
        ("--whole", "-9223372036854775809", "argument --whole: -9223372036854775809 is beyond 9223372036854775807"),
        ("--whole", "9" * 5000, f"argument --whole: invalid int value: '{'9' * 40}...'"),
        ("--whole", "1.5", "argument --whole: invalid int value: '1.5'"),
        ("--whole", "ten", "argument --whole: invalid int value: 'ten'"),
        ("--real", "nan", "argument --real: nan is no finite number"),
        ("--real", "1e999", "argument --real: 1e999 is no finite number"),
        ("--real", "x", "argument --real: invalid float value: 'x'"),
    ],
)
def test_numbers_of_options(option: str, text: str, message: str) -> None:
    parser = OneLineParser("glm x")
    parser.add_argument("--whole", type=int)
    parser.add_argument_group("more").add_argument("--real", type=float)
    with pytest.raises(RequestError) as caught:
        parser.parse_args([f"{option}={text}"])
    assert str(caught.value) == f"{message}; see glm x --help"
    assert parser.parse_args(["--whole=-5", "--real=2"]).whole == -5


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "nowhere", "a", "--seed", "99999999999999999999"],
        ["fill", "nowhere", "a", "--seed", "-18446744073709551616"],
        ["generate", "nowhere", "a", "--threads", "99999"],
        ["pretrain", "tiny", "--training.seed", "99999999999999999999"],
        ["pretrain", "tiny", "--training.max_steps", "1" * 5000],
        ["pretrain", "tiny", "--model.vocab_multiple", "0"],
        ["pretrain", "tiny", "--data.workers", "5000"],
        ["pretrain", "tiny", "--nproc", "5000"],
        ["pretrain", "tiny", "--objective.max_block_length", "9999999999"],
        ["show", "tiny", "--count", "99999999"],
        ["prepare", "x.txt", "--output", "y", "--workers", "5000"],
        ["demo", "--seed", "-1"],
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-2]}",
)
def test_a_number_beyond_all_limits_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert len(err) < 400


def test_closed_streams_are_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    printing.escape_what_does_not_fit()
    print("nobody reads this")
    assert print("nor this", file=sys.stderr) is None
    sys.stderr.flush()
