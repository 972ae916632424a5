"""Checks and records of every request around the endpoints: key, limits of size and time, name, a line in the log.

Plain ASGI, so that streams go through unchanged and unbuffered.
"""

import asyncio
import contextlib
import hmac
import logging
import re
import uuid
from collections.abc import Collection, Iterable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .body import BodyRoom, check_headers, read_body, read_object
from .client import Client, enter, leave
from .connections import UNREAD
from .error_responses import ApiError, ClientGone, as_api_error
from .origins import Origins, Proxies
from .page.paths import is_page_file
from .state import State

logger = logging.getLogger("glmkit.serve")
access = logging.getLogger("glmkit.serve.access")

# Key of a request's scope: a function that breaks its connection off.
ABORT = "glmkit.abort"
_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_QUIET = 0.5  # seconds without a byte of a refused body after which its connection may be closed
_NO_BODY = ("GET", "HEAD", "OPTIONS", "DELETE", "TRACE")
_CLOSED = 499
_LARGE = 1 << 16  # bytes of a body
_BODIES = 32  # largest bodies that may be on their way at the same time


class Guard:
    """Middleware around everything else.

    Where keys are set everything asks for one but /health and the files of the page: these hold no secrets, and the
    page gives the key of its user with each call. endpoints: the methods of each path; a body that is posted to one is
    a JSON object.
    """

    def __init__(self, app: ASGIApp, state: State, endpoints: Mapping[str, Collection[str]]) -> None:
        self.app, self.state, self.endpoints = app, state, endpoints
        self._keys = [key.encode() for key in state.settings.api_keys]
        self._origins = Origins(state.settings)
        self.proxies = Proxies(state.settings.trusted_proxies)
        self.room = BodyRoom(_BODIES * state.settings.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; part of the ASGI interface."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await _Exchange(self, scope, receive, send).run()
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": "there are no web sockets here"})

    def check(self, scope: Scope, path: str, headers: Headers) -> None:
        """Raise ApiError: what `Origins.check` refuses, 401 without a valid key."""
        method = scope["method"]
        try:
            self._origins.check(scope, headers)
        except ApiError as error:
            self.state.metrics.rejected(error.code or "")
            raise
        if self._keys and not _is_open(path, method) and not self._has_key(headers):
            self.state.metrics.rejected("api_key")
            given = "this API key is not valid" if "authorization" in headers else "no API key was given"
            message = f"{given}; send the header 'Authorization: Bearer KEY'"
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        sent = given.strip().encode("utf-8", "replace")
        # All keys are compared, so that the time says nothing of which one was nearly right.
        matches = [hmac.compare_digest(sent, key) for key in self._keys]
        return scheme.lower() == "bearer" and any(matches)


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard, self._state, self._settings = guard, guard.state, guard.state.settings
        self._outer, self._receive, self._send = scope, receive, send
        # A copy, for the server's own one must go on saying HEAD.
        root = scope.get("root_path") or self._settings.root_path
        self._scope: Scope = {**guard.proxies.read(scope), "root_path": root}
        self._headers = Headers(raw=self._scope["headers"])
        self._method: str = scope["method"]
        self._path = _path(self._scope)
        given = self._headers.get("x-request-id", "")
        self._id = given if _ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        self._loop = asyncio.get_running_loop()
        self._client = Client(receive)
        self._body: bytes | None = None
        self._status = 0
        self._finished = False
        self._sending: float | None = None  # loop time since which a message waits for the client
        self._watchdog: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Answer the request; every way out is counted and logged."""
        token = enter(self._client)
        self._outer[UNREAD] = "content-length" in self._headers or "transfer-encoding" in self._headers
        try:
            try:
                await self._answer()
            except (ClientGone, ClientDisconnect):
                self._client.left()
            except ApiError as error:
                await self._refuse(error)
            except Exception as error:
                logger.exception("request %s failed", self._id)
                await self._refuse(as_api_error(error))
        finally:
            leave(token)
            if self._watchdog is not None:
                self._watchdog.cancel()
            self._record()
            await self._client.end()

    async def _answer(self) -> None:
        self._guard.check(self._scope, self._path, self._headers)
        if self._method not in _NO_BODY or self._outer[UNREAD]:
            await self._take_body()
        if self._method == "HEAD":
            self._scope["method"] = "GET"
        elif self._method not in METHODS:
            self._scope["method"] = "TRACE"  # which no path takes: the answer says what it takes
        await self._guard.app(self._scope, self._next, self._say)

    async def _take_body(self) -> None:
        headers: Iterable[tuple[bytes, bytes]] = self._scope["headers"]
        limits = self._settings
        if "content-length" in self._headers and "transfer-encoding" in self._headers:
            # What is the body and what the next request, others on the way may see otherwise.
            message = "content-length and transfer-encoding do not go together; leave one out"
            raise ApiError(400, message, code="invalid_http", headers={"connection": "close"})
        try:
            self._body = await read_body(
                self._receive,
                headers,
                limit=limits.max_body_bytes,
                seconds=limits.read_seconds,
                room=self._guard.room,
            )
            self._outer[UNREAD] = False
        except ApiError as error:
            if error.status in (408, 413, 503):
                self._state.metrics.rejected(error.code or "")
            raise
        if self._method == "POST" and "POST" in self._guard.endpoints.get(self._path, ()):
            check_headers(headers)
            large = len(self._body) > _LARGE  # takes long enough that streams would stall
            read = await asyncio.to_thread(read_object, self._body) if large else read_object(self._body)
            self._client.fields = frozenset(read)
            others = [(name, value) for name, value in headers if name != b"content-type"]
            self._scope["headers"] = [*others, (b"content-type", b"application/json")]

    async def _next(self) -> Message:
        """Give the endpoints the body, which is here already, then the end of the connection."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await self._client.disconnected()

    async def _say(self, message: Message) -> None:
        """Send a message of the endpoints; do nothing once the client is gone, or reads nothing for too long."""
        if self._client.gone:
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(raw=list(message.get("headers", ())))
            headers["x-request-id"] = self._id
            if self._state.queue.draining:
                headers["connection"] = "close"
            message = {**message, "headers": headers.raw}
            self._watchdog = self._loop.call_later(self._settings.write_seconds, self._watch)
        elif not message.get("more_body", False):
            self._finished = True
            self._client.answered = True
        self._sending = self._loop.time()
        await self._send(message)
        self._sending = None

    def _watch(self) -> None:
        """Break off when a message has waited for the client as long as it may, else look again when it would have."""
        waited = 0.0 if self._sending is None else self._loop.time() - self._sending
        if waited >= self._settings.write_seconds:
            self._break_off()
        else:
            self._watchdog = self._loop.call_later(self._settings.write_seconds - waited, self._watch)

    async def _refuse(self, error: ApiError) -> None:
        if self._status == 0:
            say = self._say_and_linger if self._outer[UNREAD] else self._say
            await error.response()(self._scope, self._next, say)
        elif not self._finished:
            self._break_off()
            await asyncio.sleep(0)  # the server notices before it asks why nothing was said

    async def _say_and_linger(self, message: Message) -> None:
        """Send a whole refusal, and end it when no more of the body comes: closing over unread bytes would lose it."""
        if message["type"] == "http.response.body":
            await self._say({**message, "more_body": True})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.read_seconds):
                    more = True
                    while more:
                        async with asyncio.timeout(_QUIET):
                            more = (await self._receive()).get("more_body", False)
            message = {"type": "http.response.body"}
        await self._say(message)

    def _break_off(self) -> None:
        """End the connection in the middle of an answer, so that it cannot be taken for a complete one."""
        self._client.answered = False
        self._client.left()
        if abort := self._outer.get(ABORT):
            abort()

    def _record(self) -> None:
        seconds = self._loop.time() - self._client.started
        status = self._status if self._status and not self._client.gone else _CLOSED
        route = getattr(self._scope.get("route"), "path", "")
        if not route:  # it was refused before its endpoint was looked for
            route = self._path if self._path in self._guard.endpoints else "other"
        method = self._method if self._method in METHODS else "OTHER"
        self._state.metrics.answered(route, method, status, seconds)
        client = self._scope.get("client")
        # The path as it was sent: percent-encoded, so that it cannot write lines of its own.
        raw = self._outer.get("raw_path", b"").decode("latin-1")[:200]
        shown = raw if raw.isprintable() else repr(raw)
        access.info("%s %s %s %d %.3fs %s", client[0] if client else "-", method, shown, status, seconds, self._id)


def _path(scope: Scope) -> str:
    """The path below the one that a proxy puts before it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] or "/" if root and path.startswith(root + "/") else path


def _is_open(path: str, method: str) -> bool:
    """True where no key is asked for: what says only whether the server is well, and the page's files."""
    return method == "OPTIONS" or path == "/health" or is_page_file(method, path)
