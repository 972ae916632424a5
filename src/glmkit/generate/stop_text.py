"""Stop texts in a text that arrives in pieces: nothing of a stop is ever let out, and nothing else is lost."""

from collections.abc import Sequence


class StopText:
    """Holds back the end of a text while it may be the beginning of a stop.

    `feed` and `finish` return what may be shown; together that is the text up to the first stop, however it was cut
    into pieces. The first is the one that is complete first, and of those that end together the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """stops: none is empty."""
        assert all(stops), "an empty text is in every text"
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=1)
        self._held = ""
        self.found: str | None = None

    def feed(self, piece: str) -> str:
        """More text; afterwards `found` is the stop that ended it, if one did, and further text is ignored."""
        if self.found is not None:
            return ""
        text = self._held + piece
        ends = [(at + len(stop), -len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            end, _, self.found = min(ends)
            self._held = ""
            return text[: end - len(self.found)]
        keep = next((n for n in range(min(self._longest - 1, len(text)), 0, -1) if self._may_begin(text[-n:])), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back of a text that ended without a stop."""
        held, self._held = self._held, ""
        return held

    def _may_begin(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self._stops)
