"""Replies cleaned while they are written, at a cost for each token that does not grow with the reply."""

from collections.abc import Sequence
from copy import copy
from typing import Protocol

from .incremental import TextFilter


class ReplyCleaner(Protocol):
    """Raw text of one reply in, clean text out; at any time what `ChatTemplate` gives for all of it."""

    def feed(self, text: str) -> None:
        """Add raw text."""

    def shown(self) -> str:
        """`ChatTemplate.shown` of the text so far."""

    def fresh(self, *, final: bool = False) -> str:
        """The part of `ChatTemplate.settled` that was not given yet; after `final` there is no more text."""


class Gathered:
    """Text that grows piece by piece and is put together when it is asked for."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def add(self, piece: str) -> None:
        """Add a piece."""
        if piece:
            self._pieces.append(piece)

    def text(self) -> str:
        """The whole text."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def take(self) -> str:
        """Give the whole text away."""
        text, self._pieces = self.text(), []
        return text


class Stripped:
    """Text behind filters, without white space around it. Filters have little state, which can be copied."""

    def __init__(self, filters: Sequence[TextFilter]) -> None:
        self._filters = filters
        self._begun = False
        self._space = Gathered()  # at the end of what came out, for as long as nothing follows it

    def feed(self, text: str) -> str:
        """The output that this text makes certain."""
        for each in self._filters:
            text = each.feed(text)
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        kept = text.rstrip()
        certain = self._space.take() + kept if kept else ""
        self._space.add(text[len(kept) :])
        return certain

    def rest(self, text: str = "") -> str:
        """The output that would still come if only this text followed. Nothing is changed."""
        for each in map(copy, self._filters):
            text = each.feed(text) + each.finish()
        kept = text.rstrip() if self._begun else text.strip()
        return self._space.text() + kept if kept else ""


class StrippedReply:
    """A reply that is one text behind filters."""

    def __init__(self, filters: Sequence[TextFilter]) -> None:
        self._clean, self._certain, self._fresh = Stripped(filters), Gathered(), Gathered()

    def feed(self, text: str) -> None:
        self._add(self._clean.feed(text))

    def shown(self) -> str:
        return self._certain.text() + self._clean.rest()

    def fresh(self, *, final: bool = False) -> str:
        if final:
            self._add(self._clean.rest())
            self._clean = Stripped(())
        return self._fresh.take()

    def _add(self, piece: str) -> None:
        self._certain.add(piece)
        self._fresh.add(piece)
