"""The `LM` object: a loaded model with the verbs a person wants."""

import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Unpack

from .adapters.adapter import AdapterInfo
from .checkpoint.configure import ConfigLike
from .checkpoint.hub import local_directory
from .config import SpecialIds
from .errors import RequestError, TrimmedHistoryWarning
from .generate.conversation import ChatStep, ReplyJob, Turn, shown_pairs, with_system
from .generate.engine import Engine, EngineLimits
from .generate.job_maker import as_params, list_of, one_answer
from .generate.jobs.answers import AnswersJob, text_pieces
from .generate.jobs.beam_search import BeamsJob
from .generate.jobs.infill import Filled, FillJob
from .generate.model_engine import ModelEngine
from .generate.outputs import Answer, Listener
from .generate.params import (
    OPTIONS,
    ChatOptions,
    GenerationOptions,
    GenerationParams,
    SpanOptions,
    Values,
    check_type,
    read_params,
)
from .generate.score_calls import ScoreCalls
from .generate.wording import Wording
from .loading import DType, Parts, Quantize, load_parts
from .model import GLM
from .quant import Compute
from .tokenizer.chat_template import Call, ChatTemplate, History, Message, Turns, to_messages
from .tokenizer.protocol import Tokenizer

__all__ = ["LM", "Filled", "load"]


class LM(ScoreCalls):
    """A model, its tokenizer and its config. Made by `glmkit.load`.

    prompts: makes the prompts of the model without a named adapter. Texts and questions are put into the template that
    the model, or the adapter that a request chooses, was tuned with: `wording_for`.

    Everything runs on one engine, which shares beginnings of prompts between requests and may be used from several
    threads.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.model: GLM = parts.model
        self.config = parts.config
        self.family = parts.config.family
        self._runtime = ModelEngine(parts)
        self.prompts = self._runtime.jobs(None).prompts

    def __repr__(self) -> str:
        parameter = next(self.model.parameters())
        numbers = sum(tensor.numel() for tensor in self.model.parameters())
        kind = f"{numbers:,} parameters, {str(parameter.dtype).removeprefix('torch.')} on {parameter.device}"
        return f"<LM {self.family} of {self.parts.directory}: {kind}>"

    @property
    def tokenizer(self) -> Tokenizer:
        """Raise TokenizerError when the directory ships none."""
        return self.prompts.tokenizer

    @property
    def special(self) -> SpecialIds:
        """Special ids of the config, else of the tokenizer."""
        return self.prompts.special

    @property
    def chat_template(self) -> ChatTemplate:
        """Prompts and replies of a conversation. Raises RequestError for a family that was not taught to chat."""
        return self.prompts.template

    @property
    def engine(self) -> Engine:
        """The engine of all requests; made at first use. After a change of the weights it has forgotten what it read.

        Requests that run just then are read again by the new weights. Raises RequestError while the model is in
        training mode, and in a process that was forked from the one that loaded it.
        """
        return self._runtime.current()

    def start_engine(self, limits: EngineLimits | None = None, *, allocate: bool = False) -> Engine:
        """Replace the engine by one with these limits. allocate: take the memory of its whole budget at once.

        Raises RequestError while requests run.
        """
        return self._runtime.start(limits, allocate=allocate)

    # --- adapters -----------------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> Mapping[str, AdapterInfo]:
        """Adapters that requests may choose (`adapter=NAME`), by name; without one a request gets the model alone."""
        return self._runtime.adapters

    def tokenizer_for(self, adapter: str | None) -> Tokenizer:
        """The tokenizer of an adapter, which may have tokens of its own; None: `tokenizer`. Raises as that does."""
        return self._runtime.jobs(adapter).prompts.tokenizer

    def wording_for(self, adapter: str | None) -> Wording:
        """The words that texts of users get for an adapter; None: for the model. Raises as `tokenizer_for` does."""
        return self._runtime.jobs(adapter).prompts.wording

    def add_adapter(
        self, name: str, directory: str | os.PathLike[str], *, alpha: float | None = None, hub: str | None = None
    ) -> AdapterInfo:
        """Read one more adapter that requests may choose. Requests that run are read again, and get the same.

        directory, alpha, hub: see `loading.load_parts`. Raises RequestError for a name that is taken or cannot be one,
        and while the model itself carries an adapter; CheckpointError and ConfigError for one that does not fit.
        """
        return self._runtime.add(name, local_directory(directory, hub=hub, param="adapters"), alpha)

    def remove_adapter(self, name: str) -> None:
        """Take an adapter away. Raises RequestError for an unknown name, and while requests run by it."""
        self._runtime.remove(name)

    # --- texts --------------------------------------------------------------------------------------------------------

    def generate(self, text: str, *, adapter: str | None = None, **options: Unpack[GenerationOptions]) -> str:
        """Continue a text; returns the continuation alone, up to a stop text.

        GLM and GLM-130B read the text as part A with a generation mask behind it; chat families get it inside the
        tokens that their tokenizer puts around every input. A mask written in the text is ordinary text here; `fill`
        fills it. adapter: by name, see `adapters`; so in every other method. options: the fields of
        `GenerationParams`. Raises RequestError for options that mean nothing, for several answers (use `answers`), for
        a text that is too long, and for an unknown adapter.
        """
        check_type("text", text, str, "a text (str)")
        job = self._runtime.jobs(adapter).text(text, one_answer(read_params(options, more=("adapter",)), "answers"))
        self.engine.submit(job).wait()
        return job.answers[0].text or ""

    def answers(
        self,
        texts: Sequence[str | Sequence[int]],
        *,
        own_stops: bool = True,
        adapter: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[list[Answer]]:
        """Answers to every text (`n`, or the best `num_return_sequences` beams), all texts in one batch.

        Each is the same as alone. texts: also token ids, see `continue_job`. own_stops False: only `stop` and
        `stop_ids` end an answer, not the model's own ids. Options and errors as in `generate`.
        """
        params = read_params(options, more=("own_stops", "adapter"))
        maker = self._runtime.jobs(adapter)
        jobs = [
            maker.text(text, params, own_stops=own_stops, name=f"text {number}")
            for number, text in enumerate(list_of(texts, "generate"))
        ]
        self.engine.run_all(jobs)
        return [job.answers for job in jobs]

    def stream(self, text: str, *, adapter: str | None = None, **options: Unpack[GenerationOptions]) -> Generator[str]:
        """The pieces of `generate`'s text as soon as no later token can change them; joined they are that text.

        Closing or dropping the iterator cancels the rest. Options and errors as in `generate`.
        """
        check_type("text", text, str, "a text (str)")
        params = one_answer(read_params(options, more=("adapter",)), "answers")
        return text_pieces(self.engine, self._runtime.jobs(adapter).text(text, params))

    def continue_job(
        self,
        text: str | Sequence[int],
        params: GenerationParams | Values | None = None,
        *,
        own_stops: bool = True,
        whole: bool = True,
        room: int | None = None,
        listener: Listener | None = None,
        adapter: str | None = None,
    ) -> AnswersJob | BeamsJob:
        """The job that continues a text, for `engine.submit`; its `answers` are complete once it is over.

        text: or the ids of a whole prompt as the model reads it, to which nothing is added. Padding ids in front are
        not read, but count for penalties and beam_length "row", as in transformers. Without a tokenizer answers have
        no text. own_stops: as in `answers`. whole False: ids are those of a text and get around them what a text gets;
        special ones are refused. room: the most tokens of prompt and answer, where the answer ends. listener: hears
        every token. Raises RequestError as `generate` does.
        """
        maker, params = self._runtime.jobs(adapter), as_params(params)
        return maker.text(text, params, own_stops=own_stops, whole=whole, room=room, listener=listener)

    # --- blanks -------------------------------------------------------------------------------------------------------

    def fill(
        self,
        text: str,
        *,
        max_tokens: int = 64,
        order: str | None = None,
        adapter: str | None = None,
        **options: Unpack[SpanOptions],
    ) -> Filled:
        """Fill every [MASK], [sMASK] and [gMASK] of a text; later blanks depend on earlier answers.

        max_tokens: longest answer per blank. order "shared": one part B after the text (GLM's way); "inserted": each
        answer replaces its blank before the next is asked, all [MASK] first where the model prefers one kind
        (GLM-130B's way); None: the family's own. options: the fields of `GenerationParams` but those of several answers
        and of beams. Raises RequestError for a text without blanks, with a blank that the model lacks, or too long,
        for options that mean nothing, and for a family that fills none.
        """
        return self.fill_many([text], max_tokens=max_tokens, order=order, adapter=adapter, **options)[0]

    def fill_many(
        self,
        texts: Sequence[str],
        *,
        max_tokens: int = 64,
        order: str | None = None,
        adapter: str | None = None,
        **options: Unpack[SpanOptions],
    ) -> list[Filled]:
        """`fill` for several texts in one batch; each result is the same as alone."""
        if "max_new_tokens" in options:
            raise RequestError(
                "max_new_tokens is not an option of blanks; give max_tokens, the limit of each", param="max_new_tokens"
            )
        replace(OPTIONS["max_new_tokens"], name="max_tokens").checked(max_tokens)
        params = read_params({**options, "max_new_tokens": max_tokens}, more=("max_tokens", "order", "adapter"))
        one_answer(params, "fill_job")
        listed = list_of(texts, "fill")
        names = ["the text"] if len(listed) == 1 else [f"text {number}" for number in range(len(listed))]
        maker = self._runtime.jobs(adapter)
        jobs = [maker.blanks(text, params, order, name=name) for text, name in zip(listed, names, strict=True)]
        self.engine.run_all(jobs)
        return [job.filled() for job in jobs]

    def fill_job(
        self,
        text: str,
        params: GenerationParams | Values | None = None,
        *,
        order: str | None = None,
        room: int | None = None,
        listener: Listener | None = None,
        adapter: str | None = None,
    ) -> FillJob:
        """The job that fills a text, for `engine.submit`; its `filled()` is the result once it is over.

        params: max_new_tokens is the longest answer of each blank. room: the most tokens of the text and all answers,
        within which each blank has its share. listener: its events carry the number of the blank. order and errors as
        in `fill`.
        """
        return self._runtime.jobs(adapter).blanks(text, as_params(params), order, room=room, listener=listener)

    # --- conversations ------------------------------------------------------------------------------------------------

    def chat(
        self,
        query: str,
        history: History | None = (),
        *,
        adapter: str | None = None,
        **options: Unpack[ChatOptions],
    ) -> tuple[str | Call, Turns]:
        """Answer one turn of a conversation: (response, history for the next call).

        Sampling is the published one of the family unless options say otherwise; `temperature=0` is greedy. A call of
        a tool among `tools`, or those of the history, comes back as {"name", "parameters"}, of a built-in one as
        {"name", "content"}; answer it with role="observation". Everything else is text. Turns that do not fit are not
        read, the oldest first, with a TrimmedHistoryWarning; the history given back still has them.
        options: see `Turn.asked`. Raises RequestError as it does, for several answers (use `chat_job`), and when a
        complete call of a tool cannot be read.
        """
        return self._turn(query, history, options, adapter).answer(self.engine)

    def stream_chat(
        self,
        query: str,
        history: History | None = (),
        *,
        adapter: str | None = None,
        **options: Unpack[ChatOptions],
    ) -> Generator[tuple[str | Call, Turns]]:
        """`chat` while it is made: (response so far, history so far) for each token that shows something.

        The response is always the whole text, as in the published code; its end may still change. The last pair is what
        `chat` gives. Closing or dropping the iterator cancels the rest. Options and errors as in `chat`.
        """
        return shown_pairs(self._turn(query, history, options, adapter).steps(self.engine))

    def chat_steps(
        self,
        query: str,
        history: History | None = (),
        *,
        adapter: str | None = None,
        **options: Unpack[ChatOptions],
    ) -> Generator[ChatStep]:
        """`stream_chat` with more to it: new text that is certain, counts, logprobs, and why the reply ended."""
        return self._turn(query, history, options, adapter, logprobs=True).steps(self.engine)

    def chat_job(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        options: Values | None = None,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        trim: bool = False,
        room: int | None = None,
        listener: Listener | None = None,
        adapter: str | None = None,
    ) -> ReplyJob:
        """The job that answers messages, for `engine.submit`; its `reply` reads a finished answer.

        messages: of the roles that the family's template knows, in order. options: as of `Turn`. tools: in the family's
        form, put into the first message. trim: leave out the oldest turns where there is no room, else that is an
        error. room: the most tokens of prompt and reply, where the reply ends. Raises RequestError as `Turn` does.
        """
        prompts = self._runtime.jobs(adapter).prompts
        asked = with_system(to_messages(messages), prompts.template, None, tools)
        return Turn(prompts, asked, options or {}, trim=trim, room=room).job(listener)

    def _turn(
        self,
        query: str,
        history: History | None,
        options: ChatOptions,
        adapter: str | None,
        *,
        logprobs: bool = False,
    ) -> Turn:
        turn = Turn.asked(self._runtime.jobs(adapter).prompts, query, history, options)
        one_answer(turn.params, "chat_job or chat_steps", logprobs=logprobs)
        if turn.dropped:
            warnings.warn(
                f"this conversation with its reply would exceed {turn.limit} tokens; not read: the oldest "
                f"{turn.dropped} of {turn.turns} turns",
                TrimmedHistoryWarning,
                stacklevel=3,
            )
        return turn


def load(
    source: str | os.PathLike[str],
    *,
    config: ConfigLike | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    adapter: str | os.PathLike[str] | None = None,
    adapters: Mapping[str, str | os.PathLike[str]] | None = None,
    alpha: float | None = None,
    pre_seq_len: int | None = None,
    prefix_projection: bool | None = None,
    device: str = "auto",
    dtype: DType = "auto",
    quantize: Quantize | None = None,
    compute: Compute | None = None,
    family: str | None = None,
    template: str | None = None,
    hub: str | None = None,
) -> LM:
    """Open a model in any published layout. See `loading.load_parts` for the arguments and errors.

    adapters: directories of adapters by the names under which requests may choose them; see `LM.add_adapter`. adapter:
    one that is put on the model for all requests, instead.
    """
    if adapter is not None and adapters:
        step = "give adapter a name in adapters"
        raise RequestError("both adapter and adapters are given", step=step, param="adapter")
    parts = load_parts(
        source,
        config=config,
        tokenizer=tokenizer,
        adapter=adapter,
        alpha=alpha,
        pre_seq_len=pre_seq_len,
        prefix_projection=prefix_projection,
        device=device,
        dtype=dtype,
        quantize=quantize,
        compute=compute,
        family=family,
        template=template,
        hub=hub,
    )
    lm = LM(parts)
    for name, directory in (adapters or {}).items():
        lm.add_adapter(name, directory, hub=hub)
    return lm
