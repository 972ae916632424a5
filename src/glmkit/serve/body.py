"""Reading a request's body within its limits, and refusing what is no JSON object before anything is made of it."""

import asyncio
import json
import math
import reprlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from starlette.types import Message

from .errors import ApiError, ClientGone

# Media types under which clients send JSON; the last two are what common tools say unless told otherwise.
_JSON_TYPES = ("application/json", "text/json", "text/plain", "application/x-www-form-urlencoded")
_DEPTH = 64


async def read_body(
    receive: Callable[[], Awaitable[Message]], headers: Iterable[tuple[bytes, bytes]], *, limit: int, seconds: float
) -> bytes:
    """The whole body. Raises ApiError: 413 above `limit` bytes, 408 when it takes longer; ClientGone."""
    length = next((value for name, value in headers if name == b"content-length"), b"")
    if length.isdigit() and int(length[:20]) > limit:
        raise _too_large(limit)
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                data += message.get("body", b"")
                if len(data) > limit:
                    raise _too_large(limit)
                if not message.get("more_body", False):
                    return bytes(data)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {seconds:g} s", code="request_timeout") from None


def check_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises ApiError, 415, for a body that says it is something else than JSON in UTF-8."""
    given = {name: value.decode("latin-1").strip() for name, value in headers}
    if (coding := given.get(b"content-encoding", "identity").lower()) not in ("identity", ""):
        raise _unsupported(f"content-encoding {_short(coding)} is not read; send the body as it is")
    kind, _, rest = given.get(b"content-type", "").partition(";")
    kind = kind.strip().lower()
    if kind and kind not in _JSON_TYPES and not kind.endswith("+json"):
        raise _unsupported(f"content-type {_short(kind)} is not read; send application/json")
    for part in rest.split(";"):
        name, _, value = part.partition("=")
        if name.strip().lower() == "charset" and value.strip(' "').lower() not in ("utf-8", "utf8", "us-ascii"):
            raise _unsupported(f"charset {_short(value.strip())} is not read; send UTF-8")


def read_object(data: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises ApiError, 400, saying what is wrong and where.

    Refused as well: names that come twice in an object, NaN and infinities, numbers too large for a double, halves of
    surrogate pairs, more than 64 levels.
    """
    if not data.strip():
        raise _bad("the body is empty; send a JSON object")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(f"the body is not UTF-8 (byte {error.start})") from None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _bad(f"the body is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise _bad(f"the body has more than {_DEPTH} levels") from None
    except ValueError as error:  # ours, and whole numbers of thousands of digits
        raise _bad(f"the body is not usable: {error}") from None
    if not isinstance(value, dict):
        raise _bad(f"the body is {_kind(value)}; send a JSON object")
    for path in _unsendable(value, "", 1) if "\\u" in text or _deep(text) else ():
        raise path
    return value


def _unsendable(value: Any, path: str, depth: int) -> Iterator[ApiError]:
    if depth > _DEPTH:
        yield _bad(f"the body has more than {_DEPTH} levels")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(value[error.start]):04x}"
            message = f"{path or 'a name'} has half of a surrogate pair, {half}, which is no character"
            yield ApiError(400, message, param=path or None)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _unsendable(key, "", depth + 1)
            yield from _unsendable(item, f"{path}.{key}" if path else key, depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unsendable(item, f"{path}.{index}", depth + 1)


def _deep(text: str) -> bool:
    """Whether there may be too many levels; cheap, and seldom true without reason."""
    return text.count("[") + text.count("{") > _DEPTH


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"{_short(twice)} is given twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {_short(text)} is too large")
    return value


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _short(text: str) -> str:
    return reprlib.repr(text)


def _bad(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_json")


def _unsupported(message: str) -> ApiError:
    return ApiError(415, message, code="unsupported_media_type")


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body has more than {limit} bytes, which is the most", code="request_too_large")
