"""Keyword options of the text methods, and how they become `GenerationParams`."""

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypedDict

from glmkit.errors import RequestError

from .params import BeamLength, EarlyStopping, GenerationParams


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
            close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise RequestError(f"unknown option {reprlib.repr(name)}; {hint}")


def read_params(
    options: Mapping[str, Any], *, more: Iterable[str] = (), without: Iterable[str] = ()
) -> GenerationParams:
    """The parameters of a request. more: other options of the method that got these; without: fields it lacks.

    Raises RequestError for an unknown option and for values that mean nothing; None is a value like others.
    """
    refuse_unknown(options, {*PARAMETERS, *more} - {*without})
    return GenerationParams(**options)
