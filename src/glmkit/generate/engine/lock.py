"""A lock that the engine's steps cannot keep to themselves."""

import threading
from types import TracebackType


class FairLock:
    """Reentrant. Whoever waits gets it before the thread that has just given it back can take it again.

    A loop that steps would otherwise win every time: it asks again within a microsecond, a waiting thread needs fifty
    to wake up.
    """

    def __init__(self) -> None:
        self._door = threading.Lock()  # held while waiting for the lock itself
        self._lock = threading.Lock()
        self._entering = self._owner = self._depth = 0

    @property
    def mine(self) -> bool:
        """Whether this thread has it already, or is just about to."""
        return threading.get_ident() in (self._owner, self._entering)

    def __enter__(self) -> "FairLock":
        me = threading.get_ident()
        if self._owner != me:
            with self._door:
                self._entering = me
                try:
                    self._lock.acquire()
                    self._owner = me
                except BaseException:  # interrupted: behind the door nobody else can have taken it
                    if not self._owner and self._lock.locked():
                        self._lock.release()
                    raise
                finally:
                    self._entering = 0
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = 0
            self._lock.release()
