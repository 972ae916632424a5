"""Fields that several endpoints share: how answers are written."""

import random
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from glmkit.generate.params import MAX_ALTERNATIVES, MAX_CHOICES, MAX_LOOKUP, MAX_STOPS

from .base import WHOLE, Body, Count, CountOrNone, Off, by_kind

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
