"""Rows of the tables: an original script, its flags with their defaults there, and what each became."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# bool: a dataclass field of HfArgumentParser or PdArgumentParser: `--x`, `--x True`, `--x False`, `--no_x`.
# switch: argparse's store_true. truthy: argparse's type=bool, which took every text for true. texts: one or more words.
Kind = Literal["text", "int", "float", "bool", "switch", "truthy", "texts"]
Plan = Literal["tune", "predict", "export", "cover", "tokenize", "chat", "page", "api"]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag of an original script.

    became: "VERB OPTION" for each native command that takes the value, "VERB OPTION VALUE" for a fixed one, "VERB" for
    a command that the flag asks for. about: what a value does here where that is not plain, or what happens instead of
    it; told when the flag is given and `became` is empty. rule: `translate` decides, looking at other flags too.
    values: the accepted words -> ours; every other word is refused. needed: the original refuses to start without it.
    """

    name: str
    kind: Kind
    default: object = None
    became: tuple[str, ...] = ()
    about: str = ""
    rule: bool = False
    values: Mapping[str, str] = field(default_factory=dict)
    needed: bool = False

    def options(self, verb: str) -> list[str]:
        """Options of a native verb that take the value of this flag."""
        parts = (item.split(" ") for item in self.became)
        return [words[1] for words in parts if words[0] == verb and len(words) == 2]


@dataclass(frozen=True, kw_only=True)
class Script:
    """An original script. homes: folders it lies in, which tell scripts of one name apart.

    facts: constants of its source that no flag sets, by their native options ("VERB OPTION" -> value). json: it takes
    a single JSON file of flags, too. notes: what a command of it should know, always told. always_trains: without
    --do_train. resumes: goes on with a run that it finds in its output. scores: sets of scores of its answers.
    loss_alone: its evaluation answers no rows.
    """

    name: str
    publisher: str
    homes: tuple[str, ...]
    plan: Plan
    flags: tuple[Flag, ...]
    about: str
    facts: Mapping[str, str] = field(default_factory=dict)
    json: bool = False
    always_trains: bool = False
    resumes: bool = False
    scores: str | None = None
    loss_alone: bool = False
    notes: tuple[str, ...] = ()

    def flag(self, name: str) -> Flag | None:
        """The flag of this name; None where the script has none."""
        return next((flag for flag in self.flags if flag.name == name), None)

    @property
    def title(self) -> str:
        """The name that tells it from its namesakes, for messages: `ptuning/main.py`."""
        return f"{self.homes[0]}/{self.name}.py"


def flag(name: str, kind: Kind, default: object = None, became: str = "", about: str = "", **more: object) -> Flag:
    """A row of a table; `became` lists its parts with semicolons between them."""
    parts = tuple(part.strip() for part in became.split(";") if part.strip())
    return Flag(name=name, kind=kind, default=default, became=parts, about=about, **more)  # type: ignore[arg-type]
