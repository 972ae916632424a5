"""Calls within the process: streams, refusals, ends in the middle, and being stopped at any moment."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from glmkit.serve.page.call import Call, CallError, Message, Scope

Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]
BROWSER = {"headers": [(b"host", b"here:1"), (b"cookie", b"c")], "client": ("10.0.0.7", 5), "server": ("127.0.0.1", 1)}


def call(app: Any, *, key: str = "", **scope: Any) -> Call:
    return Call(app, {**BROWSER, **scope}, "/v1/x", {"a": "中"}, key)


async def everything(made: Call) -> list[dict[str, Any]]:
    found = []
    async with made:
        while events := await made.events():
            found += events
    return found


def answering(*chunks: bytes, status: int = 200, headers: Any = (), complete: bool = True) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if complete:
            await send({"type": "http.response.body", "body": b""})

    return app


def test_the_request_is_that_of_a_client() -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update(scope, body=(await receive())["body"])
        await answering()(scope, receive, send)

    assert asyncio.run(everything(call(app, key="k" * 8, root_path="/glm", scheme="https"))) == []
    assert (seen["method"], seen["path"], seen["root_path"]) == ("POST", "/glm/v1/x", "/glm")
    assert json.loads(seen["body"]) == {"a": "中"}
    headers = dict(seen["headers"])
    assert headers[b"authorization"] == b"Bearer kkkkkkkk"
    assert (headers[b"host"], headers[b"content-length"]) == (b"here:1", str(len(seen["body"])).encode())
    assert b"cookie" not in headers
    assert seen["client"] == ("10.0.0.7", 5)


def test_events_are_put_together_from_any_pieces() -> None:
    stream = 'data: {"n": 1}\n\n: still there\n\ndata: {"n": "二"}\r\n\r\ndata: [DONE]\n\n'.encode()
    for size in range(1, len(stream) + 1, 3):
        chunks = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert asyncio.run(everything(call(answering(*chunks)))) == [{"n": 1}, {"n": "二"}]


def test_a_refusal_is_told_as_it_is() -> None:
    body = json.dumps({"error": {"message": "too many"}}).encode()
    app = answering(body, status=429, headers=[(b"Retry-After", b"7")])
    with pytest.raises(CallError) as caught:
        asyncio.run(everything(call(app)))
    assert (caught.value.status, caught.value.message, caught.value.retry_after) == (429, "too many", "7")


async def _until_error(made: Call) -> tuple[list[dict[str, Any]], str]:
    found: list[dict[str, Any]] = []
    try:
        async with made:
            while events := await made.events():
                found += events
    except CallError as error:
        return found, error.message
    return found, ""


def test_an_error_in_the_stream_comes_after_what_came_before() -> None:
    app = answering(b'data: {"n": 1}\n\ndata: {"error": {"message": "deadline"}}\n\n')
    assert asyncio.run(_until_error(call(app))) == ([{"n": 1}], "deadline")


@pytest.mark.parametrize("chunks", [(), (b'data: {"n": 1}\n\n',)])
def test_a_stream_that_breaks_off_is_an_error(chunks: tuple[bytes, ...]) -> None:
    found, message = asyncio.run(_until_error(call(answering(*chunks, complete=False))))
    assert len(found) == len(chunks)
    assert "before it was complete" in message


def test_an_application_that_fails_is_an_error() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError

    assert "no answer" in asyncio.run(_until_error(call(app)))[1]


@pytest.mark.parametrize("begun", [False, True])
def test_whoever_stops_has_gone(begun: bool) -> None:
    """Before the status, while the request waits for a place, and in the middle of the stream."""

    async def main() -> tuple[list[dict[str, Any]], str]:
        here, gone = asyncio.Event(), asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            if begun:
                await send({"type": "http.response.start", "status": 200})
                await send({"type": "http.response.body", "body": b'data: {"n": 1}\n\n', "more_body": True})
            here.set()
            assert (await receive())["type"] == "http.disconnect"
            gone.set()

        made = call(app)
        reading = asyncio.create_task(_until_error(made))
        await here.wait()
        if begun:
            while made._said.qsize():
                await asyncio.sleep(0)
        made.stop()
        found = await reading
        assert gone.is_set()
        return found

    assert asyncio.run(main()) == ([{"n": 1}] if begun else [], "")


def test_an_application_that_does_not_listen_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmkit.serve.page.call._GRACE", 0.01)

    async def main() -> bool:
        here, cancelled = asyncio.Event(), asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            here.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        made = call(app)
        reading = asyncio.create_task(everything(made))
        await here.wait()
        made.stop()
        await reading
        return cancelled.is_set()

    assert asyncio.run(main())
