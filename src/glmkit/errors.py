"""Errors that a user can cause, warnings, and the words that their messages share.

Each message is one line: the value, the limit, the next step. It is written for people. What a program wants to know
travels beside it as `step`, `param` and `code`; nothing may search the sentence.
"""

import difflib
import itertools
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

MOST_WORDS = 2000  # characters of a message, and of its step
_LONGEST_NAME = 160
_MOST_COMPARED = 4096  # known words that a wrong one is compared with
# What a terminal obeys: it moves the cursor, colours, or turns the direction of the text. Line breaks and tabs stay.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text on one line, with everything escaped that a terminal would obey or a JSON reader refuse.

    Names and values in messages come from files that anybody may have written.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def terminal_text(text: str) -> str:
    """A text of several lines with its controls escaped, for a terminal."""
    return _CONTROLS.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shorten(text: str, limit: int = 80) -> str:
    """One printable line of at most `limit` characters."""
    text = printable(text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def message_text(text: str, limit: int = MOST_WORDS) -> str:
    """One printable line; a long one keeps its beginning, which names the place, and its end, the trouble."""
    for _ in range(2):  # escapes may make it too long again
        if len(text) > limit:
            text = f"{text[: limit * 2 // 3]} ... {text[-(limit // 3 - 5) :]}"
        text = printable(text)
    return text


class GLMKitError(Exception):
    """Base of all errors meant for users; the command line prints it as one line and exits with 2.

    The message is made printable and cut here, whatever stood in the files that it quotes.

    what: the trouble. step: the next step, which stands behind it in the message. param: the argument or field that is
    at fault, as the caller spells it. code: one word for the kind of mistake, from the vocabulary of the public
    interface that shows it (docs/serving.md lists those of the API). path: the file that cannot be read, see `about`.
    """

    path: str | None = None

    def __init__(
        self, what: str, *, step: str | None = None, param: str | None = None, code: str | None = None
    ) -> None:
        what, step = message_text(what), step and message_text(step)
        super().__init__(f"{what}; {step}" if step else what)
        self.what, self.step, self.param, self.code = what, step, param, code

    def behind(self, where: str, kind: "type[GLMKitError] | None" = None) -> "GLMKitError":
        """The same error with `where` in front of its message, as another class if one is given."""
        error = (kind or type(self))(f"{where}{self.what}", step=self.step, param=self.param, code=self.code)
        error.path = self.path
        return error


class ConfigError(GLMKitError):
    """A configuration or recipe value that cannot be used."""


class CheckpointError(GLMKitError):
    """A model directory or checkpoint that cannot be read or written as asked."""


class HubError(CheckpointError):
    """A model of a hub that cannot be had: no answer, no such name, no permission, a download that broke off."""


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


class GuessWarning(UserWarning):
    """A guess about a checkpoint that changes what it computes or how it is asked, with the way to say it for sure."""


class UnreadWarning(UserWarning):
    """Contents of a model directory that other programs read and glmkit does not."""


class MismatchWarning(UserWarning):
    """An adapter on another base, in another precision or with other prompts than it was trained with."""


class DamageWarning(UserWarning):
    """A damaged checkpoint that was passed over for an earlier one."""


class UntestedDeviceWarning(UserWarning):
    """A device that PyTorch offers and on which glmkit has never been run."""


@contextmanager
def warnings_as_lines(called: str) -> Iterator[None]:
    """Show warnings of glmkit's own inside the block as one line each behind `called`, as errors are, and all of them.

    Of the processes of one run the first alone shows them: the others do the same with the same files.
    """
    silent = os.environ.get("RANK", "0") != "0"
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if category.__module__.partition(".")[0] != "glmkit":
                others(message, category, filename, lineno, file, line)
            elif not silent:
                print(printable(f"{called}: warning: {message}"), file=sys.stderr, flush=True)

        warnings.showwarning = show
        for kind in (DamageWarning, GuessWarning, MismatchWarning, UnreadWarning):
            warnings.simplefilter("always", kind)
        yield


@contextmanager
def about(path: str | os.PathLike[str]) -> Iterator[None]:
    """Set `path` on every GLMKitError that leaves the block and has none."""
    try:
        yield
    except GLMKitError as error:
        error.path = error.path or os.fspath(path)
        raise


def closest(word: object, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known word most like `word`; None when no likeness (difflib's ratio, 0 to 1) reaches `cutoff`."""
    words = [name for name in itertools.islice(known, _MOST_COMPARED) if len(name) <= _LONGEST_NAME]
    found = difflib.get_close_matches(str(word)[:_LONGEST_NAME], words, n=1, cutoff=cutoff)
    return found[0] if found else None


def did_you_mean(word: object, known: Iterable[str], *, otherwise: str | None = None, cutoff: float = 0.6) -> str:
    """`did you mean 'x'?` for the closest known word, else `otherwise`; without that, the list of known words."""
    known = [other for other in known if other != word]  # known elsewhere: no help
    near = closest(word, known, cutoff=cutoff)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"known are {', '.join(known)}" if otherwise is None else otherwise


def names_text(names: Iterable[str], limit: int = 5) -> str:
    """'a, b, c and 4 more': names in order, the first `limit` of them, none longer than 160 characters."""
    listed = list(names)
    shown = ", ".join(shorten(name, _LONGEST_NAME) for name in listed[:limit])
    return shown if len(listed) <= limit else f"{shown} and {len(listed) - limit} more"


def size_text(num_bytes: int) -> str:
    """A number of bytes for people: 12345678 -> '11.8 MiB'."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"
