"""What is built: the wheel holds every module and the recipes and works where there is no source tree; the source
distribution holds what is needed to read, test and build it again.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from glmkit.quant.native import build
from support.shared import ROOT

pytest.importorskip("setuptools")
NEEDED = (
    "src", "recipes", "docs", "tests", "examples", "benchmarks", "scripts", "setup.py", "pyproject.toml", "MANIFEST.in",
    "README.md", "README_zh.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "constraints.txt",
)  # fmt: skip
SHOW = "from glmkit.train.recipe import recipe_files; print(*recipe_files().values(), sep='\\n')"


def run(folder: Path, *command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built: the build leaves its products in the tree."""
    copy = tmp_path_factory.mktemp("built") / "tree"
    copy.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so", ".*_cache", ".hypothesis")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def source(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    run(tree, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})")
    (archive,) = folder.glob("glmkit-*.tar.gz")
    shutil.unpack_archive(archive, folder / "unpacked", filter="data")
    (top,) = (folder / "unpacked").iterdir()
    return top


@pytest.fixture(scope="module")
def site(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed, which was built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    quiet = ("--no-deps", "--no-index", "--quiet")
    run(source, "-m", "pip", "wheel", "--no-build-isolation", *quiet, "-w", str(folder), ".")
    (wheel,) = folder.glob("glmkit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "glmkit").rglob("*.py")}
    recipes = {f"glmkit/{path.relative_to(ROOT)}" for path in (ROOT / "recipes").rglob("*.yaml")}
    native = {f"glmkit/quant/native/{name}" for name in build.SOURCES}
    compiled = {f"glmkit/quant/native/{build.INSTALLED}"} if shutil.which("cc") else set()
    assert names == modules | recipes | native | compiled | {"glmkit/py.typed"}
    run(folder, "-m", "pip", "install", *quiet, "--target", str(folder / "site"), str(wheel))
    return folder / "site"


@pytest.mark.exhaustive
def test_the_installed_wheel_finds_its_recipes(site: Path, tmp_path: Path) -> None:
    """Anywhere, without the source tree beside it."""
    found = run(tmp_path, "-c", SHOW, PYTHONPATH=str(site)).splitlines()
    recipes = {f"glmkit/{path.relative_to(ROOT)}" for path in (ROOT / "recipes").rglob("*.yaml")}
    assert {Path(line).relative_to(site).as_posix() for line in found} == recipes
    for command in (("tiny", "--model.vocab_size", "1000"), ("glm-base",)):
        dry = run(tmp_path, "-m", "glmkit", "pretrain", *command, "--dry-run", PYTHONPATH=str(site))
        assert "parameters  " in dry
    assert "parameters        109,338,624" in dry


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_installed_kernels_are_taken(site: Path, tmp_path: Path) -> None:
    """No compiler is asked, and nothing is written to the user's cache."""
    code = "from glmkit.quant.native.library import kernels; print(kernels().path)"
    found = run(tmp_path, "-c", code, PYTHONPATH=str(site), PATH="", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert Path(found.strip()) == site / "glmkit" / "quant" / "native" / build.INSTALLED
    assert list(tmp_path.rglob("*.so")) == []


@pytest.mark.exhaustive
def test_without_a_compiler_the_build_says_what_is_lost_and_goes_on(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "source"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--verbose", "-w", str(tmp_path))
    log = tmp_path / "log"  # what a build prints goes to stderr in some versions of pip, to stdout in others
    run(copy, "-m", "pip", "wheel", *options, "--log", str(log), ".", CC="/nowhere/cc")
    told = log.read_text()
    assert "INT8 and INT4 run through PyTorch" in told
    (wheel,) = tmp_path.glob("glmkit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]


@pytest.mark.exhaustive
def test_the_installed_wheel_pretrains_and_fills(site: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number, path in enumerate(sorted((ROOT / "docs").glob("*.md"))):
        (tmp_path / "texts" / f"{number}.txt").write_text(path.read_text())

    def glm(*arguments: str) -> str:
        return run(tmp_path, "-m", "glmkit", *arguments, PYTHONPATH=str(site), OMP_NUM_THREADS="1")

    glm("prepare", "texts", "--output", "data", "--vocab-size", "400", "--validation-share", "0.3", "--workers", "1")
    short = ("--max_steps", "2", "--data.sequence_length", "64", "--data.workers", "0", "--quiet")
    glm("pretrain", "tiny", "--data", "data", "--output", "run", *short)
    assert "text" in glm("fill", "run/model", "the [MASK] of a text", "--max_tokens", "2")


@pytest.mark.exhaustive
def test_the_source_distribution_has_recipes_documents_and_tests(tree: Path, source: Path) -> None:
    def files(folder: Path) -> set[str]:
        parts = (path.relative_to(folder) for name in NEEDED for path in (folder / name).rglob("*") if path.is_file())
        return {str(path) for path in parts if path.suffix != ".pyc" and not path.parts[1].endswith(".egg-info")}

    assert files(source) == files(tree)
    assert [name for name in NEEDED if not (source / name).exists()] == []


@pytest.mark.exhaustive
def test_the_tests_of_the_source_distribution_run(source: Path) -> None:
    options = ("-p", "no:cacheprovider", "tests/test_config.py", "tests/data/test_records.py")
    assert " passed" in run(source, "-m", "pytest", *options, PYTHONPATH=str(source / "src"))
