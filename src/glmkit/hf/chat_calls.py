"""`chat`, `stream_chat` and their parts with the published signatures, over `generate` and the core's chat templates.

Sampling is transformers', from torch's own generator, so that scripts which seed it get what they got.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, LogitsProcessor, LogitsProcessorList

from glmkit.errors import RequestError
from glmkit.families.common.layout import RemoteCode
from glmkit.families.common.role_chat import RoleTemplate
from glmkit.model import GLM
from glmkit.tokenizer.chat_template import Call, ChatTemplate, Message, ReplyStream, Turns, offered_tools, to_messages
from glmkit.tokenizer.inputs import InputTokenizer

from .configuration import Meaning
from .past_keys import CACHE_NAME, one_cache
from .tokenization import CoreTokenizer

_CERTAIN = 5e4  # the score of the one id that is left where logits are no numbers


class NumberGuard(LogitsProcessor):  # type: ignore[misc]
    """A guard against logits that are no scores: one id is certain instead, and sampling goes on.

    Minus infinity alone is what processors forbid a token with (the published guard takes it for a fault).
    """

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        broken = scores.isnan() | (scores == torch.inf)
        if bool(broken.any()) or not bool(scores.isfinite().any(-1).all()):
            scores = torch.zeros_like(scores)
            scores[..., self.index] = _CERTAIN
        return scores


def _lacking(model: "ChatCalls") -> frozenset[str]:
    """Arguments that the model's own `chat` and `stream_chat` lack, so that they are given by name alone."""
    past = () if model.remote.streams_past else ("past_key_values", "return_past_key_values")
    roles = () if isinstance(model.chat_template, RoleTemplate) else ("role",)
    return frozenset([*past, *roles])


def _in_order(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let arguments behind the history be given by place, in the order of the model's own code, which may lack some."""

    def of(call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def placed(
            self: "ChatCalls", tokenizer: Any, query: str, history: Any = None, *given: Any, **named: Any
        ) -> Any:
            own = [name for name in names if name not in _lacking(self)]
            if len(given) > len(own):
                step = f"the history is followed by {', '.join(own)}; give others by name"
                raise RequestError(f"{len(given)} arguments stand behind the history", step=step)
            for name, value in zip(own, given, strict=False):
                if name in named:
                    raise RequestError(f"{name} is given twice", step="give it by place or by name", param=name)
                named[name] = value
            return call(self, tokenizer, query, history, **named)

        return placed

    return of


class ChatCalls:
    """Mixin of the conversation calls."""

    core: GLM
    meaning: Meaning
    remote: RemoteCode
    device: torch.device
    generate: Callable[..., Any]
    new_cache: Callable[[], Any]

    @property
    def chat_template(self) -> ChatTemplate:
        """The form of this model's conversations. Raises RequestError for one that was not taught to chat."""
        template = self.meaning.family.chat
        if template is None:
            raise RequestError(
                f"{self.meaning.family.title} was not taught to chat",
                step="use generate, or glmkit.load(...).fill for blanks",
                code="no_chat",
            )
        return template

    @_in_order("role", "max_length", "num_beams", "do_sample", "top_p", "temperature", "logits_processor")
    @torch.no_grad()
    def chat(
        self,
        tokenizer: Any,
        query: str,
        history: Any = None,
        role: str = "user",
        max_length: int | None = None,
        num_beams: int = 1,
        do_sample: bool = True,
        top_p: float | None = None,
        temperature: float | None = None,
        logits_processor: Any = None,
        **options: Any,
    ) -> tuple[str | Call, Turns]:
        """Answer one turn: (response, history).

        history: pairs, or dictionaries of role and content, as the model's own code has them; models with roles add the
        turn to the caller's list, as published, others leave it alone. role: of the query, where the model has roles.
        max_length counts the prompt; it, top_p and temperature have the published defaults of the family. options:
        those of `generate`. Raises RequestError for a conversation that the model has no form for.
        """
        template, core = self.chat_template, _core_of(tokenizer)
        messages = _asked(template, history, query, role)
        prompt = self._batch(template.build(core, messages, specials=True))
        settings = self._settings(template, core, max_length, num_beams, do_sample, top_p, temperature, options)
        found = self.generate(**prompt, **settings, logits_processor=self._guarded(logits_processor))
        ids = _only(found, int(prompt["input_ids"].shape[1]))
        turns_of = _continued(template, history)
        _grow(history, template, messages[-1])
        result, longer = template.process_response(template.reply_text(core, ids), messages)
        return result, turns_of(longer)

    @_in_order(
        "role", "past_key_values", "max_length", "do_sample", "top_p", "temperature", "logits_processor",
        "return_past_key_values",
    )  # fmt: skip
    @torch.no_grad()
    def stream_chat(
        self,
        tokenizer: Any,
        query: str,
        history: Any = None,
        role: str = "user",
        past_key_values: Any = None,
        max_length: int | None = None,
        do_sample: bool = True,
        top_p: float | None = None,
        temperature: float | None = None,
        logits_processor: Any = None,
        return_past_key_values: bool = False,
        **options: Any,
    ) -> Iterator[Any]:
        """`chat` as it is written: (whole response so far, history so far) for every token that shows something.

        return_past_key_values: triples, with the cache; given back as past_key_values with the history, the next turn
        reads its new tokens alone, in the form in which the model's own code goes on, and max_length counts these
        alone. ChatGLM-6B reads the whole conversation every time, with a new cache.
        """
        template, core = self.chat_template, _core_of(tokenizer)
        messages = _asked(template, history, query, role)
        past = one_cache(past_key_values, None)
        ids = template.build_turn(core, messages) if past is not None and past.get_seq_length() else None
        prompt = self._batch(template.build(core, messages, specials=True) if ids is None else ids)
        past = None if ids is None else past
        settings = self._settings(template, core, max_length, 1, do_sample, top_p, temperature, options)
        turns_of = _continued(template, history)
        _grow(history, template, messages[-1])
        steps = self.stream_generate(
            **prompt, **settings, past_key_values=past, return_past_key_values=return_past_key_values,
            logits_processor=self._guarded(logits_processor),
        )  # fmt: skip
        if not return_past_key_values:
            steps = ((rows, None) for rows in steps)
        start = int(prompt["input_ids"].shape[1])
        for shown, turns, cache in _shown(template, core, messages, steps, start, turns_of):
            yield (shown, turns, cache) if return_past_key_values else (shown, turns)

    @torch.no_grad()
    def stream_generate(
        self,
        input_ids: Tensor,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Any = None,
        return_past_key_values: bool = False,
        **options: Any,
    ) -> Iterator[Any]:
        """`generate` step by step: the growing ids (B,T), with return_past_key_values also the cache.

        The same tokens as `generate` with the same seed.
        """
        past = one_cache(options.pop("past_key_values", None), options.pop("cache", None))
        fresh = 0 if past is None else int(input_ids.shape[1])
        if past is None and return_past_key_values:
            past = self.new_cache()
        if past is not None:
            options[CACHE_NAME] = past
        yield from self.generate(
            input_ids, generation_config=generation_config, logits_processor=logits_processor,
            stopping_criteria=stopping_criteria, prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            custom_generate=partial(_steps, fresh=fresh, with_cache=return_past_key_values), **options,
        )  # fmt: skip

    # --- parts that scripts call --------------------------------------------------------------------------------------

    def process_response(self, output: str, history: Any = None) -> Any:
        """The text to show of a reply's text; models with roles give (content or call, history) of it."""
        template = self.chat_template
        messages = to_messages(history or [])
        result, longer = template.process_response(output, messages)
        return (result, _continued(template, history)(longer)) if isinstance(template, RoleTemplate) else result

    def build_inputs(self, tokenizer: Any, query: str, history: Any = None) -> BatchEncoding:
        """The inputs of a conversation that waits for an answer: ids, mask and positions."""
        template, core = self.chat_template, _core_of(tokenizer)
        messages = [*to_messages(history or []), Message("user", query)]
        return self._padded(tokenizer, template.build(core, messages, specials=True))

    def build_stream_inputs(self, tokenizer: Any, query: str, history: Any = None) -> BatchEncoding:
        """The inputs of the new turn alone, behind a cache of the others; of a first turn the whole conversation."""
        template, core = self.chat_template, _core_of(tokenizer)
        messages = [*to_messages(history or []), Message("user", query)]
        ids = template.build_turn(core, messages) if history else None
        return self._padded(tokenizer, template.build(core, messages, specials=True) if ids is None else ids)

    def _get_logits_warper(self, *arguments: Any, **options: Any) -> LogitsProcessorList:
        """Nothing: temperature and filters are among the processors since transformers 4.46; copies apply both."""
        return LogitsProcessorList()

    def _extract_past_from_model_output(self, outputs: Any, **options: Any) -> Any:
        """The cache of a call, for copies of the published loops."""
        return one_cache(getattr(outputs, "past_key_values", None), getattr(outputs, "cache", None))

    # ------------------------------------------------------------------------------------------------------------------

    def _batch(self, ids: Sequence[int]) -> BatchEncoding:
        return BatchEncoding({"input_ids": torch.tensor([list(ids)], device=self.device)})

    def _padded(self, tokenizer: Any, ids: Sequence[int]) -> BatchEncoding:
        """One row with mask and positions in the published form, which scripts shift behind a cache."""
        row: BatchEncoding = tokenizer.pad({"input_ids": [list(ids)]}, return_tensors="pt")
        return row.to(self.device)

    def _guarded(self, given: Any) -> LogitsProcessorList:
        """The caller's processors, then the guard, in a list of its own."""
        index = self.remote.guard_id
        special = self.core.config.special
        if self.remote.guard_from_pad and special is not None:
            index += special.pad
        return LogitsProcessorList([*(given or []), NumberGuard(index)])

    def _settings(
        self,
        template: ChatTemplate,
        core: InputTokenizer,
        max_length: int | None,
        num_beams: int,
        do_sample: bool,
        top_p: float | None,
        temperature: float | None,
        options: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Options of `generate` with the published defaults."""
        own, stops = template.defaults, list(template.stop_ids(core))
        settings: dict[str, Any] = {"num_beams": num_beams, "do_sample": do_sample, "eos_token_id": stops}
        settings["pad_token_id"] = core.special.pad
        if "max_new_tokens" not in options:
            settings["max_length"] = own.max_length if max_length is None else max_length
        if do_sample:
            settings["top_p"] = own.top_p if top_p is None else top_p
            settings["temperature"] = own.temperature if temperature is None else temperature
        return {**settings, **options}


def _core_of(tokenizer: Any) -> InputTokenizer:
    core = getattr(tokenizer, "core", None)
    if not isinstance(tokenizer, CoreTokenizer) or not isinstance(core, InputTokenizer):
        raise RequestError(
            f"the tokenizer is a {type(tokenizer).__name__}, which knows no conversations of this model",
            step="import glmkit.hf first and take AutoTokenizer.from_pretrained of the model's directory",
            param="tokenizer",
        )
    return core


def _asked(template: ChatTemplate, history: Any, query: str, role: str) -> list[Message]:
    """The messages up to the new one."""
    if not isinstance(query, str):
        raise RequestError(f"query is a {type(query).__name__}", step="give a text", param="query")
    messages = [*to_messages(history or []), Message(role, query)]
    template.check_roles(messages)
    return messages


def _grow(history: Any, template: ChatTemplate, asked: Message) -> None:
    """Put the turn into the caller's own list, as models with roles do."""
    if isinstance(history, list) and isinstance(template, RoleTemplate):
        history.append(asked.to_dict())


def _continued(template: ChatTemplate, history: Any) -> Callable[[list[Message]], Turns]:
    """Make the longer history of the messages; the caller's items in the published form stay as they are, copied."""
    items = list(history or [])
    kind = Mapping if isinstance(template, RoleTemplate) else list | tuple
    if not all(isinstance(item, kind) for item in items):
        return template.history
    kept, count = copy.deepcopy(items), len(to_messages(items))
    return lambda longer: [*kept, *template.history(longer[count:])]


def _only(found: Any, start: int) -> list[int]:
    """The new ids of the first row of what `generate` gave."""
    sequences: Tensor = found if isinstance(found, Tensor) else found.sequences
    ids: list[int] = sequences[0, start:].tolist()
    return ids


def _shown(
    template: ChatTemplate,
    core: InputTokenizer,
    messages: list[Message],
    steps: Iterator[Any],
    start: int,
    turns_of: Callable[[list[Message]], Turns],
) -> Iterator[tuple[str | Call, Turns, Any]]:
    """(response so far, history so far, cache) of each step that shows something, and of the finished reply."""
    offered = offered_tools(messages).keys()
    stream, last, cache = ReplyStream(template, core, offered), None, None
    stops, ids = template.stop_ids(core), []
    for rows, cache in steps:
        ids = rows[0, start:].tolist()
        shown, said = stream.push(ids[-1]), template.read_reply(stream.text, offered)
        if shown is None and template.shows_empty:  # such a model shows every step, broken characters as well
            shown = template.shown(core.decode([i for i in ids if i not in stops], skip_specials=False))
            said = [Message("assistant", shown)]
        if shown is not None and (ids[-1] not in stops or template.shows_stop):
            last = shown, turns_of([*messages, *said])
            yield (*last, cache)
    result, longer = template.process_response(template.reply_text(core, ids), messages)
    end = result, turns_of(longer)
    if end != last:
        yield (*end, cache)


def _steps(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    fresh: int = 0,
    with_cache: bool = False,
    **options: Any,
) -> Iterator[Any]:
    """transformers' loop of one step a token, as an iterator. fresh: the new tokens where others are cached already."""
    if generation_config.num_beams > 1:
        raise RequestError(
            f"{generation_config.num_beams} beams: a stream has one, for the others change what was shown",
            step="leave num_beams out, or call chat or generate",
            param="num_beams",
        )
    options.pop("synced_gpus", None)
    options.pop("streamer", None)
    unfinished = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    cut: int | None = fresh or None
    first = True
    while bool(unfinished.any()):
        with torch.no_grad():
            given = model.prepare_inputs_for_generation(
                input_ids, next_sequence_length=cut, is_first_iteration=first, **options
            )
            outputs = model(**given, return_dict=True)
            options = model._update_model_kwargs_for_generation(outputs, options)
            scores = logits_processor(input_ids, outputs.logits[:, -1].float())
            if generation_config.do_sample:
                chosen = torch.multinomial(scores.softmax(-1), 1)[:, 0]
            else:
                chosen = scores.argmax(-1)
            pad = generation_config._pad_token_tensor
            if pad is not None:
                chosen = torch.where(unfinished, chosen, pad.to(chosen))
            input_ids = torch.cat([input_ids, chosen[:, None]], -1)
            unfinished &= ~stopping_criteria(input_ids, None)
        first, cut = False, 1 if options.get("use_cache") else None
        yield (input_ids, one_cache(options.get("past_key_values"), options.get("cache"))) if with_cache else input_ids
