"""Start the processes of a run on this machine: what `--nproc N` does. Several machines: use torchrun."""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from glmkit.errors import GLMKitError, TrainingError, warnings_as_lines


def launch(
    function: Callable[..., int],
    arguments: tuple[object, ...],
    nproc: int,
    *,
    called: str = "glm",
    method: str = "spawn",
) -> int:
    """Run `function(*arguments)` in `nproc` fresh processes that form one run; the first bad exit status, or 0.

    `function` must be importable (it crosses a process boundary) and return an exit status; an error for users becomes
    one line behind `called`, and status 2; a warning one that the first rank tells. SIGTERM and SIGINT are passed on,
    so that the ranks can agree to stop; when one rank fails, the others are ended. `method` is how multiprocessing
    starts them. The ranks meet through a file, so no port is needed.
    """
    if nproc < 1:
        raise TrainingError(f"--nproc is {nproc}; it must be at least 1")
    context: Any = multiprocessing.get_context(method)
    with tempfile.TemporaryDirectory(prefix="glmkit-") as folder:
        rendezvous = (Path(folder) / "store").as_uri()
        fixed = (function, arguments, called, nproc, rendezvous)
        ranks: list[BaseProcess] = [
            context.Process(target=_enter, args=(*fixed, rank), name=f"rank{rank}") for rank in range(nproc)
        ]
        for process in ranks:
            process.start()
        received: list[int] = []
        previous = {s: signal.signal(s, _pass_on(ranks, received)) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            status = _watch(ranks)
            # The ranks get either signal as SIGTERM; the exit status is that of the one which came.
            return 128 + received[0] if received and status == 128 + signal.SIGTERM else status
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                process.join()
            for number, handler in previous.items():
                signal.signal(number, handler)


def _watch(ranks: list[BaseProcess]) -> int:
    running = list(ranks)
    while running:
        wait([process.sentinel for process in running])
        for process in [p for p in running if not p.is_alive()]:
            running.remove(process)
            if process.exitcode:  # negative: killed by that signal
                status = int(process.exitcode)
                return status if status > 0 else 128 - status
    return 0


def _pass_on(ranks: list[BaseProcess], received: list[int]) -> Callable[[int, FrameType | None], None]:
    def handler(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in ranks:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGTERM)

    return handler


def _enter(
    function: Callable[..., int], arguments: tuple[object, ...], called: str, world: int, rendezvous: str, rank: int
) -> None:
    # Ctrl-C reaches the whole process group; the parent passes it on once as SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "GLMKIT_RENDEZVOUS": rendezvous,
    }
    if "OMP_NUM_THREADS" not in os.environ:  # the ranks share the machine's cores
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // world))
    try:
        with warnings_as_lines(called):
            status = function(*arguments)
    except (GLMKitError, OSError) as error:
        sys.stderr.write(f"{called}: rank {rank}: {error}\n")  # in one piece: others write there, too
        status = 2
    raise SystemExit(status)
