"""A hub on loopback, empty caches, an empty working directory; both hubs' settings lead there."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from glmkit.hub import transfer
from support.fake_hub import FakeHub, fake_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[FakeHub]:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    with fake_hub() as running:
        for name, value in (
            ("ENDPOINT", running.url),
            ("HF_HUB_CACHE", str(tmp_path / "cache")),
            ("HF_HUB_OFFLINE", False),
            ("HF_TOKEN_PATH", str(tmp_path / "token")),
        ):
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GLMKIT_HUB"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setenv("MODELSCOPE_DOMAIN", running.url)
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
        monkeypatch.setattr(transfer, "TIMEOUT", 0.5 if "silent" in request.node.name else 30.0)
        yield running
