"""The kinds of values in requests: JSON has numbers, texts and lists, and none is turned into another.

Unknown fields, numbers as text, booleans as numbers, NaN and infinities are refused. A whole number may be written
1.0, for JSON has one kind of number.
"""

import math
import random
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from glmkit.generate.params import MAX_ALTERNATIVES, MAX_CHOICES, MAX_LOOKUP, MAX_STOPS

# Far beyond every use, and within 64 bits for all who read the document of the interface.
LARGEST = 2**31 - 1


class Body(BaseModel):
    """A JSON object in a request; fields that it does not have are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Reply(BaseModel):
    """A JSON object in a response."""

    model_config = ConfigDict(extra="forbid")


def whole(value: Any) -> Any:
    """A whole number written as 1.0 as one; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(value: Any) -> Any:
    """Raises ValueError for what JSON cannot hold, wherever it is: NaN, infinities, lone surrogates."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("a text in it is not valid Unicode") from None
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a number in it is {value}, which JSON does not have")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _plain(key)
            _plain(item)
    elif isinstance(value, list):
        for item in value:
            _plain(item)
    return value


def by_kind(kinds: Mapping[type, str]) -> Callable[[Any], str | None]:
    """A discriminator that tells values apart by their JSON type; None where none fits."""

    def kind(value: Any) -> str | None:
        return next((tag for type_, tag in kinds.items() if isinstance(value, type_)), None)

    return kind


def _off(value: Any) -> Any:
    if value is not False:  # 0 is equal to it, too
        raise PydanticCustomError("literal_error", "give false", {"expected": "false"})
    return value


Off = Annotated[Literal[False], BeforeValidator(_off)]
# Stands behind the limits of a whole number, which are then in the schema, too.
WHOLE = BeforeValidator(whole)
Count = Annotated[int, Field(ge=1, le=LARGEST), WHOLE]
CountOrNone = Annotated[int, Field(ge=0, le=LARGEST), WHOLE]
JsonObject = Annotated[dict[str, Any], BeforeValidator(_plain)]
Empty = Annotated[dict[str, Any], Field(max_length=0), BeforeValidator(_plain)]


# --- FOLDED serve/protocol/sampling
# Fields that several endpoints share: how answers are written.


StopText = Annotated[str, Field(min_length=1, max_length=1000)]
Stop = Annotated[
    Annotated[StopText, Tag("~text")] | Annotated[list[StopText], Field(max_length=MAX_STOPS), Tag("~texts")],
    Discriminator(
        by_kind({str: "~text", list: "~texts"}),
        custom_error_type="stop_type",
        custom_error_message="give a text or a list of texts",
    ),
]
Alternatives = Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES), WHOLE]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), WHOLE]
Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(Body):
    """What a stream has besides the answer."""

    include_usage: bool | None = Field(None, description="Counts of tokens in a last chunk that has no choices.")
    include_obfuscation: Off | None = Field(None, description="Chunks are never padded with noise.")


class Writing(Body):
    """How one text is written: a token at a time."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token each time.")
    top_p: float | None = Field(None, ge=0, le=1, description="Of the likeliest tokens, those that make up this mass.")
    top_k: CountOrNone | None = Field(None, description="Only so many of the likeliest tokens; 0 is off.")
    min_p: float | None = Field(None, ge=0, le=1, description="Only tokens this likely, relative to the likeliest.")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="Above 1 repeats less; 1 is off.")
    presence_penalty: Penalty | None = Field(None, description="Taken from every token that was there before.")
    frequency_penalty: Penalty | None = Field(None, description="The same for each time that it was there.")
    no_repeat_ngram_size: CountOrNone | None = Field(None, description="No run of so many tokens twice; 0 is off.")
    seed: Seed | None = Field(None, description="The same seed gives the same answer, whoever else asks.")
    stream: bool | None = Field(None, description="Server-sent events, the last one [DONE].")
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Whom the request is for; it has no effect.")

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a count of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def writing(self) -> dict[str, Any]:
        """Keys of `GenerationParams` that were given, and a seed in any case.

        `top_p` 0 leaves the likeliest token alone, as the smallest mass above 0 does.
        """
        names = ("temperature", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
        values = {name: getattr(self, name) for name in (*names, "no_repeat_ngram_size")}
        values["top_p"] = None if self.top_p is None else max(self.top_p, 1e-9)
        values["seed"] = random.getrandbits(48) if self.seed is None else self.seed
        return {name: value for name, value in values.items() if value is not None}


class Answering(Writing):
    """How answers of any length are written: how many, how long, where they stop."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE] | None = Field(
        None, description="Answers; the first is n=1's."
    )
    max_tokens: Count | None = Field(None, description="The longest answer, in tokens.")
    min_tokens: CountOrNone | None = Field(None, description="No answer ends before it has so many tokens.")
    stop: Stop | None = Field(
        None, description=f"Texts that end an answer and are not part of it; {MAX_STOPS} at most."
    )
    num_beams: Annotated[int, Field(ge=1, le=64), WHOLE] | None = Field(
        None, description="Beam search with so many beams; the n best ones are answered. Not for streams."
    )
    length_penalty: Annotated[float, Field(ge=-50, le=50)] | None = Field(None, description="Of beam search.")
    early_stopping: bool | None = Field(None, description="Of beam search: end with the first num_beams answers.")
    prompt_lookup: Annotated[int, Field(ge=0, le=MAX_LOOKUP), WHOLE] | None = Field(
        None, description="So many tokens ahead are guessed from the text so far; the answer stays the same."
    )

    def answering(self) -> dict[str, Any]:
        """Keys of `GenerationParams`, without the longest answer."""
        values: dict[str, Any] = {
            "min_new_tokens": self.min_tokens,
            "stop": (self.stop,) if isinstance(self.stop, str) else None if self.stop is None else tuple(self.stop),
            "num_beams": self.num_beams,
            "length_penalty": self.length_penalty,
            "early_stopping": self.early_stopping,
            "prompt_lookup": self.prompt_lookup,
        }
        if self.num_beams is not None and self.num_beams > 1:
            values |= {"num_return_sequences": self.n, "temperature": self.temperature or 0.0}
        else:
            values["n"] = self.n
        return {**self.writing(), **{name: value for name, value in values.items() if value is not None}}


# --- FOLDED serve/protocol/together
# Fields that are fine alone and say nothing, or two things, together.


def clash(body: Writing) -> tuple[str, str] | None:
    """(field, what is wrong with it beside the others), None when all go together."""
    beams = isinstance(body, Answering) and (body.num_beams or 1) > 1
    checks = [
        ("stream_options", body.stream_options is not None and not body.stream, "it needs stream: true"),
    ]
    if isinstance(body, Answering):
        checks += [
            ("num_beams", beams and bool(body.stream), "beams are known only at the end; leave out stream"),
            ("length_penalty", not beams and body.length_penalty is not None, "it needs num_beams of 2 or more"),
            ("early_stopping", not beams and body.early_stopping is not None, "it needs num_beams of 2 or more"),
            ("stop", beams and bool(body.stop), "it does not go with num_beams; leave one out"),
            ("temperature", beams and bool(body.temperature), "it does not go with num_beams, for beams are greedy"),
            ("prompt_lookup", beams and bool(body.prompt_lookup), "it does not go with num_beams; leave one out"),
            ("n", beams and (body.n or 1) > (body.num_beams or 1), f"it is {body.n}, more than num_beams; lower it"),
        ]
    return next(((name, reason) for name, wrong, reason in checks if wrong), None)


# --- FOLDED serve/protocol/usage
# Counts of tokens, and their log-probabilities.


class PromptDetails(Reply):
    """What the prompt's tokens were."""

    cached_tokens: int = Field(ge=0, description="Read for an earlier request, and not again.")


class Usage(Reply):
    """Tokens that were read and written; those that end an answer are not counted."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)
    prompt_tokens_details: PromptDetails

    @classmethod
    def of(cls, prompt: int, written: int, cached: int) -> "Usage":
        """From the counts of all prompts and answers of a request."""
        details = PromptDetails(cached_tokens=min(cached, prompt))
        return cls(
            prompt_tokens=prompt,
            completion_tokens=written,
            total_tokens=prompt + written,
            prompt_tokens_details=details,
        )


class Alternative(Reply):
    """A token that could stand in a place."""

    token: str
    bytes: list[int] | None = Field(description="Of its UTF-8 text, which may be less than a character.")
    logprob: float = Field(description="Natural logarithm of the model's own probability, before every cut.")


class TokenLogprob(Alternative):
    """The token that was chosen, and the likeliest ones."""

    top_logprobs: list[Alternative]


class ChatLogprobs(Reply):
    """Log-probabilities of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class TextLogprobs(Reply):
    """The same as columns; text_offset counts the characters of the choice's text before a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]
