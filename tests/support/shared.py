"""Where the recorded reference outputs and real texts are, when they lie beside the checkout."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def shared_dir(*parts: str) -> Path:
    """A path under ../shared; skips the test with a clear reason when it is absent."""
    path = ROOT.parent.joinpath("shared", *parts)
    if not path.exists():
        pytest.skip(f"reference data ../shared/{'/'.join(parts)} is not beside this checkout")
    return path
