"""Types of `/v1/chat/completions`: OpenAI's fields and some more; the schema shows those that are refused."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag
from pydantic.config import JsonDict

from glmkit.generate.params import MAX_ALTERNATIVES

from .common import (
    MODEL,
    Alternatives,
    Answering,
    Body,
    ChatLogprobs,
    Count,
    CountOrNone,
    Empty,
    JsonObject,
    Off,
    Reply,
    Usage,
    by_kind,
)

# --- functions that a model may ask for, and its calls of them --------------------------------------------------------

_PARSED = "What OpenAI's own client adds; it has no effect."
FunctionName = Annotated[str, Field(pattern=r"^\S{1,64}$")]


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
    """arguments: a JSON object as text, or what the model wrote."""

    name: FunctionName
    arguments: str
    parsed_arguments: JsonObject | None = Field(None, description=_PARSED)


class ToolCall(Body):
    """A call that an earlier answer made, as it was sent, whole or put together from a stream."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    type: Literal["function"]
    function: FunctionCall
    index: CountOrNone | None = Field(None, description="Of streams; it has no effect.")


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


# --- messages of a conversation, told apart by their role -------------------------------------------------------------


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


_NAME = "Of the participant; it has no effect."


class SystemMessage(Body):
    """Instructions for the whole conversation."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = Field(None, description=_NAME)


class UserMessage(Body):
    """A person's message."""

    role: Literal["user"]
    content: Content
    name: str | None = Field(None, description=_NAME)


class AssistantMessage(Body):
    """An earlier answer of the model. The fields that answers have may come back as they were sent."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    name: str | None = Field(None, description=_NAME)
    finish_reason: str | None = Field(None, description="Of the choice; it has no effect.")
    index: CountOrNone | None = Field(None, description="Of the choice; it has no effect.")
    logprobs: JsonObject | None = Field(None, description="Of the choice; it has no effect.")
    parsed: JsonObject | None = Field(None, description=_PARSED)
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[object], Field(max_length=0)] | None = None


class ToolMessage(Body):
    """The outcome of a called function."""

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


EXAMPLE: JsonDict = {
    "model": "chatglm3-6b",
    "messages": [{"role": "user", "content": "你好"}],
    "max_tokens": 64,
    "temperature": 0.8,
    "seed": 1,
}


class TextFormat(Body):
    """Plain text, the only form of an answer."""

    type: Literal["text"]


class ChatRequest(Answering):
    """A conversation to go on with. Fields of the type null are known and not supported."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    model: str | None = Field(None, description=MODEL)
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    max_completion_tokens: Count | None = Field(None, description="The same as max_tokens.")
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = Field(
        None, description=f"Likeliest tokens for each place, {MAX_ALTERNATIVES} at most; needs logprobs."
    )
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto"] | None = Field(
        None, description="A call cannot be forced. Without tools it has no effect."
    )
    parallel_tool_calls: bool | None = Field(
        None, description="false: the first call only. Without tools it has no effect."
    )
    response_format: TextFormat | None = None

    logit_bias: Empty | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    reasoning_effort: str | None = Field(None, description="These models do not reason apart; it has no effect.")
    verbosity: str | None = Field(None, description="These models were not taught any; it has no effect.")
    prediction: JsonObject | None = Field(None, description="For speed elsewhere; it has no effect.")
    audio: None = None
    function_call: None = None
    functions: None = None
    moderation: None = None
    web_search_options: None = None

    @property
    def longest(self) -> int | None:
        """The longest answer, in tokens, under either of its names."""
        return self.max_tokens or self.max_completion_tokens

    def options(self) -> dict[str, object]:
        """Give the options as `Answering` does, and the number of alternatives."""
        alternatives = {"logprobs": self.top_logprobs or 0} if self.logprobs else {}
        return {**super().options(), **alternatives}


Finish = Literal["stop", "length", "tool_calls"]


class AnswerMessage(Reply):
    """The model's message; it can be sent back as it is."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[CalledTool] | None = None


class ChatChoice(Reply):
    """One of the answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish


class ChatCompletion(Reply):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str


class Delta(Reply):
    """News of an answer; absent fields say nothing."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[CalledToolDelta] | None = None


class ChunkChoice(Reply):
    """More of one of the answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None


class ChatChunk(Reply):
    """One event of a stream. usage: only where it was asked for, and there null but in the last one."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str
