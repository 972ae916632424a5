"""The OpenAPI document: FastAPI's, with the errors that all endpoints have in common."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

# Errors of every endpoint, and further ones of those with a body.
_ALWAYS = {
    400: "The request is not valid; `param` names the field.",
    403: "The server is not asked by its name, or by another site's page in a browser.",
    405: "The path takes other methods.",
    408: "The request took too long to arrive.",
    413: "The body is too large.",
    500: "The server made a mistake.",
    503: "The server is being stopped, or too much is asked of it, or its engine has failed.",
}
_WITH_KEYS = {401: "No valid API key was given."}
_WITH_BODY = {
    404: "No such model.",
    415: "The body is not JSON in UTF-8.",
    429: "As many requests wait as may; Retry-After says when to try again.",
    504: "The answer was not complete in time.",
}
Json = dict[str, Any]

_TEXT_OR_NULL = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_ERROR = {
    "title": "Error",
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _TEXT_OR_NULL,
                "code": _TEXT_OR_NULL,
            },
        }
    },
}


def openapi_document(app: FastAPI, *, keys: bool, models: Mapping[str, str | None]) -> Json:
    """The document, kept as long as the models are the same. keys: API keys are asked for. models: see `State`."""
    known = [*models, *(adapter for adapter in models.values() if adapter is not None)]
    if app.openapi_schema is None or getattr(app.state, "documented", None) != known:
        app.state.documented = known
        document = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes, servers=app.servers
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas["Error"] = _ERROR
        for path, operations in document["paths"].items():
            for operation in operations.values():
                _add_errors(operation, path, keys=keys)
                _name_model(operation, schemas, known)
        if keys:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = document
    return app.openapi_schema


def _name_model(operation: Json, schemas: Json, known: list[str]) -> None:
    """Name the served models where one is asked for in the schema, and the first in its examples."""
    model_id = known[0]
    for parameter in operation.get("parameters", ()):
        if parameter["name"] == "model":
            parameter["example"] = model_id
    if "requestBody" not in operation:
        return
    reference = operation["requestBody"]["content"]["application/json"]["schema"].get("$ref", "")
    schema = schemas.get(reference.rpartition("/")[2], {})
    if (field := schema.get("properties", {}).get("model")) is None:
        return
    for option in field.get("anyOf", [field]):
        if option.get("type") == "string":
            option["enum"] = known
    schema["examples"] = [
        {name: model_id if name == "model" else value for name, value in example.items()}
        for example in schema["examples"]
    ]


def _add_errors(operation: Json, path: str, *, keys: bool) -> None:
    asks = keys and path != "/health"
    errors = {**_ALWAYS, **(_WITH_KEYS if asks else {})}
    if "requestBody" in operation:
        errors |= _WITH_BODY
    elif any(parameter["in"] == "path" for parameter in operation.get("parameters", ())):
        errors[404] = _WITH_BODY[404]
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own; here it is 400
    for status, description in sorted(errors.items()):
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        responses.setdefault(str(status), {"description": description, "content": content})
    if asks:
        operation["security"] = [{"key": []}]
