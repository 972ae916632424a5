"""Errors that a user can cause, warnings, and the words that their messages share.

Each message is one line: the value, the limit, the next step. It is written for people. What a program wants to know
travels beside it as `param` and `code`; nothing may search the sentence.
"""

import difflib
from collections.abc import Iterable


class GLMKitError(Exception):
    """Base of all errors meant for users; the command line prints it as one line and exits with 2.

    param: the argument or field that is at fault, as the caller spells it. code: one word for the kind of mistake,
    from the vocabulary of the public interface that shows it (docs/serving.md lists those of the API).
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class ConfigError(GLMKitError):
    """A configuration or recipe value that cannot be used."""


class CheckpointError(GLMKitError):
    """A model directory or checkpoint that cannot be read or written as asked."""


class TokenizerError(GLMKitError):
    """A tokenizer file or text that cannot be handled."""


class DataError(GLMKitError):
    """Input data that is unreadable, malformed or empty."""


class TrainingError(GLMKitError):
    """A run that must stop: NaN loss, a batch without targets, a resume that does not match."""


class RequestError(GLMKitError):
    """A call of the public interface with arguments that do not fit."""


class TrimmedHistoryWarning(UserWarning):
    """Turns of a conversation that the model did not read, because the whole does not fit its positions."""


class UntestedDeviceWarning(UserWarning):
    """A device that PyTorch offers and on which glmkit has never been run."""


def closest(word: object, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known word most like `word`; None when no likeness (difflib's ratio, 0 to 1) reaches `cutoff`."""
    found = difflib.get_close_matches(str(word), list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def did_you_mean(word: object, known: Iterable[str], *, otherwise: str | None = None, cutoff: float = 0.6) -> str:
    """`did you mean 'x'?` for the closest known word, else `otherwise`; without that, the list of known words."""
    known = list(known)
    near = closest(word, known, cutoff=cutoff)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"known are {', '.join(known)}" if otherwise is None else otherwise


def size_text(num_bytes: int) -> str:
    """A number of bytes for people: 12345678 -> '11.8 MiB'."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"
