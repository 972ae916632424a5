"""Real servers on loopback for tests: in a thread of this process, or as a process of its own. Neither sleeps."""

import collections
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from glmkit.checkpoint.native import write_model
from glmkit.serve.server import Server
from glmkit.serve.settings import ServeSettings
from glmkit.serve.state import State
from glmkit.tokenizer.trained import TrainedTokenizer
from support.served_models import small_base
from support.shared import ROOT

PATIENCE = 60.0  # seconds for anything that must come


class ThreadServer:
    """url: without a slash at the end. state: the application's own, to look into."""

    def __init__(self, app: FastAPI, server: Server, thread: threading.Thread, port: int) -> None:
        self.app, self.server, self.thread, self.port = app, server, thread, port
        self.url = f"http://127.0.0.1:{port}"
        self.state: State = app.state.glm

    def signal(self, number: int = signal.SIGTERM) -> None:
        """What the server does when this signal comes."""
        self.server.loop.call_soon_threadsafe(self.server.handle_exit, number)

    def stopped(self) -> None:
        """Wait until it is."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "the server did not stop"


@contextmanager
def thread_server(app: FastAPI, settings: ServeSettings | None = None) -> Iterator[ThreadServer]:
    """Serve an application of `create_app` with everything that `glm serve` puts around it."""
    listening = socket.create_server(("127.0.0.1", 0))
    started = threading.Event()
    server = Server(app, settings or app.state.glm.settings, started.set)
    thread = threading.Thread(target=server.run, args=([listening],), name="server", daemon=True)
    thread.start()
    try:
        assert started.wait(PATIENCE), "the server did not start"
        running = ThreadServer(app, server, thread, listening.getsockname()[1])
        yield running
    finally:
        if thread.is_alive():
            for _ in range(2):  # the second one ends at once
                server.loop.call_soon_threadsafe(server.handle_exit, signal.SIGTERM)
            thread.join(PATIENCE)
        listening.close()
        assert not thread.is_alive(), "the server did not stop"


class ProcessServer:
    """A server as its own process. lines: what it has said on stderr."""

    def __init__(self, command: Sequence[str], env: dict[str, str] | None = None) -> None:
        paths = [str(ROOT / "tests"), str(ROOT / "src")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **(env or {})}
        self.process = subprocess.Popen(
            [sys.executable, *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
        )
        self.lines: collections.deque[str] = collections.deque()
        self.url = ""
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def line_with(self, text: str) -> str:
        """The first line with this text, as soon as it has come."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._ended or self._found(text), PATIENCE), f"no line with {text!r}"
            found = self._found(text)
        assert found is not None, f"it ended and never said {text!r}: {self.text}"
        return found

    @property
    def text(self) -> str:
        """Everything so far."""
        return "\n".join(self.lines)

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def ended(self, seconds: float = PATIENCE) -> int:
        """Its exit status, once it has ended and all it said is here."""
        status = self.process.wait(seconds)
        self._reader.join(PATIENCE)
        return status

    def _found(self, text: str) -> str | None:
        return next((line for line in self.lines if text in line), None)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@contextmanager
def process_server(
    command: Sequence[str], *, env: dict[str, str] | None = None, ready: str = "http://"
) -> Iterator[ProcessServer]:
    """Run Python with these arguments; entered as soon as a line with the URL has come, killed at the end."""
    server = ProcessServer(command, env)
    try:
        words = server.line_with(ready).split()
        server.url = next(word for word in words if word.startswith("http://"))
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.ended()
        assert server.process.stderr is not None
        server.process.stderr.close()


@contextmanager
def glm_serve(model: Path | str, *options: str, **more: Any) -> Iterator[ProcessServer]:
    """`glm serve MODEL` on a free port of 127.0.0.1."""
    with process_server(["-m", "glmkit", "serve", str(model), "--port", "0", *options], **more) as server:
        yield server


def saved_base(folder: Path) -> Path:
    """A directory with a small base model that continues and fills."""
    lm = small_base()
    assert isinstance(lm.tokenizer, TrainedTokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder, lm.config, lm.model.state_dict())
    lm.tokenizer.save(folder)
    return folder
