"""Validation of requests by their types: one clear error, with the name of the field."""

import reprlib
from collections.abc import Callable, Coroutine, Mapping, Sequence, Sized
from typing import Any, cast

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import ErrorDetails

from glmkit.errors import did_you_mean

from ..error_responses import ApiError
from .common import Body

Key = int | str  # of an object or a list in the body

# Advice where leaving a field out is not all that can be done.
_INSTEAD = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "logit_bias": "no token can be preferred by its id",
    "max_output_tokens": "use max_tokens",
    "response_format": "answers are plain text; ask for JSON in a message",
    "store": "nothing is stored",
    "metadata": "nothing is stored",
    "modalities": "answers are text",
    "tool_choice": "a call cannot be forced; give 'auto' or 'none'",
    "stream_options.include_obfuscation": "chunks are never padded",
    "strict": "arguments cannot be forced into a schema",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
    "model_attributes": "an object",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
    "greater_than": ("gt", "more than"),
    "less_than": ("lt", "less than"),
}


class JsonRoute(APIRoute):
    """A route whose request is one `Body`; the first error of its types becomes an `ApiError` that names the field."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Give FastAPI's handler with other errors behind it."""
        handler = super().get_route_handler()
        field = self.body_field
        model = None if field is None else cast(type[Body], field.field_info.annotation)

        async def read(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                if model is None:
                    raise
                raise first_problem(error.errors(), model, error.body) from None

        return read


def first_problem(errors: Sequence[ErrorDetails], model: type[Body], body: object) -> ApiError:
    """The first of pydantic's errors, whose `loc` begins with "body", as FastAPI gives it. `param` is a path.

    An unknown field comes before a missing one, for it is often that one with its name misspelt.
    """
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    error = unknown[0] if unknown and errors[0]["type"] == "missing" else errors[0]
    keys = field_keys(error["loc"][1:], body, missing=error["type"] == "missing")
    kind, given = error["type"], error["input"]
    if kind.startswith("union_tag"):
        given = given.get("role") if isinstance(given, Mapping) else given
        keys, known = [*keys, "role"], str(error["ctx"].get("expected_tags", "a role such as 'user'"))
        wrong = "is missing" if kind == "union_tag_not_found" else f"is {_short(given)}"
        return ApiError(400, f"{path(keys)} {wrong}; give {known}", param=path(keys))
    if not keys:
        return ApiError(400, _whole_body(kind, given))
    name = path(keys)
    if kind == "extra_forbidden":
        return ApiError(400, _unknown(keys, model), param=name)
    return ApiError(400, _sentence(name, kind, given, error), param=name)


def field_keys(loc: Sequence[Key], body: object, *, missing: bool = False) -> list[Key]:
    """Keys and indices from the body to a value, without the tags of unions, which are not in the body."""
    keys: list[Key] = []
    for number, key in enumerate(loc):
        held = dict(enumerate(body)) if isinstance(body, list) else body
        if isinstance(held, Mapping) and key in held:
            body = held[key]
            keys.append(key)
        elif missing and number == len(loc) - 1:
            keys.append(key)
    return keys


def path(keys: Sequence[Key]) -> str:
    """Write ["messages", 0, "content"] as messages[0].content."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{_plain(key)}" for key in keys)
    return "".join(parts).removeprefix(".")


def _sentence(name: str, kind: str, given: object, error: ErrorDetails) -> str:
    context, size = error.get("ctx", {}), len(given) if isinstance(given, Sized) else 0
    what = f"{name} is {_short(given)}"
    instead = _INSTEAD.get(name) or _INSTEAD.get(name.split(".")[-1]) or _INSTEAD.get(name.split(".")[0])
    if kind == "none_required" or (instead and kind in ("too_long", "literal_error")):
        return f"{name} {_short(given)} is not supported; {instead or 'leave it out'}"
    if kind == "missing":
        return f"{name} is missing"
    if kind == "literal_error":
        return f"{what}; give {context['expected']}" + (", images and sound cannot be read" * name.endswith("].type"))
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"{what}; give {words} {context[bound]}"
    length = context.get("actual_length") or size
    sizes: dict[str, Callable[[], str]] = {
        "too_long": lambda: f"{name} has {length} items; give at most {context['max_length']}",
        "too_short": lambda: f"{name} has {size} items; give at least {context['min_length']}",
        "string_too_long": lambda: f"{name} has {size} characters; give at most {context['max_length']}",
        "string_too_short": lambda: f"{name} is empty; give a text, or leave it out",
        "string_pattern_mismatch": lambda: f"{what}; give what matches {context['pattern']}",
        "finite_number": lambda: f"{what}; give a finite number",
        "value_error": lambda: f"{name}: {context['error']}",
    }
    if kind in sizes:
        return sizes[kind]()
    return f"{what}; give {_KINDS[kind.removesuffix('_type')]}" if _is_known(kind) else f"{what}; {error['msg']}"


def _unknown(keys: Sequence[Key], model: type[Body]) -> str:
    name, short = path(keys), str(keys[-1])
    known = set(model.model_fields)
    if len(keys) > 1:
        known = {field for other in Body.__subclasses__() for field in other.model_fields}
    instead = _INSTEAD.get(short)
    hint = instead or did_you_mean(short, known, otherwise="leave it out")
    return f"unknown field {_short(name)}; {hint}"


def _whole_body(kind: str, given: object) -> str:
    if kind == "missing":
        return "the request has no body; send a JSON object"
    return f"the body is {_short(given)}; send a JSON object"


def _is_known(kind: str) -> bool:
    return kind.endswith("_type") and kind.removesuffix("_type") in _KINDS


def _plain(key: Key) -> str:
    """A key as a short line that can be sent, whatever a client wrote there."""
    text = str(key)[:80]
    return text if text.isprintable() else repr(text)[1:-1]


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 60
_repr.maxlong = 30


def _short(value: object) -> str:
    """A value as JSON people write it, cut where it is long."""
    special = {True: "true", False: "false"}
    if isinstance(value, bool):
        return special[value]
    return "null" if value is None else _repr.repr(value)
