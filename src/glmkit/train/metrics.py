"""The files that a run writes as it goes.

metrics.jsonl has numbers that depend on seed and data only, throughput.jsonl times and memory; beside them are
previews.jsonl and TensorBoard events. The split keeps metrics.jsonl byte for byte equal between an uninterrupted run
and a resumed one.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from glmkit.checkpoint.run_directory import METRICS_FILE, Written, metrics_damage, read_record
from glmkit.errors import DataError
from glmkit.files import atomic_write, named

from .reporters import Reporters

FILES = (METRICS_FILE, "throughput.jsonl", "previews.jsonl")


class MetricsLog:
    """Appends one JSON line per event, flushed at once; cut back to a step when a run resumes."""

    def __init__(self, directory: Path, *, step: int = 0, reporters: Reporters | None = None) -> None:
        """Continue the files in `directory` after `step`; lines of later steps and half lines are dropped."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, IO[bytes]] = {}
        for name in FILES:
            cut_back(directory / name, step)
            self._files[name] = open(directory / name, "ab")  # noqa: SIM115  (open for the whole run)
        self._hash, self._size = hashlib.sha256(), 0
        self._count((directory / METRICS_FILE).read_bytes())
        self._reporters = reporters

    def metrics(self, values: Mapping[str, object]) -> None:
        self._count(self._write(METRICS_FILE, values))
        self._report(str(values.get("kind", "train")), values)

    def throughput(self, values: Mapping[str, object]) -> None:
        self._write("throughput.jsonl", values)
        self._report("speed", values)

    def preview(self, values: Mapping[str, object]) -> None:
        self._write("previews.jsonl", values)
        if self._reporters is not None:
            step = values["step"]
            assert isinstance(step, int)
            self._reporters.text("preview", str(values.get("text", values)), step)

    def sync(self) -> None:
        """Wait until everything written is on disk: before a checkpoint becomes visible."""
        for name, file in self._files.items():
            with named(self.directory / name):
                os.fsync(file.fileno())

    def close(self) -> None:
        for name, file in self._files.items():
            with named(self.directory / name):
                file.close()
        if self._reporters is not None:
            self._reporters.close()

    def written(self) -> Written:
        """metrics.jsonl as far as it was written."""
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}

    def _count(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)

    def _write(self, name: str, values: Mapping[str, object]) -> bytes:
        file = self._files[name]
        line = json.dumps(_finite(values), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with named(self.directory / name):
            file.write(line)
            file.flush()
        return line

    def _report(self, kind: str, values: Mapping[str, object]) -> None:
        if self._reporters is not None:
            self._reporters.numbers(kind, values)


def _finite(value: object) -> object:
    """The value with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cut_back(path: Path, step: int) -> int:
    """Drop the lines of `path` after `step`, and a half-written last one; the number of lines dropped."""
    if not path.exists():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and _step_of(line) <= step]
    if len(kept) != len(lines):
        with atomic_write(path) as file:
            file.writelines(kept)
    return len(lines) - len(kept)


def continue_metrics(directory: Path, step: int, written: Written | None) -> list[str]:
    """Cut metrics.jsonl back to the checkpoint of `step`; remarks on what was dropped and on what is damaged.

    written: the file as it was at the checkpoint; None where an earlier version wrote that.
    """
    path = directory / METRICS_FILE
    remarks = metrics_damage(directory, step, written)
    if not path.exists():
        return remarks
    data = path.read_bytes()
    if written is None or remarks:
        dropped = cut_back(path, step) - sum(read_record(line) is None for line in data.splitlines()[:-1])
    else:  # to the byte: an evaluation of that very step may stand behind it, and is made again
        dropped = len(data[written["bytes"] :].splitlines())
        if dropped:
            with atomic_write(path) as file:
                file.write(data[: written["bytes"]])
    if dropped > 0:
        remarks.append(f"{METRICS_FILE}: dropped {dropped} line(s) after step {step}; they are trained again")
    return remarks


def _step_of(line: bytes) -> float:
    record = read_record(line)
    return float("inf") if record is None else record["step"]


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl. Raises DataError naming a line that is damaged."""
    path = directory / METRICS_FILE
    records: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        record = read_record(line)
        if record is None:
            raise DataError(f"{path}: line {number} is damaged", step="take the line out")
        records.append(record)
    return records
