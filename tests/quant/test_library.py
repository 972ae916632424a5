"""Which library and level run: found, built, cached, tried out, and what happens where that fails."""

import os
import shutil
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glmkit.errors import RequestError
from glmkit.quant.native import build, library
from quant.matrices import HERE

needs_library = pytest.mark.skipif(not HERE, reason="needs a C compiler")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, nothing installed, no wishes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.setattr(build, "INSTALLED", "none")
    library.use_level(None)
    yield
    monkeypatch.undo()
    library.use_level(None)


@pytest.fixture(scope="module")
def ready() -> str:
    """The path of a library that fits."""
    return library.kernels().path


@pytest.fixture
def compiler(tmp_path: Path, ready: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that takes no time: it hands out a library that is there, and counts its calls."""
    path = tmp_path / "compiler"
    path.write_text(
        f'#!/bin/sh\necho call >> "{tmp_path}/calls"\n'
        f'while [ "$1" != "-o" ]; do shift; done\nsleep 0.1\ncp "{ready}" "$2"\n'
    )
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))
    return tmp_path / "calls"


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.so"))


@needs_library
def test_the_second_start_compiles_nothing(compiler: Path, tmp_path: Path) -> None:
    first = library.kernels()
    assert (first.level, first.reason) == (HERE[-1], "the best that is there")
    (file,) = cached(tmp_path)
    before = file.stat().st_mtime_ns
    library.use_level(None)
    assert library.kernels().path == first.path == str(file)
    assert file.stat().st_mtime_ns == before
    assert compiler.read_text() == "call\n"
    folder = file.parent.stat()
    assert stat.S_IMODE(folder.st_mode) == 0o700


@needs_library
def test_a_library_of_the_cache_is_taken_where_the_compiler_has_gone(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = library.kernels()
    library.use_level(None)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert library.kernels().path == first.path


@needs_library
def test_many_first_starts_leave_one_file(compiler: Path, tmp_path: Path) -> None:
    def start(_: int) -> Path:
        files = build.candidates([])
        path = next(files)
        files.close()
        return path

    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(start, range(8)))
    assert paths == {*cached(tmp_path)}
    assert len(paths) == 1
    assert compiler.read_text() == "call\n"


@needs_library
def test_what_a_killed_build_left_is_no_hindrance(compiler: Path, tmp_path: Path) -> None:
    folder = build.cache_folder()
    (folder / "build.lock").touch()
    (folder / ".kern-0-0-1.tmp").write_bytes(b"half")
    assert library.kernels().there


@needs_library
def test_damaged_and_foreign_files_of_the_cache_are_not_loaded(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.kernels()
    (file,) = cached(tmp_path)
    damaged = file.read_bytes()[:-100]
    file.unlink()  # it is loaded
    file.write_bytes(damaged)
    library.use_level(None)
    assert library.kernels().there
    assert compiler.read_text() == "call\ncall\n"
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    problems: list[str] = []
    for path in build.candidates(problems):
        assert path.parent.parent != file.parent.parent
    assert any("belongs to somebody else" in problem for problem in problems)


@needs_library
def test_a_library_of_another_source_is_not_taken(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "source_hash", lambda: "0" * 16)
    found = library.kernels()
    assert (found.level, found.there) == (library.TORCH, False)
    assert "another version of the source" in found.reason


@needs_library
def test_a_stale_installed_file_is_passed_over(compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / "stale.so"
    stale.write_bytes(b"\x7fELF of another machine")
    monkeypatch.setattr(build, "INSTALLED", str(stale))  # an absolute path wins
    assert library.kernels().path == str(cached(tmp_path)[0])


@needs_library
@pytest.mark.parametrize("home", ["/dev/null", "/proc/nowhere"])
def test_without_a_cache_a_temporary_file_serves(compiler: Path, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    found = library.kernels()
    assert found.there
    assert not Path(found.path).exists()  # removed after it was loaded


def test_a_relative_place_of_the_cache_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be another folder, and perhaps somebody else's, in every directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert build.cache_folder() == tmp_path / "home" / ".cache" / "glmkit" / "kernels"
    monkeypatch.setenv("HOME", "home")
    with pytest.raises(OSError, match="no home directory"):
        build.cache_folder()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'kern.c:7: error: no such thing' >&2; exit 1", "ended with status 1: kern.c:7: error: no such thing"),
        ("exit 0", "ended with status 0: no message"),
        ('while [ "$1" != "-o" ]; do shift; done; head -c 999 /dev/zero > "$2"', "invalid ELF header"),
    ],
)
def test_a_bad_compiler_leaves_torch_and_a_reason(
    tmp_path: Path, script: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))
    found = library.kernels()
    assert (found.level, found.built) == (library.TORCH, ())
    if sys.platform == "linux" or "ELF" not in reason:
        assert reason in found.reason


def test_no_compiler_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = library.kernels()
    assert found.level == library.TORCH
    assert "no C compiler" in found.reason
    with pytest.raises(RequestError, match="no C compiler"):
        library.use_level("plain")


def test_a_level_that_is_unknown_or_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="did you mean 'avx512'"):
        library.use_level("avx521")
    library.use_level(None)
    monkeypatch.setenv(library.VARIABLE, library.TORCH)
    assert library.kernels().reason == "asked for"


@needs_library
def test_a_level_that_fails_its_test_gives_way_to_the_next(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "self_test", lambda path, level: level == "plain")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = library.kernels()
    assert found.level == "plain"
    assert len(told) == len(HERE) - 1
    if len(HERE) > 1:
        assert found.reason == f"{HERE[-1]} failed its self-test"
        with pytest.raises(RequestError, match="this processor and library do not have"):
            library.use_level(HERE[-1])


@needs_library
def test_the_self_test_passes_here_and_survives_a_crash(ready: str, tmp_path: Path) -> None:
    for level in HERE:
        assert library.self_test(Path(ready), level)
    assert not library.self_test(tmp_path / "missing.so", "plain")


@needs_library
@pytest.mark.parametrize("executable", ["", "/nowhere/python"])
def test_within_another_program_the_test_runs_in_this_process(
    ready: str, executable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    assert library.self_test(Path(ready), HERE[-1])


def test_levels_follow_what_the_system_has_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq"}
    monkeypatch.setattr(library, "_flags", lambda: frozenset(flags))
    assert library.detected_levels() == ("plain", "avx2")
    monkeypatch.setattr(library, "_flags", lambda: frozenset(flags | {"avx512_vnni"}))
    assert library.detected_levels() == ("plain", "avx2", "avx512")
    monkeypatch.setattr(library, "_flags", lambda: frozenset({"avx", "sse4_2"}))
    assert library.detected_levels() == ("plain",)


@pytest.mark.exhaustive
@pytest.mark.parametrize("level", [library.TORCH, *HERE])
def test_everything_passes_at_a_level_that_was_asked_for(level: str) -> None:
    """All tests of this folder but those of the choice itself, where the level is that of the environment."""
    options = ("-q", "-x", "-p", "no:cacheprovider", "-m", "not exhaustive", "--ignore", __file__)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--ignore", str(Path(__file__).parent / "calibration"), "."],
        cwd=Path(__file__).parent, capture_output=True, text=True, env={**os.environ, library.VARIABLE: level},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


@needs_library
@pytest.mark.exhaustive
def test_vector_registers_stay_in_functions_of_their_level(ready: str) -> None:
    """A processor without them must be able to run all others."""
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("needs objdump")
    listing = subprocess.run([objdump, "-d", "--no-show-raw-insn", ready], capture_output=True, text=True, check=True)
    function, wrong = "", set()
    for line in listing.stdout.splitlines():
        if line.endswith(">:"):
            function = line.split("<")[1][:-2]
        elif ("%zmm" in line or "%ymm" in line) and "_avx" not in function:
            wrong.add(function)
    assert wrong == set()


@needs_library
@pytest.mark.exhaustive
@pytest.mark.parametrize("flags", [("-DGLM_PORTABLE", "-std=c11", "-pedantic-errors"), ("-Wall", "-Wextra", "-Werror")])
def test_the_source_compiles_without_gnu_c_and_without_a_warning(tmp_path: Path, flags: tuple[str, ...]) -> None:
    target = tmp_path / "kern.so"
    mended = [flag for flag in build.FLAGS if flag not in ("-w", "-std=gnu11", "-fvisibility=hidden")]
    command = ["cc", *mended, *flags, "-Wno-psabi", "-Wno-unknown-pragmas", "-o", str(target)]
    done = subprocess.run([*command, str(build.FOLDER / "kern.c"), "-lm"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert library.self_test(target, "plain")
