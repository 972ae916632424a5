"""Looking at a server from outside: its metrics, its memory, and waiting for what it will do."""

import os
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from glmkit.checkpoint.native import write_model
from glmkit.session import LM

PATIENCE = 120.0  # seconds


def save(lm: LM, folder: Path) -> Path:
    """Write a model held in memory as a directory that every verb opens."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder, lm.config, dict(lm.model.named_parameters()))
    lm.tokenizer.save(folder)
    return folder


def metrics(url: str) -> dict[str, float]:
    """Every number of /metrics by its name; those that differ only in labels are summed."""
    numbers: dict[str, float] = {}
    with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE) as response:
        for line in response.read().decode().splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                numbers[name] = numbers.get(name, 0.0) + float(value)
    return numbers


def accepted(url: str) -> float:
    """Requests that wait, run or are over."""
    numbers = metrics(url)
    over = numbers["glm_time_to_first_token_seconds_count"]
    return numbers["glm_requests_waiting"] + numbers["glm_requests_running"] + over


def resident_bytes(pid: int) -> int:
    """Memory that a process really holds; Linux only."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> float:
    """Seconds until something holds that others bring about. Raises TimeoutError when it does not."""
    start, pause = time.monotonic(), threading.Event()
    while not condition():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"it did not come about within {seconds:g} s")
        pause.wait(0.002)
    return time.monotonic() - start
