"""The built wheel: it holds every module and the recipes, and finds them by name where there is no source tree."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support.shared import ROOT

pytest.importorskip("setuptools")
NEEDED = ("src", "recipes", "setup.py", "pyproject.toml", "README.md", "LICENSE")
SHOW = "from glmkit.train.recipe import recipe_files; print(*recipe_files().values(), sep='\\n')"


def run(folder: Path, *command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what is built: the build leaves its products in the tree."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in NEEDED:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, copy / name)
    return copy


@pytest.mark.exhaustive
def test_the_wheel_has_everything_and_finds_its_recipes(tree: Path, tmp_path: Path) -> None:
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", str(tmp_path))
    run(tree, "-m", "pip", "wheel", *options, ".")
    (wheel,) = tmp_path.glob("glmkit-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(site)
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "glmkit").rglob("*.py")}
    recipes = {f"glmkit/{path.relative_to(ROOT)}" for path in (ROOT / "recipes").rglob("*.yaml")}
    assert modules | recipes | {"glmkit/py.typed"} == {name for name in names if ".dist-info/" not in name}
    # Unpacked anywhere, without the source tree beside it.
    found = run(tmp_path, "-c", SHOW, PYTHONPATH=str(site)).splitlines()
    assert {Path(line).relative_to(site).as_posix() for line in found} == recipes
    dry = run(tmp_path, "-m", "glmkit", "pretrain", "glm-base", "--dry-run", PYTHONPATH=str(site))
    assert "parameters        109,338,624" in dry


@pytest.mark.exhaustive
def test_the_source_distribution_has_the_recipes(tree: Path, tmp_path: Path) -> None:
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    run(tree, "-c", code)
    (source,) = tmp_path.glob("glmkit-*.tar.gz")
    shutil.unpack_archive(source, tmp_path / "unpacked", filter="data")
    (top,) = (tmp_path / "unpacked").iterdir()
    assert (top / "setup.py").is_file()
    found = {path.relative_to(top / "recipes") for path in (top / "recipes").rglob("*.yaml")}
    assert found == {path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*.yaml")}
