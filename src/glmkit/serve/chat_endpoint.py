"""`POST /v1/chat/completions`: conversations, with tools for the families that were taught to use them."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial

from fastapi import APIRouter, Request

from glmkit.errors import RequestError
from glmkit.families.family import require_tools
from glmkit.generate.conversation import ReplyJob
from glmkit.generate.outputs import Answer, Ended, Piece
from glmkit.session import LM
from glmkit.tokenizer.chat_template import ChatTemplate
from glmkit.tokenizer.incremental import IncrementalDecoder, whole_text
from glmkit.tokenizer.protocol import Tokenizer

from .error_responses import ApiError, refused
from .logprobs import LogprobWriter
from .messages import ReplyCalls, conversation, shown_tools
from .request_jobs import Jobs, check_together
from .schema.chat import AnswerMessage, ChatChoice, ChatChunk, ChatCompletion, ChatRequest, ChunkChoice, Delta, Finish
from .schema.common import Usage
from .schema.validation import JsonRoute
from .sse import Event, EventStream, documented, frame, text_frames
from .state import Heading, State

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    response_model_exclude_unset=True,
    responses=documented(ChatChunk),
    summary="Answer a conversation",
)
async def chat_completions(request: Request, body: ChatRequest) -> ChatCompletion | EventStream:
    """OpenAI's chat completions, with tools for the families that were taught to use them."""
    state: State = request.app.state.glm
    adapter = state.adapter_of(body.model)
    template, tokenizer = chat_template(state.lm), state.lm.tokenizer_for(adapter)
    jobs = Jobs(state, [_maker(state, template, body, adapter)], given=body.model_fields_set, param="messages")
    head = state.heading("chatcmpl", adapter)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(jobs)
        if body.stream:
            await jobs.begun()
            return EventStream(_chunks(jobs, tokenizer, template, body, head), stack.pop_all().aclose)
        (job,) = await jobs.finish()
        choices = [
            _Choice(number, tokenizer, template, body).whole(answer) for number, answer in enumerate(job.answers)
        ]
        return ChatCompletion(**head, object="chat.completion", choices=choices, usage=_usage(jobs))


def chat_template(lm: LM) -> ChatTemplate:
    """The chat template of a model. Raises ApiError for one that was not taught to chat."""
    try:
        return lm.chat_template
    except RequestError as error:
        message = f"{error.what}; use /v1/completions to go on with a text, /v1/infill to fill in blanks"
        raise ApiError(400, message, code=error.code) from None


def _maker(state: State, template: ChatTemplate, body: ChatRequest, adapter: str | None) -> Callable[[], ReplyJob]:
    """The maker of the job, after the checks that types cannot make. Raises ApiError."""
    clash = body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens)
    checks = (
        ("top_logprobs", body.top_logprobs is not None and not body.logprobs, "it needs logprobs: true"),
        ("max_completion_tokens", clash, "max_tokens is there, too; give one of them"),
    )
    for name, wrong, reason in checks:
        if wrong:
            raise ApiError(400, f"{name}: {reason}", param=name)
    check_together(body)
    if body.tools:
        with refused(body.model_fields_set, "tools"):
            require_tools(template, "tools")
    messages = conversation(template, body.messages)
    tools = shown_tools(template, body.tools) if body.tools and body.tool_choice != "none" else None
    options = body.options()
    if body.longest is not None:
        options["max_new_tokens"] = body.longest
    room = state.queue.longest(max(body.n or 1, body.num_beams or 1))
    return lambda: state.lm.chat_job(messages, options, tools=tools, room=room, adapter=adapter)


async def _chunks(
    jobs: Jobs[ReplyJob], tokenizer: Tokenizer, template: ChatTemplate, body: ChatRequest, head: Heading
) -> AsyncIterator[Event]:
    extra: dict[str, None] = {"usage": None} if body.include_usage else {}

    def chunk(choice: ChunkChoice) -> ChatChunk:
        return ChatChunk(**head, object="chat.completion.chunk", choices=[choice], **extra)

    def said(choice: _Choice, text: str) -> ChatChunk:
        return chunk(choice.chunk(Delta(content=text)))

    choices = [_Choice(number, tokenizer, template, body) for number in range(body.n or 1)]
    texts = [text_frames(partial(said, choice)) for choice in choices]
    for choice in choices:
        yield chunk(choice.chunk(Delta(role="assistant", content="")))
    async for batch in jobs.batches():
        frames = []
        for _, event in batch:
            choice = choices[event.number]
            if isinstance(event, Ended):
                frames += [frame(chunk(piece)) for piece in choice.end(event)]
            elif not choice.plain:
                frames += [frame(chunk(piece)) for piece in choice.news(event)]
            elif event.text:
                frames.append(texts[event.number](event.text))
        if frames:
            yield b"".join(frames)
    if body.include_usage:
        yield ChatChunk(**head, object="chat.completion.chunk", choices=[], usage=_usage(jobs))


class _Choice:
    """One answer as it is sent, whole or in chunks."""

    def __init__(self, number: int, tokenizer: Tokenizer, template: ChatTemplate, body: ChatRequest) -> None:
        offered = [] if body.tool_choice == "none" else [tool.function.name for tool in body.tools or ()]
        self._number, self._tokenizer, self._template = number, tokenizer, template
        self._calls = ReplyCalls(template, offered, several=body.parallel_tool_calls is not False)
        self._called = False
        self._logprobs = LogprobWriter(tokenizer) if body.logprobs else None
        # The raw text, in which calls are: a second reading of the tokens, only where tools were offered.
        self._decoder = IncrementalDecoder(tokenizer, skip_specials=False) if offered else None
        self._raw = ""
        self.plain = self._logprobs is None and self._decoder is None  # nothing is sent but text

    def whole(self, answer: Answer) -> ChatChoice:
        """The message of a finished answer."""
        raw, text = self._raw_text(answer), answer.text or ""
        calls = self._calls.calls(raw)
        called = {"tool_calls": calls} if calls else {}
        message = AnswerMessage(role="assistant", content=text if text or not calls else None, refusal=None, **called)
        logprobs = None if self._logprobs is None else self._logprobs.chat(answer.logprobs or ())
        finish = _finish(answer, bool(calls))
        return ChatChoice(index=self._number, message=message, logprobs=logprobs, finish_reason=finish)

    def news(self, event: Piece) -> list[ChunkChoice]:
        """The chunks of new tokens."""
        logprobs = None if self._logprobs is None or not event.logprobs else self._logprobs.chat(event.logprobs)
        chunks = []
        if event.text or logprobs is not None:
            delta = Delta(content=event.text)
            chunks.append(ChunkChoice(index=self._number, delta=delta, logprobs=logprobs, finish_reason=None))
        if self._decoder is not None:
            self._raw += "".join(map(self._decoder.push, event.tokens))
            chunks += self._call_chunks(self._raw)
        return chunks

    def end(self, event: Ended) -> list[ChunkChoice]:
        """The chunks at the end of the answer."""
        raw = self._raw_text(event.answer)
        chunks = self._call_chunks(raw, final=True)
        return [*chunks, self.chunk(Delta(), _finish(event.answer, self._called))]

    def chunk(self, delta: Delta, finish: Finish | None = None) -> ChunkChoice:
        """A chunk that has no tokens of its own."""
        return ChunkChoice(index=self._number, delta=delta, logprobs=None, finish_reason=finish)

    def _call_chunks(self, raw: str, *, final: bool = False) -> list[ChunkChoice]:
        deltas = self._calls.deltas(raw, final=final)
        self._called = self._called or bool(deltas)
        return [self.chunk(Delta(tool_calls=[delta])) for delta in deltas]

    def _raw_text(self, answer: Answer) -> str:
        return whole_text(self._tokenizer, answer.ids, skip_specials=False)


def _finish(answer: Answer, called: bool) -> Finish:
    return "tool_calls" if called and answer.finish == "stop" else answer.finish


def _usage(jobs: Jobs[ReplyJob]) -> Usage:
    (job,) = jobs.jobs
    written = sum(len(answer.ids) for answer in job.answers)
    return Usage.of(job.prompt_tokens, written, jobs.reused_tokens)
