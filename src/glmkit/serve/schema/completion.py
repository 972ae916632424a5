"""Types of `/v1/completions`: texts to continue, or to fill up to a suffix."""

from typing import Annotated, Literal, cast

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic.config import JsonDict

from .common import LARGEST, MODEL, WHOLE, Answering, Empty, Reply, TextLogprobs, Usage, whole

EXAMPLE: JsonDict = {
    "model": "chatglm3-6b",
    "prompt": "从前有一座山，",
    "max_tokens": 32,
    "temperature": 0,
    "stop": "\n",
}
MOST_PROMPTS, MOST_ALTERNATIVES, MOST_TRIED = 128, 5, 20


def _all_whole(value: object) -> object:
    """Do what `WHOLE` does, for a long list at once."""
    return [whole(item) for item in value] if isinstance(value, list) and float in {*map(type, value)} else value


TokenId = Annotated[int, Field(ge=0, le=LARGEST)]
TokenIds = Annotated[list[TokenId], Field(min_length=1), BeforeValidator(_all_whole)]


def _kind(value: object) -> str | None:
    if isinstance(value, str):
        return "~text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    return "~texts" if isinstance(first, str) else "~rows" if isinstance(first, list) else "~ids"


Prompt = Annotated[
    Annotated[str, Tag("~text")]
    | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS), Tag("~texts")]
    | Annotated[TokenIds, Tag("~ids")]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_PROMPTS), Tag("~rows")],
    Discriminator(
        _kind,
        custom_error_type="prompt_type",
        custom_error_message="give a text, a list of texts, token ids, or a list of lists of token ids",
    ),
]


class CompletionRequest(Answering):
    """A text, or several. Fields of the type null are known and not supported."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    model: str | None = Field(None, description=MODEL)
    prompt: Prompt
    suffix: str | None = Field(None, description="What comes after the answer; for models that fill blanks.")
    echo: bool | None = Field(None, description="The prompt stands before the answer; not with logprobs or suffix.")
    best_of: Annotated[int, Field(ge=1, le=MOST_TRIED), WHOLE] | None = Field(
        None, description="So many answers are written, and the n likeliest per token given. Not for streams."
    )
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES), WHOLE] | None = None
    logit_bias: Empty | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as a text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast(list[str | list[int]], self.prompt)


Finish = Literal["stop", "length"]


class CompletionChoice(Reply):
    """An answer, or in a stream more of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Finish | None


class Completion(Reply):
    """Answers to every prompt, those of the first one first; in a stream one event of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str
