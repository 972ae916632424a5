"""Types that requests and responses share: strict JSON values, options of decoding, counts and log-probabilities.

JSON has numbers, texts and lists, and none is turned into another: unknown fields, numbers as text, booleans as
numbers, NaN and infinities are refused. A whole number may be written 1.0, for JSON has one kind of number.
"""

import math
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, create_model
from pydantic_core import PydanticCustomError

from glmkit.generate.params import MAX_ALTERNATIVES, OPTIONS, Face, Option, options_of

# Far beyond every use, and within 64 bits for all who read the document of the interface.
LARGEST = 2**31 - 1

# --- JSON values ------------------------------------------------------------------------------------------------------


class Body(BaseModel):
    """A JSON object in a request; fields that it does not have are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Reply(BaseModel):
    """A JSON object in a response."""

    model_config = ConfigDict(extra="forbid")


def whole(value: object) -> object:
    """Turn a whole number written as 1.0 into one; give anything else back as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(value: object) -> object:
    """Raise ValueError for what JSON cannot hold, wherever it is: NaN, infinities, lone surrogates."""
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


def by_kind(kinds: Mapping[type, str]) -> Callable[[object], str | None]:
    """A discriminator that tells values apart by their JSON type; None where none fits."""

    def kind(value: object) -> str | None:
        return next((tag for type_, tag in kinds.items() if isinstance(value, type_)), None)

    return kind


def _off(value: object) -> object:
    if value is not False:  # 0 is equal to it, too
        raise PydanticCustomError("literal_error", "give false", {"expected": "false"})
    return value


Off = Annotated[Literal[False], BeforeValidator(_off)]
MODEL = "MODEL:ADAPTER or ADAPTER for one of the model's adapters; not needed for the model alone."
# Stands behind the limits of a whole number, which are then in the schema, too.
WHOLE = BeforeValidator(whole)
Count = Annotated[int, Field(ge=1, le=LARGEST), WHOLE]
CountOrNone = Annotated[int, Field(ge=0, le=LARGEST), WHOLE]
JsonObject = Annotated[dict[str, object], BeforeValidator(_plain)]
Empty = Annotated[dict[str, object], Field(max_length=0), BeforeValidator(_plain)]


# --- options of decoding ----------------------------------------------------------------------------------------------

StopText = Annotated[str, Field(min_length=1, max_length=1000)]
Stop = Annotated[
    Annotated[StopText, Tag("~text")]
    | Annotated[list[StopText], Field(max_length=OPTIONS["stop"].max_items), Tag("~texts")],
    Discriminator(
        by_kind({str: "~text", list: "~texts"}),
        custom_error_type="stop_type",
        custom_error_message="give a text or a list of texts",
    ),
]
Alternatives = Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES), WHOLE]
B = TypeVar("B", bound=Body)


def with_options(face: Face) -> Callable[[type[B]], type[B]]:
    """Decorate a body with a field for every option of decoding that this face has, as the table describes it."""

    def add(cls: type[B]) -> type[B]:
        new = [option for option in options_of(face) if option.api_name not in cls.model_fields]
        fields: dict[str, Any] = {option.api_name: (_type_of(option) | None, _described(option)) for option in new}
        return create_model(cls.__name__, __base__=cls, __module__=cls.__module__, __doc__=cls.__doc__, **fields)

    return add


def _type_of(option: Option) -> Any:
    """The type of an option with its limits; whole numbers stay within what all clients can read."""
    if option.kind is bool:
        return bool
    if option.item:
        return Stop
    high = option.high if option.api_high is None else option.api_high
    if option.kind is float:
        low, above = (option.low, option.above) if option.api_low is None else (option.api_low, None)
        return Annotated[float, Field(ge=low, gt=above, le=high)]
    low, most = (-(2**63), 2**63 - 1) if option.low is None else (option.low, LARGEST)
    return Annotated[int, Field(ge=low, le=most if high is None else high), WHOLE]


def _described(option: Option) -> object:
    text = option.api_help or option.help
    most = "" if option.max_items is None else f"; {option.max_items} {option.item}s at most"
    return Field(None, description=f"{text[0].upper()}{text[1:]}{most}.")


class StreamOptions(Body):
    """Extras of a stream besides the answer."""

    include_usage: bool | None = Field(None, description="Counts of tokens in a last chunk that has no choices.")
    include_obfuscation: Off | None = Field(None, description="Chunks are never padded with noise.")


@with_options("infill")
class Writing(Body):
    """Fields of every request that writes: how each token is chosen, and whether the answer is streamed."""

    stream: bool | None = Field(None, description="Server-sent events, the last one [DONE].")
    stream_options: StreamOptions | None = Field(None, description="Without stream it has no effect.")
    user: str | None = Field(None, description="Whom the request is for; it has no effect.")
    safety_identifier: str | None = Field(None, description="As user.")
    metadata: JsonObject | None = Field(None, description="For the client's own books; it has no effect.")
    store: bool | None = Field(None, description="Nothing is stored; it has no effect.")
    service_tier: str | None = Field(None, description="It has no effect.")
    prompt_cache_key: str | None = Field(None, description="Prompts are found again without it.")
    prompt_cache_retention: str | None = Field(None, description="As prompt_cache_key.")

    @property
    def include_usage(self) -> bool:
        """True when the stream is to end with a count of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def options(self) -> dict[str, object]:
        """Fields of `GenerationParams` that were given, and a seed in any case.

        `top_p` 0 leaves the likeliest token alone, as the smallest mass above 0 does.
        """
        rows = options_of("api" if isinstance(self, Answering) else "infill")
        given = {row.name: value for row in rows if (value := getattr(self, row.api_name)) is not None}
        if "top_p" in given:
            given["top_p"] = max(given["top_p"], 1e-9)
        return {"seed": random.getrandbits(48), **given}


@with_options("api")
class Answering(Writing):
    """Fields of requests for answers of any length: how many, how long, where they end."""

    if TYPE_CHECKING:  # the fields that the server itself reads, made by `with_options`
        n: int | None
        max_tokens: int | None
        min_tokens: int | None
        stop: str | list[str] | None
        num_beams: int | None

    @property
    def longest(self) -> int | None:
        """The longest answer that was asked for, in tokens."""
        return self.max_tokens

    def options(self) -> dict[str, object]:
        """Give the options as `Writing` does; the `n` best beams are returned, drawn if a temperature was given."""
        values = super().options()
        if (self.num_beams or 1) > 1:
            values = {"temperature": 0.0, **values}
            values |= {"num_return_sequences": values.pop("n")} if "n" in values else {}
        return values


def clash(body: Writing) -> tuple[str, str] | None:
    """(field, what is wrong with it beside the others), None when all go together."""
    checks: list[tuple[str, bool, str]] = []
    if isinstance(body, Answering):
        beams = body.num_beams or 1
        checks.append(("num_beams", beams > 1 and bool(body.stream), "known at the end only; leave out stream"))
        for option in options_of("api"):
            value = getattr(body, option.api_name)
            if option.search:
                checks.append((option.api_name, beams == 1 and value is not None, "it needs num_beams of 2 or more"))
            elif option.one_beam and option.name != "n":
                checks.append((option.api_name, beams > 1 and bool(value), "num_beams is there, too; leave one out"))
        long = body.longest is not None and (body.min_tokens or 0) > body.longest
        checks += [
            ("n", beams > 1 and (body.n or 1) > beams, f"it is {body.n}, more than num_beams; lower it"),
            ("min_tokens", long, f"it is {body.min_tokens}, more than the longest answer, {body.longest}; lower it"),
        ]
    return next(((name, reason) for name, wrong, reason in checks if wrong), None)


# --- counts of tokens, and their log-probabilities --------------------------------------------------------------------


class PromptDetails(Reply):
    """Details of the prompt's tokens."""

    cached_tokens: int = Field(ge=0, description="Read for an earlier request, and not again.")


class Usage(Reply):
    """Tokens that were read and written; those that end an answer are not counted."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)
    prompt_tokens_details: PromptDetails

    @classmethod
    def of(cls, prompt: int, written: int, cached: int) -> "Usage":
        """Add up the counts of all prompts and answers of a request."""
        details = PromptDetails(cached_tokens=min(cached, prompt))
        return cls(
            prompt_tokens=prompt,
            completion_tokens=written,
            total_tokens=prompt + written,
            prompt_tokens_details=details,
        )


class Alternative(Reply):
    """A token that could stand at a position."""

    token: str
    bytes: list[int] | None = Field(description="Of its UTF-8 text, which may be less than a character.")
    logprob: float = Field(description="Natural logarithm of the model's own probability, before every filter.")


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
