"""`POST /v1/infill`: a text with blanks, each of which is answered."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from fastapi import APIRouter, Request

from glmkit.generate.jobs.infill import FillJob
from glmkit.generate.outputs import Ended
from glmkit.generate.params import GenerationParams

from .error_responses import ApiError, refused
from .request_jobs import Jobs, check_together
from .schema.common import Usage
from .schema.infill import LENGTH, Blank, Infill, InfillChunk, InfillRequest
from .schema.validation import JsonRoute
from .sse import Event, EventStream, documented, frame
from .state import Heading, State

router = APIRouter(route_class=JsonRoute, tags=["Blanks"])


@router.post(
    "/v1/infill", response_model=Infill, responses=documented(InfillChunk), summary="Fill in the blanks of a text"
)
async def infill(request: Request, body: InfillRequest) -> Infill | EventStream:
    """Answer each [MASK], [sMASK] and [gMASK] of the text; later answers depend on earlier ones.

    In a stream every event has more of one blank; the one before [DONE] is the answer without a stream.
    """
    state: State = request.app.state.glm
    adapter = state.adapter_of(body.model)
    lm = state.lm
    if lm.config.mask == "causal":
        raise ApiError(400, "this model reads left to right and fills in nothing; use /v1/completions", param="text")
    check_together(body)
    with refused(body.model_fields_set, "text"):
        options = body.options()
        longest = min(body.max_tokens or LENGTH, lm.config.max_positions)
        params = GenerationParams.from_mapping({**options, "max_new_tokens": longest})
    jobs: Jobs[FillJob] = Jobs(
        state,
        [lambda: lm.fill_job(body.text, params, order=body.order, room=state.queue.longest(1), adapter=adapter)],
        given=body.model_fields_set,
        param="text",
    )
    head = state.heading("infill", adapter)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(jobs)
        if body.stream:
            await jobs.begun()
            return EventStream(_chunks(jobs, head), stack.pop_all().aclose)
        await jobs.finish()
        return _whole(jobs, head)


async def _chunks(jobs: Jobs[FillJob], head: Heading) -> AsyncIterator[Event]:
    async for batch in jobs.batches():
        frames = []
        for _, event in batch:
            finish, text = (event.answer.finish, "") if isinstance(event, Ended) else (None, event.text)
            if text or finish is not None:
                chunk = InfillChunk(**head, object="infill.chunk", index=event.number, delta=text, finish_reason=finish)
                frames.append(frame(chunk))
        if frames:
            yield b"".join(frames)
    yield _whole(jobs, head)


def _whole(jobs: Jobs[FillJob], head: Heading) -> Infill:
    (job,) = jobs.jobs
    filled = job.filled()
    blanks = [
        Blank(index=index, text=text, tokens=answer.ids, finish_reason=answer.finish)
        for index, (text, answer) in enumerate(zip(filled.blanks, job.answers, strict=True))
    ]
    usage = Usage.of(job.prompt_tokens, sum(len(blank.tokens) for blank in blanks), jobs.reused_tokens)
    return Infill(**head, object="infill", text=filled.text, blanks=blanks, usage=usage)
