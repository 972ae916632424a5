"""Requests of records: the fields that are the prompt, the task, and the fields to add."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from glmkit.data.records import Record
from glmkit.data.rows import BadRow, check_text, describe
from glmkit.errors import RequestError
from glmkit.families.family import first_verb
from glmkit.generate.conversation import ReplyJob
from glmkit.generate.engine.job import Job
from glmkit.generate.jobs.answers import AnswersJob, make_job
from glmkit.generate.jobs.beam_search import BeamsJob
from glmkit.generate.jobs.infill import FillJob
from glmkit.generate.outputs import Answer, TokenLogprob
from glmkit.generate.params import GenerationParams, Values
from glmkit.generate.truncation import Shortener, Side
from glmkit.session import LM
from glmkit.tokenizer.incremental import IncrementalDecoder
from glmkit.tokenizer.protocol import Tokenizer

Task = Literal["auto", "generate", "fill", "chat"]
Fields = dict[str, object]  # of a record, JSON-able

# The first of these that a record has is its prompt; `input` behind an instruction is part of it.
PROMPT_FIELDS = ("messages", "prompt", "text", "src", "source", "content", "instruction", "input")

# Fields that may be added to a record.
_ADDED = (
    "answer", "answers", "blanks", "finish", "answer_tokens", "score", "logprobs", "prompt_tokens", "cut_tokens",
    "dropped_turns", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One record's job, and the fields that its answers become.

    read: makes the fields of a finished job. prefix: in front of their names. notes: numbers to add that are not 0.
    """

    job: Job
    read: Callable[[], Fields]
    prefix: str = ""
    notes: Mapping[str, int] = field(default_factory=dict)

    def added(self) -> Fields:
        """The fields to add to the record. Raises RequestError when the answer cannot be read as asked."""
        fields = {**self.read(), **{name: count for name, count in self.notes.items() if count}}
        return {self.prefix + name: value for name, value in fields.items()}


class RequestMaker:
    """Makes requests of records, all with the same options.

    counts: of the records so far, "cut" (texts that were longer than src_length), "trimmed" (conversations whose
    oldest turns were not read) and "masks" (texts with a blank that was read as text); of the answers and blanks so
    far, "unfinished" (cut at the longest length) and "empty" (without any text).
    """

    def __init__(
        self,
        lm: LM,
        options: Values,
        *,
        task: Task = "auto",
        prompt_field: str | None = None,
        template: str | None = None,
        order: str | None = None,
        src_length: int | None = None,
        truncation_side: Side = "left",
        prefix: str = "",
    ) -> None:
        """options: fields of `GenerationParams`. template: a prompt with {field} for the text of a field. prefix: in
        front of the names of all fields that are added.

        Raises RequestError for options that mean nothing, and for a task that the model cannot do.
        """
        self.params = GenerationParams(**options)
        self.counts = {"cut": 0, "trimmed": 0, "masks": 0, "unfinished": 0, "empty": 0}
        self._lm, self._options = lm, options
        self._prompts = lm.prompts
        self._task, self._field, self._template, self._order = task, prompt_field, template, order
        self._prefix = prefix
        if template is not None and not _PLACEHOLDER.search(template):
            message = f"the template {template!r} names no field; write {{prompt}} where that field belongs"
            raise RequestError(message, param="template")
        if task == "chat":
            _ = self._prompts.template
        if task == "fill" and lm.config.mask == "causal":
            what = f"{lm.family} reads left to right and fills no blanks"
            raise RequestError(what, step=f"use {first_verb(lm.family, causal=True)}", param="task")
        self._shortener = None
        if src_length is not None:
            if task in ("fill", "chat"):
                message = f"src_length cuts a text that is continued; leave it out with --task {task}"
                raise RequestError(message, param="src_length")
            self._shortener = Shortener(self._prompts, src_length, truncation_side)
        masks = lm.config.special.mask_ids() if lm.config.special is not None and lm.config.mask != "causal" else ()
        self._masks = [lm.tokenizer.id_to_token(index) for index in masks]

    def __call__(self, record: Record) -> Request:
        """Raise RequestError naming the field that cannot be used."""
        fields = record.fields
        assert fields is not None
        taken = next((name for name in map(self._prefix.__add__, _ADDED) if name in fields), None)
        if taken is not None:
            raise RequestError(f"the row has a field {taken!r} already; --added_prefix names the new ones otherwise")
        name, value = self._prompt(fields)
        try:
            if name == "messages" or isinstance(value, list):
                return self._conversation(value, fields)
            text = _text(value)
            if self._task == "chat":
                before = fields.get("history") or []
                if not isinstance(before, list):
                    raise RequestError(f"the field 'history' beside it is {describe(before)}, not a list of turns")
                return self._conversation([*before, {"role": "user", "content": text}], fields)
            return self._blanks(text) if self._task == "fill" else self._continuation(text)
        except RequestError as error:
            raise error.behind(f"field {name!r}: ") from None
        except UnicodeEncodeError as error:
            wrong = f"U+{ord(error.object[error.start]):04X}"
            message = f"field {name!r}: lone surrogate {wrong}, which is not valid Unicode"
            raise RequestError(message, param=name) from None

    def _prompt(self, fields: Mapping[str, object]) -> tuple[str, object]:
        """Name of the field that holds the prompt, and the prompt."""
        if self._template is not None:
            return "prompt", self._filled(self._template, fields)
        names = PROMPT_FIELDS if self._field is None else (self._field,)
        name = next((name for name in names if name in fields), None)
        if name is None:
            hint = f"fields are {', '.join(fields)}; choose one with --prompt_field" if fields else "the row is empty"
            raise RequestError(f"no field {' or '.join(map(repr, names))}; {hint}")
        if name == "instruction" and self._field is None and fields.get("input"):
            return name, f"{_text(fields[name], name)}\n{_text(fields['input'], 'input')}"
        return name, fields[name]

    def _filled(self, template: str, fields: Mapping[str, object]) -> str:
        def value(match: re.Match[str]) -> str:
            name = match[1]
            if name not in fields:
                raise RequestError(f"no field {name!r}, which the template names; fields are {', '.join(fields)}")
            return _text(fields[name], name)

        return _PLACEHOLDER.sub(value, template)

    def _conversation(self, messages: object, fields: Mapping[str, Any]) -> Request:
        if self._task not in ("auto", "chat"):
            raise RequestError(f"a conversation cannot be a prompt of --task {self._task}; use chat, or name a text")
        if self._shortener is not None:
            raise RequestError("src_length cuts texts, not conversations; leave it out, or name a text")
        if not isinstance(messages, list) or not messages:
            raise RequestError(f"it is {describe(messages)}; give a list of messages with role and content")
        wrong = next((item for item in messages if not isinstance(item, Mapping) and not _is_pair(item)), None)
        if wrong is not None:
            raise RequestError(f"a turn is {describe(wrong)}; give messages with role and content")
        job = self._lm.chat_job(messages, self._options, tools=fields.get("tools"), trim=True)
        self.counts["trimmed"] += job.dropped > 0
        return Request(job, partial(self._replies, job), self._prefix, {"dropped_turns": job.dropped})

    def _continuation(self, text: str) -> Request:
        self.counts["masks"] += any(mask in text for mask in self._masks)
        prompt, cut = (None, 0) if self._shortener is None else self._shortener.cut(text)
        if prompt is None:
            job = self._lm.continue_job(text, self.params)
        else:
            self.counts["cut"] += 1
            job = make_job(
                prompt,
                self.params,
                self._lm.config,
                detokenizer=partial(IncrementalDecoder, self._lm.tokenizer, whole=True),
            )
        return Request(job, partial(self._texts, job), self._prefix, {"cut_tokens": cut})

    def _blanks(self, text: str) -> Request:
        job = self._lm.fill_job(text, self.params, order=self._order)
        return Request(job, partial(self._filled_text, job), self._prefix)

    def _texts(self, job: AnswersJob | BeamsJob) -> Fields:
        return self._fields(job, [answer.text for answer in job.answers])

    def _replies(self, job: ReplyJob) -> Fields:
        return self._fields(job, [job.reply(number)[0] for number in range(len(job.answers))])

    def _fields(self, job: AnswersJob | BeamsJob | ReplyJob, texts: Sequence[object]) -> Fields:
        answers = job.answers
        self._count(answers)
        columns: dict[str, Sequence[object]] = {"finish": [answer.finish for answer in answers]}
        columns["answer_tokens"] = [len(answer.ids) for answer in answers]
        if self.params.num_beams > 1:
            columns["score"] = [None if answer.score is None else _rounded(answer.score) for answer in answers]
        if self.params.logprobs is not None:
            columns["logprobs"] = [
                [logprob_fields(self._lm.tokenizer, item, _rounded) for item in answer.logprobs or ()]
                for answer in answers
            ]
        if max(self.params.n, self.params.num_return_sequences) > 1:
            return {"answers": [*texts], **columns, "prompt_tokens": job.prompt_tokens}
        first = {name: values[0] for name, values in columns.items()}
        return {"answer": texts[0], **first, "prompt_tokens": job.prompt_tokens}

    def _filled_text(self, job: FillJob) -> Fields:
        filled, answers = job.filled(), job.answers
        self._count(answers)
        return {
            "answer": filled.text,
            "blanks": filled.blanks,
            "finish": [answer.finish for answer in answers],
            "answer_tokens": [len(answer.ids) for answer in answers],
            "prompt_tokens": job.prompt_tokens,
        }

    def _count(self, answers: Sequence[Answer]) -> None:
        self.counts["unfinished"] += sum(answer.finish == "length" for answer in answers)
        self.counts["empty"] += sum(not answer.ids for answer in answers)


_DECIMALS = 4
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


def logprob_fields(tokenizer: Tokenizer, item: TokenLogprob, shown: Callable[[float], float]) -> Fields:
    """A token, its log-probability and its alternatives, JSON-able. shown: turns each number into the one to write."""
    name = tokenizer.id_to_token
    top = [{"token": name(index), "id": index, "logprob": shown(value)} for index, value in item.top]
    return {"token": name(item.token), "id": item.token, "logprob": shown(item.logprob), "top": top}


def _rounded(value: float) -> float:
    """Drop the digits that depend on which rows were computed side by side."""
    return round(value, _DECIMALS)


def _is_pair(item: object) -> bool:
    """Tell whether this is a turn as ChatGLM-6B writes it: a question and its answer."""
    return isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item)


def _text(value: object, name: str | None = None) -> str:
    """A text that a model can read. Raises RequestError; name: of the field, where the caller does not say it."""
    at = "" if name is None else f"field {name!r}: "
    if not isinstance(value, str):
        raise RequestError(f"{at}it is {describe(value)}, not a text")
    checked = check_text(value, "")
    if isinstance(checked, BadRow):
        raise RequestError(f"{at}{checked.message}")
    return checked
