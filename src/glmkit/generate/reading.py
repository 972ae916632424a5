"""Ids of an answer to text that no later id can change."""

from typing import Protocol

from glmkit.tokenizer.base import IncrementalDecoder, Tokenizer
from glmkit.tokenizer.chat import ChatTemplate, ReplyStream
from glmkit.tokenizer.inputs import InputTokenizer


class TextReader(Protocol):
    """Reads one answer, id by id. Everything it gives, joined, is the answer's text."""

    def push(self, token: int) -> str:
        """The text that became certain with this id, which may be none."""

    def flush(self) -> str:
        """What was held back, at the end of the ids."""


class PlainReader:
    """The text of a continuation or of a blank."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decoder = IncrementalDecoder(tokenizer)

    def push(self, token: int) -> str:
        """As in `TextReader`."""
        return self._decoder.push(token)

    def flush(self) -> str:
        """As in `TextReader`."""
        return self._decoder.flush()


class ChatReader:
    """The text of a reply as the family's published code cleans it.

    stream: what has been read so far.
    """

    def __init__(self, template: ChatTemplate, tokenizer: InputTokenizer) -> None:
        self.stream = ReplyStream(template, tokenizer)
        self._shows = False

    @property
    def shown(self) -> str | None:
        """The whole reply as the published stream shows it now, None where the last id alone shows nothing new."""
        return self.stream.shown if self._shows else None

    def push(self, token: int) -> str:
        """As in `TextReader`."""
        self._shows = self.stream.add(token)
        return self.stream.fresh()

    def flush(self) -> str:
        """As in `TextReader`."""
        return self.stream.fresh(final=True)
