"""`POST /`: what ChatGLM-6B's own `api.py` served, for the clients that were written for it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request

from glmkit.errors import RequestError
from glmkit.generate.conversation import ReplyJob
from glmkit.tokenizer.chat_template import ChatTemplate, Message, to_messages
from glmkit.tokenizer.protocol import Tokenizer

from .chat_endpoint import chat_template
from .error_responses import refused
from .request_jobs import Jobs
from .schema.legacy import OriginalReply, OriginalRequest
from .schema.validation import JsonRoute
from .state import State

router = APIRouter(route_class=JsonRoute, tags=["ChatGLM-6B"])

LENGTH, TOP_P, TEMPERATURE = 2048, 0.7, 0.95  # the published server's, for every family


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
        [lambda: lm.chat_job(messages, options, trim=True)],
        given=body.model_fields_set,
        param="prompt",
    )
    async with jobs:
        (job,) = await jobs.finish()
        response, longer = _reply(job, template, lm.tokenizer, messages)
        return OriginalReply(
            response=response,
            history=[list(item) if isinstance(item, tuple) else item for item in longer],
            status=200,
            time=datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
            not_read=job.dropped or None,
        )


def _reply(
    job: ReplyJob, template: ChatTemplate, tokenizer: Tokenizer, messages: list[Message]
) -> tuple[str | dict[str, Any], list[Any]]:
    """The response and the longer history; a call of a tool that cannot be read stays what the model wrote."""
    try:
        response, longer = job.reply()
    except RequestError:
        response = template.shown(tokenizer.decode(job.answers[0].ids, skip_specials=False))
        longer = [*messages, Message("assistant", response)]
    return dict(response) if isinstance(response, Mapping) else response, template.history(longer)
