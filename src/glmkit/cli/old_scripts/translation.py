"""The outcome of a translation: native commands in order, and sentences on what is different."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .command_line import Given, flags_of

_SECTIONS = (
    "model", "tuning", "adapter", "data", "training", "optimizer", "schedule", "checkpoint", "evaluation", "output",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """The machine that the command will run on.

    accelerators: devices that PyTorch sees. float16: it is computed there, not stored alone. ranks: processes that a
    launcher has started.
    """

    accelerators: int = 0
    float16: bool = False
    ranks: int | None = None


@dataclass(frozen=True)
class Step:
    """One native command (`glm` in front), or where no verb does it a function of ours and a sentence on it.

    aside: a directory from which an earlier run or model is moved out of the way first.
    """

    words: tuple[str, ...]
    action: Callable[[], None] | None = None
    aside: Path | None = None

    @property
    def shown(self) -> str:
        """The command as a shell takes it."""
        return f"glm {shlex.join(self.words)}" if self.action is None else self.words[0]


@dataclass
class Translation:
    """Steps, and sentences about them."""

    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Add a sentence once."""
        if sentence not in self.notes:
            self.notes.append(sentence)


@dataclass
class Options:
    """Options of one native command, in the order in which they were set; the last value of a name wins."""

    values: dict[str, str | None] = field(default_factory=dict)

    def set(self, name: str, value: object) -> None:
        """Set an option; None leaves the native default."""
        if value is not None:
            self.values[name] = text_of(value)

    def turn_on(self, name: str) -> None:
        """Set an option that takes no value."""
        self.values[name] = None

    def words(self) -> list[str]:
        """The options as words of a command line."""
        words: list[str] = []
        for name, value in self.values.items():
            words += [f"--{name}"] if value is None else [f"--{name}", value]
        return words

    def by_section(self) -> None:
        """Put dotted keys in the order of a recipe's sections, other options behind them."""
        place = {section: number for number, section in enumerate(_SECTIONS)}
        named = sorted(self.values, key=lambda name: place.get(name.partition(".")[0], len(place)))
        self.values = {name: self.values[name] for name in named}


def text_of(value: object) -> str:
    """A value as the native command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(text_of, value))}]"
    return repr(value) if isinstance(value, float) else str(value)


def plain_options(given: Given, verb: str) -> Options:
    """The options of a native verb that take the value of one flag each, then the constants of the script."""
    options = Options()
    for item in flags_of(given.script):
        value = given.values[item.name]
        if item.rule or value is None:
            continue
        said = text_of(value)
        for option in item.options(verb):
            options.set(option, item.values.get(said, said))
    for name, value in given.script.facts.items():
        whose, option = name.split(" ")
        if whose == verb:
            options.set(option, value)
    return options


def say_unused(given: Given, translation: Translation) -> None:
    """Name every given flag that became nothing, with what happens instead, and the words that were dropped."""
    for item in given.script.flags:
        value = given.values[item.name]
        if item.name in given.named and not item.became and item.about and not item.rule and value != item.default:
            shown = "" if value is True else f" {value}"
            translation.note(f"--{item.name}{shown}: {item.about}")
    if given.launch.dropped:
        words = ", ".join(given.launch.dropped)
        translation.note(f"{words}: no effect here; the processes are started on this machine by --nproc")
    for sentence in given.script.notes:
        translation.note(sentence)
