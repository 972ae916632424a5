"""Functions that a model may ask for, and its calls of them."""

from typing import Annotated, Literal

from pydantic import Field

from .base import Body, JsonObject, Off, Reply

FunctionName = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class Function(Body):
    """A function as the model reads of it. parameters: a JSON schema, which is shown to the model and not enforced."""

    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: Off | None = Field(None, description="Arguments cannot be forced into a schema.")


class Tool(Body):
    """A function, as something to choose."""

    type: Literal["function"]
    function: Function


class FunctionCall(Body):
    """arguments: a JSON object as text."""

    name: FunctionName
    arguments: str


class ToolCall(Body):
    """A call that an earlier answer made."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    type: Literal["function"]
    function: FunctionCall


class CalledFunction(Reply):
    """arguments: a JSON object as text, or what the model wrote when that cannot be read."""

    name: str
    arguments: str


class CalledTool(Reply):
    """A call in an answer; the client runs it and sends the outcome in a message with the role "tool"."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class CalledFunctionDelta(Reply):
    """More of a call: first the name, then the arguments."""

    name: str | None = None
    arguments: str


class CalledToolDelta(Reply):
    """More of the call number `index` in a stream."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionDelta
