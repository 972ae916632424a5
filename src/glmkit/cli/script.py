"""`glm script SCRIPT.py ARGS...`: a command of the original documents, run as the native commands that it became."""

import json
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from glmkit.cli.main import INCOMPLETE, main
from glmkit.cli.old_scripts.command_line import Given, read_command
from glmkit.cli.old_scripts.page import help_text, script_list
from glmkit.cli.old_scripts.prediction import ANSWERS, BUILT_IN_PROMPTS, PROMPTS
from glmkit.cli.old_scripts.translate import translate
from glmkit.cli.old_scripts.translation import Machine, Step, Translation
from glmkit.cli.printing import shown
from glmkit.errors import RequestError

_LAUNCHERS_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_USAGE = """usage: glm script [--dry-run] SCRIPT.py ARGS...

run a command of the original scripts: write `glm script` in place of `python`. The launchers torchrun, deepspeed and
paddle.distributed.launch may stand before the script, and VARIABLE=VALUE. It prints the native command that it became.

  --dry-run              print the native commands and stop; may also stand last
  --SECTION.KEY VALUE    a setting of glm finetune, behind the flags of a script that trains; it wins
  SCRIPT.py --help       the flags of a script, their defaults there, and what became of each

scripts, by publisher (docs/from_old_scripts.md has every flag):
"""


def run(args: Namespace) -> int:
    """Translate `args.words` and run what they became. Returns the first bad exit status, else 0."""
    words = list(args.words)
    dry = bool(words) and words[0] in ("--dry-run", "--dry_run")
    words = words[1:] if dry else words
    if not words or words[0] in ("-h", "--help", "--list"):
        print(_USAGE + "\n".join(f"  {line}" for line in script_list().splitlines()))
        return 0 if words else 2
    if words[-1] in ("-h", "--help"):
        print(help_text(read_command(words[:-1], needed=False).script))
        return 0
    given = read_command(words)
    os.environ.update(given.launch.environment)  # before torch looks for devices
    translation = translate(given, _machine())
    if dry or given.values["dry_run"]:
        for note in [*translation.notes, *_about_aside(translation)]:
            print(f"note: {shown(note)}", file=sys.stderr)
        print("\n".join(step.shown for step in translation.steps))
        return 0
    if os.environ.get("RANK", "0") == "0":
        for note in translation.notes:
            print(f"note: {shown(note)}", file=sys.stderr)
    return _run_steps(given, translation.steps)


def _machine() -> Machine:
    from glmkit.devices import accelerators, computes_float16

    ranks = os.environ.get("WORLD_SIZE") if "RANK" in os.environ else None
    return Machine(accelerators(), computes_float16(), None if ranks is None else int(ranks))


def _about_aside(translation: Translation) -> list[str]:
    found = [(what, directory) for what, directory in map(_earlier, translation.steps) if directory is not None]
    return [f"{directory} holds a {what}, which would be moved to {_free_name(directory)}" for what, directory in found]


def _move_aside(step: Step) -> None:
    """Move an earlier run or model out of the way of a command that writes another one there."""
    what, directory = _earlier(step)
    if directory is None:
        return
    if "RANK" in os.environ:
        raise RequestError(
            f"{directory} holds a {what}, and several processes cannot move it away", step="move it first"
        )
    target = _free_name(directory)
    directory.rename(target)
    print(f"note: the earlier {what} in {directory} was moved to {target}", file=sys.stderr)


def _earlier(step: Step) -> tuple[str, Path | None]:
    """The kind of thing that a command would overwrite, and its directory if there is one."""
    from glmkit.checkpoint.run_directory import is_run

    what = "run" if step.words[0] == "finetune" else "model"
    if step.aside is None or not (is_run(step.aside) if what == "run" else (step.aside / "config.json").is_file()):
        return what, None
    return what, step.aside


def _free_name(directory: Path) -> Path:
    number = 1
    while (target := directory.with_name(f"{directory.name}.old-{number}")).exists():
        number += 1
    return target


def _run_steps(given: Given, steps: Sequence[Step]) -> int:
    ended = 0
    for step in steps:
        if step.words[0] != "finetune" and not _alone():
            return 0
        _move_aside(step)
        if step.action is not None:
            step.action()
        elif status := _run_native(given, step):
            if status != INCOMPLETE:
                return status
            ended = status  # the output is whole: what follows has what it needs
    return ended


def _alone() -> bool:
    """Leave the processes of a launcher: training alone is shared by them, the first one does the rest by itself."""
    rank = os.environ.get("RANK", "0")
    for name in _LAUNCHERS_VARIABLES:
        os.environ.pop(name, None)
    return rank == "0"


def _run_native(given: Given, step: Step) -> int:
    """Run one native command; built-in prompts are written for it, and their answers printed."""
    if step.words[0] == "convert":  # the originals make the folders above what they write
        Path(step.words[2]).parent.mkdir(parents=True, exist_ok=True)
    if PROMPTS not in step.words:
        print(f"+ {shown(step.shown)}", file=sys.stderr, flush=True)
        return main(list(step.words))
    with tempfile.TemporaryDirectory(prefix="glmkit-") as folder:
        prompts = Path(folder) / PROMPTS
        answers = Path(given.text("output") or Path(folder) / ANSWERS)
        lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in BUILT_IN_PROMPTS]
        prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
        places = {PROMPTS: str(prompts), ANSWERS: str(answers)}
        step = Step(tuple(places.get(word, word) for word in step.words))
        print(f"+ {shown(step.shown)}", file=sys.stderr, flush=True)
        if status := main(list(step.words)):
            return status
        for line in answers.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            print(f"{shown(row['prompt'])}\n{shown(str(row['answer']))}")
    return 0
