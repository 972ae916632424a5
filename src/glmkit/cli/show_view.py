"""One sample of a batch as plain values: what `glm show` prints and its --json form."""

from dataclasses import asdict, dataclass
from typing import Any

from glmkit.data.packing import Batch
from glmkit.tokenizer.base import Tokenizer


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

    def to_dict(self) -> dict[str, Any]:
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
