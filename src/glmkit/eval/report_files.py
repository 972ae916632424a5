"""Files of a report: report.json for programs, report.html for people, and facts of the machine for both."""

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from glmkit.checkpoint.run_directory import REPORT_FILE
from glmkit.data.encoding import usable_cores
from glmkit.files import atomic_write


def write_report(directory: str | os.PathLike[str], values: Mapping[str, Any], page: str) -> tuple[Path, Path]:
    """Write report.json and report.html into a directory that exists; their paths. values: finite, see `finite`."""
    data, html = Path(directory) / REPORT_FILE, Path(directory) / "report.html"
    with atomic_write(html) as file:
        file.write(page.encode())
    with atomic_write(data) as file:  # last: a run that has it has both
        file.write(json.dumps(values, ensure_ascii=False, allow_nan=False, indent=1).encode() + b"\n")
    return data, html


def finite(value: Any) -> Any:
    """Plain values of dataclasses, mappings and lists; numbers that are not finite become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return finite(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def machine_facts() -> dict[str, str | int]:
    """Processor, cores this process may use, memory, system and versions; keys are labels for people.

    Nothing private is among them: no host name, user or path.
    """
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
