"""Batches for scoring several answers to one blank, each as a block that sees the text and itself.

Legend: B rows, S columns of the text, T columns with all answers. Source: `build_inputs_for_multiple_choice` of
`tokenization_glm.py` beside the published GLM weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from glmkit.config import SpecialIds
from glmkit.errors import DataError
from glmkit.position_rows import PositionRows, Span

from .generation_inputs import first_masks
from .sample import Ints


@dataclass(frozen=True, slots=True)
class ChoiceInputs:
    """input_ids (B,T), position_ids (B,2,T) int64; attention_mask (B,1,T,T) bool, True = visible; shorter rows are
    padded with id 0 on the right. choice_ids[b][c]: the tokens of answer c; choice_indices[b][c]: the columns that
    predict them, so that its score is the sum of log p(choice_ids) there.
    """

    input_ids: Ints
    position_ids: Ints
    attention_mask: NDArray[np.bool_]
    choice_ids: list[list[Ints]]
    choice_indices: list[list[Ints]]


def build_choice_inputs(
    input_ids: ArrayLike, attention_mask: ArrayLike, choices: Sequence[Sequence[Sequence[int]]], special: SpecialIds
) -> ChoiceInputs:
    """Put every answer behind its text, at the text's first [MASK].

    input_ids, attention_mask: (B,S), padded on either side, 1 = a token; choices[b]: the token ids of each answer.
    Raises DataError: shapes that do not fit, a row without [MASK], an answer of no tokens.
    """
    source_BS, real_BS = np.asarray(input_ids, np.int64), np.asarray(attention_mask) != 0
    if source_BS.ndim != 2 or real_BS.shape != source_BS.shape:
        raise DataError(f"ids {source_BS.shape} and mask {real_BS.shape} must both be (rows, columns), equally long")
    if len(choices) != len(source_BS):
        raise DataError(f"answers to {len(choices)} rows for {len(source_BS)} rows; give some for each")
    batch, width = source_BS.shape
    lengths = [[len(choice) for choice in row] for row in choices]
    if any(length == 0 for row in lengths for length in row):
        raise DataError("an answer has no tokens; leave it out")
    total = width + max((sum(row) for row in lengths), default=0)
    mask_B = first_masks(source_BS, (special.mask,))
    ids_BT = np.zeros((batch, total), np.int64)
    ids_BT[:, :width] = source_BS
    position_B2T = np.zeros((batch, 2, total), np.int64)
    visible_BTT = np.zeros((batch, total, total), np.bool_)
    choice_ids: list[list[Ints]] = []
    choice_indices: list[list[Ints]] = []
    for i, row in enumerate(choices):
        start = width
        spans = []
        columns = []
        for choice in row:
            end = start + len(choice)
            ids_BT[i, start:end] = [special.sop, *choice[:-1]]
            spans.append(Span(start, int(mask_B[i])))
            visible_BTT[i, start:end, start:end] = np.tri(len(choice), dtype=np.bool_)
            columns.append(np.arange(start, end))
            start = end
        visible_BTT[i, :start, :width] = real_BS[i]
        position_B2T[i, :, :start] = PositionRows(tuple(spans)).at(0, start)
        # Padding repeats the positions of the last column.
        position_B2T[i, :, start:] = position_B2T[i, :, start - 1 : start]
        choice_ids.append([np.array(choice, np.int64) for choice in row])
        choice_indices.append(columns)
    return ChoiceInputs(ids_BT, position_B2T, visible_BTT[:, None], choice_ids, choice_indices)
