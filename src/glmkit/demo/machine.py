"""What machine a figure was measured on, without anything private: no host name, user or path."""

import os
import platform
from importlib import metadata
from pathlib import Path


def machine_facts() -> dict[str, str | int]:
    """Processor, cores this process may use, memory, system and versions; keys are labels for people."""
    facts: dict[str, str | int] = {"processor": _processor(), "cores": usable_cores()}
    memory = _memory_gib()
    if memory is not None:
        facts["memory"] = f"{memory:.0f} GiB"
    facts["system"] = f"{platform.system()} {platform.machine()}"
    facts["python"] = platform.python_version()
    for package in ("torch", "numpy", "tokenizers", "glmkit"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return facts


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except (OSError, UnicodeDecodeError):
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2**30
    except (AttributeError, ValueError, OSError):  # not every system says
        return None
