"""`/v1/chat/completions`: OpenAI's fields and some more; what is refused says so in the schema."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from glmkit.generate.params import MAX_ALTERNATIVES

from .base import Body, Count, Empty, Off, Reply
from .messages import ChatMessage
from .sampling import Alternatives, Answering
from .tools import CalledTool, CalledToolDelta, Tool
from .usage import ChatLogprobs, Usage

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

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2048)]
    max_completion_tokens: Count | None = Field(None, description="The same as max_tokens.")
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = Field(
        None, description=f"Likeliest tokens for each place, {MAX_ALTERNATIVES} at most; needs logprobs."
    )
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto"] | None = Field(None, description="A call cannot be forced.")
    parallel_tool_calls: bool | None = Field(None, description="false: the first call only.")
    response_format: TextFormat | None = None

    logit_bias: Empty | None = None
    metadata: Empty | None = None
    store: Off | None = Field(None, description="Nothing is stored.")
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = Field(None, description="As user.")
    prompt_cache_key: str | None = Field(None, description="Prompts are found again without it.")
    audio: None = None
    function_call: None = None
    functions: None = None
    moderation: None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None

    def writing(self) -> dict[str, Any]:
        """As in `Writing`, and the alternatives."""
        alternatives = {"logprobs": self.top_logprobs or 0} if self.logprobs else {}
        return {**super().writing(), **alternatives}


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
    """What is new in an answer; absent fields say nothing."""

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
