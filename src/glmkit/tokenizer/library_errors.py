"""Errors of the tokenizer libraries as errors of ours; a panic of theirs too, which Python does not count as one."""

from collections.abc import Iterator
from contextlib import contextmanager

from glmkit.errors import GLMKitError, TokenizerError

_PANIC = "PanicException"  # of pyo3, derived from BaseException; no module exports it


@contextmanager
def library_errors(what: str, step: str | None = None) -> Iterator[None]:
    """Raise TokenizerError, `what` and the library's reason, for whatever a library raises in the block."""
    try:
        yield
    except (GLMKitError, MemoryError):
        raise
    except BaseException as error:  # bare Exception, and panics of a regular expression or of memory
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TokenizerError(f"{what} ({reason})", step=step) from error
