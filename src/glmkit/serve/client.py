"""The client behind the request that is being answered: whether it is still there, and how long it has waited."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection
from contextvars import ContextVar, Token

from starlette.types import Message

_CURRENT: ContextVar["Client | None"] = ContextVar("glmkit_client", default=None)


class Client:
    """The client of one request, made by the guard; lives until the answer is complete.

    fields: names in the request's JSON object. accepted: a job of the request was taken, so its further ones are,
    too, although the server has begun to drain. answered: the answer is complete, and leaving changes nothing.
    """

    def __init__(self, receive: Callable[[], Awaitable[Message]]) -> None:
        self.started = asyncio.get_running_loop().time()
        self.fields: Collection[str] = ()
        self.accepted = False
        self.answered = False
        self.gone = False
        self._receive = receive
        self._task: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._callbacks: dict[Callable[[], None], None] = {}
        self._last: list[Callable[[], None]] = []

    def watch(self) -> None:
        """Notice from now on when the client goes. The body must have been read."""
        if self._task is None and not self.answered:
            self._task = asyncio.create_task(self._listen())

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Have this called in the event loop as soon as the client is gone."""
        self._callbacks[callback] = None
        if self.gone:
            callback()

    def when_over(self, callback: Callable[[], None]) -> None:
        """Have this called when the request is over in whichever way, also when its endpoint forgets to clean up."""
        self._last.append(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Undo `when_gone`."""
        self._callbacks.pop(callback, None)

    async def disconnected(self) -> Message:
        """Wait for the end of the connection, or of the answer."""
        self.watch()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def left(self) -> None:
        """End everything that is done for the client, which is gone."""
        if self.answered or self.gone:
            return
        self.gone = True
        self._gone.set()
        for callback in list(self._callbacks):
            callback()

    async def end(self) -> None:
        """Stop watching; the request is over."""
        self.answered = True
        self._gone.set()
        for callback in self._last:
            callback()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.left()


def current() -> Client | None:
    """The client of the request whose answer this code is part of; None outside, and once the answer is complete."""
    client = _CURRENT.get()
    return None if client is None or client.answered else client


def enter(client: Client) -> Token["Client | None"]:
    """Make it the current one of this task and of those that it starts."""
    return _CURRENT.set(client)


def leave(token: Token["Client | None"]) -> None:
    """Undo `enter`."""
    _CURRENT.reset(token)
