"""Threads of the kernels: as many as there are cores to use, alive after a fork, none in another's way."""

import os
import select
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from glmkit import threads
from glmkit.config import Quantization
from glmkit.quant import quantize_modules
from glmkit.quant.native import library
from quant.matrices import HERE, random_panels
from quant.test_levels import run
from support.tiny import random_ids, tiny_model


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", 4), ("300000 100000", 3)]
)
def test_a_quota_of_version_2_counts(tmp_path: Path, quota: str, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    write(tmp_path / "tree" / "outer", cpu__max=quota)
    write(tmp_path / "tree" / "outer" / "inner", cpu__max="max 100000")
    own = write(tmp_path / "own", cgroup="0::/outer/inner\n") / "cgroup"
    assert threads.count_cores(tmp_path / "tree", own, tmp_path / "none") == cores


def test_a_quota_of_version_1_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    write(tmp_path / "tree" / "cpu" / "box", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    own = write(tmp_path / "own", cgroup="3:cpuset:/\n2:cpu,cpuacct:/box\n0::/\n") / "cgroup"
    assert threads.count_cores(tmp_path / "tree", own, tmp_path / "none") == 2
    write(tmp_path / "tree" / "cpu" / "box", cpu__cfs_quota_us="-1")
    assert threads.count_cores(tmp_path / "tree", own, tmp_path / "none") == 4


def test_two_processors_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    entries = [f"processor\t: {number}\nphysical id\t: 0\ncore id\t\t: {number // 2}\n" for number in range(4)]
    info = write(tmp_path, cpuinfo="\n".join(entries)) / "cpuinfo"
    assert threads.count_cores(tmp_path / "none", tmp_path / "none", info) == 2


def test_a_call_uses_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(library, "usable_cores", lambda: 3)
    assert library.thread_count() == 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert library.thread_count() == 1


@pytest.mark.skipif(not HERE, reason="needs a C compiler")
def test_callers_side_by_side_and_more_threads_than_cores() -> None:
    panels, _ = random_panels(512, 512, 4, 32)
    x = torch.randn(8, 512, generator=torch.Generator().manual_seed(1))
    expected = run(panels, x, HERE[-1])

    def many(number: int) -> bool:
        return all(torch.equal(run(panels, x, HERE[-1], threads=number), expected) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(many, (2, 3, 4, 7)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_answers() -> None:
    """Threads do not come along with it, neither the kernels' nor PyTorch's; a whole model has both."""
    model = tiny_model(hidden_size=512, num_heads=8, ffn_size=2048, vocab_size=4096)
    quantize_modules(model.bfloat16(), Quantization.usual(4))
    ids = random_ids(1, 64)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            expected = model(ids)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            with torch.inference_mode():
                same = torch.allclose(model(ids), expected, rtol=0.02, atol=0.02)  # one thread adds in another order
            os.write(writing, b"1" if same else b"0")
            os._exit(0)
        answered = bool(select.select([reading], [], [], 10)[0])
        if not answered:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert answered, "the child hangs"
        assert os.read(reading, 1) == b"1"
        os.close(reading)
        os.close(writing)
    finally:
        torch.set_num_threads(before)
