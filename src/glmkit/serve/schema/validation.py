"""Validation of requests by their types: one clear error, with the name of the field."""

import reprlib
from collections.abc import Callable, Coroutine, Mapping, Sequence, Sized
from typing import Annotated, Any, cast, get_args, get_origin

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
    "messages.function_call": "use tool_calls",
    "messages.content.type": "give 'text', images and sound cannot be read",
    "do_sample": "temperature 0 takes the likeliest token",
    "logit_bias": "no token can be preferred by its id",
    "max_output_tokens": "use max_tokens",
    "response_format": "answers are plain text; ask for JSON in a message",
    "modalities": "answers are text",
    "tool_choice": "a call cannot be forced; give 'auto' or 'none'",
    "stream_options.include_obfuscation": "chunks are never padded",
    "strict": "arguments cannot be forced into a schema",
}
_INPUTS = ("messages", "prompt", "text", "input", "inputs", "query")  # what a text is called somewhere
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
        return ApiError(400, _unknown(keys, model, body), param=name)
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
    words = [word.partition("[")[0] for word in name.split(".")]
    instead = next((_INSTEAD[key] for key in (".".join(words), words[-1], words[0]) if key in _INSTEAD), None)
    if kind == "none_required" or (instead and kind in ("too_long", "literal_error")):
        return f"{name} {_short(given)} is not supported; {instead or 'leave it out'}"
    if kind == "missing":
        return f"{name} is missing"
    if kind == "literal_error":
        return f"{what}; give {context['expected']}"
    if kind in _BOUNDS:
        bound, comparison = _BOUNDS[kind]
        return f"{what}; give {comparison} {context[bound]}"
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


def _unknown(keys: Sequence[Key], model: type[Body], body: object) -> str:
    *above, last = keys
    name, short, models = path(keys), str(last), {model}
    for key in above:
        body = body[key] if isinstance(body, list) and isinstance(key, int) else body
        body = body[key] if isinstance(body, Mapping) and isinstance(key, str) else body
        if isinstance(key, str):
            fields = (each.model_fields[key] for each in models if key in each.model_fields)
            models = {inner for field in fields for inner in _bodies(field.annotation, lists=True)}
        elif isinstance(body, Mapping):
            models = {each for each in models if _is_of(body.get("role"), each)}
    known = {field: info for each in models for field, info in each.model_fields.items()}
    inside = (
        field for field, info in known.items() if any(short in one.model_fields for one in _bodies(info.annotation))
    )
    if (field := next(inside, None)) is not None:
        return f"unknown field {_short(name)}; it belongs into {path([*above, field])!r}"
    instead = None if above else _INSTEAD.get(short)
    if short in _INPUTS and not above:
        field = next(field for field in _INPUTS if field in known)
        instead = f"here the text goes into {field!r}"
    return f"unknown field {_short(name)}; {instead or did_you_mean(short, known, otherwise='leave it out')}"


def _is_of(role: object, model: type[Body]) -> bool:
    """True for an object without roles, or of this one."""
    return "role" not in model.model_fields or role in get_args(model.model_fields["role"].annotation)


def _bodies(annotation: object, *, lists: bool = False) -> list[type[Body]]:
    """The objects that a type allows, as one of several too. lists: those in lists as well."""
    if isinstance(annotation, type) and issubclass(annotation, Body):
        return [annotation]
    parts = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    if get_origin(annotation) is list and not lists:
        return []
    return [body for part in parts for body in _bodies(part, lists=lists)]


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
