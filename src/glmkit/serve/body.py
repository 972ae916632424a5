"""Reading a request's body within its limits, and refusing what is no JSON object before anything is made of it."""

import asyncio
import json
import math
import reprlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.types import Message

from .error_responses import ApiError, ClientGone
from .schema.validation import path

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
    surrogate pairs, more than 64 levels. What is wrong inside a value names the field.
    """
    if not data.strip():
        raise _bad("the body is empty; send a JSON object")
    first: int | None = None  # the first byte that is not UTF-8
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        # Its bytes as halves of pairs, by which the field is found.
        first, text = error.start, data.decode("utf-8", "surrogateescape")
    try:
        value, wrong = _parsed(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _not_utf8(first) or _bad(f"the body is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise _not_utf8(first) or _bad(f"the body has more than {_DEPTH} levels") from None
    if first is not None or wrong or "\\u" in text or _deep(text):
        for found in _unsendable(value, (), 1, first):
            raise found
    if not isinstance(value, dict):
        raise _not_utf8(first) or _bad(f"the body is {_kind(value)}; send a JSON object")
    assert not wrong
    assert first is None
    return value


@dataclass(frozen=True)
class _Unusable:
    """Stands where something is that JSON or we do not take. keys: from there to the field itself."""

    reason: str
    keys: tuple[str, ...] = ()


def _parsed(text: str) -> tuple[Any, bool]:
    """The value, and whether there is something `_Unusable` in it. Raises JSONDecodeError and RecursionError."""
    wrong: list[_Unusable] = []

    def unusable(reason: str, *keys: str) -> _Unusable:
        wrong.append(_Unusable(reason, keys))
        return wrong[-1]

    def unique(pairs: list[tuple[str, Any]]) -> Any:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            return unusable(f"{_short(twice)} is given twice in one object", twice)
        return found

    def constant(name: str) -> Any:
        return unusable(f"{name} is no JSON number")

    def finite(digits: str) -> Any:
        value = float(digits)
        return value if math.isfinite(value) else unusable(f"the number {_short(digits)} is too large")

    def whole(digits: str) -> Any:
        try:
            return int(digits)
        except ValueError:
            return unusable(f"the number {_short(digits)} has too many digits")

    hooks: dict[str, Any] = {"object_pairs_hook": unique, "parse_constant": constant, "parse_float": finite}
    try:
        return json.loads(text, **hooks), bool(wrong)
    except json.JSONDecodeError:
        raise
    except ValueError:  # whole numbers of thousands of digits; looking for them makes all others slower
        return json.loads(text, **hooks, parse_int=whole), bool(wrong)


def _unsendable(value: Any, keys: tuple[Any, ...], depth: int, first: int | None) -> Iterator[ApiError]:
    """What is wrong inside a value at a place; first: the first byte that is not UTF-8."""
    if depth > _DEPTH:
        yield _not_utf8(first) or _bad(f"the body has more than {_DEPTH} levels")
    elif isinstance(value, _Unusable):
        name = path((*keys, *value.keys)) or None
        where = f"{path(keys)}: " if keys else "the body is not usable: "
        yield ApiError(400, f"{where}{value.reason}", param=name, code="invalid_json")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            name, half = path(keys) or "a name", ord(value[error.start])
            if first is not None and 0xDC80 <= half <= 0xDCFF:
                message = f"{name} is not UTF-8 (byte {first})"
            else:
                message = f"{name} has half of a surrogate pair, \\u{half:04x}, which is no character"
            yield ApiError(400, message, param=path(keys) or None, code="invalid_json")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _unsendable(key, (), depth + 1, first)
            yield from _unsendable(item, (*keys, key), depth + 1, first)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unsendable(item, (*keys, index), depth + 1, first)


def _deep(text: str) -> bool:
    """Whether there may be too many levels; cheap, and seldom true without reason."""
    return text.count("[") + text.count("{") > _DEPTH


def _not_utf8(first: int | None) -> ApiError | None:
    return None if first is None else _bad(f"the body is not UTF-8 (byte {first})")


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
