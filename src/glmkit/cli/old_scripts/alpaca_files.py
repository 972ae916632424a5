"""The two data scripts of ChatGLM-Tuning: JSON lines of context and target, and a `datasets` folder of ids."""

import json
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypedDict

from glmkit.checkpoint.hub import local_directory
from glmkit.data.records import read_records
from glmkit.errors import DataError, RequestError
from glmkit.families.family import family_named
from glmkit.families.vocabularies import load_tokenizer
from glmkit.files import atomic_directory, atomic_write
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.inputs import InputTokenizer

from .command_line import Given
from .translation import Machine, Step, Translation

# The releases of the script for which its --version stands.
_FAMILIES = {"v1": "chatglm", "v2": "chatglm2"}


class IdsRow(TypedDict):
    """A row of the folder: prompt, target and end as ids, and how many of them are the prompt's."""

    input_ids: list[int]
    seq_len: int


def cover(given: Given, machine: Machine) -> Translation:
    """Write the lines of `cover_alpaca2jsonl.py`."""
    source, target = Path(str(given.values["data_path"])), Path(str(given.values["save_path"]))
    sentence = f"# reads {source}, writes context and target of each row to {target}"
    return Translation([Step((sentence,), partial(write_lines, source, target))])


def tokenize(given: Given, machine: Machine) -> Translation:
    """Write the folder of `tokenize_dataset_rows.py`."""
    values = given.values
    source, target, longest = Path(str(values["jsonl_path"])), Path(str(values["save_path"])), values["max_seq_length"]
    model, version, skip = str(values["chatglm_path"]), str(values["version"]), bool(values["skip_overlength"])
    if not isinstance(longest, int) or longest < 4:
        raise RequestError(f"--max_seq_length is {longest}", step="give at least 4", param="max_seq_length")
    rows = "leaves out longer rows" if skip else "cuts longer rows"
    sentence = f"# reads {source}, writes ids by the tokenizer of {model} to {target}, {rows} (of {longest} tokens)"
    action = partial(write_ids, source, target, model=model, version=version, longest=longest, skip=skip)
    translation = Translation([Step((sentence,), action)])
    if "skip_overlength" in given.named and not skip:
        translation.note(
            "--skip_overlength False means False here: longer rows are cut; the original takes every word for true and "
            "leaves them out; --skip_overlength True does that"
        )
    return translation


def write_lines(source: Path, target: Path) -> None:
    """Write `{"context": ..., "target": ...}` for each row of Alpaca's file, ASCII-escaped. Raises DataError."""
    count = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        for where, row in _rows(source):
            context = f"Instruction: {_text(row, 'instruction', where)}\n"
            if given := _text(row, "input", where, needed=False):
                context += f"Input: {given}\n"
            line = {"context": f"{context}Answer: ", "target": _text(row, "output", where)}
            file.write(json.dumps(line).encode("ascii") + b"\n")
            count += 1
    print(f"wrote {target}: {count:,} rows")


def write_ids(source: Path, target: Path, *, model: str, version: str, longest: int, skip: bool) -> None:
    """Write the rows of a file of context and target as ids. Raises DataError, RequestError, TokenizerError."""
    try:
        import datasets
    except ImportError:
        raise RequestError(
            "writing a datasets folder needs the package datasets",
            step=f"pip install 'glmkit[train]', or give {source} to glm finetune --data as it is",
        ) from None
    tokenizer = load_tokenizer(local_directory(model, need="tokenizer"), family=_FAMILIES[version])
    assert isinstance(tokenizer, InputTokenizer)
    rows, cut, left_out = [], 0, 0
    for where, row in _rows(source):
        ids = _encoded(tokenizer, row, where, version, longest)
        over = len(ids["input_ids"]) > longest
        if over and skip:
            left_out += 1
            continue
        cut += over
        rows.append(IdsRow(input_ids=ids["input_ids"][:longest], seq_len=ids["seq_len"]))
    if not rows:
        raise DataError(f"{source} has no rows{' of at most ' + str(longest) + ' tokens' if left_out else ''}")
    with atomic_directory(target, replace=True) as folder:
        datasets.disable_progress_bars()
        datasets.Dataset.from_list(rows).save_to_disk(str(folder))
    print(f"wrote {target}: {len(rows):,} rows, {cut:,} cut, {left_out:,} left out at {longest} tokens")
    if cut:
        print(
            f"note: a row that was cut has no end of its answer; raise --max_seq_length above {longest}",
            file=sys.stderr,
        )


def _encoded(tokenizer: InputTokenizer, row: Mapping[str, object], where: str, version: str, longest: int) -> IdsRow:
    context, target = _text(row, "context", where), _text(row, "target", where)
    template = family_named(_FAMILIES[version]).chat
    assert template is not None
    asked = template.text([Message("user", context)])
    prompt = tokenizer.encode_inputs(asked, max_length=longest, truncation_side="right", specials=False)
    answer = tokenizer.encode(target)[:longest]
    return IdsRow(input_ids=[*prompt, *answer, tokenizer.special.require("eos")], seq_len=len(prompt))


def _rows(source: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    if not source.is_file():
        raise DataError(f"{source}: {'not a file' if source.exists() else 'no such file'}")
    for record in read_records(source):
        if record.fields is None:
            raise DataError(f"{record.where}: {record.problem}")
        yield record.where, record.fields


def _text(row: Mapping[str, object], name: str, where: str, *, needed: bool = True) -> str:
    """A field as text, a number as it is written in JSON. Raises DataError naming place, field and type."""
    value = row.get(name)
    if value is None:
        if needed:
            raise DataError(f"{where}: the row has no {name}", step="mend it", param=name)
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    raise DataError(f"{where}: {name} is {type(value).__name__}", step="give a text", param=name)
