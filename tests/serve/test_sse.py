"""Server-sent events: framing, keep-alive, errors, and an end whatever happens."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from glmkit.errors import RequestError
from glmkit.serve.error_responses import ApiError, ClientGone
from glmkit.serve.schema.chat import ChunkChoice, Delta
from glmkit.serve.sse import Event, EventStream, frame, text_frames

SCOPE: dict[str, Any] = {"type": "http", "asgi": {}}


async def events(*values: Any, closed: list[str] | None = None) -> AsyncIterator[Event]:
    """Yields values, raises those that are exceptions."""
    try:
        for value in values:
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        if closed is not None:
            closed.append("events")


async def nothing() -> None:
    pass


async def parts_of(events: AsyncIterator[Event], **options: Any) -> list[bytes]:
    """The bodies of a whole response."""
    connection = Connection()
    await EventStream(events, nothing, **options)(SCOPE, connection.receive, connection.send)
    assert [message.get("more_body") for message in connection.said[1:]][-1] is False
    assert all(message["more_body"] for message in connection.said[1:-1])
    return [message["body"] for message in connection.said[1:] if message["body"]]


def sent(*values: Any) -> list[bytes]:
    return asyncio.run(parts_of(events(*values)))


def test_a_frame_is_one_line_of_json() -> None:
    assert frame({"a": "中\n\n\u2028\x00"}) == 'data: {"a":"中\\n\\n\u2028\\u0000"}\n\n'.encode()
    choice = ChunkChoice(index=0, delta=Delta(content="a\r\nb"), finish_reason=None)
    assert json.loads(frame(choice).removeprefix(b"data: ")) == {
        "index": 0,
        "delta": {"content": "a\r\nb"},
        "finish_reason": None,
    }
    assert frame(choice).count(b"\n") == 2


def test_the_end_is_marked() -> None:
    assert sent({"a": 1}, {"b": 2}) == [b'data: {"a":1}\n\n', b'data: {"b":2}\n\n', b"data: [DONE]\n\n"]
    assert sent() == [b"data: [DONE]\n\n"]


@pytest.mark.parametrize(
    ("error", "type_", "message"),
    [
        (ApiError(504, "too late", type="timeout", code="x"), "timeout", "too late"),
        (RequestError("n is 3; give 2"), "invalid_request_error", "n is 3; give 2"),
        (ValueError("secret"), "server_error", "the server made a mistake; its log says more"),
    ],
)
def test_an_error_is_the_last_event(error: Exception, type_: str, message: str) -> None:
    *before, last = sent({"a": 1}, error)
    assert before == [b'data: {"a":1}\n\n']
    said = json.loads(last.removeprefix(b"data: "))["error"]
    assert (said["type"], said["message"]) == (type_, message)


def test_a_client_that_is_gone_is_told_nothing() -> None:
    assert sent({"a": 1}, ClientGone()) == [b'data: {"a":1}\n\n']


def test_comments_while_nothing_comes() -> None:
    async def run() -> list[bytes]:
        connection = Connection()

        async def slow() -> AsyncIterator[Event]:
            await connection.heard(4)
            yield {"a": 1}

        stream = EventStream(slow(), nothing, beat=0.001)
        await asyncio.wait_for(stream(SCOPE, connection.receive, connection.send), 10)
        return [message["body"] for message in connection.said[1:]]

    *comments, event, done = asyncio.run(run())
    assert len(comments) >= 3
    assert all(comment.startswith(b":") and comment.endswith(b"\n\n") for comment in comments)
    assert (event, done) == (b'data: {"a":1}\n\n', b"data: [DONE]\n\n")


def test_no_comments_while_events_come_or_the_client_reads_nothing() -> None:
    async def run() -> list[bytes]:
        connection = Connection(blocks=asyncio.Event())

        async def some() -> AsyncIterator[Event]:
            for number in range(3):
                yield {"a": number}

        stream = EventStream(some(), nothing, beat=0.0001)
        answering = asyncio.create_task(stream(SCOPE, connection.receive, connection.send))
        await connection.heard(2)  # it is stuck in the first event
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(connection.said) == 2
        assert connection.blocks is not None
        connection.blocks.set()
        await asyncio.wait_for(answering, 10)
        return [message["body"] for message in connection.said[1:]]

    bodies = [body for body in asyncio.run(run()) if not body.startswith(b":")]
    assert b"".join(bodies).count(b"data: ") == 4


def test_events_are_made_no_faster_than_they_are_sent() -> None:
    async def run() -> int:
        made = 0
        connection = Connection(blocks=asyncio.Event())

        async def endless() -> AsyncIterator[Event]:
            nonlocal made
            while True:
                made += 1
                yield {"n": made}

        stream = EventStream(endless(), nothing)
        answering = asyncio.create_task(stream(SCOPE, connection.receive, connection.send))
        await connection.heard(2)
        for _ in range(100):  # turns of the loop in which nobody reads
            await asyncio.sleep(0)
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        return made

    assert asyncio.run(run()) == 1


def test_text_frames_are_those_of_the_event() -> None:
    def made(text: str) -> ChunkChoice:
        return ChunkChoice(index=3, delta=Delta(content=text), logprobs=None, finish_reason=None)

    quick = text_frames(made)
    for text in ("", "a", '"\\"', "中\u2028\r\n\t\x00\x1f\x7f", "😀</script>", "\\u0000", '"}'):
        assert quick(text) == frame(made(text))


class Connection:
    """The server's side of a response. failing: `send` raises from the second message on; blocks: it waits there."""

    def __init__(self, *, failing: bool = False, leaves: bool = False, blocks: asyncio.Event | None = None) -> None:
        self.said: list[Any] = []
        self.failing, self.blocks, self._gone = failing, blocks, asyncio.Event()
        self._more = asyncio.Condition()
        if leaves:
            self._gone.set()

    async def receive(self) -> Any:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self.failing and self.said:
            raise OSError("broken pipe")
        async with self._more:
            self.said.append(message)
            self._more.notify_all()
        if self.blocks is not None and len(self.said) > 1:
            await self.blocks.wait()

    async def heard(self, count: int) -> None:
        """Wait until so many messages were sent."""
        async with self._more:
            await self._more.wait_for(lambda: len(self.said) >= count)


def served(connection_: dict[str, Any], *values: Any) -> tuple[Connection, list[str]]:
    async def run() -> tuple[Connection, list[str]]:
        closed: list[str] = []

        async def close() -> None:
            await asyncio.sleep(0)
            closed.append("jobs")

        connection = Connection(**connection_)
        response = EventStream(events(*values, closed=closed), close)
        try:
            await response(SCOPE, connection.receive, connection.send)
        except OSError:
            closed.append("raised")
        return connection, closed

    return asyncio.run(run())


def test_a_whole_response() -> None:
    connection, closed = served({}, {"a": 1})
    start, *parts = connection.said
    headers = dict(start["headers"])
    assert start["status"] == 200
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert b"no-cache" in headers[b"cache-control"]
    assert b"content-length" not in headers
    assert b"".join(part.get("body", b"") for part in parts) == b'data: {"a":1}\n\ndata: [DONE]\n\n'
    assert closed == ["events", "jobs"]


def test_everything_is_closed_when_the_client_leaves() -> None:
    async def forever() -> AsyncIterator[Event]:
        yield {"a": 1}
        await asyncio.Event().wait()

    async def run() -> list[str]:
        closed: list[str] = []

        async def close() -> None:
            await asyncio.sleep(0)  # also where the task is being cancelled
            closed.append("jobs")

        connection = Connection(leaves=True)
        await EventStream(forever(), close)(SCOPE, connection.receive, connection.send)
        return closed

    assert asyncio.run(asyncio.wait_for(run(), 10)) == ["jobs"]


def test_everything_is_closed_when_nothing_can_be_sent() -> None:
    _, closed = served({"failing": True}, {"a": 1}, {"b": 2}, {"c": 3})
    assert closed == ["events", "jobs", "raised"]
