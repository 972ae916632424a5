"""Answers that are being written for each open page, so that they can be stopped."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from .call import Call


class Sessions:
    """The calls of all open pages, by the page's session and the tab that made them; one call a tab at a time."""

    def __init__(self) -> None:
        self._calls: defaultdict[str, dict[str, Call]] = defaultdict(dict)

    @contextmanager
    def holding(self, session: str, tab: str, call: Call) -> Iterator[None]:
        """Make a call known while it runs. One that still runs in the same tab is stopped and replaced."""
        self.stop(session, tab, replaced=True)
        self._calls[session][tab] = call
        try:
            yield
        finally:
            calls = self._calls.get(session, {})
            if calls.get(tab) is call:
                del calls[tab]
            if not calls:
                self._calls.pop(session, None)

    def stop(self, session: str, tab: str, *, replaced: bool = False) -> None:
        """Stop the call of one tab, if there is one."""
        if call := self._calls.get(session, {}).get(tab):
            call.stop(replaced=replaced)

    def closed(self, session: str) -> None:
        """The page is gone: nobody reads what its calls bring."""
        for call in self._calls.pop(session, {}).values():
            call.stop(replaced=True)
