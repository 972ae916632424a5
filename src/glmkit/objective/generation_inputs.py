"""Batches for filling one blank per row, with or without the answers. Legend: B rows, S source columns, G new ones.

Sources: `build_inputs_for_generation` of `tokenization_glm.py` beside the published GLM weights, and of
`PaddlePaddle/PaddleNLP:paddlenlp/transformers/glm/tokenizer.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from glmkit.config import SpecialIds
from glmkit.errors import DataError
from glmkit.position_rows import PositionRows, Span

from .sample import Ints

IGNORED = -100  # label of a place that is not predicted


@dataclass(frozen=True, slots=True)
class GenerationInputs:
    """input_ids (B,S+1) without answers, (B,S+G) with them; position_ids (B,2,S+G) int64; attention_mask
    (B,1,S+G,S+G) bool, True = visible; labels (B,S+G) int64, aligned with what each place predicts, IGNORED elsewhere;
    None without answers. prefix_length: S, the columns of part A.
    """

    input_ids: Ints
    position_ids: Ints
    attention_mask: NDArray[np.bool_]
    labels: Ints | None
    prefix_length: int


def build_generation_inputs(
    input_ids: ArrayLike,
    attention_mask: ArrayLike,
    special: SpecialIds,
    *,
    max_gen_length: int,
    targets: Sequence[Sequence[int]] | None = None,
    padding: bool = False,
    keep_end: bool = False,
) -> GenerationInputs:
    """Open the first blank of every row behind its part A.

    input_ids, attention_mask: (B,S), padded on either side, 1 = a token. Positions count over padding too, and those of
    part B are the first mask's (of any kind). targets: the answer of each row without its end token, which is added.
    Both are cut to max_gen_length, so that a long answer loses its end token; with `keep_end` the answer is cut to
    max_gen_length - 2 tokens and keeps it. G is the longest answer, or max_gen_length with `padding`.
    Raises DataError: shapes that do not fit, max_gen_length below 1 (3 with keep_end), or a row without a mask.
    """
    source_BS, real_BS = np.asarray(input_ids, np.int64), np.asarray(attention_mask) != 0
    if source_BS.ndim != 2 or real_BS.shape != source_BS.shape:
        raise DataError(f"ids {source_BS.shape} and mask {real_BS.shape} must both be (rows, columns), equally long")
    least = 3 if keep_end and targets is not None else 1
    if max_gen_length < least:
        raise DataError(f"max_gen_length is {max_gen_length}; it must be at least {least}")
    batch, width = source_BS.shape
    answers: list[list[int]] = []
    length = max_gen_length
    if targets is not None:
        if len(targets) != batch:
            raise DataError(f"{len(targets)} answers for {batch} rows; give one for each")
        cut = max_gen_length - 2 if keep_end else max_gen_length
        answers = [[*target[:cut], special.eop][:max_gen_length] for target in targets]
        length = max_gen_length if padding else max(map(len, answers), default=1)
    total = width + length
    spans = [Span(width, column) for column in first_masks(source_BS, special.mask_ids()).tolist()]
    rows = [PositionRows((span,)).at(0, total) for span in spans]
    position_B2T = np.array(rows, np.int64).reshape(batch, 2, total)
    visible_BTT = np.zeros((batch, total, total), np.bool_)
    visible_BTT[:, :, :width] = real_BS[:, None, :]
    visible_BTT[:, width:, width:] = np.tri(length, dtype=np.bool_)
    added_BG = np.full((batch, length if answers else 1), special.pad, np.int64)
    added_BG[:, 0] = special.sop
    labels_BT = None
    if targets is not None:
        labels_BT = np.full((batch, total), IGNORED, np.int64)
        for i, answer in enumerate(answers):
            given = answer[: length - 1]  # what follows the start; the last place predicts only
            added_BG[i, 1 : 1 + len(given)] = given
            labels_BT[i, width : width + len(answer)] = answer
    ids_BT = np.concatenate([source_BS, added_BG], axis=1)
    return GenerationInputs(ids_BT, position_B2T, visible_BTT[:, None], labels_BT, width)


def first_masks(ids_BS: Ints, mask_ids: Sequence[int]) -> Ints:
    """(B,) the column of each row's first mask. Raises DataError for a row without one."""
    is_mask_BS = np.isin(ids_BS, list(mask_ids))
    for row in np.flatnonzero(~is_mask_BS.any(axis=1)):
        kinds = ", ".join(map(str, mask_ids))
        raise DataError(f"row {row} has no mask (ids {kinds}); put one where the answer belongs, and do not cut it off")
    columns_B: Ints = is_mask_BS.argmax(axis=1).astype(np.int64)
    return columns_B
