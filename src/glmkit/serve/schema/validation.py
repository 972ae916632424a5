"""What is wrong with a request: the first problem that its types found, in one line, with the field's name."""

import reprlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from glmkit.errors import did_you_mean

from ..error_responses import ApiError
from .common import Body

# Where leaving it out is not all that can be done.
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


@dataclass(frozen=True)
class Problem:
    """param: the field as a path, "messages[0].content"; None where the body as a whole is meant."""

    message: str
    param: str | None = None


def first_problem(errors: Sequence[Mapping[str, Any]], model: type[Body], body: Any) -> Problem:
    """The first of pydantic's errors. Their places begin with "body", as FastAPI gives them.

    An unknown field comes before a missing one, for it is often that one with its name misspelt.
    """
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    error = unknown[0] if unknown and errors[0]["type"] == "missing" else errors[0]
    keys = place(error["loc"][1:], body, missing=error["type"] == "missing")
    kind, given = error["type"], error["input"]
    if kind.startswith("union_tag"):
        given = given.get("role") if isinstance(given, Mapping) else given
        keys, known = [*keys, "role"], str(error["ctx"].get("expected_tags", "a role such as 'user'"))
        wrong = "is missing" if kind == "union_tag_not_found" else f"is {_short(given)}"
        return Problem(f"{path(keys)} {wrong}; give {known}", path(keys))
    if not keys:
        return Problem(_whole_body(kind, given))
    name = path(keys)
    if kind == "extra_forbidden":
        return Problem(_unknown(keys, model), name)
    return Problem(_sentence(name, kind, given, error), name)


def place(loc: Sequence[Any], body: Any, *, missing: bool = False) -> list[Any]:
    """Keys and indices from the body to a value, without the tags of unions, which are not in the body."""
    keys: list[Any] = []
    for number, key in enumerate(loc):
        inside = isinstance(body, Mapping) and key in body
        if inside or (isinstance(body, list) and isinstance(key, int) and key < len(body)):
            body = body[key]
            keys.append(key)
        elif missing and number == len(loc) - 1:
            keys.append(key)
    return keys


def path(keys: Sequence[Any]) -> str:
    """["messages", 0, "content"] as messages[0].content."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{_plain(key)}" for key in keys)
    return "".join(parts).removeprefix(".")


def _sentence(name: str, kind: str, given: Any, error: Mapping[str, Any]) -> str:
    context = error.get("ctx", {})
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
    sizes: dict[str, Callable[[], str]] = {
        "too_long": lambda: f"{name} has {_count(context, given)} items; give at most {context['max_length']}",
        "too_short": lambda: f"{name} has {_count(context, given)} items; give at least {context['min_length']}",
        "string_too_long": lambda: f"{name} has {len(given)} characters; give at most {context['max_length']}",
        "string_too_short": lambda: f"{name} is empty; give a text, or leave it out",
        "string_pattern_mismatch": lambda: f"{what}; give what matches {context['pattern']}",
        "finite_number": lambda: f"{what}; give a finite number",
        "value_error": lambda: f"{name}: {context['error']}",
    }
    if kind in sizes:
        return sizes[kind]()
    return f"{what}; give {_KINDS[kind.removesuffix('_type')]}" if _is_known(kind) else f"{what}; {error['msg']}"


def _unknown(keys: Sequence[Any], model: type[Body]) -> str:
    name, short = path(keys), str(keys[-1])
    known = set(model.model_fields)
    if len(keys) > 1:
        known = {field for other in Body.__subclasses__() for field in other.model_fields}
    instead = _INSTEAD.get(short)
    hint = instead or did_you_mean(short, known, otherwise="leave it out")
    return f"unknown field {_short(name)}; {hint}"


def _whole_body(kind: str, given: Any) -> str:
    if kind == "missing":
        return "the request has no body; send a JSON object"
    return f"the body is {_short(given)}; send a JSON object"


def _count(context: Mapping[str, Any], given: Any) -> int:
    return int(context.get("actual_length") or (len(given) if hasattr(given, "__len__") else 0))


def _is_known(kind: str) -> bool:
    return kind.endswith("_type") and kind.removesuffix("_type") in _KINDS


def _plain(key: Any) -> str:
    """A key as a short line that can be sent, whatever a client wrote there."""
    text = str(key)[:80]
    return text if text.isprintable() else repr(text)[1:-1]


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 60
_repr.maxlong = 30


def _short(value: Any) -> str:
    """A value as JSON people write it, cut where it is long."""
    special = {True: "true", False: "false"}
    if isinstance(value, bool):
        return special[value]
    return "null" if value is None else _repr.repr(value)


# --- FOLDED serve/protocol/reading
# One clear error, with the name of the field, for a request that its types refuse.


class JsonRoute(APIRoute):
    """A route whose request is one `Body`. Whatever is wrong with it becomes one `ApiError` that names the field."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler with other errors behind it."""
        handler = super().get_route_handler()
        field = self.body_field
        model = None if field is None else cast(type[Body], field.field_info.annotation)

        async def read(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                if model is None:
                    raise
                problem = first_problem(error.errors(), model, error.body)
                raise ApiError(400, problem.message, param=problem.param) from None

        return read
