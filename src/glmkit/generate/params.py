"""The options of decoding: one table that says of each its type, limits, help and where it can be given.

Python's keywords, the command line, the help of a conversation, files of prompts and the API's schema derive from it.
To add an option, add its field to `GenerationParams` and its keyword to the TypedDict below, and act on it.
"""

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal, NoReturn, TypedDict, TypeVar, get_args, get_origin

from glmkit.errors import RequestError, did_you_mean

from .sampling import Sampling

# generate: also files of prompts. api: completions and chats of the server; infill: its blanks. Python has all options.
Face = Literal["generate", "fill", "chat", "api", "infill"]
Values = Mapping[str, Any]  # by the names of options, not checked yet

MAX_ALTERNATIVES = 20  # as OpenAI's API has it
LARGEST = 2**63 - 1  # whole number
MAX_BEAMS = 4096  # each has its own slot in the cache
_KINDS: dict[type, tuple[type, str]] = {
    int: (Integral, "a whole number"), float: (Real, "a number"), bool: (bool, "true or false"), str: (str, "a text"),
}  # fmt: skip
_T = TypeVar("_T")


def check_type(name: str, value: object, kind: type, what: str, param: str | None = None) -> None:
    """Raise RequestError naming the argument unless `value` is a `kind`; True and False are no numbers."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        param = name if param is None and name.isidentifier() else param
        raise RequestError(f"{name} is {reprlib.repr(value)}", step=f"give {what}", param=param)


@dataclass(frozen=True)
class Option:
    """One row of the table.

    help: one line without capital and full stop; lengths are in tokens. low, high: limits of a number that are allowed;
    above: one that is not. off: the value without effect. item: of an option with several values, one of them.
    max_items: how many of them. search: of beam search alone. one_beam: why the option does not go with several beams.
    chat_default: help on the default in a conversation, where that is another one. api, api_low, api_high, api_help:
    name, limits and help in the API where they differ. unset: what None stands for. The rest is that of the field.
    """

    help: str
    _: KW_ONLY
    faces: tuple[Face, ...] = get_args(Face)
    low: float | None = None
    above: float | None = None
    high: float | None = None
    off: float | None = None
    item: str = ""
    max_items: int | None = None
    search: bool = False
    one_beam: str = ""
    chat_default: str = ""
    api: str = ""
    api_low: float | None = None
    api_high: float | None = None
    api_help: str = ""
    name: str = ""
    kind: type = int
    words: tuple[str, ...] = ()
    default: object = None
    unset: str = "none"

    @property
    def api_name(self) -> str:
        """Name in the API."""
        return self.api or self.name

    @property
    def limits(self) -> str:
        """Limits of a number in words, "" without any."""
        if self.above is not None:
            return f"more than {self.above:g}" + ("" if self.high is None else f", at most {self.high:g}")
        if self.low is None:
            return ""
        return f"at least {self.low:g}" if self.high is None else f"from {self.low:g} to {self.high:g}"

    def checked(self, value: object) -> object:
        """The value, several as a tuple. Raises RequestError for another type and for what is beyond the limits."""
        if not self.item:
            if (value is not None or self.default is not None) and not (isinstance(value, str) and value in self.words):
                self._check(self.name, value)
            return value
        if self.kind is str and isinstance(value, str):
            return self.checked((value,))
        if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
            self._refuse(f"is {reprlib.repr(value)}", f"give a list of {self.item}s")
        items = tuple(value)
        for item in items:
            self._check(f"one of {self.name}", item)
        if self.max_items is not None and len(items) > self.max_items:
            self._refuse(f"has {len(items)} {self.item}s", f"give at most {self.max_items}")
        if "" in items:
            self._refuse(f"has an empty {self.item}, which every answer contains", "leave it out")
        return items

    def _check(self, name: str, value: object) -> None:
        if self.words:
            *others, last = [*(["true", "false"] if self.kind is bool else []), *map(repr, self.words)]
            if not (self.kind is bool and isinstance(value, bool)):
                self._refuse(f"is {reprlib.repr(value)}", f"give {', '.join(others)} or {last}")
            return
        kind, what = _KINDS[self.kind]
        if self.item:
            what = f"{'an' if self.item[0] in 'aeiou' else 'a'} {self.item}"
        check_type(name, value, kind, what, self.name)
        if not isinstance(value, Real):
            return
        if isinstance(value, int) and not -LARGEST - 1 <= value <= LARGEST:
            shown = str(value) if value.bit_length() < 256 else f"a number of {value.bit_length()} bits"
            raise RequestError(f"{name} is {shown}", step=f"give at most {LARGEST} either way", param=self.name)
        low, above, high = self.low, self.above, self.high
        if (
            value <= -math.inf
            or not value < math.inf
            or (low is not None and value < low)
            or (above is not None and value <= above)
            or (high is not None and not value <= high)
        ):
            off = "" if self.off is None else f", {self.off:g} is off"
            what = f"{self.limits or 'a finite number'}{off}"
            raise RequestError(f"{name} is {reprlib.repr(value)}", step=f"give {what}", param=self.name)

    def _refuse(self, reason: str, step: str) -> NoReturn:
        raise RequestError(f"{self.name} {reason}", step=step, param=self.name)


def _option(default: _T, row: Option) -> _T:
    return field(default=default, metadata={"row": row})


@dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """The options of one request, checked. Everything is off by default: one greedy answer.

    Each penalty is explained in `penalties.process`, with the order in which they act. stop_ids end an answer besides
    the model's own. logprobs 0 reports the token alone, None nothing. num_beams > 1 is beam search; with a
    temperature its beams are drawn, by the filters of sampling, too.
    prompt_lookup guesses so many tokens ahead where the last ones, `prompt_lookup_ngram` at most, occurred before in
    prompt or answer; the answer stays exactly the same, it only comes faster where it repeats. None: as many as pay,
    while at most two sequences run and rows do not change each other's numbers (`engine.runner.Runner.alike`).
    beam_length: what a beam's score is divided by. "row" counts the prompt as it was given, its padding too, and no
    stop id (transformers up to 4.35, with which the published numbers were made); "answer" counts the new tokens, a
    stop id too (transformers since). The power is length_penalty in both.
    """

    max_new_tokens: int = _option(128, Option(
        "longest answer, in tokens", low=1, faces=("generate", "chat", "api"), api="max_tokens",
        chat_default="what the family's published length leaves",
    ))  # fmt: skip
    min_new_tokens: int = _option(0, Option(
        "no id ends an answer before so many tokens", low=0, faces=("generate", "fill", "chat", "api"),
        api="min_tokens",
    ))  # fmt: skip
    temperature: float = _option(0.0, Option(
        "divisor of the logits before a token is drawn; 0 takes the likeliest token each time", low=0,
        chat_default="the family's published one", api_high=2,
    ))  # fmt: skip
    top_k: int = _option(0, Option("draw from so many of the likeliest tokens, 0 = all", low=0, off=0))
    top_p: float = _option(1.0, Option(
        "draw from the likeliest tokens with this share of probability in all, 1 = all", above=0, high=1,
        off=1, chat_default="the family's published one", api_low=0,
    ))  # fmt: skip
    min_p: float = _option(
        0.0, Option("drop tokens less likely than this share of the likeliest one, 0 = none", low=0, high=1, off=0)
    )
    repetition_penalty: float = _option(1.0, Option(
        "above 1: tokens of the prompt and the answer become less likely, 1 = off", above=0, off=1,
        api_high=100,
    ))  # fmt: skip
    presence_penalty: float = _option(
        0.0, Option("taken from the logit of each token that the answer has, 0 = off", low=-2, high=2, off=0)
    )
    frequency_penalty: float = _option(0.0, Option(
        "taken from a token's logit as often as the answer has the token, 0 = off", low=-2, high=2, off=0
    ))  # fmt: skip
    no_repeat_ngram_size: int = _option(0, Option("no run of so many tokens comes twice, 0 = off", low=0, off=0))
    stop: tuple[str, ...] = _option((), Option(
        "text that ends an answer and is no part of it", item="text", max_items=16,
        faces=("generate", "chat", "api"), one_beam="use stop_ids",
    ))  # fmt: skip
    stop_ids: tuple[int, ...] = _option(
        (), Option("token id that ends an answer", item="id", low=0, faces=("generate", "fill", "chat"))
    )
    forbidden: tuple[int, ...] = _option(
        (), Option("token id that never comes", item="id", low=0, faces=("generate", "fill", "chat"))
    )
    seed: int = _option(0, Option(
        "seed of the sampling noise; the same one gives the same answer, in any batch",
        chat_default="a new one each time",
    ))  # fmt: skip
    logprobs: int | None = _option(None, Option(
        "with --json: log-probability of each token and of so many alternatives", low=0,
        high=MAX_ALTERNATIVES, faces=("generate",), one_beam="beams come with scores",
    ))  # fmt: skip
    n: int = _option(1, Option(
        "how many answers, the first of which is that of n = 1; with beams the best of them", low=1, high=128,
        faces=("generate", "api"), one_beam="use num_return_sequences",
    ))  # fmt: skip
    num_beams: int = _option(1, Option(
        "beams to search with, 1 = no search; not for streams", low=1, high=MAX_BEAMS,
        faces=("generate", "api"), api_high=64,
    ))  # fmt: skip
    length_penalty: float = _option(1.0, Option(
        "power of the length in tokens that a beam's score is divided by", low=-50, high=50, off=0,
        faces=("generate", "api"), search=True,
    ))  # fmt: skip
    early_stopping: bool | Literal["never"] = _option(False, Option(
        "when a search with enough finished beams ends; true: at once, false: when no open one can become "
        "better at its present length, never: at any length",
        faces=("generate", "api"), search=True,
        api_help="end a search at once with the first num_beams finished beams",
    ))  # fmt: skip
    num_return_sequences: int = _option(
        1, Option("how many of the best beams to give", low=1, faces=("generate",), search=True, api="n")
    )
    beam_length: Literal["row", "answer"] = _option("row", Option(
        "the length that a beam's score is divided by: row counts the prompt, too, answer its own tokens",
        faces=("generate",), search=True,
    ))  # fmt: skip
    prompt_lookup: int | None = _option(None, Option(
        "so many tokens at a time are looked up in the prompt and checked at once, 0 = off; same answers, "
        "faster; without it as many as pay, while at most two sequences run",
        low=0, high=64, off=0, faces=("generate", "fill", "chat", "api"), one_beam="leave it at 0", unset="auto",
    ))  # fmt: skip
    prompt_lookup_ngram: int = _option(
        3, Option("longest run that is looked up, in tokens", low=1, high=64, faces=("generate", "fill", "chat"))
    )

    def __post_init__(self) -> None:
        """Raise RequestError for values that mean nothing or do not go together."""
        for option in OPTIONS.values():
            object.__setattr__(self, option.name, option.checked(getattr(self, option.name)))
        if self.min_new_tokens > self.max_new_tokens:
            raise RequestError(
                f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens {self.max_new_tokens}",
                step="lower it",
                param="min_new_tokens",
            )
        if self.num_return_sequences > self.num_beams:
            hint = "use n for several answers" if self.num_beams == 1 else "lower it"
            raise RequestError(
                f"num_return_sequences {self.num_return_sequences} is more than num_beams {self.num_beams}",
                step=hint,
                param="num_return_sequences",
            )
        for option in OPTIONS.values() if self.num_beams > 1 else ():
            if option.one_beam and getattr(self, option.name) not in (option.default, option.off):
                raise RequestError(
                    f"{option.name} does not go with num_beams {self.num_beams}",
                    step=f"{option.one_beam}, or take one beam",
                    param=option.name,
                )

    @classmethod
    def from_mapping(cls, values: Values) -> "GenerationParams":
        """Make parameters from plain values, None being the default. Raises RequestError naming an unknown key."""
        refuse_unknown(values, OPTIONS)
        return cls(**{key: value for key, value in values.items() if value is not None})

    @cached_property
    def sampling(self) -> Sampling:
        """The part that chooses a token from a distribution."""
        return Sampling(**{item.name: getattr(self, item.name) for item in fields(Sampling)})

    def choice(self, index: int) -> Sampling:
        """The sampling of one of the `n` answers; the first one's noise is that of the seed itself."""
        return self.sampling.choice(index)

    @cached_property
    def penalises(self) -> bool:
        """True when the tokens so far change the scores of the next one."""
        return (
            self.repetition_penalty != 1
            or bool(self.presence_penalty or self.frequency_penalty)
            or bool(self.no_repeat_ngram_size)
        )

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is taken."""
        return self.temperature == 0


def _row(name: str, annotation: object, default: object, row: Option) -> Option:
    """The row of a field; its type is that of the annotation."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return replace(row, name=name, kind=str, words=parts, default=default)
    words = next((get_args(part) for part in parts if get_origin(part) is Literal), ())
    kind = parts[0] if parts else annotation
    assert isinstance(kind, type), f"{name}: no type that options have"
    return replace(row, name=name, kind=kind, words=words, default=default)


OPTIONS: dict[str, Option] = {
    item.name: _row(item.name, item.type, item.default, item.metadata["row"]) for item in fields(GenerationParams)
}


def options_of(face: Face) -> list[Option]:
    """The options that can be given there, in the order of the table."""
    return [option for option in OPTIONS.values() if face in option.faces]


# --- keywords of the text methods, for type checkers and editors ------------------------------------------------------


class _Common(TypedDict, total=False):
    min_new_tokens: int
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    no_repeat_ngram_size: int
    stop: str | Sequence[str]
    stop_ids: Sequence[int]
    forbidden: Sequence[int]
    logprobs: int | None
    n: int
    num_beams: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    num_return_sequences: int
    beam_length: Literal["row", "answer"]
    prompt_lookup: int | None
    prompt_lookup_ngram: int


class SpanOptions(_Common, total=False):
    """Keywords of blanks: those of `GenerationParams` without its limit, which is `max_tokens` for a blank."""

    temperature: float
    top_p: float
    seed: int


class GenerationOptions(SpanOptions, total=False):
    """Keywords of texts: the fields of `GenerationParams`."""

    max_new_tokens: int


class ChatOptions(_Common, total=False):
    """Keywords of a turn of a conversation, besides the query and the history; `Turn` explains those of its own.

    The fields of `GenerationParams`, with the family's published defaults; None is the default, too.
    """

    system: str | None
    role: str
    specials: bool
    tools: Sequence[Mapping[str, Any]] | None
    max_new_tokens: int | None
    max_length: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None


def refuse_unknown(options: Iterable[str], known: Iterable[str]) -> None:
    """Raise RequestError for an option that is not among the known ones, with the closest name."""
    known = sorted(known)
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known, cutoff=0.5)
            raise RequestError(f"unknown option {reprlib.repr(name)}", step=hint, param=str(name))


def read_params(options: Values, *, more: Iterable[str] = ()) -> GenerationParams:
    """The options of a request. more: other keywords of the method that got these.

    Raises RequestError for an unknown option and for values that mean nothing; None is a value like others.
    """
    refuse_unknown(options, [*OPTIONS, *more])
    return GenerationParams(**options)
