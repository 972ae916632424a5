"""Choice of a device on machines with and without accelerators, and what control groups leave of the memory."""

import warnings
from pathlib import Path

import pytest
import torch

from glmkit import devices
from glmkit.errors import ConfigError, RequestError, UntestedDeviceWarning

GIB = 1 << 30


def machine(monkeypatch: pytest.MonkeyPatch, kind: str | None, count: int = 2) -> None:
    """A machine with `count` accelerators of a kind, or none."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: kind and torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count if kind else 0)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        (None, "auto", "cpu"),
        (None, "cpu", "cpu"),
        (None, "cpu:0", "cpu"),
        ("cuda", "auto", "cuda"),
        ("cuda", "cuda", "cuda"),
        ("cuda", "cuda:1", "cuda:1"),
        ("cuda", "cpu", "cpu"),
    ],
)
def test_a_device_by_name(monkeypatch: pytest.MonkeyPatch, kind: str | None, name: str, expected: str) -> None:
    machine(monkeypatch, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert devices.choose_device(name) == torch.device(expected)


@pytest.mark.parametrize("name", ["auto", "xpu", "xpu:1"])
def test_other_accelerators_are_used_and_called_untested(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    machine(monkeypatch, "xpu")
    with pytest.warns(UntestedDeviceWarning, match="^device xpu is untested with glmkit$"):
        assert devices.choose_device(name) == torch.device("xpu:1" if name == "xpu:1" else "xpu")


def test_each_process_takes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "cuda")
    assert devices.choose_device("auto", local_rank=1) == torch.device("cuda:1")
    assert devices.choose_device("cuda:0", local_rank=1) == torch.device("cuda:0")
    machine(monkeypatch, None)
    assert devices.choose_device("auto", local_rank=1) == devices.CPU


@pytest.mark.parametrize(
    ("kind", "name", "rank", "words"),
    [
        (None, "cuda", None, "d is 'cuda'; PyTorch sees no accelerator; use cpu"),
        ("cuda", "mps", None, "d is 'mps'; PyTorch sees no accelerator but cuda; use cuda"),
        ("cuda", "gpu", None, "d is 'gpu'; use auto, cpu, cuda or cuda:N"),
        (None, "cpu:1", None, "d is 'cpu:1'; use auto, cpu, cuda or cuda:N"),
        (None, "CUDA", None, "d is 'CUDA'; use auto, cpu, cuda or cuda:N"),
        (None, "cuda:", None, "d is 'cuda:'; use auto, cpu, cuda or cuda:N"),
        (None, 3, None, "d is 3; use auto, cpu, cuda or cuda:N"),
        ("cuda", "cuda:2", None, "d is 'cuda:2', and PyTorch sees 2 such devices; start fewer processes"),
        ("cuda", "auto", 2, "d is cuda for local rank 2, and PyTorch sees 2 such devices; start fewer processes"),
    ],
)
@pytest.mark.parametrize("error", [RequestError, ConfigError])
def test_what_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
    kind: str | None,
    name: str,
    rank: int | None,
    words: str,
    error: type[ConfigError | RequestError],
) -> None:
    machine(monkeypatch, kind)
    with pytest.raises(error) as caught:
        devices.choose_device(name, local_rank=rank, param="d", error=error)
    assert (str(caught.value), caught.value.param) == (words, "d")


# --- memory -----------------------------------------------------------------------------------------------------------


def group(folder: Path, limit: int | str, used: int, **stat: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in stat.items()))


def own(tmp_path: Path, path: str) -> Path:
    file = tmp_path / "own"
    file.write_text(f"12:cpu:/elsewhere\n0::{path}\n")
    return file


def test_page_cache_gives_way_even_when_active(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    group(root, 16 * GIB, 14 * GIB, anon=6 * GIB, active_file=8 * GIB, inactive_file=0)
    assert devices.control_group_left(root, own(tmp_path, "/")) == 10 * GIB
    group(root, 16 * GIB, 14 * GIB, active_file=3 * GIB, inactive_file=4 * GIB)
    assert devices.control_group_left(root, own(tmp_path, "/")) == 9 * GIB
    group(root, 16 * GIB, 14 * GIB, anon=14 * GIB)
    assert devices.control_group_left(root, own(tmp_path, "/")) == 2 * GIB
    group(root, 16 * GIB, 17 * GIB)
    assert devices.control_group_left(root, own(tmp_path, "/")) == 0


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    group(root, "max", 40 * GIB)
    group(root / "pod", 8 * GIB, 5 * GIB)
    group(root / "pod" / "run", 16 * GIB, 4 * GIB)
    assert devices.control_group_left(root, own(tmp_path, "/pod/run")) == 3 * GIB
    group(root / "pod" / "run", 5 * GIB, 4 * GIB)
    assert devices.control_group_left(root, own(tmp_path, "/pod/run")) == 1 * GIB
    assert devices.control_group_left(root, own(tmp_path, "/")) is None  # the root has no limit


def test_inside_a_container_its_own_group_is_the_root(tmp_path: Path) -> None:
    """The path that the kernel tells is the host's, and is not mounted."""
    root = tmp_path / "cgroup"
    group(root, 2 * GIB, GIB)
    for path in ("/docker/abc", "/../abc"):
        assert devices.control_group_left(root, own(tmp_path, path)) == GIB


@pytest.mark.parametrize("broken", ["memory.max", "memory.current", "memory.stat"])
def test_missing_and_unreadable_files_say_nothing(tmp_path: Path, broken: str) -> None:
    root = tmp_path / "cgroup"
    assert devices.control_group_left(root, tmp_path / "none") is None
    group(root, 2 * GIB, GIB)
    assert devices.control_group_left(root, tmp_path / "none") == GIB  # nobody says which group: the root
    (root / broken).write_text("a lot of it\n")
    assert devices.control_group_left(root, own(tmp_path, "/")) is None
    (root / broken).unlink()
    assert devices.control_group_left(root, own(tmp_path, "/")) is None


def test_the_least_of_kernel_and_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel, groups, expected in ((3, 5, 3), (5, 3, 3), (None, 5, 5), (5, None, 5), (None, None, 7)):
        monkeypatch.setattr(devices, "_kernel_available", lambda kernel=kernel: kernel)
        monkeypatch.setattr(devices, "control_group_left", lambda groups=groups: groups)
        monkeypatch.setattr(devices, "_physical_memory", lambda: 7)
        assert devices.available_memory() == expected


def test_a_backend_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_device_module", lambda device: object())
    device = torch.device("xpu")
    assert devices.available_memory(device) is None
    assert devices.peak_memory(device) == 0
    assert devices.random_state(device) is None


def test_memory_of_this_machine() -> None:
    assert (devices.available_memory() or 0) > 0
    assert devices.peak_memory(devices.CPU) > 0
    assert devices.random_state(devices.CPU) is None
