"""The parser of every verb: jsonargparse, with wrong options as one line that names the closest spelling."""

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from glmkit.errors import RequestError, closest


class Help(DefaultHelpFormatter):
    """Type and default beside every option whose own text does not say its default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        return text if "(default: " in text else super()._get_help_string(action)


class OneLineParser(ArgumentParser):
    """Raises RequestError, one line, where argparse would print its usage and exit; reads --a-b and --a_b alike."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": Help, **options})

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:  # type: ignore[override]
        """The values of `args`. Raises RequestError."""
        return super().parse_args(self._options_first([self._spelling(word) for word in args or []]), *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Turn a parser's complaint into one line."""
        line = " ".join(str(message).split())
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", line, re.IGNORECASE)
        close = closest(unknown[1], self._known()) if unknown else None
        hint = f"did you mean {close}?" if close else f"see {self.prog} --help"
        raise RequestError(f"{line}; {hint}") from ex

    def _options_first(self, words: list[str]) -> list[str]:
        """Options with their values, `--`, the rest: so a text may follow options or begin with a dash."""
        arity = {name: action.nargs for action in self._actions for name in action.option_strings}
        options: list[str] = []
        others: list[str] = []
        rest = iter(words)
        for word in rest:
            if word == "--":
                others += rest
            elif not word.startswith("--") and word not in arity:
                others.append(word)
            else:
                options.append(word)
                if word in arity and arity[word] is None:
                    options += [value for value in [next(rest, None)] if value is not None]
        return [*options, "--", *others] if others else options

    def _known(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]

    def _spelling(self, word: str) -> str:
        """An option as it was declared, where only dashes and underscores differ."""
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            return word
        same = [option for option in self._known() if option.replace("_", "-") == name.replace("_", "-")]
        return f"{name if name in same or not same else same[0]}{equals}{value}"
