"""The files that a run writes as it goes: metrics.jsonl (numbers that depend on seed and data only), throughput.jsonl
(times, memory), previews.jsonl, and TensorBoard events.

The split keeps metrics.jsonl byte for byte equal between an uninterrupted run and a resumed one.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from glmkit.errors import ConfigError
from glmkit.files import atomic_write

FILES = ("metrics.jsonl", "throughput.jsonl", "previews.jsonl")


class MetricsLog:
    """Appends one JSON line per event, flushed at once; cut back to a step when a run resumes."""

    def __init__(self, directory: Path, *, step: int = 0, tensorboard: bool = False) -> None:
        """Continue the files in `directory` after `step`; lines of later steps and half lines are dropped."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, IO[bytes]] = {}
        for name in FILES:
            cut_back(directory / name, step)
            self._files[name] = open(directory / name, "ab")  # noqa: SIM115  (open for the whole run)
        self._board = _open_board(directory / "tensorboard", step) if tensorboard else None

    def metrics(self, values: Mapping[str, object]) -> None:
        self._write("metrics.jsonl", values)
        self._to_board(values)

    def throughput(self, values: Mapping[str, object]) -> None:
        self._write("throughput.jsonl", values)
        self._to_board({"kind": "speed", **values})

    def preview(self, values: Mapping[str, object]) -> None:
        self._write("previews.jsonl", values)
        if self._board is not None:
            self._board.add_text("preview", str(values.get("text", values)), values["step"])

    def sync(self) -> None:
        """Wait until everything written is on disk: before a checkpoint becomes visible."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._board is not None:
            self._board.close()

    def _write(self, name: str, values: Mapping[str, object]) -> None:
        file = self._files[name]
        file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")
        file.flush()

    def _to_board(self, values: Mapping[str, object]) -> None:
        if self._board is None:
            return
        kind, step = values.get("kind", "train"), values["step"]
        for key, value in values.items():
            if isinstance(value, Mapping):
                for inner, number in value.items():
                    self._board.add_scalar(f"{kind}/{key}/{inner}", number, step)
            elif isinstance(value, int | float) and key != "step":
                self._board.add_scalar(f"{kind}/{key}", value, step)


def cut_back(path: Path, step: int) -> int:
    """Drop the lines of `path` after `step`, and a half-written last one; the number of lines dropped."""
    if not path.exists():
        return 0
    kept: list[bytes] = []
    lines = path.read_bytes().splitlines(keepends=True)
    for line in lines:
        if line.endswith(b"\n") and _step_of(line) <= step:
            kept.append(line)
    if len(kept) != len(lines):
        with atomic_write(path) as file:
            file.writelines(kept)
    return len(lines) - len(kept)


def _step_of(line: bytes) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    with open(directory / "metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _open_board(directory: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            'output.tensorboard needs the package tensorboard; install it: pip install "glmkit[train]"'
        ) from error
    return SummaryWriter(str(directory), purge_step=step + 1)
