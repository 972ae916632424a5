"""The parser of every verb: argparse, with a wrong option as one line that names the closest spelling."""

import argparse
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from glmkit.errors import RequestError, closest

_LARGEST = 2**63 - 1  # what a tensor, a file and the libraries below can count
_SHOWN = 40  # characters of a value that is refused


def _whole_number(text: str) -> int:
    """Read a value of an option with `type=int`. Raises ArgumentTypeError."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {_shortened(text)!r}") from None
    if not -_LARGEST <= value <= _LARGEST:
        raise argparse.ArgumentTypeError(f"{_shortened(text)} is beyond {_LARGEST}")
    return value


def _finite_number(text: str) -> float:
    """Read a value of an option with `type=float`. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid float value: {_shortened(text)!r}") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{_shortened(text)} is no finite number")
    return value


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class Help(argparse.HelpFormatter):
    """The default beside every option whose own text does not say one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        nothing = action.default in (None, [], argparse.SUPPRESS) or action.default is False
        return text if nothing or "default" in text else f"{text} (default: %(default)s)"


def add_hub_argument(
    add: Callable[..., argparse.Action], what: str = "hub of names that are no directory here"
) -> None:
    """Add --hub, as every verb has it that takes the name of a model. add: `add_argument` of a parser or a group."""
    add("--hub", metavar="HUB", help=f"{what}: huggingface or modelscope (default: GLMKIT_HUB, else huggingface)")


class OneLineParser(argparse.ArgumentParser):
    """Parse --a-b and --a_b alike; raises RequestError, one line, where argparse would print its usage and exit.

    foreign: names of options that other programs have -> what takes their place. lists: options whose one value is a
    list with commas.
    """

    foreign: Mapping[str, str] = MappingProxyType({})
    lists: frozenset[str] = frozenset()

    def __init__(self, prog: str, description: str | None = None) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, formatter_class=Help)
        self.register("type", int, _whole_number)
        self.register("type", float, _finite_number)

    def parse_args(  # type: ignore[override]  # argparse's overloads are for a namespace of the caller's own class
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """The values of `args`. Raises RequestError."""
        words = self._options_first([self._spelling(word) for word in args or []])
        values, unknown = self.parse_known_args(words, namespace)
        if unknown:
            options = list(dict.fromkeys(word.partition("=")[0] for word in unknown if word.startswith("--")))
            advice = {name: self.foreign.get(name.removeprefix("--").replace("-", "_")) for name in options}
            if len(options) == 1 and advice[options[0]]:
                raise RequestError(f"{options[0]} is no option of {self.prog}", step=advice[options[0]])
            hints = [f"{name}: {words}" for name, words in advice.items() if words]
            if apart := self._apart([self._spelling(word) for word in args or []], unknown):
                hints.append(apart)
            near = [closest(name, self._known()) for name in options if not advice[name]]
            if meant := [name for name in near if name]:
                hints.append(f"did you mean {', '.join(meant)}?")
            shown = " ".join(unknown) if len(options) < 2 else ", ".join(options)
            self._refuse(f"unrecognized arguments: {shown}", "; ".join(hints) or None)
        return values

    def _apart(self, words: Sequence[str], unknown: Sequence[str]) -> str | None:
        """Advice on a list that was written with spaces, where one of the unknown words stands behind its first."""
        option, values = "", list[str]()
        for word in (*words, "--"):
            if not word.startswith("-"):
                values.append(word)
                continue
            if option in self.lists and len(values) > 1 and not set(unknown).isdisjoint(values[1:]):
                return f"several values of {option} are one word with commas: {option} {','.join(values)}"
            option, values = word, []
        return None

    def error(self, message: str) -> NoReturn:
        """Turn a complaint of argparse into one line."""
        self._refuse(message)

    def _refuse(self, message: str, hint: str | None = None) -> NoReturn:
        raise RequestError(f"{' '.join(message.split())}; {hint or f'see {self.prog} --help'}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """The same refusal of a wrong choice under every version of Python, with the closest spelling."""
        if action.choices is not None and value not in action.choices:
            close = closest(value, map(str, action.choices))
            hint = f", did you mean {close!r}?" if close else ""
            known = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice: {value!r} (choose from {known}){hint}")

    def _options_first(self, words: list[str]) -> list[str]:
        """Options with their values, `--`, the rest: so a text may follow options or begin with a dash."""
        arity = {name: action.nargs for action in self._actions for name in action.option_strings}
        options: list[str] = []
        others: list[str] = []
        rest = deque(words)
        while rest:
            word = rest.popleft()
            if word == "--":
                others += rest
                break
            if not word.startswith("--") and word not in arity:
                others.append(word)
            else:
                options.append(word)
                wanted = arity.get(word, 0)
                if (wanted is None and rest) or (wanted == "?" and rest and rest[0].lower() in ("true", "false")):
                    options.append(rest.popleft())
                while wanted == "+" and rest and not rest[0].startswith("-"):
                    options.append(rest.popleft())
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
