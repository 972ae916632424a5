"""The data of a script: files with columns, or sets by name, as `glm finetune` and `glm generate` take them."""

from pathlib import Path

from .command_line import Given
from .translation import Options, Translation

_COLUMNS = {"prompt_column": "prompt", "response_column": "response", "history_column": "history"}
_BELLE = "bellegroup"
_BELLE_SHARE = 0.01  # of the rows for evaluation, as the example's own script divides the sets


def data_options(given: Given, options: Options, translation: Translation) -> None:
    """Set the rows of training, and those of evaluation where the run evaluates."""
    evaluates = options.values["evaluation.every"] != "0"
    if "train_file" in given.values:
        options.set("data.train", given.text("train_file"))
        options.set("data.target_length", given.values["max_target_length"])
        if evaluates:
            options.set("data.validation", given.text("validation_file"))
            options.set("evaluation.rows", given.values["max_eval_samples"])
        elif "validation_file" in given.named and not given.values["do_eval"]:
            translation.note("--validation_file: not read without --do_eval or --eval_steps")
        for flag, part in _COLUMNS.items():
            options.set(f"data.columns.{part}", given.values[flag])
    elif "task_name" in given.values:
        options.set("data.train", published_set(given))
        if "data_name" in given.values and evaluates:
            options.set("data.validation_share", _BELLE_SHARE)
    else:
        options.set("data.train", given.text("dataset_path"))


def answer_data_options(given: Given, options: Options) -> None:
    """Set the columns of rows that are answered and scored."""
    for flag in _COLUMNS:
        options.set(flag, given.values[flag])


def published_set(given: Given) -> str:
    """The set that a PaddleNLP script names; its validation part is found by the reader of rows."""
    task, data = str(given.values["task_name"]), given.text("data_name")
    return task if data is None or (data.lower() == _BELLE and not Path(data).is_dir()) else str(Path(data) / task)
