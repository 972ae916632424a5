"""Samples of a batch as plain values (the --json form of `glm show`), and drawn on a terminal."""

from dataclasses import asdict, dataclass

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from glmkit.data.packing import Batch
from glmkit.errors import terminal_text
from glmkit.model.masks import Segments, dense_from_segments
from glmkit.tokenizer.protocol import Tokenizer

_COLOURS = ("yellow", "cyan", "magenta", "green", "blue", "red")
_SHADES = " ░▒▓█"
_PICTURE = 20  # rows and columns of a mask picture at most
_OTHERS = (*range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))  # the last turn the direction
_CONTROLS = {code: chr(0x2400 + code) for code in range(32)} | dict.fromkeys(_OTHERS, "␡")
VISIBLE = str.maketrans({**_CONTROLS, 10: "⏎", 9: "⇥", 13: "␍", 32: "·"})


@dataclass(frozen=True)
class SampleView:
    """Columns of one sample. Lists have one entry per token; `blank` is the number of the blank a token belongs to.

    Blanks count from 1 in the order of the text; 0 is ordinary text. `blanks` are their answers, in that order.
    """

    batch: int
    row: int
    mode: str
    prefix_length: int
    input_ids: list[int]
    tokens: list[str]
    targets: list[int]
    target_tokens: list[str]
    loss_mask: list[int]
    positions: list[int]
    block_positions: list[int]
    blank: list[int]
    text: list[tuple[str, int]]  # part A in stretches of (text, blank)
    blanks: list[str]

    @property
    def num_targets(self) -> int:
        return sum(self.loss_mask)

    def to_dict(self) -> dict[str, object]:
        """JSON-able values."""
        return asdict(self) | {"num_targets": self.num_targets}


def views(batch: Batch, tokenizer: Tokenizer) -> list[SampleView]:
    """The samples of a batch, row by row."""
    return [_view(batch, bounds, tokenizer) for bounds in batch.segments.bounds]


def _view(batch: Batch, bounds: tuple[int, int, int, int], tokenizer: Tokenizer) -> SampleView:
    row, start, prefix_end, end = bounds
    prefix = prefix_end - start
    ids, targets, loss = (
        tensor[row, start:end].tolist() for tensor in (batch.input_ids, batch.targets, batch.loss_mask.long())
    )
    row_0, row_1 = batch.position_ids[row, :, start:end].tolist()
    blank = _blank_numbers(ids, loss, row_0, prefix, tokenizer)
    return SampleView(
        batch=batch.index,
        row=row,
        mode=batch.mode,
        prefix_length=prefix,
        input_ids=ids,
        tokens=[tokenizer.id_to_token(i) for i in ids],
        targets=targets,
        target_tokens=[tokenizer.id_to_token(i) for i in targets],
        loss_mask=loss,
        positions=row_0,
        block_positions=row_1,
        blank=blank,
        text=_stretches(ids[:prefix], blank, tokenizer),
        blanks=_answers(targets, loss, blank, tokenizer),
    )


def _blank_numbers(ids: list[int], loss: list[int], row_0: list[int], prefix: int, tokenizer: Tokenizer) -> list[int]:
    """Masks of part A in order; part B belongs to the mask before which it was cut out, found by its position."""
    masks = set(tokenizer.special.mask_ids())
    blank = [0] * len(ids)
    if prefix == len(ids):  # masks in place: each predicted run is a blank
        number = 0
        for column, predicted in enumerate(loss):
            if predicted:
                number += not (column and loss[column - 1])
                blank[column] = number
        return blank
    by_position: dict[int, int] = {}
    for column in range(prefix):
        if ids[column] in masks:
            blank[column] = by_position[row_0[column]] = len(by_position) + 1
    for column in range(prefix, len(ids)):
        # Running positions (GLM-130B) and sentinels point at no mask: with one blank it is that one.
        blank[column] = by_position.get(row_0[column], len(by_position))
    return blank


def _stretches(ids: list[int], blank: list[int], tokenizer: Tokenizer) -> list[tuple[str, int]]:
    parts: list[tuple[list[int], int]] = []
    for index, number in zip(ids, blank, strict=False):
        if parts and parts[-1][1] == number:
            parts[-1][0].append(index)
        else:
            parts.append(([index], number))
    return [(tokenizer.decode(part, skip_specials=False), number) for part, number in parts]


def _answers(targets: list[int], loss: list[int], blank: list[int], tokenizer: Tokenizer) -> list[str]:
    answers: dict[int, list[int]] = {number: [] for number in sorted(set(blank) - {0})}
    for target, predicted, number in zip(targets, loss, blank, strict=True):
        if predicted and number:
            answers[number].append(target)
    return [tokenizer.decode(answer) for answer in answers.values()]


def _colour(blank: int) -> str:
    return f"bold {_COLOURS[(blank - 1) % len(_COLOURS)]}"


def print_sample(console: Console, view: SampleView, *, columns: int) -> None:
    """Part A with numbered blanks, their answers, and the columns of all rows (`columns` tokens; 0 = all)."""
    size = len(view.input_ids)
    console.rule(
        f"batch {view.batch} row {view.row}: {view.mode}, {size} tokens = part A {view.prefix_length} + part B "
        f"{size - view.prefix_length}, blanks {len(view.blanks)}, targets {view.num_targets}"
    )
    text = Text()
    for piece, number in view.text:
        part = terminal_text(piece)
        text.append(part)
        if number:
            text.stylize(f"{_colour(number)} reverse", len(text) - len(part))
            text.append(str(number), _colour(number))
    console.print(text)
    for number, answer in enumerate(view.blanks, start=1):
        console.print(Text(f"  {number} ", _colour(number)), Text(answer.translate(VISIBLE)), sep="")
    _print_columns(console, view, columns)


def _print_columns(console: Console, view: SampleView, columns: int) -> None:
    size = len(view.input_ids)
    shown = shown_columns(size, view.prefix_length, columns)
    cells = [
        [
            str(column),
            str(view.input_ids[column]),
            view.tokens[column].translate(VISIBLE) or "∅",
            str(view.positions[column]),
            str(view.block_positions[column]),
            view.target_tokens[column].translate(VISIBLE) if view.loss_mask[column] else "",
            "1" if view.loss_mask[column] else "",
        ]
        for column in shown
    ]
    styles = [_colour(view.blank[column]) if view.blank[column] else "" for column in shown]
    titles = ["column", "id", "token", "position", "in blank", "target", "loss"]
    print_columns(console, Columns(titles, cells, styles, size))


@dataclass(frozen=True)
class Columns:
    """Tokens side by side, one below the other what is known of each. styles: of the columns; "" is ordinary text.

    size: of the whole row.
    """

    titles: list[str]
    cells: list[list[str]]
    styles: list[str]
    size: int


def shown_columns(size: int, prefix: int, columns: int) -> list[int]:
    """The columns of a row of `size` tokens: all, or half from its start and half from behind its first `prefix`."""
    if not 0 < columns < size:
        return list(range(size))
    head = min(prefix, max(columns // 2, columns - (size - prefix)))
    return [*range(head), *range(prefix, min(size, prefix + columns - head))]


def print_columns(console: Console, columns: Columns) -> None:
    """Print as many columns beside each other as fit, and then the next."""
    cells, titles = columns.cells, columns.titles
    widths = [max(map(cell_len, cell)) for cell in cells]
    left = max(map(len, titles))
    start = 0
    while start < len(cells):
        stop, used = start, left
        while stop < len(cells) and (stop == start or used + 1 + widths[stop] <= console.width):
            used += 1 + widths[stop]
            stop += 1
        for line, title in enumerate(titles):
            text = Text(title.ljust(left), "dim")
            for place in range(start, stop):
                cell = cells[place][line]
                text.append(" " + " " * (widths[place] - cell_len(cell)))
                text.append(cell, columns.styles[place] or ("dim" if line in (0, 1) else ""))
            console.print(text, no_wrap=True, overflow="crop")
        console.print()
        start = stop
    if len(cells) < columns.size:
        hidden = columns.size - len(cells)
        console.print(Text(f"{hidden} of {columns.size} columns not shown; --columns 0 shows all", "dim"))


def mask_picture(segments: Segments, row: int, length: int) -> list[str]:
    """Lines of shades: queries downwards, keys to the right; the darker, the more of the cell's pairs are visible."""
    own = Segments(tuple((0, *bounds[1:]) for bounds in segments.bounds if bounds[0] == row))
    end = max(bounds[3] for bounds in own.bounds)
    visible = dense_from_segments(own, 1, length)[0, 0].numpy()[:end, :end].astype(np.float64)
    edges = np.linspace(0, end, min(_PICTURE, end) + 1).astype(int)
    summed = np.add.reduceat(np.add.reduceat(visible, edges[:-1], axis=0), edges[:-1], axis=1)
    share = summed / np.outer(np.diff(edges), np.diff(edges))
    levels = np.ceil(share * (len(_SHADES) - 1)).astype(int)
    return ["".join(_SHADES[level] * 2 for level in line) for line in levels]


def print_mask(console: Console, batch: Batch, row: int) -> None:
    """The mask of one row: a block of part A, a triangle of part B, for each sample of the row."""
    length = batch.input_ids.shape[1]
    console.print(Text(f"mask of row {row}: rows look at columns, each cell several tokens", "dim"))
    for line in mask_picture(batch.segments, row, length):
        console.print(Text("  " + line), no_wrap=True, overflow="crop")


def print_loss(console: Console, batch: Batch) -> None:
    """Print the losses of the batch: texts dropped, padding."""
    rows, length = batch.input_ids.shape
    console.print(
        Text(
            f"batch {batch.index}: {rows} x {length} tokens, {batch.num_tokens} used ({batch.fill:.1%}), "
            f"{batch.num_targets} targets; {batch.num_dropped} texts dropped and replaced",
            "bold",
        )
    )
