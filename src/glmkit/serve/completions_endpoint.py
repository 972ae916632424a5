"""`POST /v1/completions`: texts to continue, or to fill up to a suffix."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

from fastapi import APIRouter, Request

from glmkit.generate.jobs.answers import AnswersJob
from glmkit.generate.jobs.beam_search import BeamsJob
from glmkit.generate.jobs.infill import FillJob
from glmkit.generate.outputs import Answer, Ended
from glmkit.generate.params import GenerationParams
from glmkit.tokenizer.protocol import Tokenizer

from .error_responses import ApiError, refused
from .logprobs import LogprobWriter
from .request_jobs import Jobs, check_together
from .schema.common import TextLogprobs, Usage
from .schema.completion import Completion, CompletionChoice, CompletionRequest, Finish
from .schema.validation import JsonRoute
from .sse import Event, EventStream, documented, frame, text_frames
from .state import Heading, State

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])

MOST_ANSWERS = 512  # of one request
LENGTH = 16  # tokens of an answer where nothing is said, as OpenAI has it
AnyJob = AnswersJob | BeamsJob | FillJob


@router.post(
    "/v1/completions",
    response_model=Completion,
    response_model_exclude_unset=True,
    responses=documented(Completion),
    summary="Go on with a text",
)
async def completions(request: Request, body: CompletionRequest) -> Completion | EventStream:
    """OpenAI's completions; with a suffix, models that fill blanks write the text before it."""
    state: State = request.app.state.glm
    adapter = state.adapter_of(body.model)
    asked = _Asked(state, body, adapter)
    jobs = Jobs(state, asked.makers(), given=body.model_fields_set, param="prompt")
    head = state.heading("cmpl", adapter)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(jobs)
        if body.stream:
            await jobs.begun()
            return EventStream(_events(jobs, asked, head), stack.pop_all().aclose)
        await jobs.finish()
        answers = asked.answers(jobs.jobs)
        choices = [asked.choice(index, answer) for index, answer in enumerate(answers)]
        return Completion(**head, object="text_completion", choices=choices, usage=asked.usage(jobs))


async def _events(jobs: Jobs[AnyJob], asked: "_Asked", head: Heading) -> AsyncIterator[Event]:
    extra: dict[str, None] = {"usage": None} if asked.body.include_usage else {}
    count = len(asked.prompts) * asked.n

    def event(index: int, text: str, logprobs: TextLogprobs | None = None, finish: Finish | None = None) -> Completion:
        choice = CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=finish)
        return Completion(**head, object="text_completion", choices=[choice], **extra)

    writers = [asked.logprobs() for _ in range(count)]
    texts = [text_frames(partial(event, index)) for index in range(count)]
    for index in range(count) if asked.body.echo else ():
        yield texts[index](asked.echoed(index))
    async for batch in jobs.batches():
        frames = []
        for number, heard in batch:
            index = number if asked.fills else number * asked.n + heard.number
            if isinstance(heard, Ended):
                frames.append(frame(event(index, "", finish=heard.answer.finish)))
            elif (writer := writers[index]) is not None and heard.logprobs:
                frames.append(frame(event(index, heard.text, writer.text(heard.logprobs))))
            elif heard.text:
                frames.append(texts[index](heard.text))
        if frames:
            yield b"".join(frames)
    if asked.body.include_usage:
        yield Completion(**head, object="text_completion", choices=[], usage=asked.usage(jobs))


class _Asked:
    """A request that has been checked, its jobs and the assembly of its answers.

    A job writes all answers to a prompt; with a suffix (`fills`) each answer is a job of its own, for a blank has one.
    """

    def __init__(self, state: State, body: CompletionRequest, adapter: str | None) -> None:
        """Raise ApiError for fields that do not go together, and for values that parameters refuse."""
        self._lm, self.body, self._adapter = state.lm, body, adapter
        self._tokenizer = state.lm.tokenizer_for(adapter)
        self.prompts = body.prompts
        self.n = body.n or 1
        self.fills = bool(body.suffix)
        self._tried = max(body.best_of or 1, self.n)
        self._check()
        longest = min(body.max_tokens or max(LENGTH, body.min_tokens or 0), state.lm.config.max_positions)
        self._room = state.queue.longest(1 if self.fills else max(self._tried, body.num_beams or 1))
        options = {**body.options(), "max_new_tokens": longest}
        if body.logprobs is not None or self._tried > self.n:
            options["logprobs"] = body.logprobs or 0
        if self._tried > self.n:
            options["n"] = self._tried
        # OpenAI's own default; a chat model's published one is meant for replies.
        options.setdefault("temperature", 1.0)
        with refused(body.model_fields_set, "prompt"):
            self._params = GenerationParams.from_mapping(options)

    def makers(self) -> list[Callable[[], AnyJob]]:
        """Makers of the jobs, in the order of their choices."""
        if not self.fills:
            return [partial(self._continuing, prompt) for prompt in self.prompts]
        return [partial(self._filling, prompt, number) for prompt in self.prompts for number in range(self.n)]

    def answers(self, jobs: Sequence[AnyJob]) -> list[Answer]:
        """Choose the answers that are given: of every prompt the `n` likeliest by the mean over their tokens."""
        found = []
        for job in jobs:
            best = job.answers
            if self._tried > self.n:
                best = sorted(best, key=_mean_logprob, reverse=True)[: self.n]
            found += best
        return found

    def choice(self, index: int, answer: Answer) -> CompletionChoice:
        """A finished answer."""
        writer = self.logprobs()
        logprobs = None if writer is None else writer.text(answer.logprobs or ())
        text = (self.echoed(index) if self.body.echo else "") + (answer.text or "")
        return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=answer.finish)

    def echoed(self, index: int) -> str:
        """The prompt of a choice as text."""
        prompt = self.prompts[index // self.n]
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)

    def logprobs(self) -> LogprobWriter | None:
        """The writer for one answer; None where no log-probabilities were asked for."""
        return None if self.body.logprobs is None else LogprobWriter(self._tokenizer)

    def usage(self, jobs: Jobs[AnyJob]) -> Usage:
        """Count the tokens: each prompt once, answers that were not given as well."""
        read = sum(job.prompt_tokens for job in jobs.jobs[:: self.n if self.fills else 1])
        written = sum(len(answer.ids) for job in jobs.jobs for answer in job.answers)
        return Usage.of(read, written, jobs.reused_tokens)

    def _continuing(self, prompt: str | list[int]) -> AnyJob:
        return self._lm.continue_job(prompt, self._params, whole=False, room=self._room, adapter=self._adapter)

    def _filling(self, prompt: str | list[int], number: int) -> AnyJob:
        lm, suffix = self._lm, self.body.suffix or ""
        before = _as_text(self._tokenizer, prompt)
        names = [lm.tokenizer.id_to_token(index) for index in lm.special.mask_ids()]
        if (blank := next((name for name in names if name in before or name in suffix), None)) is not None:
            message = f"suffix: {blank} in the text would be a blank of its own; use /v1/infill"
            raise ApiError(400, message, param="suffix")
        params = replace(self._params, n=1, seed=self._params.choice(number).seed)
        text = f"{before}{lm.tokenizer.id_to_token(lm.special.mask)}{suffix}"
        return lm.fill_job(text, params, room=self._room, adapter=self._adapter)

    def _check(self) -> None:
        body, lm = self.body, self._lm
        check_together(body)
        beams, answers = (body.num_beams or 1) > 1, len(self.prompts) * self._tried
        many = "best_of" if self._tried > self.n else "n" if self.n > 1 else "prompt"
        checks = (
            (many, answers > MOST_ANSWERS, f"{answers} answers are asked for; ask for at most {MOST_ANSWERS}"),
            ("echo", bool(body.echo) and body.logprobs is not None, "prompts have no logprobs here; leave one out"),
            ("echo", bool(body.echo) and self.fills, "it does not go with suffix; leave one out"),
            ("best_of", body.best_of is not None and body.best_of < self.n, f"it is less than n, {self.n}; raise it"),
            ("best_of", self._tried > self.n and bool(body.stream), "the best are known at the end; leave out stream"),
            ("best_of", self._tried > self.n and (beams or self.fills), "it does not go with num_beams or suffix"),
            ("suffix", self.fills and lm.config.mask == "causal",
             "this model reads left to right and fills in nothing; leave it out"),
            ("stop", self.fills and bool(body.stop), "it does not go with suffix; leave one out"),
            ("num_beams", self.fills and beams, "it does not go with suffix; leave one out"),
        )  # fmt: skip
        for name, wrong, reason in checks:
            if wrong:
                raise ApiError(400, f"{name}: {reason}", param=name)


def _as_text(tokenizer: Tokenizer, prompt: str | list[int]) -> str:
    """A prompt before a blank. Raises ApiError for token ids that would be others behind the way to text and back."""
    if isinstance(prompt, str):
        return prompt
    with refused((), "prompt"):
        text = tokenizer.decode(prompt)
        same = tokenizer.encode(text) == prompt
    if not same:
        raise ApiError(
            400, "prompt: with suffix, token ids must be those that the text itself gets; send the text", param="prompt"
        )
    return text


def _mean_logprob(answer: Answer) -> float:
    logprobs = answer.logprobs or ()
    return sum(one.logprob for one in logprobs) / len(logprobs) if logprobs else float("-inf")
