"""Reading of an original command: the words before the script, which script it is, its flags by its table."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from glmkit.errors import RequestError, closest, shorten
from glmkit.small_files import parse_small_json, read_small

from . import chatglm_tuning, demos, paddlenlp, ptuning
from .script_table import Flag, Kind, Plan, Script, flag

SCRIPTS: tuple[Script, ...] = (*paddlenlp.SCRIPTS, *ptuning.SCRIPTS, *chatglm_tuning.SCRIPTS, *demos.SCRIPTS)

# Flags that every script has here and had not there.
_OWN: tuple[Flag, ...] = (flag("dry_run", "switch", False, "", "print the native commands and stop"),)
_OWN_OF_PLAN: Mapping[Plan, tuple[Flag, ...]] = {
    "tune": (
        flag("data_dir", "text", None, "finetune data.data_dir; generate data_dir", "not there; folder of published "
             "sets, else that of GLMKIT_DATA"),
    ),
    "predict": (
        flag("input", "text", None, "generate input", "not there; rows to answer instead of what is built in",
             rule=True),
        flag("output", "text", None, "generate output", "not there; file of the answers", rule=True),
    ),
}  # fmt: skip
# Scripts of other programs under a name of the tables.
_STRANGERS = {
    "finetune": "the finetune.py of ChatGLM3 and GLM-4 (DATA_DIR MODEL_DIR CONFIG) is not in the tables: "
    "glm finetune lora --model MODEL_DIR --data DATA_DIR/train.json",
}
_PROGRAMS = re.compile(r"(.*/)?(python[\d.]*|nohup|time|env)")
_LAUNCHERS = ("torchrun", "deepspeed", "accelerate", "streamlit")
_MODULES = ("paddle.distributed.launch", "torch.distributed.launch", "torch.distributed.run")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_COUNTS = ("nproc_per_node", "num_gpus", "num_processes")  # options of launchers that say how many
_LISTS = ("gpus", "devices", "include")  # that list the devices
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_TRUE, _FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


@dataclass(frozen=True)
class Launch:
    """The words before the script: processes asked for (None: not said), variables to set, what has no effect."""

    processes: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given:
    """A command that was read. values: by the names of all flags, defaults included. named: the flags that it has.

    native: `--section.key VALUE` words for glm finetune, which stand last and win.
    """

    script: Script
    values: Mapping[str, object]
    named: frozenset[str]
    launch: Launch = Launch()
    native: tuple[str, ...] = ()

    def text(self, name: str) -> str | None:
        """The value of a flag that is text or absent."""
        value = self.values.get(name)
        return None if value is None else str(value)

    def number(self, name: str) -> float | None:
        """The value of a flag that is a number or absent."""
        value = self.values.get(name)
        return value if isinstance(value, int | float) else None

    def whole(self, name: str) -> int | None:
        """The value of a flag that is a whole number or absent."""
        value = self.values.get(name)
        return value if isinstance(value, int) else None


def flags_of(script: Script) -> tuple[Flag, ...]:
    """The flags that a script takes here: its own, then ours where it has none of the name."""
    ours = (*_OWN, *_OWN_OF_PLAN.get(script.plan, ()))
    return (*script.flags, *(own for own in ours if script.flag(own.name) is None))


def read_command(words: Sequence[str], *, needed: bool = True) -> Given:
    """Raise RequestError for an unknown script or flag (with the closest name), and for a value that does not fit.

    needed: flags that the original asks for must be there.
    """
    launch, name, arguments = _split(words)
    script = _choose(name, arguments)
    values, named, native = _read_flags(script, arguments, needed)
    return Given(script, values, named, launch, native)


def _split(words: Sequence[str]) -> tuple[Launch, str, list[str]]:
    """The launch, the script's word, its arguments."""
    rest = list(words)
    environment: dict[str, str] = {}
    options: list[str] = []
    while rest:
        word = rest.pop(0)
        if _is_script(word):
            return _launch(options, environment), word, rest
        if assignment := _ASSIGNMENT.fullmatch(word):
            environment[assignment[1]] = assignment[2]
        elif word.endswith(".sh"):
            raise RequestError(
                f"{word} is a shell script",
                step=f"write `glm script` in place of `python3` inside it, then: bash {word}",
            )
        elif not (_PROGRAMS.fullmatch(word) or word in _LAUNCHERS):
            options.append(word)
    if len(options) == len(words) == 1 or not options:
        asked = shorten(options[0]) if options else ""
        near = closest(PurePath(asked).stem, [script.name for script in SCRIPTS])
        step = f"did you mean {near}.py?" if near else "glm script --help lists the scripts"
        raise RequestError(f"{asked!r} is none of the original scripts" if asked else "no script was named", step=step)
    near = next((w for w in map(_closest_script, options) if w), None)
    step = f"did you mean {near}.py?" if near else "glm script --help lists the scripts"
    raise RequestError(f"none of the original scripts is named in {shorten(' '.join(words))}", step=step)


def _closest_script(word: str) -> str | None:
    return closest(PurePath(word).stem, [script.name for script in SCRIPTS], cutoff=0.75)


def _is_script(word: str) -> bool:
    path = PurePath(word)
    return path.suffix in (".py", "") and path.stem in {script.name for script in SCRIPTS} and not word.startswith("-")


def _launch(options: Sequence[str], environment: Mapping[str, str]) -> Launch:
    """The processes that a launcher's options ask for; the others are named as dropped."""
    processes, dropped, rest = None, [], list(options)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if word == "-m" and rest:
            rest.pop(0)
            continue
        if name in (*_COUNTS, *_LISTS):
            value = value if equals else rest.pop(0) if rest else ""
            processes = _count(word, name, value)
        elif word.startswith("-") and not equals and rest and not rest[0].startswith("-"):
            dropped.append(f"{word} {rest.pop(0)}")
        elif word.startswith("-"):
            dropped.append(word)
    return Launch(processes, environment, tuple(dropped))


def _count(word: str, name: str, value: str) -> int | None:
    if name in _COUNTS:
        if value in ("auto", "gpu", "cpu"):
            return None
        if not value.isdigit() or int(value) < 1:
            raise RequestError(f"{word} is {value!r}; give a number of processes", param=name)
        return int(value)
    devices = [item for part in value.split("@") for item in part.rpartition(":")[2].split(",") if item.strip()]
    return len(devices) or None


def _choose(word: str, arguments: Sequence[str]) -> Script:
    """The script of this name; of several the one whose home is in the path, or that alone has all the flags."""
    path = PurePath(word)
    candidates = [script for script in SCRIPTS if script.name == path.stem]
    folders = {part.lower() for part in path.parts[:-1]}
    at_home = [script for script in candidates if folders & {home.lower() for home in script.homes}]
    if len(at_home) == 1:
        return at_home[0]
    names = {_flag_name(item) for item in arguments if item.startswith("--") and "." not in item.partition("=")[0]}
    fitting = [script for script in candidates if _fits(script, names)]
    if len(candidates) > 1 and len(fitting) != 1:
        listed = ", ".join(f"{script.title} ({script.about})" for script in candidates)
        raise RequestError(f"{path.name} is the name of {len(candidates)} scripts: {listed}", step="name it so")
    return candidates[0] if len(candidates) == 1 else fitting[0]


def _fits(script: Script, names: Collection[str]) -> bool:
    """True for a script that has these flags and needs no others."""
    known = {item.name for item in flags_of(script)}
    return all(name in known for name in names) and all(item.name in names for item in script.flags if item.needed)


def _flag_name(word: str) -> str:
    return word[2:].partition("=")[0].replace("-", "_")


def _read_flags(
    script: Script, arguments: Sequence[str], needed: bool
) -> tuple[dict[str, object], frozenset[str], tuple[str, ...]]:
    flags = {item.name: item for item in flags_of(script)}
    values: dict[str, object] = {item.name: item.default for item in flags.values()}
    found: dict[str, object] = {}
    native: list[str] = []
    others = [word for word in arguments if word not in ("--dry-run", "--dry_run")]
    if len(others) == 1 and others[0].endswith(".json") and script.json:
        found = _from_json(script, flags, others[0])
        arguments = [word for word in arguments if word != others[0]]
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            stranger = _STRANGERS.get(script.name)
            raise RequestError(
                f"{shorten(word)!r} is not read by {script.title}, whose flags begin with --", step=stranger
            )
        name, (_, equals, value) = _flag_name(word), word.partition("=")
        if "." in name and name not in flags:
            if script.plan != "tune":
                raise RequestError(f"--{name} is no flag of {script.title}", step="keys go with scripts that train")
            native += [f"--{name}", value if equals else _next(rest, word)]
            continue
        negated = flags.get(name.removeprefix("no_"))
        if name not in flags and name.startswith("no_") and negated and negated.kind == "bool" and not equals:
            found[negated.name] = False
            continue
        item = flags.get(name)
        if item is None:
            near = closest(f"--{name}", [f"--{other}" for other in flags])
            step = f"did you mean {near}?" if near else f"glm script {script.name}.py --help lists its flags"
            raise RequestError(f"--{name} is no flag of {script.title}", step=step, param=name)
        found[name] = _value(item, value if equals else None, rest)
    for name, item in flags.items():
        if needed and item.needed and name not in found:
            raise RequestError(f"{script.title} needs --{name}", param=name)
    return {**values, **found}, frozenset(found), tuple(native)


def _next(rest: list[str], word: str) -> str:
    if not rest:
        raise RequestError(f"{word} needs a value", param=word.lstrip("-"))
    return rest.pop(0)


def _value(item: Flag, given: str | None, rest: list[str]) -> object:
    """The value of a flag; what belongs to it is taken from `rest`."""
    if item.kind == "switch":
        return True if given is None else _converted(item, given)
    if item.kind == "texts":
        words = [] if given is None else [given]
        while given is None and rest and not rest[0].startswith("--"):
            words.append(rest.pop(0))
        return words
    if given is None:
        follows = bool(rest) and (not rest[0].startswith("-") or bool(_NUMBER.fullmatch(rest[0])))
        if not follows and item.kind == "bool":
            return _checked(item, True)
        if not follows and item.kind != "text":
            raise RequestError(f"--{item.name} needs a value", param=item.name)
        given = _next(rest, f"--{item.name}")
        if given.startswith("--"):
            raise RequestError(f"--{item.name} needs a value, and {shorten(given)} follows", param=item.name)
    return _converted(item, given)


def _converted(item: Flag, text: str) -> object:
    kinds: dict[Kind, str] = {"int": "a whole number", "float": "a number", "bool": "True or False"}
    what = kinds.get(item.kind, "True or False")
    try:
        if item.kind == "int":
            return _checked(item, int(text))
        if item.kind == "float":
            return _checked(item, float(text))
        if item.kind in ("bool", "switch", "truthy"):
            if text.lower() not in (*_TRUE, *_FALSE):
                raise ValueError
            return _checked(item, text.lower() in _TRUE)
    except ValueError:
        raise RequestError(f"--{item.name} is {shorten(text)!r}", step=f"give {what}", param=item.name) from None
    return _checked(item, text)


def _checked(item: Flag, value: object) -> object:
    """The value if it can act here. Raises RequestError."""
    said = str(value).lower() if isinstance(value, bool) else str(value)
    if item.values and said not in item.values:
        known = ", ".join(name for name in item.values if name)
        step = item.about.rpartition("refused: ")[2] if not known or item.kind == "bool" else f"known here are {known}"
        raise RequestError(f"--{item.name} {shorten(str(value))} has no counterpart", step=step, param=item.name)
    return value


def _from_json(script: Script, flags: Mapping[str, Flag], path: str) -> dict[str, object]:
    """The flags of an argument file, as HfArgumentParser.parse_json_file reads it."""
    document = parse_small_json(read_small(Path(path), RequestError), path, RequestError)
    if not isinstance(document, dict):
        raise RequestError(f"{path} holds no object of flags")
    found: dict[str, object] = {}
    for name, value in document.items():
        item = flags.get(name)
        if item is None:
            near = closest(name, flags)
            raise RequestError(
                f"{path}: {name} is no flag of {script.title}",
                step=f"did you mean {near}?" if near else None,
                param=name,
            )
        if value is None:
            found[name] = None
        elif item.kind == "texts":
            found[name] = [str(word) for word in value] if isinstance(value, list) else [str(value)]
        elif isinstance(value, bool | int | float | str):
            found[name] = _converted(item, value if isinstance(value, str) else json.dumps(value))
        else:
            raise RequestError(f"{path}: {name} is {type(value).__name__}; give one value", param=name)
    return found
