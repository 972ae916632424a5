"""Atomic writing: what a reader can see after success, after an error in the middle, and after a kill in the middle."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from glmkit.files import atomic_directory, atomic_write, sha256_file


class MidwayError(Exception):
    pass


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was fsynced or renamed, in order."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        calls.append("fsync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def record_replace(source: object, target: object) -> None:
        calls.append("rename " + os.path.basename(str(target)))
        replace(str(source), str(target))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("names of open descriptors need /proc")
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    return calls


def test_write_makes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"first", b"second, longer", b""):
        with atomic_write(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [MidwayError, KeyboardInterrupt, SystemExit])
def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"half of the new")
        file.flush()
        assert path.read_bytes() == b"old"
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_write_syncs_the_data_before_the_rename_and_the_directory_after(tmp_path: Path, synced: list[str]) -> None:
    with atomic_write(tmp_path / "file") as file:
        file.write(b"x")
    data, rename, directory = synced
    assert data.startswith("fsync .file.tmp")
    assert rename == "rename file"
    assert directory == f"fsync {tmp_path.name}"


def test_write_into_a_missing_directory_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "absent" / "file"):
        pytest.fail("the block must not run")


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(path) as file:
        file.write(b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def make(directory: Path, **files: str) -> None:
    for name, content in files.items():
        (directory / name).write_text(content)


def contents(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_directory_appears_whole_with_its_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with atomic_directory(target) as temporary:
        assert not target.exists()
        (temporary / "sub").mkdir()
        make(temporary, one="1")
        make(temporary / "sub", two="2")
    assert contents(target) == {"one": "1", "sub/two": "2"}
    assert os.listdir(target.parent) == ["b"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_no_target_for_a_directory(there: bool, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    if there:
        (tmp_path / "target").mkdir()
    for replace in (True, False):
        with (
            pytest.raises(OSError, match="a link, which is not followed on writing"),
            atomic_directory(link, replace=replace),
        ):
            pass
    assert sorted(os.listdir(tmp_path)) == (["link", "target"] if there else ["link"])


def test_directory_syncs_every_file_before_the_rename(tmp_path: Path, synced: list[str]) -> None:
    with atomic_directory(tmp_path / "out") as temporary:
        (temporary / "sub").mkdir()
        make(temporary, one="1")
        make(temporary / "sub", two="2")
    rename = synced.index("rename out")
    assert {"fsync one", "fsync two", "fsync sub"} <= set(synced[:rename])
    assert synced[rename - 1].startswith("fsync .out.tmp")
    assert f"fsync {tmp_path.name}" in synced[rename:]


def test_an_error_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(MidwayError), atomic_directory(tmp_path / "out") as temporary:
        make(temporary, one="1")
        raise MidwayError
    assert os.listdir(tmp_path) == []


def test_replacing_keeps_the_old_directory_until_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_directory(target) as temporary:
        make(temporary, old="1", common="old")
    with pytest.raises(MidwayError), atomic_directory(target, replace=True) as temporary:
        make(temporary, common="new")
        raise MidwayError
    assert contents(target) == {"old": "1", "common": "old"}
    with atomic_directory(target, replace=True) as temporary:
        make(temporary, common="new")
        assert contents(target) == {"old": "1", "common": "old"}
    assert contents(target) == {"common": "new"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_failing_rename_puts_the_old_directory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    target.mkdir()
    make(target, old="old")
    replace = os.replace

    def fail_for_the_new(source: str | Path, name: str | Path) -> None:
        if ".tmp" in str(source) and str(name) == str(target):
            raise OSError(5, "Input/output error")
        replace(source, name)

    monkeypatch.setattr(os, "replace", fail_for_the_new)
    with pytest.raises(OSError, match="Input/output"), atomic_directory(target, replace=True) as temporary:
        make(temporary, new="new")
    assert contents(target) == {"old": "old"}
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_an_existing_target_is_refused_before_anything_is_written(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        make(target, mine="mine")
    expected = r"out exists and is not empty; choose another name"
    with pytest.raises(FileExistsError, match=expected), atomic_directory(target):
        pytest.fail("the block must not run")
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_directory_may_be_filled_without_replace(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out") as temporary:
        make(temporary, one="1")
    assert contents(tmp_path / "out") == {"one": "1"}


KILLED = """
import os, signal, sys
from glmkit.files import atomic_directory, atomic_write
target = sys.argv[2]
if sys.argv[1] == "file":
    with atomic_write(target) as file:
        file.write(b"half"); file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
else:
    with atomic_directory(target, replace=True) as temporary:
        (temporary / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("existing", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_kill_in_the_middle_shows_nothing_half_written(tmp_path: Path, kind: str, existing: bool) -> None:
    target = tmp_path / "out"
    if existing and kind == "file":
        target.write_text("old")
    elif existing:
        target.mkdir()
        make(target, old="old")
    process = subprocess.run([sys.executable, "-c", KILLED, kind, str(target)], timeout=60)
    assert process.returncode == -signal.SIGKILL
    visible = [name for name in os.listdir(tmp_path) if not name.startswith(".")]
    assert visible == (["out"] if existing else [])
    if existing:
        assert target.read_text() == "old" if kind == "file" else contents(target) == {"old": "old"}
    # The next writer is not disturbed by what the killed one left.
    if kind == "file":
        with atomic_write(target) as file:
            file.write(b"new")
        assert target.read_text() == "new"
    else:
        with atomic_directory(target, replace=True) as temporary:
            make(temporary, new="new")
        assert contents(target) == {"new": "new"}
        assert os.listdir(tmp_path) == ["out"]


def test_only_directories_of_dead_writers_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive, gone = f".out.tmp-{os.getppid()}", f".out.tmp-{dead.pid}"
    others = [alive, f".other.tmp-{dead.pid}", ".out.tmp-", ".out.tmp-12x", f".out.tmp-{10**30}", f"out.tmp-{dead.pid}"]
    for name in (gone, *others):
        (tmp_path / name).mkdir()
        make(tmp_path / name, half="half")
    with atomic_directory(tmp_path / "out") as temporary:
        make(temporary, one="1")
    assert sorted(os.listdir(tmp_path)) == sorted(["out", *others])


def test_sha256_of_a_file(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
