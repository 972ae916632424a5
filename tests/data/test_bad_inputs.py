"""Bad input and bad output places through the command: one line on stderr, exit 2, nothing half-written."""

import base64
import builtins
import io
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest

from data.corpora import TEXTS, json_lines, tokenizer, write
from glmkit.cli.main import main
from glmkit.data import encoding
from glmkit.data.store import TokenStore

GOOD = json_lines([{"text": text} for text in TEXTS])
LETTERS = str.maketrans("0123456789", "qwertyuiop")
NOISE = random.Random(0).randbytes(20_000).hex()


def parquet(**columns: Any) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def packed(name: str, keep: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = write(folder / name, NOISE)
        path.write_bytes(path.read_bytes()[:keep])

    return make


def flipped(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = write(folder / name, NOISE)
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 40] = b"\xff" * 40
        path.write_bytes(data)

    return make


def unpacked(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_text("plain text")

    return make


BINARY = bytes(range(256)) * 8

# name of the input -> what is in it (or how it is made), what stderr must say
FILES: dict[str, tuple[str | bytes | Callable[[Path], None], str]] = {
    "empty.txt": ("", "empty.txt: no text found; left out: 1 empty documents"),
    "empty.jsonl": ("", "empty.jsonl: no text found"),
    "empty.csv": ("", "empty.csv: no text found"),
    "empty.json": ("", "empty.json: no text found"),
    "blank.txt": (" \n\t\n", "blank.txt: no text found; left out: 1 empty documents"),
    "only_empty.jsonl": ('{"text": ""}\n{"text": " "}\n', "no text found; left out: 2 empty documents"),
    "binary.txt": (BINARY, "binary.txt: line 1: NUL byte (is this a binary file?) at byte 0 of the line"),
    "no_nul.txt": (BINARY.replace(b"\0", b""), "no_nul.txt: line 2: invalid UTF-8 (byte 0x80) at byte 117 of the line"),
    "utf16.txt": ("text".encode("utf-16"), "utf16.txt: the file is UTF-16; read it with --encoding utf-16"),
    "cut.txt.gz": (packed("cut.txt.gz", 5000), "cut.txt.gz: the gzip data stops in the middle; the file is truncated"),
    "cut.jsonl.zst": (packed("cut.jsonl.zst", 5000), "cut.jsonl.zst: the zstd data stops in the middle; the file"),
    "damaged.txt.gz": (flipped("damaged.txt.gz"), "damaged.txt.gz: damaged gzip data: "),
    "damaged.txt.zst": (flipped("damaged.txt.zst"), "damaged.txt.zst: damaged zstd data: "),
    "plain.txt.gz": (unpacked("plain.txt.gz"), "plain.txt.gz: damaged gzip data: Not a gzipped"),
    "plain.txt.zst": (unpacked("plain.txt.zst"), "plain.txt.zst: damaged zstd data: "),
    "utf8.txt": (b"ok\nfine \xff\n", "utf8.txt: line 2: invalid UTF-8 (byte 0xff) at byte 5 of the line"),
    "utf8.jsonl": (b'{"text": "ok"}\n{"text": "\xe4\xb8"}\n', "utf8.jsonl: line 2: invalid UTF-8 at byte 10 (0xe4)"),
    "utf8.json": (b'[{"text": "ok"},\n{"text": "\xff"}]', "utf8.json: line 2: invalid UTF-8 (byte 0xff)"),
    "utf8.csv": (b"text\nok\n\xff\n", "utf8.csv: line 3: field 'text': invalid UTF-8"),
    "nul.txt": ("a\nb\0c", "nul.txt: line 2: NUL byte (is this a binary file?) at byte 1 of the line"),
    "nul.jsonl": ('{"text": "a\\u0000"}', "nul.jsonl: line 1: field 'text': NUL byte at character 1"),
    "missing.jsonl": ('{"text": "a"}\n{"body": "bb", "n": ""}', "line 2: no field 'text'; fields with text: body, n;"),
    "missing.csv": ("id,body\n1,a\n", "missing.csv: no column 'text'; columns: 'id', 'body'; choose with --text-field"),
    "missing.parquet": (parquet(body=["a"]), "missing.parquet: no column 'text'; columns: 'body'; choose with"),
    "number.jsonl": ('{"text": 3.5}\n', "number.jsonl: line 1: field 'text' is a number (3.5), not text"),
    "boolean.jsonl": ('{"text": true}\n', "boolean.jsonl: line 1: field 'text' is a boolean (true), not text"),
    "null.jsonl": ('{"text": "a"}\n{"text": null}\n', "null.jsonl: line 2: field 'text' is null, not text"),
    "list.json": ('[{"text": ["a", 1]}]', "list.json: row 1 (line 1): field 'text' is a list of 2, not text"),
    "object.jsonl": ('{"text": {}}', "object.jsonl: line 1: field 'text' is an object, not text"),
    "row.jsonl": ('"just text"\n', "row.jsonl: line 1: the row is a string, not an object with fields"),
    "number.parquet": (parquet(text=[1], body=["a"]), "column 'text' holds int64, not text; text columns: body"),
    "null.parquet": (parquet(text=["a", None]), "null.parquet: row 2: field 'text' is null, not text"),
    "broken.jsonl": ('{"text": "a"}\n{"text": \n', "broken.jsonl: line 2: broken JSON at column 10: Expecting value"),
    "broken.json": ('[{"text": "a"},\n {"text" "b"}]', "broken.json: line 2: broken JSON: Expecting ':' delimiter"),
    "comma.json": ('[{"text": "a"}\n {"text": "b"}]', "comma.json: line 2: broken JSON: expected ',' or ']' bet"),
    "cut.json": ('[{"text": "a"},\n{"text": "b', "cut.json: line 2: broken JSON: Unterminated string"),
    "open.json": ('[{"text": "a"}\n', "open.json: line 2: broken JSON: the array is not closed; the file is cut off"),
    "more.json": ('[{"text": "a"}]\n{}', "more.json: line 2: broken JSON: more data after the end of the array"),
    "deep.jsonl": ('{"text": ' + "[" * 200_000, "deep.jsonl: line 1: unusable JSON: "),
    "digits.jsonl": ('{"text": 1' + "0" * 5000 + "}", "digits.jsonl: line 1: unusable JSON: "),
    "surrogate.jsonl": ('{"text": "\\ud800"}', "surrogate.jsonl: line 1: field 'text': lone surrogate U+D800"),
    "ragged.csv": ("text,n\na,1\nb\n", "ragged.csv: line 3: 1 fields, but the header has 2"),
    "quote.csv": ('text,n\n"a,1\nb,2\n', "quote.csv: line 2: broken CSV: unexpected end of data"),
    "twice.csv": ("text,text\na,b\n", "twice.csv: more than one column 'text'"),
    "binary.csv": (BINARY, "binary.csv: line 1: the header is not text; is this a table?"),
    "corrupt.parquet": (parquet(text=TEXTS)[:-30], "corrupt.parquet: not a readable parquet file: "),
    "noise.parquet": (BINARY, "noise.parquet: not a readable parquet file: "),
    "what.xyz": ("text", "what.xyz: unknown format '.xyz'; known: .txt"),
    "folder/picture.png": ("x", "unknown format '.png'"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory `in` beside nothing else; a tokenizer lies elsewhere."""
    tokenizer().save(tmp_path / "tokenizer")
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "in"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command in the folder's parent; returns the one line on stderr."""
    before = sorted(Path().rglob("*"))
    status = main(["prepare", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert status == 2, err
    assert out == ""
    assert err.startswith("glm prepare: ")
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    assert sorted(Path().rglob("*")) == before, "something was left behind"
    return err


@pytest.mark.sampled(4)
@pytest.mark.parametrize("train", [False, True], ids=["given tokenizer", "trained tokenizer"])
@pytest.mark.parametrize("name", FILES)
def test_bad_files(name: str, train: bool, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = FILES[name]
    if callable(content):
        content(folder)
    else:
        write(folder / name, content)
    tokenizer_options = ["--vocab-size", "267"] if train else ["--tokenizer", "tokenizer"]
    err = refused(capsys, folder / name, "--output", "out", *tokenizer_options)
    assert message in err
    assert name in err


SKIPPED = {
    "binary.txt": "nul_byte", "utf8.txt": "invalid_utf8", "utf8.jsonl": "invalid_utf8", "utf8.csv": "invalid_utf8",
    "nul.jsonl": "nul_byte", "missing.jsonl": "missing_field", "number.jsonl": "wrong_type", "list.json": "wrong_type",
    "null.parquet": "wrong_type", "broken.jsonl": "broken_json", "deep.jsonl": "broken_json",
    "row.jsonl": "not_an_object", "ragged.csv": "ragged_row", "quote.csv": "broken_csv",
    "surrogate.jsonl": "lone_surrogate",
}  # fmt: skip


@pytest.mark.parametrize("name", SKIPPED)
def test_bad_rows_can_be_skipped_and_are_counted(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = FILES[name][0]
    assert not callable(content)
    write(folder / name, content)
    write(folder / "good.jsonl", GOOD)
    arguments = ["prepare", "in", "--output", "out", "--tokenizer", "tokenizer", "--on-bad-row", "skip", "--json"]
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    bad = facts["manifest"]["read"]["bad_rows"]
    assert {reason: entry["count"] for reason, entry in bad.items()} == {SKIPPED[name]: 1}
    assert name in bad[SKIPPED[name]]["first"]
    assert facts["manifest"]["read"]["documents"] >= len(TEXTS)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["long.txt", "long.jsonl"])
def test_a_line_of_five_megabytes_is_fine(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ("a line of words without an end " * 170_000)[: 5 * 2**20]
    write(folder / name, text if name.endswith(".txt") else json_lines([{"text": text}]))
    whole = ["--validation-share", "0", "--tokenizer", "tokenizer"]
    assert main(["prepare", f"in/{name}", "--output", "out", *whole]) == 0
    stored = TokenStore("out")
    assert len(stored) == 1
    assert stored.tokenizer().decode(stored.document(0).tolist()) == text


@pytest.mark.exhaustive
def test_five_megabytes_without_a_space_train_a_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = base64.b64encode(random.Random(1).randbytes(5 * 2**20 * 3 // 4)).decode()  # one word, to a tokenizer
    write(folder / "long.txt", text.replace("+", "a").replace("/", "b").replace("=", "c").translate(LETTERS))
    write(folder / "good.jsonl", GOOD)
    arguments = ["-m", "glmkit", "prepare", "in", "--output", "out", "--vocab-size", "300", "--validation-share", "0"]
    # Two seconds; without parts of bounded length, minutes.
    subprocess.run([sys.executable, *arguments], check=True, timeout=60, stdout=subprocess.DEVNULL)
    assert TokenStore("out").tokenizer().vocab_size == 300


@pytest.mark.parametrize("name", ["long.txt", "long.jsonl", "long.csv", "long.json"])
def test_a_line_beyond_the_limit_is_refused(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("streams", "json_files", "tables"):
        monkeypatch.setattr(f"glmkit.data.{module}.LINE_LIMIT", 1000)
    rows = [{"text": "short"}, {"text": "x" * 3_000_000}]
    content = (
        json.dumps(rows, indent=0)
        if name.endswith("json")
        else json_lines(rows)
        if "jsonl" in name
        else f"text\n{'x' * 3000}\n"
    )
    write(folder / name, content)
    err = refused(capsys, f"in/{name}", "--output", "out", "--tokenizer", "tokenizer", "--on-bad-row", "skip")
    line = {"long.txt": 2, "long.jsonl": 2, "long.csv": 2, "long.json": 5}[name]
    assert f"{name}: line {line}" in err
    assert "longer than 1,000" in err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.txt", "missing.txt: no such file or directory"),
        ("in/gone/x", "in/gone/x: no such file or directory"),
        ("org/no_such_name", "org/no_such_name: no such file or directory, and not readable from the hub: "),
        ("in/missing", "in/missing: no such file or directory\n"),
        ("missing.gz", "missing.gz: no such file or directory\n"),
        ("in", "in: no readable files (known: .txt"),
        ("in/*.txt", "in/*.txt: nothing matches"),
        ("-", "-: standard input cannot be read twice"),
        ("/dev/null", "/dev/null: neither a file nor a directory"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, name, "--output", "out")


def test_links_that_lead_nowhere_or_to_themselves(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.txt").symlink_to(folder / "gone")
    assert "a.txt: a link that leads nowhere" in refused(capsys, "in", "--output", "out")
    assert "a.txt: a link that leads nowhere" in refused(capsys, "in/a.txt", "--output", "out")
    (folder / "a.txt").unlink()
    (folder / "b.txt").symlink_to(folder / "b.txt")
    assert "Too many levels of symbolic links" in refused(capsys, "in", "--output", "out")


def test_a_directory_loop_is_visited_once_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "a/good.jsonl", GOOD)
    (folder / "a/loop").symlink_to(folder)
    assert main(["prepare", "in", "--output", "out", "--tokenizer", "tokenizer"]) == 0
    assert "note: in/a/loop is a link to a directory already visited, which is read once" in capsys.readouterr().out
    manifest = TokenStore("out").manifest
    assert manifest["read"]["documents"] == len(TEXTS)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens but cannot be read (/proc)")
def test_a_file_that_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Permissions do not stop root, so: a regular file whose first page is unreadable for everybody.
    err = refused(capsys, "/proc/self/mem", "--format", "text", "--output", "out", "--tokenizer", "tokenizer")
    assert err == "glm prepare: Input/output error (/proc/self/mem)\n"


def test_a_file_without_permission(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder / "a.txt", "text")
    path.chmod(0)
    if os.access(path, os.R_OK):  # root: let opening fail as it does for others

        def deny(self: object, path: Path, count: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("glmkit.data.streams._CountingFile.__init__", deny)
    err = refused(capsys, "in/a.txt", "--output", "out", "--tokenizer", "tokenizer")
    assert err == "glm prepare: Permission denied (in/a.txt)\n"


def test_bad_output_places(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "a.jsonl", GOOD)
    write(folder.parent / "full/file", "x")
    write(folder.parent / "plain", "x")
    options = ["in", "--tokenizer", "tokenizer", "--output"]
    assert "full exists and is not empty" in refused(capsys, *options, "full")
    assert "plain exists and is not empty" in refused(capsys, *options, "plain")
    assert "plain" in refused(capsys, *options, "plain/below")
    assert "plain" in refused(capsys, *options, "plain/far/below")
    for overlapping in ("in", "in/out", "in/../in/a.jsonl", "."):
        err = refused(capsys, *options, overlapping, "--overwrite")
        assert "the output overlaps with the input in" in err


def test_only_a_store_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "a.jsonl", GOOD)
    options = ["in", "--tokenizer", "tokenizer", "--overwrite", "--output"]
    write(folder.parent / "thesis/chapter.tex", "years of work")
    assert "thesis is not empty and no token store" in refused(capsys, *options, "thesis")
    assert (folder.parent / "thesis/chapter.tex").read_text() == "years of work"
    (folder.parent / "empty").mkdir()
    for _ in range(2):  # an empty directory, then the store itself
        assert main(["prepare", *options, "empty"]) == 0
    assert len(TokenStore("empty"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_leaves_nothing(number: int, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    program = (  # the encoding stage waits at a pipe until the signal comes
        "import sys; from glmkit.cli.main import main; from glmkit.data import build_store as module;"
        "module.encode_all = lambda *a: iter(open('in/pipe').read());"
        "sys.exit(main())"
    )
    write(folder / "a.jsonl", GOOD)
    arguments = ["prepare", "in/a.jsonl", "--output", "out", "--tokenizer", "tokenizer"]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, text=True)
    with open(folder / "pipe", "w"):  # opens when the other side does
        assert any(path.name.startswith(".out.tmp-") for path in folder.parent.iterdir())
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors == f"glm prepare: {'terminated' if number == signal.SIGTERM else 'interrupted'}\n"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["in", "tokenizer"]


def test_the_hub_is_asked_once_and_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Session:
        def head(self, url: str, timeout: float) -> None:
            asked.append(url)
            raise ConnectionError("no route\nto the host")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    err = refused(capsys, "org/name", "--output", "out", "--tokenizer", "tokenizer")
    assert "org/name: no such file or directory, and not readable from the hub: " in err
    assert f"{huggingface_hub.constants.ENDPOINT} does not answer (no route)" in err
    assert asked == [huggingface_hub.constants.ENDPOINT]
    assert logging.getLogger("huggingface_hub").getEffectiveLevel() >= logging.ERROR


def test_a_bad_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "a.jsonl", GOOD)
    assert "nowhere is not a directory; give the path" in refused(
        capsys, "in", "--output", "out", "--tokenizer", "nowhere"
    )
    assert "in has no vocabulary; looked for " in refused(capsys, "in", "--output", "out", "--tokenizer", "in")
    err = refused(capsys, "in", "--output", "out", "--vocab-size", "9000")
    assert "give a vocabulary of" in err
    assert "fewer than the 9000 asked for" in err
    assert "at least 267" in refused(capsys, "in", "--output", "out", "--vocab-size", "100")
    options = ["in", "--output", "out", "--tokenizer", "tokenizer"]
    for useless in (["--vocab-size", "300"], ["--tokenizer-type", "bpe"], ["--tokenizer-sample-bytes", "9"]):
        assert f"{useless[0]} has no effect on a given tokenizer" in refused(capsys, *options, *useless)
    assert "exclude each other" in refused(capsys, *options, "--split-lines", "--split-blank-lines")


def test_a_full_disk(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "a.jsonl", GOOD)

    def full(path: Any, *rest: Any, **more: Any) -> Any:
        return builtins.open("/dev/full" if str(path).endswith("train.tokens.bin") else path, *rest, **more)

    monkeypatch.setattr(encoding, "open", full, raising=False)
    err = refused(capsys, "in", "--output", "out", "--tokenizer", "tokenizer")
    assert err == "glm prepare: No space left on device (out/train.tokens.bin)\n"


def test_a_file_size_limit_in_a_real_process(folder: Path) -> None:
    write(folder / "a.jsonl", GOOD * 100)
    result = subprocess.run(
        [sys.executable, "-m", "glmkit", "prepare", "in", "--output", "out", "--tokenizer", "tokenizer"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "glm prepare: File too large (out/train.tokens.bin)\n"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["in", "tokenizer"]
