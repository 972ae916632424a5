"""Small files of strangers: what is no plain small file of JSON or YAML is refused at once, in one line."""

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from glmkit.checkpoint.configure import read_given
from glmkit.data.json_files import json_line, json_values
from glmkit.data.rows import BadRow
from glmkit.errors import CheckpointError, ConfigError, DataError, GLMKitError
from glmkit.small_files import leads_out, parse_small_json, parse_yaml, read_small


def refusal(action: Callable[[], object], kind: type[GLMKitError] = ConfigError) -> str:
    """The one line of a refusal; one that waits for a pipe ends the test."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for ever"
    assert caught
    assert type(caught[0]) is kind, caught[0]
    assert "\n" not in str(caught[0])
    return str(caught[0])


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # the path of a socket may have a hundred characters
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        for name in ("pipe", "link", "socket"):
            assert str(tmp_path / name) in refusal(lambda name=name: read_small(tmp_path / name, ConfigError))  # type: ignore[misc]
    assert "is a directory, not a file" in refusal(lambda: read_small(tmp_path / "folder", ConfigError))
    assert "a device, not a file" in refusal(lambda: read_small("/dev/zero", ConfigError))
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "folder" / "absent", ConfigError)
    (tmp_path / "file").write_bytes(b"12")
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "file" / "absent", ConfigError)
    assert read_small(tmp_path / "file", ConfigError, limit=2) == b"12"


@pytest.mark.parametrize("size", [3 << 30, (4 << 20) + 1])
def test_a_large_file_is_not_read(tmp_path: Path, size: int) -> None:
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(size)  # sparse
    assert "such a file has at most 4.0 MiB" in refusal(lambda: read_small(tmp_path / "config.json", ConfigError))


@pytest.mark.parametrize("depth", [101, 900, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_nesting_without_end(opening: str, closing: str, depth: int) -> None:
    text = opening * depth + "1" + closing * depth
    assert "x.json is nested too deeply" in refusal(lambda: parse_small_json(text, "x.json", DataError), DataError)


def test_a_number_of_thousands_of_digits() -> None:
    message = refusal(lambda: parse_small_json('{"a": ' + "9" * 5000 + "}", "x.json", DataError), DataError)
    assert message == "x.json is not valid JSON (a number in it has thousands of digits); download it again"


def test_json_that_is_fine_or_broken() -> None:
    deep = "[" * 100 + "]" * 100
    assert json.dumps(parse_small_json(deep, "x", ConfigError)).replace(" ", "") == deep
    assert parse_small_json(b'\xef\xbb\xbf{"a": 1}', "x", ConfigError) == {"a": 1}
    for broken in (b"{", b"\xff\xfe{}", b"", b"1" * 5000):
        assert "x is not valid JSON" in refusal(lambda broken=broken: parse_small_json(broken, "x", ConfigError))  # type: ignore[misc]


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n}\n  <<: [*a{n - 1}, *a{n - 1}]\n  k{n}: 1\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "aliases stand for more than 200,000 values"),
        (MERGES, "aliases stand for more than"),
        ("a: &a [*a]", "aliases stand for more than"),
        ("[" * 5000, "nested too deeply"),
        ("{a: " * 150 + "1" + "}" * 150, "nested too deeply"),
        ("".join(f"{' ' * n}a:\n" for n in range(120)), "nested too deeply"),
        ("#" * (257 << 10), "such a text has at most 256.0 KiB"),
        ("a: 1\nb: 2\na: 3\n", "the key 'a' stands twice in the table at line 1"),
        ("a: 2024-99-99", "is not valid YAML"),
        ("a: " + "9" * 5000, "is not valid YAML"),
        ("!!python/object/apply:os.system [ls]", "is not valid YAML"),
        ("a: \x1b[31m", "is not valid YAML"),
        (b"\xff\xff", "is not UTF-8 text (byte 0)"),
    ],
)
def test_yaml_that_would_burst(text: str | bytes, reason: str) -> None:
    assert reason in refusal(lambda: parse_yaml(text, "r.yaml", ConfigError))


def test_yaml_that_is_fine() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: *a\nc:\n  <<: *a\n  y: 3\n"
    assert parse_yaml(text, "r", ConfigError) == {
        "a": {"x": 1, "y": [1, 2]}, "b": {"x": 1, "y": [1, 2]}, "c": {"x": 1, "y": 3},
    }  # fmt: skip
    assert parse_yaml("", "r", ConfigError) is None
    assert parse_yaml(b"\xef\xbb\xbfa: 1", "r", ConfigError) == {"a": 1}


def test_a_config_that_is_given(tmp_path: Path) -> None:
    for name, text in (("c.yaml", LAUGHS), ("c.json", "[" * 100_000)):
        (tmp_path / name).write_text(text)
        assert str(tmp_path / name) in refusal(lambda name=name: read_given(tmp_path / name))  # type: ignore[misc]


def test_links_that_lead_out(tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "secret"
    (folder / "deep").mkdir(parents=True)
    outside.write_text("secret")
    (folder / "deep" / "file").write_text("fine")
    (folder / "inner").symlink_to("deep/file")
    (folder / "outer").symlink_to("../secret")
    (folder / "absolute").symlink_to(outside)
    (folder / "hop").symlink_to("outer")
    assert not leads_out(folder / "inner")
    assert not leads_out(folder / "deep" / "file")
    assert all(leads_out(folder / name) for name in ("outer", "absolute", "hop"))
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "0").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/0")
    (snapshot / "other").symlink_to("../../../secret")
    assert not leads_out(snapshot / "config.json")
    assert leads_out(snapshot / "other")


def test_errors_are_of_the_kind_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for kind in (CheckpointError, DataError):
        with pytest.raises(kind) as caught:
            read_small(tmp_path / "x", kind, code="bad_config")
        assert (caught.value.code, caught.value.path) == ("bad_config", str(tmp_path / "x"))


@pytest.mark.parametrize("depth", [200, 900, 100_000])
def test_rows_that_are_nested_without_end(tmp_path: Path, depth: int) -> None:
    row = '{"text": "fine", "more": ' + "[" * depth + "]" * depth + "}"
    found = json_line(row.encode(), "f: line 1")
    assert isinstance(found, BadRow)
    assert "nested too deeply" in found.message
    (tmp_path / "f.json").write_text(f"[{row}]")
    with pytest.raises(DataError, match="nested too deeply"), open(tmp_path / "f.json", "rb") as stream:
        list(json_values(stream, tmp_path / "f.json"))
