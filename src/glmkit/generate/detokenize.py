"""Detokenizers: the ids of an answer to text that no later id can change, up to a stop text."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from glmkit.tokenizer.chat_template import NO_TOOLS, ChatTemplate, ReplyStream
from glmkit.tokenizer.inputs import InputTokenizer


class Detokenizer(Protocol):
    """Text of one answer, id by id: `tokenizer.incremental.IncrementalDecoder` for continuations and blanks.

    All that it gives, joined, is the answer's text.
    """

    def push(self, index: int, /) -> str:
        """Add an id; returns the text that became certain with it, which may be none."""

    def flush(self) -> str:
        """The text that was held back, at the end of the ids, without the beginning of a character."""


MakeDetokenizer = Callable[[], Detokenizer]


class ChatDetokenizer:
    """Text of a reply as the family's published code cleans it. stream: the reply so far."""

    def __init__(self, template: ChatTemplate, tokenizer: InputTokenizer, offered: AbstractSet[str] = NO_TOOLS) -> None:
        """offered: names of the tools that may be called."""
        self.stream = ReplyStream(template, tokenizer, offered)
        self._shows = False

    @property
    def shown(self) -> str | None:
        """The whole reply as the published stream shows it now, None where the last id alone shows nothing new."""
        return self.stream.shown if self._shows else None

    def push(self, index: int, /) -> str:
        """Take more ids, as `Detokenizer` has it."""
        self._shows = self.stream.add(index)
        return self.stream.fresh()

    def flush(self) -> str:
        """End the text, as `Detokenizer` has it."""
        return self.stream.fresh(final=True)


class StopText:
    """Stop texts in a text that arrives in pieces: the end is held back while it may be the beginning of a stop.

    `feed` and `finish` return what may be shown; together that is the text up to the first stop, however it was cut
    into pieces. The first is the one that is complete first, and of those that end together the longest. Each character
    costs the same however long the stops are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """stops: none is empty."""
        assert all(stops), "an empty text is in every text"
        self._matches = [_Match(stop) for stop in sorted(stops, key=len, reverse=True)]
        self._held = ""
        self.found: str | None = None

    def feed(self, piece: str) -> str:
        """More text; afterwards `found` is the stop that ended it, if one did, and further text is ignored."""
        if self.found is not None:
            return ""
        text, before = self._held + piece, len(self._held)
        for end, character in enumerate(piece, before + 1):
            # All of them look at the character before the first one that is complete, the longest, ends the text.
            for match in [match for match in self._matches if match.next(character)]:
                self._held, self.found = "", match.stop
                return text[: end - len(match.stop)]
        keep = max((match.size for match in self._matches), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The text that was held back, where no stop came."""
        held, self._held = self._held, ""
        return held


class _Match:
    """Length of the beginning of one stop that the text ends in: Knuth, Morris and Pratt 1977, SIAM J. Comput. 6(2)."""

    def __init__(self, stop: str) -> None:
        self.stop, self.size = stop, 0
        self._shorter = [0]  # of each beginning of the stop: the longest shorter one that it ends in
        for character in stop[1:]:
            size = self._shorter[-1]
            while size and stop[size] != character:
                size = self._shorter[size - 1]
            self._shorter.append(size + (stop[size] == character))

    def next(self, character: str) -> bool:
        """Add a character; true when the stop is complete with it, after which it is not called again."""
        size = self.size
        while size and self.stop[size] != character:
            size = self._shorter[size - 1]
        self.size = size + (self.stop[size] == character)
        return self.size == len(self.stop)
