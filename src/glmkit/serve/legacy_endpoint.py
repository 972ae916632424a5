"""`POST /`: the interface of ChatGLM-6B's own `api.py`, for the clients that were written for it.

Source: `THUDM/ChatGLM-6B:api.py`.
"""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Discriminator, Field, Tag
from pydantic.config import JsonDict

from glmkit.generate.conversation import ReplyJob
from glmkit.tokenizer.chat_template import Message, to_messages

from .chat_endpoint import chat_template
from .error_responses import refused
from .request_jobs import Jobs
from .schema.common import Body, Count, JsonObject, Reply, by_kind
from .schema.validation import JsonRoute
from .state import State

router = APIRouter(route_class=JsonRoute, tags=["ChatGLM-6B"])

LENGTH, TOP_P, TEMPERATURE = 2048, 0.7, 0.95  # the published server's, for every family
EXAMPLE: JsonDict = {"prompt": "你好", "history": [], "max_length": 2048, "top_p": 0.7, "temperature": 0.95}

Pair = Annotated[list[str | None], Field(min_length=2, max_length=2)]
Round = Annotated[
    Annotated[Pair, Tag("~pair")] | Annotated[JsonObject, Tag("~message")],
    Discriminator(
        by_kind({list: "~pair", dict: "~message"}),
        custom_error_type="round_type",
        custom_error_message="give [query, response] or {'role': ..., 'content': ...}",
    ),
]


class OriginalRequest(Body):
    """A question and the conversation so far, as the answer before gave it. null is the default everywhere.

    Fields that api.py did not read have no effect here either.
    """

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [EXAMPLE]})

    prompt: str
    history: Annotated[list[Round], Field(max_length=2048)] | None = None
    max_length: Count | None = Field(None, description="Prompt and answer together, in tokens; 2048 when absent.")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="0.7 when absent.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0.95 when absent.")


class OriginalReply(Reply):
    """history: the longer conversation, for the next request; in the model family's own form where that holds it."""

    response: str | dict[str, object]
    history: list[object]
    status: int = 200
    time: str = Field(description="Local time, as 2023-03-23 21:38:40.")
    not_read: int | None = Field(None, description="Oldest turns of the history that had no room; absent when none.")
    finish_reason: Literal["length"] | None = Field(
        None, description="The answer was cut at the longest length; absent when it is complete."
    )


@router.post(
    "/",
    response_model=OriginalReply,
    response_model_exclude_none=True,
    summary="Answer a question, in the form of ChatGLM-6B's api.py",
)
async def answer(request: Request, body: OriginalRequest) -> OriginalReply:
    """The oldest turns that do not fit into max_length are not read; the history given back still has them."""
    state: State = request.app.state.glm
    lm = state.lm
    template = chat_template(lm)
    with refused(body.model_fields_set, "history"):
        history = to_messages(body.history or ())
        template.check_roles([*history, Message("user", body.prompt)])
    options = {
        "max_length": body.max_length or LENGTH,
        "top_p": TOP_P if body.top_p is None else max(body.top_p, 1e-9),
        "temperature": TEMPERATURE if body.temperature is None else body.temperature,
    }
    messages = [*history, Message("user", body.prompt)]
    jobs: Jobs[ReplyJob] = Jobs(
        state,
        [lambda: lm.chat_job(messages, options, trim=True, room=state.queue.longest(1))],
        given=body.model_fields_set,
        param="prompt",
    )
    async with jobs:
        (job,) = await jobs.finish()
        response, longer = job.reply(raw=True)
        return OriginalReply(
            response=response,
            history=[list(item) if isinstance(item, tuple) else item for item in template.history(longer)],
            status=200,
            time=datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
            not_read=job.dropped or None,
            finish_reason="length" if job.answers[0].finish == "length" else None,
        )
