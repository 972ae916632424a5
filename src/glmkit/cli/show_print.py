"""Drawing samples on a terminal: text, columns of numbers, the mask."""

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from glmkit.cli.show_view import SampleView
from glmkit.data.packing import Batch
from glmkit.model.masks import Segments, dense_from_segments

_COLOURS = ("yellow", "cyan", "magenta", "green", "blue", "red")
_SHADES = " ░▒▓█"
_PICTURE = 20  # rows and columns of a mask picture at most
_VISIBLE = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "␍", " ": "·"})


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
    for part, number in view.text:
        text.append(part)
        if number:
            text.stylize(f"{_colour(number)} reverse", len(text) - len(part))
            text.append(str(number), _colour(number))
    console.print(text)
    for number, answer in enumerate(view.blanks, start=1):
        console.print(Text(f"  {number} ", _colour(number)), Text(answer.translate(_VISIBLE)), sep="")
    _print_columns(console, view, columns)


def _print_columns(console: Console, view: SampleView, columns: int) -> None:
    size, prefix = len(view.input_ids), view.prefix_length
    shown = list(range(size))
    if 0 < columns < size:  # half from the start of part A, half from the start of part B
        head = min(prefix, max(columns // 2, columns - (size - prefix)))
        shown = [*range(head), *range(prefix, min(size, prefix + columns - head))]
    titles = ["column", "id", "token", "position", "in blank", "target", "loss"]
    cells = [
        [
            str(column),
            str(view.input_ids[column]),
            view.tokens[column].translate(_VISIBLE) or "∅",
            str(view.positions[column]),
            str(view.block_positions[column]),
            view.target_tokens[column].translate(_VISIBLE) if view.loss_mask[column] else "",
            "1" if view.loss_mask[column] else "",
        ]
        for column in shown
    ]
    widths = [max(map(cell_len, cell)) for cell in cells]
    left = max(map(len, titles))
    start = 0
    while start < len(shown):
        stop, used = start, left
        while stop < len(shown) and (stop == start or used + 1 + widths[stop] <= console.width):
            used += 1 + widths[stop]
            stop += 1
        for line, title in enumerate(titles):
            text = Text(title.ljust(left), "dim")
            for place in range(start, stop):
                cell, number = cells[place][line], view.blank[shown[place]]
                text.append(" " + " " * (widths[place] - cell_len(cell)))
                text.append(cell, _colour(number) if number else "dim" if line in (0, 1) else "")
            console.print(text, no_wrap=True, overflow="crop")
        console.print()
        start = stop
    if len(shown) < size:
        console.print(Text(f"{size - len(shown)} of {size} columns not shown; --columns 0 shows all", "dim"))


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
    """What the batch lost: texts dropped, tokens cut, padding."""
    rows, length = batch.input_ids.shape
    console.print(
        Text(
            f"batch {batch.index}: {rows} x {length} tokens, {batch.num_tokens} used ({batch.fill:.1%}), "
            f"{batch.num_targets} targets; {batch.num_dropped} texts dropped and replaced, {batch.num_cut} tokens cut",
            "bold",
        )
    )
