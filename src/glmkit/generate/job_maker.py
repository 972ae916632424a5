"""Jobs of the engine, made from the requests of a person or a server."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TypeVar

from glmkit.errors import RequestError
from glmkit.loading import Parts
from glmkit.tokenizer.incremental import IncrementalDecoder

from .jobs.answers import AnswersJob, make_job
from .jobs.beam_search import BeamsJob
from .jobs.infill import FillJob
from .outputs import Listener
from .params import GenerationParams, Values, check_type
from .prompt_builder import Prompts

T = TypeVar("T")


class JobMaker:
    """Jobs that one model reads, with one of its adapters (None: alone). prompts: those that it makes them from."""

    def __init__(self, parts: Parts, adapter: str | None = None) -> None:
        self._parts = parts
        self.prompts = Prompts(parts, adapter)

    def text(
        self,
        text: str | Sequence[int],
        params: GenerationParams,
        *,
        own_stops: bool = True,
        whole: bool = True,
        name: str = "the text",
        room: int | None = None,
        listener: Listener | None = None,
    ) -> AnswersJob | BeamsJob:
        """The job that continues a text, see `LM.continue_job`. name: of the text in errors."""
        prompt = self.prompts.continuation(text, own_stops=own_stops, whole=whole, room=room, name=name)
        tokenizer = self._parts.tokenizer
        detokenizer = None if tokenizer is None else partial(IncrementalDecoder, tokenizer, whole=True)
        return make_job(prompt, params, self._parts.config, detokenizer=detokenizer, listener=listener)

    def blanks(
        self,
        text: str,
        params: GenerationParams,
        order: str | None,
        *,
        name: str = "the text",
        room: int | None = None,
        listener: Listener | None = None,
    ) -> FillJob:
        """The job that fills a text, see `LM.fill_job`. name: of the text in errors."""
        prompts, config = self.prompts, self._parts.config
        read, ids = prompts.blanks(text, name=name)
        return FillJob(
            ids,
            params,
            config,
            prompts.special,
            order=order or ("shared" if config.blank_order == "each" else "inserted"),
            forbidden=prompts.padding_ids,
            block_positions=prompts.block_positions,
            detokenizer=partial(IncrementalDecoder, prompts.tokenizer, whole=True),
            room=room,
            listener=listener,
            name=name,
            text=read,
            adapter=prompts.adapter,
        )


def as_params(params: GenerationParams | Values | None) -> GenerationParams:
    """The parameters of a job, checked."""
    return params if isinstance(params, GenerationParams) else GenerationParams.from_mapping(params or {})


def one_answer(params: GenerationParams, other: str, *, logprobs: bool = False) -> GenerationParams:
    """Raise RequestError for parameters that ask for several answers, or for log-probabilities that are not returned.

    logprobs: they are given. other: the method that gives what this one does not.
    """
    for name in ("n", "num_return_sequences"):
        if getattr(params, name) > 1:
            raise RequestError(f"{name} is {getattr(params, name)}, but this gives one answer; use {other}", param=name)
    if params.logprobs is not None and not logprobs:
        raise RequestError(f"logprobs is {params.logprobs}, but this gives text alone; use {other}", param="logprobs")
    return params


def list_of(texts: Iterable[T], single: str) -> list[T]:
    """The texts as a list. Raises RequestError for one text, with the method for that."""
    check_type("texts", texts, Iterable, "a list of texts")
    if isinstance(texts, str | bytes):
        raise RequestError(f"texts is one {type(texts).__name__}; give a list of texts, or use {single}", param="texts")
    return list(texts)
