"""Names that an output may have, links that are not written through, and locks."""

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from glmkit.cli.main import main
from glmkit.files import atomic_directory, atomic_write, inside, is_plain_name
from glmkit.locks import UnguardedWarning, open_lock, try_lock

PLAIN = ["49300", "iter_0049300", "a b", "模型", ".hidden", "-x", "x" * 200, "epoch=3-step=5.ckpt", "a..b"]
NOT_PLAIN = [
    "",
    ".",
    "..",
    "/etc",
    "a/b",
    "../x",
    "a\\b",
    "a\nb",
    "\x1b[31m",
    "a\0b",
    "x" * 201,
    " a",
    "a ",
    "\udcff",
    "文" * 90,
]
NOT_ON_WINDOWS = ["con", "NUL.txt", "com1", "Lpt9.bin", "a:b", "c:x", "a?", "a*", "x.", "<a>", '"', "a|b"]


def test_plain_names() -> None:
    assert all(map(is_plain_name, PLAIN))
    assert not any(map(is_plain_name, NOT_PLAIN))
    assert not any(is_plain_name(name, windows=True) for name in [*NOT_PLAIN, *NOT_ON_WINDOWS])
    assert all(is_plain_name(name, windows=True) for name in ["console", "a.con", "com10", *PLAIN[:8]])


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "..", "a//b", "a/", "./a", "a\nb", "link/x", "end"])
def test_outputs_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (tmp_path / "outside").mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "end").symlink_to(tmp_path / "outside" / "file")
    with pytest.raises(OSError, match=r"no plain name|a link"):
        inside(folder, name)
    assert inside(folder, "tag/mp_rank_00_model_states.pt") == folder / "tag" / "mp_rank_00_model_states.pt"


@pytest.mark.parametrize("existing", [True, False])
def test_a_link_under_the_temporary_name_is_not_written_through(tmp_path: Path, existing: bool) -> None:
    victim = tmp_path / "victim"
    if existing:
        victim.write_text("precious")
    (tmp_path / f".file.tmp-{os.getpid()}").symlink_to(victim)
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_text() == "new"
    assert not (tmp_path / "file").is_symlink()
    assert (victim.read_text() == "precious") if existing else not victim.exists()
    (tmp_path / f".folder.tmp-{os.getpid()}").symlink_to(tmp_path / "elsewhere")
    with atomic_directory(tmp_path / "folder") as folder:
        (folder / "x").write_text("1")
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "folder" / "x").read_text() == "1"


def test_a_pipe_and_a_hard_link_under_the_temporary_name(tmp_path: Path) -> None:
    temporary = tmp_path / f".file.tmp-{os.getpid()}"
    os.mkfifo(temporary)
    with atomic_write(tmp_path / "file") as file:
        file.write(b"1")
    (tmp_path / "victim").write_text("precious")
    temporary.hardlink_to(tmp_path / "victim")
    with atomic_write(tmp_path / "file") as file:
        file.write(b"2")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "2"


def test_a_target_that_is_a_link_is_replaced_itself(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "file").symlink_to("victim")
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_file_that_is_exchanged_while_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="another thread"), atomic_write(tmp_path / "file") as file:
        file.write(b"new")
        temporary = tmp_path / f".file.tmp-{os.getpid()}"
        temporary.unlink()
        temporary.write_text("a stranger's")
    assert (tmp_path / "file").read_text() == "old"


def test_what_a_killed_writer_moved_aside_goes(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".out.old-{dead.pid}").mkdir()
    (tmp_path / f".out.old-{os.getpid()}").mkdir()
    (tmp_path / f".out.old-{os.getpid()}" / "x").write_text("")
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out", replace=True) as folder:
        (folder / "x").write_text("1")
    assert os.listdir(tmp_path) == ["out"]


# --- locks ------------------------------------------------------------------------------------------------------------


def test_locks_that_are_links_or_pipes(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to("victim")
    (tmp_path / "dangling").symlink_to("absent")
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {"link": "a link", "dangling": "a link", "pipe": "no regular file"}.items():
        with pytest.raises(OSError, match=reason):
            open_lock(tmp_path / name)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("record", [False, True])
def test_a_lock_is_held_or_not(tmp_path: Path, record: bool) -> None:
    first = open_lock(tmp_path / "lock")
    assert try_lock(first, tmp_path, record=record)
    code = (
        "import sys; from pathlib import Path; from glmkit.locks import open_lock, try_lock; "
        "p = Path(sys.argv[1]); sys.exit(try_lock(open_lock(p), p, record=bool(int(sys.argv[2]))))"
    )
    again = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock"), str(int(record))], timeout=60)
    assert again.returncode == 0
    os.close(first)
    again = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock"), str(int(record))], timeout=60)
    assert again.returncode == 1


def test_a_missing_lock_is_one_line_of_a_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> int:
        warnings.warn("this system has no file locks", UnguardedWarning, stacklevel=1)
        return 0

    monkeypatch.setattr("glmkit.cli.info.run", run)
    assert main(["info"]) == 0
    assert capsys.readouterr().err == "glm info: warning: this system has no file locks\n"


def test_a_missing_lock_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = open_lock(tmp_path / "lock")
    import fcntl

    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UnguardedWarning, match="file system has no locks.*keeps a second process away"):
        assert try_lock(descriptor, tmp_path)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.warns(UnguardedWarning, match="this system has no file locks"):
        assert try_lock(descriptor, tmp_path)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert try_lock(descriptor, tmp_path)
    os.close(descriptor)
