"""Errors as the server answers them, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from starlette.responses import JSONResponse

from glmkit.errors import RequestError, TokenizerError, names_text
from glmkit.generate.params import OPTIONS

# Parameters that several fields of requests may stand for, or another one; the first that was given is named.
_FIELDS = {
    "max_new_tokens": ("max_completion_tokens", "max_tokens"),
    "num_return_sequences": ("n",),
    "max_rows": ("num_beams", "best_of", "n"),
}
_MOST_NAMES = 50  # of models that are listed
_LONGEST = 2000  # characters of a message, and of the field that it names: both may repeat what a client sent


class ApiError(Exception):
    """An answer that is an error: its HTTP status and the fields of its body."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.code = status, shortened(message), type, code
        self.param = None if param is None else shortened(param)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON object, also for an event in the middle of a stream."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def shortened(text: str) -> str:
    """A text of at most some 2,000 characters: of a longer one the beginning, its length, and the end."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} … ({len(text):,} characters) … {text[-half:]}"


class Overloaded(ApiError):  # noqa: N818
    """A refusal because as many requests wait as may; `retry_after` seconds from now there should be a place."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        seconds = max(1, math.ceil(retry_after))
        super().__init__(
            429,
            f"{waiting} requests wait already, which is the most; try again in {seconds} s",
            type="rate_limit_error",
            code="queue_full",
            headers={"retry-after": str(seconds)},
        )


class Draining(ApiError):  # noqa: N818
    """The server is being stopped and takes nothing new."""

    def __init__(self, message: str = "the server is being stopped and takes no more requests") -> None:
        super().__init__(503, message, type="server_error", code="draining", headers={"retry-after": "5"})


class EngineFailed(ApiError):  # noqa: N818
    """The engine's thread has ended by an error; only a new start helps."""

    def __init__(self) -> None:
        message = "the engine has failed; the server must be started again"
        super().__init__(503, message, type="server_error", code="engine_failed", headers={"retry-after": "30"})


class DeadlineExceeded(ApiError):  # noqa: N818
    """A request took longer than it may."""

    def __init__(self, seconds: float) -> None:
        message = f"the request was not done within {seconds:g} s; ask for fewer tokens, or raise deadline_seconds"
        super().__init__(504, message, type="timeout", code="deadline_exceeded")


class SlowReader(ApiError):  # noqa: N818
    """A client left more of its stream unread than is kept for it."""

    def __init__(self, events: int) -> None:
        super().__init__(503, f"{events} events of this stream lie unread, which is the most", code="slow_reader")


class ClientGone(ApiError):  # noqa: N818
    """Nobody waits for the answer any more. The status is never sent; it is what logs and metrics show."""

    def __init__(self) -> None:
        super().__init__(499, "the client closed the connection", code="client_gone")


def model_not_found(name: str, served: Sequence[str]) -> ApiError:
    """The 404 for a model that is not served. served: those that are."""
    shown = name if len(name) <= 100 else name[:100] + "…"
    listed = f"{served[0]!r} alone" if len(served) == 1 else names_text(map(repr, served), _MOST_NAMES)
    message = f"model {shown!r} is not served here; this server has {listed}"
    return ApiError(404, message, param="model", code="model_not_found")


def as_api_error(error: BaseException, given: Collection[str] = (), default: str | None = None) -> ApiError:
    """Turn any error into one that can be sent; what a user did not cause says nothing of its inside.

    given: fields of the request's body, under whose names its parameters are shown. default: the field that is named
    where the error has no parameter that was given.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError) and _is_ours(error):
        return ApiError(500, "this step of the engine failed; try again", type="server_error", code="engine_error")
    if isinstance(error, RequestError | TokenizerError):
        param = next((name for name in _fields(error.param) if name in given), default)
        return ApiError(400, str(error), param=param, code=error.code)
    return ApiError(500, "the server made a mistake; its log says more", type="server_error", code="internal_error")


def _fields(param: str | None) -> tuple[str, ...]:
    """Names in requests of a parameter of the Python interface, the newer one first."""
    if param is None:
        return ()
    return _FIELDS.get(param) or (OPTIONS[param].api_name if param in OPTIONS else param,)


def _is_ours(error: RequestError) -> bool:
    """True for an error that ended a request because of another one, such as memory that ran out."""
    return isinstance(error.__cause__, RuntimeError | MemoryError)


@contextmanager
def refused(given: Collection[str], default: str) -> Iterator[None]:
    """Raise what the model or its parameters refuse inside as an ApiError; arguments as of `as_api_error`."""
    try:
        yield
    except (RequestError, TokenizerError) as error:
        raise as_api_error(error, given, default) from error
