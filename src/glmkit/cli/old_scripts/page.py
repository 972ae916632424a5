"""The tables as text: for `glm script SCRIPT --help` and for docs/from_old_scripts.md, which a test compares."""

from collections.abc import Sequence

from .command_line import SCRIPTS, flags_of
from .script_table import Flag, Script
from .trainer_flags import PADDLE, TRANSFORMERS

_TRAINERS = (
    ("Flags of PaddleNLP's trainer", "Of finetune_generation.py and finetune_instruction_generation.py.", PADDLE),
    ("Flags of transformers' trainer", "Of ptuning/main.py and of finetune.py of ChatGLM-Tuning.", TRANSFORMERS),
)


def script_list() -> str:
    """The scripts by publisher, one a line."""
    width = max(len(script.title) for script in SCRIPTS)
    lines: list[str] = []
    publisher = ""
    for script in SCRIPTS:
        if script.publisher != publisher:
            publisher = script.publisher
            lines.append(f"{publisher}:")
        lines.append(f"  {script.title:<{width}}  {script.about}")
    return "\n".join(lines)


def help_text(script: Script) -> str:
    """The flags of a script with their defaults there and what each became."""
    lines = [f"{script.title}: {script.about}", ""]
    for item in flags_of(script):
        lines.append(f"  --{item.name} (there: {_default(item)})")
        lines.append(f"      {became(item)}{f'; {item.about}' if item.became and item.about else ''}")
    lines += ["", *(f"constant there: {_constant(name)} {value}" for name, value in script.facts.items())]
    return "\n".join(lines).rstrip()


def all_tables() -> str:
    """The Markdown of every flag of every script, as it stands in docs/from_old_scripts.md."""
    parts = [_table(script) for script in SCRIPTS]
    parts += [f"### {title}\n\n{about}\n\n" + "\n".join(_rows(flags)) for title, about, flags in _TRAINERS]
    return "\n\n".join(parts)


def _table(script: Script) -> str:
    """The part of one script: its own flags, its constants, whose trainer's flags it has besides."""
    shared = next((item for item in _TRAINERS if all(one in script.flags for one in item[2])), None)
    own = [item for item in flags_of(script) if item.name != "dry_run" and (shared is None or item not in shared[2])]
    lines = [f"### {script.title}", "", f"{script.about[0].upper()}{script.about[1:]}.", "", *_rows(own)]
    if shared is not None:
        lines += ["", f"Besides: {shared[0][0].lower()}{shared[0][1:]}, below."]
    if script.facts:
        constants = ", ".join(f"`{_constant(name)} {value}`" for name, value in script.facts.items())
        lines += ["", f"Constants of its source: {constants}."]
    lines += [f"\nSaid at every start: {sentence}." for sentence in script.notes]
    return "\n".join(lines)


def _constant(name: str) -> str:
    verb, option = name.split(" ")
    return _shown(f"{'finetune' if verb == 'lora' else verb} {option}") + (" (with --lora)" if verb == "lora" else "")


def became(item: Flag) -> str:
    """A flag's counterpart as one phrase."""
    if item.became:
        return ", ".join(dict.fromkeys(_shown(part) for part in item.became))
    return item.about or "refused but for its default"


def _rows(flags: Sequence[Flag]) -> list[str]:
    lines = ["| flag | default there | became | remark |", "|---|---|---|---|"]
    for item in flags:
        counterpart = ", ".join(f"`{_shown(part)}`" for part in item.became) if item.became else "–"
        lines.append(
            f"| `--{item.name}` | {_default(item)} | {counterpart} | {item.about or ' '} |".replace("   |", " |")
        )
    return lines


def _shown(part: str) -> str:
    """A counterpart as it is typed: `finetune --data.train`; capitals and recipes stand for themselves."""
    verb, _, option = part.partition(" ")
    if not option:
        return f"glm {verb}"
    dashes = "" if option.split(" ")[0].isupper() else "--"
    return f"glm {verb} {dashes}{option.lstrip('-')}"


def _default(item: Flag) -> str:
    if item.needed:
        return "needed"
    if item.default is None:
        return "none"
    return f"{item.default:g}" if isinstance(item.default, float) else str(item.default) or '""'
