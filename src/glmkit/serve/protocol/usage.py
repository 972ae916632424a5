"""Counts of tokens, and their log-probabilities."""

from pydantic import Field

from .base import Reply


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
