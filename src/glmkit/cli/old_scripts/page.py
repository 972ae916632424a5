"""The tables as text: for `glm script SCRIPT --help` and for docs/from_old_scripts.md, which a test compares."""

from collections.abc import Sequence

from .command_line import SCRIPTS, flags_of
from .script_table import Flag, Script


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
    lines += ["", *(f"constant there: {name} {value}" for name, value in script.facts.items())]
    return "\n".join(lines).rstrip()


def table(script: Script) -> str:
    """The Markdown table of a script, under its heading."""
    lines = [f"### {script.title}", "", f"{script.about[0].upper()}{script.about[1:]}.", ""]
    lines += _rows(flags_of(script))
    if script.facts:
        constants = ", ".join(f"`{_shown(name)} {value}`" for name, value in script.facts.items())
        lines += ["", f"Constants of its source: {constants}."]
    return "\n".join(lines)


def shared_table(title: str, flags: Sequence[Flag]) -> str:
    """The Markdown table of flags that several scripts have."""
    return "\n".join([f"### {title}", "", *_rows(flags)])


def became(item: Flag) -> str:
    """A flag's counterpart as one phrase."""
    if item.became:
        return ", ".join(dict.fromkeys(_shown(part) for part in item.became))
    return item.about or "refused but for its default"


def _rows(flags: Sequence[Flag]) -> list[str]:
    lines = ["| flag | default there | became | remark |", "|---|---|---|---|"]
    for item in flags:
        counterpart = ", ".join(f"`{_shown(part)}`" for part in item.became) if item.became else "–"
        lines.append(f"| `--{item.name}` | {_default(item)} | {counterpart} | {item.about} |")
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
