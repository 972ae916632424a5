"""The data of a script: files with columns, or sets by name, as `glm finetune` and `glm generate` take them."""

from pathlib import Path

from .command_line import Given
from .translation import Options, Translation, text_of

_COLUMNS = {"prompt_column": "prompt", "response_column": "response", "history_column": "history"}
_DEV = "dev"


def data_options(given: Given, options: Options, translation: Translation) -> None:
    """Set the rows of training, and those of evaluation where the run evaluates."""
    evaluates = options.values["evaluation.every"] != "0"
    if "train_file" in given.values:
        options.set("data.train", _listed(given.text("train_file")))
        if evaluates:
            options.set("data.validation", _listed(given.text("validation_file")))
        elif "validation_file" in given.named and not given.values["do_eval"]:
            translation.note("--validation_file: not read without --do_eval or --eval_steps")
        options.set("data.columns", _columns(given))
        options.set("data.max_validation_rows", given.values["max_eval_samples"])
    elif "task_name" in given.values:
        options.set("data.train", _listed(_set(given)))
        if evaluates:
            options.set("data.validation", _listed(published_validation(given)))
    else:
        options.set("data.train", _listed(given.text("dataset_path")))


def answer_data_options(given: Given, options: Options) -> None:
    """Set the columns of rows that are answered and scored."""
    for flag in _COLUMNS:
        options.set(flag, given.values[flag])


def published_validation(given: Given) -> str:
    """The validation rows of the set that a PaddleNLP script names."""
    name = _set(given)
    return f"{name}/{_DEV}.json" if Path(name).is_dir() else f"{name}:{_DEV}"


def _set(given: Given) -> str:
    task, data = str(given.values["task_name"]), given.text("data_name")
    if data is None:
        return task
    return str(Path(data) / task) if Path(data).is_dir() else f"{data}/{task}"


def _listed(name: str | None) -> list[str] | None:
    return None if name is None else [name]


def _columns(given: Given) -> str | None:
    named = {part: given.text(flag) for flag, part in _COLUMNS.items() if given.text(flag) is not None}
    return "{" + ", ".join(f"{part}: {text_of(name)}" for part, name in named.items()) + "}" if named else None
