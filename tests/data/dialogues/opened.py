"""Rows written to a file and read through the one door, as dialogues and as ids of a family."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from families.tuned import Tuned, labels
from glmkit.data.dialogues.dialogue_set import DialogueSet, DialogueSets, DialogueSpec, open_dialogues
from glmkit.data.dialogues.texts import Reader
from glmkit.errors import DataError
from glmkit.families.family import family_named
from glmkit.tokenizer.dialogue import Dialogue, EncodedRow


def write(path: Path, rows: Sequence[Mapping[str, Any]] | str | bytes) -> Path:
    """A file of these rows, one a line, or of this content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    elif isinstance(rows, str):
        path.write_text(rows, encoding="utf-8", newline="")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def opened(*paths: Path | str, family: Tuned | None = None, name: str = "", **options: Any) -> DialogueSets:
    """The sets of these files. family, name: the model that they are read for."""
    reader = None
    if family is not None:
        reader = Reader.of(family_named(name), family.tokenizer)
    return open_dialogues(DialogueSpec(train=[str(path) for path in paths], **options), reader)


def one_set(path: Path | str, **options: Any) -> DialogueSet:
    """The one set of a file."""
    (found,) = opened(path, **options).train
    return found


def texts(example: object) -> list[tuple[str, str]]:
    """Role and text of each message."""
    assert isinstance(example, Dialogue)
    return [(message.role, message.content) for message in example.messages]


def encoded(path: Path, family: Tuned, name: str, **options: Any) -> list[EncodedRow]:
    """The rows of a file as a family trains them."""
    found = one_set(path, family=family, name=name, **options)
    return [row for example in found if isinstance(example, Dialogue) for row in family.rows(example)]


def ids_and_labels(path: Path, family: Tuned, name: str, **options: Any) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each row."""
    return [(row.ids, labels(row)) for row in encoded(path, family, name, **options)]


def refusal(path: Path | str, **options: Any) -> DataError:
    """The error of a file that is refused."""
    try:
        opened(path, **options)
    except DataError as error:
        return error
    raise AssertionError(f"{path} was read")
