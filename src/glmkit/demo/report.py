"""The findings of one run of the demo: report.json for scripts, report.html for people."""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from glmkit.data.encoding import usable_cores
from glmkit.demo.examples import Example
from glmkit.demo.measure import Measured
from glmkit.demo.page import page
from glmkit.files import atomic_write

Points = Sequence[tuple[float, float]]  # (tokens seen, loss in nats per target)
Facts = Mapping[str, str | int | float]  # label -> value, in the order to be shown


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything both files are made of. Times in seconds; losses in nats per target token.

    `seconds` is the demo's own run, set-up left out; `phases` says where it went. `tokens_per_second` counts the
    non-padding input tokens of training. `model`, `training` and `machine` are facts by label: keep private paths out.
    """

    seconds: float
    phases: Mapping[str, float]
    tokens_per_second: float
    tokens_seen: int
    parameters: int
    validation_loss: float
    measured: Measured
    corpus: Facts
    model: Facts
    training: Facts
    machine: Facts
    training_losses: Points
    validation_losses: Points
    blanks_left_out: Mapping[str, Mapping[str, int]]  # kind -> reason -> places
    examples: Sequence[Example]

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json: numbers that are not finite become null."""
        own = {name: value for name, value in vars(self).items() if name != "measured"}
        finite = _finite(own | self.measured.to_dict())
        assert isinstance(finite, dict)
        return finite

    def write(self, directory: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write report.json and report.html into a directory that exists; their paths."""
        values = self.to_dict()
        data, html = Path(directory) / "report.json", Path(directory) / "report.html"
        with atomic_write(data) as file:
            file.write(json.dumps(values, ensure_ascii=False, allow_nan=False, indent=1).encode() + b"\n")
        with atomic_write(html) as file:
            file.write(page(values).encode())
        return data, html


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return _finite(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
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
