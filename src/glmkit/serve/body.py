"""Bodies of requests: read within limits of size and time, refused where another reader could take them otherwise."""

import asyncio
import json
import math
import reprlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from starlette.types import Message

from .error_responses import ApiError, ClientGone
from .schema.validation import Key, path

# Media types under which clients send JSON; the last two are what common tools say unless told otherwise.
_JSON_TYPES = ("application/json", "text/json", "text/plain", "application/x-www-form-urlencoded")
_DEPTH = 64
_SMALL = 1 << 16  # bytes of a body for which there is always room


class BodyRoom:
    """Memory for bodies that are on their way: small ones are free, larger ones share `left` bytes."""

    def __init__(self, size: int) -> None:
        self.left = size


async def read_body(
    receive: Callable[[], Awaitable[Message]],
    headers: Iterable[tuple[bytes, bytes]],
    *,
    limit: int,
    seconds: float,
    room: BodyRoom,
) -> bytes:
    """Read the whole body.

    Raises ApiError: 413 above `limit` bytes, 408 when it takes longer, 503 without room; ClientGone.
    """
    length = next((value for name, value in headers if name == b"content-length"), b"")
    if length.isdigit() and int(length[:20]) > limit:
        raise _too_large(limit)
    data, taken = bytearray(), 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                data += message.get("body", b"")
                if len(data) > limit:
                    raise _too_large(limit)
                if len(data) > _SMALL:
                    more = len(data) - taken
                    if more > room.left:
                        raise _no_room()
                    room.left, taken = room.left - more, len(data)
                if not message.get("more_body", False):
                    return bytes(data)
    except TimeoutError:
        late = f"the body did not arrive within {seconds:g} s"
        raise ApiError(408, late, code="request_timeout", headers={"connection": "close"}) from None
    finally:
        room.left += taken


def check_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise ApiError, 415, for a body that says it is something else than JSON in UTF-8."""
    given = {name: value.decode("latin-1").strip() for name, value in headers}
    if (coding := given.get(b"content-encoding", "identity").lower()) not in ("identity", ""):
        raise _unsupported(f"content-encoding {reprlib.repr(coding)} is not read; send the body as it is")
    kind, _, rest = given.get(b"content-type", "").partition(";")
    kind = kind.strip().lower()
    if kind and kind not in _JSON_TYPES and not kind.endswith("+json"):
        raise _unsupported(f"content-type {reprlib.repr(kind)} is not read; send application/json")
    for part in rest.split(";"):
        name, _, value = part.partition("=")
        if name.strip().lower() == "charset" and value.strip(' "').lower() not in ("utf-8", "utf8", "us-ascii"):
            raise _unsupported(f"charset {reprlib.repr(value.strip())} is not read; send UTF-8")


def read_object(data: bytes) -> dict[str, object]:
    """Parse the JSON object of a body. Raises ApiError, 400, saying what is wrong and where.

    Refused as well: names that come twice in an object, NaN and infinities, numbers too large for a double, halves of
    surrogate pairs, more than 64 levels. An error inside a value names the field.
    """
    if not data.strip():
        raise _bad("the body is empty; send a JSON object")
    first: int | None = None  # the first byte that is not UTF-8
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        # Its bytes as halves of pairs, by which the field is found.
        first, text = error.start, data.decode("utf-8", "surrogateescape")
    no_text = None if first is None else _bad(f"the body is not UTF-8 (byte {first})")
    try:
        value, wrong = _parse(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise no_text or _bad(f"the body is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise no_text or _too_deep() from None
    if no_text or wrong or "\\u" in text or text.count("[") + text.count("{") > _DEPTH:
        for found in _faults(value, (), 1, first):
            raise found if found.param or no_text is None else no_text
    if not isinstance(value, dict):
        kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
        raise no_text or _bad(f"the body is {kinds.get(type(value), 'a number')}; send a JSON object")
    return value


@dataclass(frozen=True)
class _Fault:
    """A stand-in for a value that JSON or the API does not have. keys: from there to the field itself."""

    reason: str
    keys: tuple[str, ...] = ()


def _parse(text: str) -> tuple[object, bool]:
    """(value, True where it holds a `_Fault`). Raises JSONDecodeError and RecursionError."""
    faults: list[_Fault] = []

    def fault(reason: str, *keys: str) -> _Fault:
        faults.append(_Fault(reason, keys))
        return faults[-1]

    def unique(pairs: list[tuple[str, object]]) -> object:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            return fault(f"{reprlib.repr(twice)} is given twice in one object", twice)
        return found

    def constant(name: str) -> object:
        return fault(f"{name} is no JSON number")

    def finite(digits: str) -> object:
        value = float(digits)
        return value if math.isfinite(value) else fault(f"the number {reprlib.repr(digits)} is too large")

    def whole(digits: str) -> object:
        try:
            return int(digits)
        except ValueError:
            return fault(f"the number {reprlib.repr(digits)} has too many digits")

    load = partial(json.loads, object_pairs_hook=unique, parse_constant=constant, parse_float=finite)
    try:
        return load(text), bool(faults)
    except json.JSONDecodeError:
        raise
    except ValueError:  # whole numbers of thousands of digits; looking for them makes all others slower
        return load(text, parse_int=whole), bool(faults)


def _faults(value: object, keys: tuple[Key, ...], depth: int, first: int | None) -> Iterator[ApiError]:
    """Errors inside the value at these keys. first: the first byte of the body that is not UTF-8."""
    field = path(keys)
    if depth > _DEPTH:
        yield _too_deep()
    elif isinstance(value, _Fault):
        where = f"{field}: " if keys else "the body is not usable: "
        yield _bad(f"{where}{value.reason}", path((*keys, *value.keys)))
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = ord(value[error.start])
            if first is not None and 0xDC80 <= half <= 0xDCFF:
                reason = f"is not UTF-8 (byte {first})"
            else:
                reason = f"has half of a surrogate pair, \\u{half:04x}, which is no character"
            yield _bad(f"{field or 'a name'} {reason}", field)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _faults(key, (), depth + 1, first)
            yield from _faults(item, (*keys, key), depth + 1, first)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _faults(item, (*keys, index), depth + 1, first)


def _bad(message: str, param: str = "") -> ApiError:
    return ApiError(400, message, param=param or None, code="invalid_json")


def _too_deep() -> ApiError:
    return _bad(f"the body has more than {_DEPTH} levels")


def _unsupported(message: str) -> ApiError:
    return ApiError(415, message, code="unsupported_media_type")


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body has more than {limit} bytes, which is the most", code="request_too_large")


def _no_room() -> ApiError:
    message = "too many large bodies are being sent to this server at the moment; try again"
    return ApiError(503, message, type="server_error", code="overloaded", headers={"retry-after": "1"})
