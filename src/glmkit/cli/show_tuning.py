"""Rows of fine-tuning for `glm show`: what the model will see of an example, which tokens count, what did not fit."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, islice

from rich.console import Console
from rich.text import Text

from glmkit.cli.printing import print_json
from glmkit.cli.show_print import VISIBLE, Columns, print_columns, shown_columns
from glmkit.data.dialogues.dialogue_set import DialogueSet
from glmkit.data.tuning_rows import RowMaker
from glmkit.errors import ConfigError, DataError, terminal_text
from glmkit.progress import Progress
from glmkit.tokenizer.dialogue import EncodedRow
from glmkit.tokenizer.protocol import Tokenizer
from glmkit.train.finetune_config import FinetuneConfig
from glmkit.train.finetuning_base import open_base
from glmkit.train.finetuning_data import TuningData

_COUNTS = "bold green"


@dataclass(frozen=True)
class TuningView:
    """One row. Lists have one entry per token; counted[i] is 1 where the loss counts that token is predicted.

    example: number in its set; row: number among the rows of the example. text: the row in stretches (text, counted).
    lost_*: tokens of prompt and answers and whole rounds that did not fit.
    """

    set: str
    example: int
    row: int
    where: str
    input_ids: list[int]
    tokens: list[str]
    counted: list[int]
    positions: list[int]
    block_positions: list[int]
    prefix_length: int
    text: list[tuple[str, bool]]
    lost_prompt_tokens: int
    lost_answer_tokens: int
    lost_rounds: int
    notes: tuple[str, ...]

    @property
    def num_counted(self) -> int:
        """Tokens that the loss counts."""
        return sum(self.counted)

    def to_dict(self) -> dict[str, object]:
        """JSON-able values."""
        return asdict(self) | {"num_counted": self.num_counted}


def show_tuning(config: FinetuneConfig, args: Namespace) -> int:
    """Print the report of every set, and rows of the first one from the example `args.index` on."""
    base = open_base(config)
    if not config.data.train:
        raise ConfigError("name the rows to show with --data FILE_OR_NAME", param="data.train")
    data = TuningData.open(config, base, Progress(quiet=True))
    examples = data.sets.train[0]
    if args.index >= len(examples):
        raise ConfigError(f"--index is {args.index}; {examples.name} has {len(examples)} examples", param="index")
    shown = list(islice(_views(examples, args.index, data.maker), args.count))
    lines = [*data.sets.lines(), *data.lines()]
    if args.json:
        limits = {"source_length": data.maker.limits.source, "target_length": data.maker.limits.target}
        print_json({"samples": [view.to_dict() for view in shown], "limits": limits, "report": lines})
        return 0
    console = Console(file=sys.stdout, highlight=False, soft_wrap=False)
    for view in shown:
        print_row(console, view, columns=args.columns)
    for line in lines:
        console.print(Text(terminal_text(line), "bold"))
    return 0


def _views(examples: DialogueSet, first: int, maker: RowMaker) -> Iterator[TuningView]:
    """Rows of a set from its example `first` on."""
    for number in range(first, len(examples)):
        example = examples[number]
        try:
            rows = maker.rows(example)
        except DataError:
            continue  # left out by data.on_bad_row, else reading had refused it; the report names it
        yield from (_view(row, examples.name, number, n, example.where, maker.tokenizer) for n, row in enumerate(rows))


def _view(row: EncodedRow, name: str, example: int, number: int, where: str, tokenizer: Tokenizer) -> TuningView:
    text: list[tuple[str, bool]] = []
    start = 0
    for flag, group in groupby(row.counted):
        end = start + len(list(group))
        text.append((tokenizer.decode(row.ids[start:end], skip_specials=False), flag))
        start = end
    return TuningView(
        set=name,
        example=example,
        row=number,
        where=where,
        input_ids=row.ids,
        tokens=[tokenizer.id_to_token(index) for index in row.ids],
        counted=[int(flag) for flag in row.counted],
        positions=list(row.layout.positions),
        block_positions=list(row.layout.blocks),
        prefix_length=row.layout.prefix,
        text=text,
        lost_prompt_tokens=row.lost.prompt,
        lost_answer_tokens=row.lost.answer,
        lost_rounds=row.lost.rounds,
        notes=row.notes,
    )


def print_row(console: Console, view: TuningView, *, columns: int) -> None:
    """The text with what counts in ⟦ ⟧, what was lost, and the columns of all rows (`columns` tokens; 0 = all)."""
    size = len(view.input_ids)
    part = f", row {view.row + 1}" if view.row else ""
    console.rule(f"example {view.example}{part}: {size} tokens, {view.num_counted} count")
    console.print(Text(terminal_text(view.where), "dim"))
    text = Text()
    for piece, counts in view.text:
        marked = f"⟦{terminal_text(piece)}⟧" if counts else terminal_text(piece)
        text.append(marked, f"{_COUNTS} reverse" if counts else "")
    console.print(text)
    lost = {"tokens of the prompt": view.lost_prompt_tokens, "tokens of the answer": view.lost_answer_tokens}
    lost["oldest rounds"] = view.lost_rounds
    if any(lost.values()):
        words = ", ".join(f"{count} {what}" for what, count in lost.items() if count)
        console.print(Text(f"did not fit: {words}", "bold yellow"))
    for note in view.notes:
        console.print(Text(note, "yellow"))
    shown = shown_columns(size, view.counted.index(1) if view.num_counted else size, columns)
    print_columns(
        console,
        Columns(
            titles=["column", "id", "token", "position", "in answer", "counts"],
            cells=[
                [
                    str(column),
                    str(view.input_ids[column]),
                    view.tokens[column].translate(VISIBLE) or "∅",
                    str(view.positions[column]),
                    str(view.block_positions[column]),
                    "1" if view.counted[column] else "",
                ]
                for column in shown
            ],
            styles=[_COUNTS if view.counted[column] else "" for column in shown],
            size=size,
        ),
    )
