"""`POST /`: the interface of ChatGLM-6B's own `api.py`, which clients of that time speak.

Source: `THUDM/ChatGLM-6B:api.py`.
"""

from typing import Annotated, Any

from pydantic import ConfigDict, Discriminator, Field, Tag
from pydantic.config import JsonDict

from .common import Body, Count, JsonObject, Reply, by_kind

EXAMPLE: JsonDict = {"prompt": "你好", "history": [], "max_length": 2048, "top_p": 0.7, "temperature": 0.95}

Pair = Annotated[list[str], Field(min_length=2, max_length=2)]
Round = Annotated[
    Annotated[Pair, Tag("~pair")] | Annotated[JsonObject, Tag("~message")],
    Discriminator(
        by_kind({list: "~pair", dict: "~message"}),
        custom_error_type="round_type",
        custom_error_message="give [query, response] or {'role': ..., 'content': ...}",
    ),
]


class OriginalRequest(Body):
    """A question and the conversation so far, as the answer before gave it. null is the default everywhere."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    prompt: str
    history: Annotated[list[Round], Field(max_length=2048)] | None = None
    max_length: Count | None = Field(None, description="Prompt and answer together, in tokens; 2048 when absent.")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="0.7 when absent.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0.95 when absent.")


class OriginalReply(Reply):
    """history: the longer conversation, in the model family's own form, for the next request."""

    response: str | dict[str, Any]
    history: list[Any]
    status: int = 200
    time: str = Field(description="Local time, as 2023-03-23 21:38:40.")
    not_read: int | None = Field(None, description="Oldest turns of the history that had no room; absent when none.")
