"""The path of one token of a stream, from the model's pass to the call of ASGI's `send`: few classes of ours."""

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

import glmkit
from glmkit.generate.engine import Engine, Ticket
from glmkit.generate.engine.runner import Runner
from glmkit.serve.app import create_app
from glmkit.serve.settings import ServeSettings
from glmkit.serve.sse import EventStream
from glmkit.session import LM
from support.served_models import small_base, small_chat
from support.server import PATIENCE

SOURCE = glmkit.__path__[0]
MOST = 10
TEXT = ("glmkit.tokenizer", "glmkit.families", "glmkit.generate.detokenize")
ASKED: dict[str, tuple[Callable[[], LM], dict[str, Any]]] = {
    "/v1/completions": (small_base, {"prompt": "the fox"}),
    "/v1/infill": (small_base, {"text": "the [MASK] fox"}),
    "/v1/chat/completions": (lambda: small_chat("chatglm2"), {"messages": [{"role": "user", "content": "the fox"}]}),
}


class Path:
    """Classes of ours whose methods run on a token's way, by the objects that they are called on.

    A detokenizer counts once with all that it is made of (the tokenizer's streams, a reply's clean-up).
    The way: from the end of the model's pass to the ticket, from the ticket to its reader's event loop (both in the
    engine's thread), and there from waking up to `send`. What the engine does in between for its next pass is not on
    it, nor what the server does with what is sent.
    """

    def __init__(self) -> None:
        self.classes: dict[str, None] = {}
        self._passes = 0
        self._part = "pass"

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        """As of `sys.setprofile`, in every thread."""
        if event not in ("call", "return") or not frame.f_code.co_filename.startswith(SOURCE):
            return
        owner, name = frame.f_locals.get("self", frame.f_locals.get("cls")), frame.f_code.co_name
        in_engine = threading.current_thread().name == "glmkit-engine"
        if event == "return":
            if isinstance(owner, Runner) and name == "forward":
                self._passes += 1
                if self._passes == 6:  # somewhere in the middle
                    self._part = "to the ticket"
            elif isinstance(owner, Ticket) and name == "_hear" and self._part == "to the ticket":
                self._part = "in the ticket"
            elif isinstance(owner, Engine) and name == "_tell" and self._part == "to the loop":
                self._part = "in the loop"
            return
        if self._part == "in the ticket" and isinstance(owner, Engine) and name == "_tell":
            self._part = "to the loop"
        if (
            self._part in ("to the ticket", "to the loop")
            if in_engine
            else self._part in ("to the loop", "in the loop")
        ):
            self._count(owner)
            if isinstance(owner, EventStream) and name == "_send_body":
                self._part = "over"

    def _count(self, owner: object) -> None:
        kind = owner if isinstance(owner, type) else type(owner)
        if kind.__module__.startswith(TEXT):
            self.classes["detokenizer"] = None
        elif kind.__module__.startswith("glmkit"):
            self.classes[kind.__name__] = None


async def stream(app: Any, path: str, body: bytes) -> list[bytes]:
    """Ask as an ASGI server does."""
    sent: list[bytes] = []
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await asyncio.Event().wait()
        asked = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sent.append(message["body"])

    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"host", b"localhost"),
    ]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
    }  # fmt: skip
    await asyncio.wait_for(app(scope, receive, send), PATIENCE)
    return sent


@pytest.mark.parametrize("endpoint", ASKED)
def test_a_token_crosses_few_classes(endpoint: str) -> None:
    build, fields = ASKED[endpoint]
    app = create_app(build(), ServeSettings(page=False, model_id="m", log_level="error"))
    body = {"model": "m", "stream": True, "temperature": 0, "max_tokens": 40, "min_tokens": 40, **fields}
    if "text" in fields:
        del body["model"], body["min_tokens"]
    path = Path()
    threading.setprofile(path.profile)
    sys.setprofile(path.profile)
    try:
        sent = asyncio.run(stream(app, endpoint, json.dumps(body).encode()))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
        app.state.glm.queue.stop()
    assert sent[-1] == b"data: [DONE]\n\n"
    assert "EventStream" in path.classes, "a token was followed to its end"
    assert len(path.classes) <= MOST, list(path.classes)
