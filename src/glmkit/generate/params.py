"""What one request asks of decoding, checked once: limits, sampling, penalties, stops, beams."""

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal, TypedDict

from glmkit.errors import RequestError, did_you_mean

from .sampling import Sampling, check_type

EarlyStopping = bool | Literal["never"]
BeamLength = Literal["row", "answer"]

# The most of each; OpenAI's API has the same limits for alternatives and n, and 4 for stop strings. Every beam has its
# own place on the cache, and every token looked up is read with the others of its step.
MAX_ALTERNATIVES, MAX_CHOICES, MAX_STOPS, MAX_BEAMS, MAX_LOOKUP = 20, 128, 16, 4096, 64


@dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """How answers are written. Everything is off by default: one greedy answer.

    Lengths are in tokens. What each penalty does, and in which order, is in `processors.process`. stop: strings that
    end an answer; stop_ids: ids that do, besides the model's own. forbidden: ids never produced. logprobs: how many
    alternatives to report for every token; 0 is the token alone, None nothing. n: answers to one prompt.
    num_beams > 1 is beam search, which is greedy; length_penalty, early_stopping and num_return_sequences go with it.
    prompt_lookup: how many tokens to guess ahead where the last ones, `prompt_lookup_ngram` at most, occurred before in
    prompt or answer; the answer stays exactly the same, it only comes faster where it repeats. 0 is off.
    beam_length: what a beam's score is divided by. "row" counts the prompt as it was given, its padding too, and no
    stop id (transformers up to 4.35, with which the published numbers were made); "answer" counts the new tokens, a
    stop id too (transformers since). The power is length_penalty in both.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    forbidden: tuple[int, ...] = ()
    seed: int = 0
    logprobs: int | None = None
    n: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    num_return_sequences: int = 1
    beam_length: BeamLength = "row"
    prompt_lookup: int = 0
    prompt_lookup_ngram: int = 3

    def __post_init__(self) -> None:
        """Raises RequestError for values that mean nothing or do not go together."""
        _ = self.sampling  # checks temperature, top_k, top_p, min_p and seed
        self._check_counts()
        self._check_penalties()
        self._check_stops()
        self._check_beams()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "GenerationParams":
        """From plain values; a value of None is the default. Raises RequestError naming an unknown key."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise RequestError(f"unknown parameter {reprlib.repr(key)}; {did_you_mean(key, known)}", param=str(key))
        return cls(**{key: value for key, value in values.items() if value is not None})

    @cached_property
    def sampling(self) -> Sampling:
        """The part that chooses a token from a distribution."""
        return Sampling(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p, seed=self.seed
        )

    def choice(self, index: int) -> Sampling:
        """The sampling of one of the `n` answers; the first one's noise is that of the seed itself."""
        return self.sampling.choice(index)

    @cached_property
    def penalises(self) -> bool:
        """Whether the tokens so far change the scores of the next one."""
        return (
            self.repetition_penalty != 1
            or bool(self.presence_penalty or self.frequency_penalty)
            or bool(self.no_repeat_ngram_size)
        )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0

    def _check_counts(self) -> None:
        limits: dict[str, tuple[int, float]] = {
            "max_new_tokens": (1, math.inf),
            "min_new_tokens": (0, math.inf),
            "no_repeat_ngram_size": (0, math.inf),
            "n": (1, MAX_CHOICES),
            "num_beams": (1, MAX_BEAMS),
            "num_return_sequences": (1, math.inf),
            "prompt_lookup": (0, MAX_LOOKUP),
            "prompt_lookup_ngram": (1, MAX_LOOKUP),
        }
        if self.logprobs is not None:
            limits["logprobs"] = (0, MAX_ALTERNATIVES)
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            check_type(name, value, Integral, "a whole number")
            if not low <= value <= high:
                bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
                raise RequestError(f"{name} is {reprlib.repr(value)}; give {bounds}")
        if self.min_new_tokens > self.max_new_tokens:
            raise RequestError(
                f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens {self.max_new_tokens}; lower it"
            )

    def _check_penalties(self) -> None:
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "length_penalty"):
            check_type(name, getattr(self, name), Real, "a number")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise RequestError(f"repetition_penalty is {self.repetition_penalty}; give more than 0, 1 is off")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise RequestError(f"{name} is {getattr(self, name)}; give from -2 to 2, 0 is off")
        if not -50 <= self.length_penalty <= 50:
            raise RequestError(f"length_penalty is {self.length_penalty}; give from -50 to 50, 0 is off")

    def _check_stops(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, kind, what in (("stop", str, "texts"), ("stop_ids", Integral, "ids"), ("forbidden", Integral, "ids")):
            values = getattr(self, name)
            if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping)):
                raise RequestError(f"{name} is {reprlib.repr(values)}; give a list of {what}")
            object.__setattr__(self, name, tuple(values))
            for value in getattr(self, name):
                check_type(f"one of {name}", value, kind, "a text" if kind is str else "an id")
        if len(self.stop) > MAX_STOPS:
            raise RequestError(f"stop has {len(self.stop)} texts; give at most {MAX_STOPS}")
        if "" in self.stop:
            raise RequestError("stop has an empty text, which every answer contains; leave it out")
        for name in ("stop_ids", "forbidden"):
            if any(value < 0 for value in getattr(self, name)):
                raise RequestError(f"{name} has {min(getattr(self, name))}; ids count from 0")

    def _check_beams(self) -> None:
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise RequestError(f"early_stopping is {reprlib.repr(self.early_stopping)}; give true, false or 'never'")
        if self.beam_length not in ("row", "answer"):
            raise RequestError(f"beam_length is {reprlib.repr(self.beam_length)}; give 'row' or 'answer'")
        if self.num_return_sequences > self.num_beams:
            hint = "use n for several answers" if self.num_beams == 1 else "lower it"
            raise RequestError(
                f"num_return_sequences {self.num_return_sequences} is more than num_beams {self.num_beams}; {hint}"
            )
        if self.num_beams == 1:
            return
        clashes: tuple[tuple[str, bool, str], ...] = (
            ("temperature", self.temperature > 0, "leave it at 0"),
            ("n", self.n > 1, "use num_return_sequences"),
            ("logprobs", self.logprobs is not None, "beams come with scores"),
            ("stop", bool(self.stop), "use stop_ids"),
            ("prompt_lookup", self.prompt_lookup > 0, "leave it at 0"),
        )
        for name, clash, hint in clashes:
            if clash:
                raise RequestError(f"{name} does not go with num_beams {self.num_beams}; {hint}, or take one beam")


# --- FOLDED generate/options
# Keyword options of the text methods, and how they become `GenerationParams`.


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
    early_stopping: EarlyStopping
    num_return_sequences: int
    beam_length: BeamLength
    prompt_lookup: int
    prompt_lookup_ngram: int


class SpanOptions(_Common, total=False):
    """The fields of `GenerationParams` without its limit, which is `max_tokens` for a blank."""

    temperature: float
    top_p: float
    seed: int


class GenerationOptions(SpanOptions, total=False):
    """All fields of `GenerationParams`, which says what they mean."""

    max_new_tokens: int


class ChatOptions(_Common, total=False):
    """What a turn of a conversation takes besides the query and the history; `Turn` says what each means.

    The fields of `GenerationParams`, with the family's published defaults; None, too, is the default.
    """

    system: str | None
    role: str
    tools: Sequence[Mapping[str, Any]] | None
    max_new_tokens: int | None
    max_length: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None


PARAMETERS = tuple(field.name for field in fields(GenerationParams))


def refuse_unknown(options: Iterable[str], known: Iterable[str]) -> None:
    """Raises RequestError for an option that is not among the known ones, with the closest name."""
    known = sorted(known)
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known, cutoff=0.5)
            raise RequestError(f"unknown option {reprlib.repr(name)}; {hint}", param=str(name))


def read_params(
    options: Mapping[str, Any], *, more: Iterable[str] = (), without: Iterable[str] = ()
) -> GenerationParams:
    """The parameters of a request. more: other options of the method that got these; without: fields it lacks.

    Raises RequestError for an unknown option and for values that mean nothing; None is a value like others.
    """
    refuse_unknown(options, {*PARAMETERS, *more} - {*without})
    return GenerationParams(**options)
