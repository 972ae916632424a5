"""Messages of a conversation, told apart by their role."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from .base import Body, by_kind
from .tools import ToolCall


class TextPart(Body):
    """A piece of a text."""

    type: Literal["text"]
    text: str


Parts = Annotated[list[TextPart], Field(min_length=1, max_length=1000)]
_KINDS = {str: "~text", list: "~parts"}
Content = Annotated[
    Annotated[str, Tag("~text")] | Annotated[Parts, Tag("~parts")],
    Discriminator(
        by_kind(_KINDS),
        custom_error_type="content_type",
        custom_error_message="give a text or a list of text parts",
    ),
]


class SystemMessage(Body):
    """What holds for the whole conversation."""

    role: Literal["system", "developer"]
    content: Content
    name: None = None


class UserMessage(Body):
    """What a person said."""

    role: Literal["user"]
    content: Content
    name: None = None


class AssistantMessage(Body):
    """What the model said before. The fields that only answers have may come back as they were sent: empty."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    name: None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolMessage(Body):
    """What a called function gave."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = Field(None, description="Of the function; it must be that of the call.")


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]


def text_of(content: str | list[TextPart] | None) -> str:
    """The text of a content; parts follow each other without anything between them."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)
