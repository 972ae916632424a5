"""Fine-tuning inputs from a text pair with one blank and its answer. Source: `THUDM/GLM:tasks/data_utils.py`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glmkit.config import SpecialIds
from glmkit.errors import DataError
from glmkit.position_rows import PositionRows, Span

from .sample import Ints


@dataclass(frozen=True, slots=True)
class PairInput:
    """A row padded to `max_length` tokens (n; longer when the answer did not fit); all arrays int64.

    input_ids, token_types (0 first text, 1 second), padding_mask (1 = token), targets, loss_mask (n,);
    position_ids (2, n). prefix_length: part A with its eos. num_cut: tokens of the texts that did not fit.
    Padding is eos in ids and types (eos is the pad of the published tokenizers) and 0 elsewhere.
    """

    input_ids: Ints
    token_types: Ints
    padding_mask: Ints
    position_ids: Ints
    prefix_length: int
    targets: Ints
    loss_mask: Ints
    num_cut: int


def build_input_from_ids(
    text_a: Sequence[int],
    text_b: Sequence[int] | None,
    answer: Sequence[int] | None,
    max_length: int,
    special: SpecialIds,
    *,
    add_cls: bool = True,
    add_sep: bool = False,
    add_piece: bool = False,
    add_eos: bool = True,
    mask_id: int | None = None,
    block_position_encoding: bool = True,
    sentinel_position: int | None = None,
    allow_cut: bool = True,
    allow_longer: bool = True,
) -> PairInput:
    """[CLS] A [SEP] B eos, then the answer as part B at the LAST mask of the ids.

    text_a or text_b holds the mask (`mask_id`, [MASK] by default). answer: the target tokens, end token included if it
    is to be learnt; the input is the start token and the answer without its last token. Without an answer, add_piece
    still opens part B with the start token (loss 1, target 0), for scoring. sentinel_position puts part B there instead
    of at the mask. As in the reference, texts beyond max_length - 1 tokens are cut on the right (counted in num_cut),
    and an answer is never cut: the row gets longer than max_length. Without allow_cut and allow_longer these raise.
    Raises DataError: a cut or a longer row that is not allowed, no mask left, or an empty answer; ConfigError: add_cls
    with special ids that have no [CLS].
    """
    ids = [*([special.require("cls")] if add_cls else []), *text_a]
    types = [0] * len(ids)
    if text_b is not None:
        if add_sep:
            if special.sep is None:
                raise DataError("add_sep needs a [SEP] token; this tokenizer has none")
            ids, types = [*ids, special.sep], [*types, 0]
        ids, types = [*ids, *text_b], types + [1] * len(text_b)
    mask = special.mask if mask_id is None else mask_id
    num_cut, cut_off = 0, False
    # Without an eos the reference still cuts to max_length - 1 once max_length is reached.
    if len(ids) >= max_length - add_eos:
        num_cut = max(0, len(ids) - (max_length - 1))
        cut_off = mask in ids[max_length - 1 :]
        ids, types = ids[: max_length - 1], types[: max_length - 1]
    if num_cut and not allow_cut:
        raise DataError(f"the texts have {num_cut} tokens more than max_length {max_length} allows; shorten them")
    last_type = 0 if text_b is None else 1
    ids += [special.eos] * add_eos
    types += [last_type] * add_eos
    prefix = len(ids)
    spans: tuple[Span, ...] = ()
    targets, loss_mask = [0] * prefix, [0] * prefix
    if add_piece or answer is not None:
        if mask not in ids:
            why = f"it was among the {num_cut} tokens cut away" if cut_off else "put one where the answer belongs"
            raise DataError(f"the texts hold no mask (id {mask}); {why}")
        at = len(ids) - 1 - ids[::-1].index(mask) if sentinel_position is None else sentinel_position
        learnt = [0] if answer is None else list(answer)
        if not learnt:
            raise DataError("an answer of no tokens; leave it out to open the blank only")
        ids += [special.sop, *learnt[:-1]]
        types += [last_type] * len(learnt)
        spans = (Span(prefix, at),)
        targets += learnt
        loss_mask += [1] * len(learnt)
    if len(ids) > max_length and not allow_longer:
        raise DataError(f"text and answer have {len(ids)} tokens, max_length is {max_length}; raise it or shorten them")
    padding = max(0, max_length - len(ids))
    row_0, row_1 = PositionRows(spans, block_positions=block_position_encoding).at(0, len(ids))
    padding_mask = [1] * len(ids) + [0] * padding

    def row(values: list[int], fill: int = 0) -> Ints:
        return np.array(values + [fill] * padding, dtype=np.int64)

    return PairInput(
        row(ids, special.eos), row(types, special.eos), np.array(padding_mask, dtype=np.int64),
        np.stack([row(row_0), row(row_1)]), prefix, row(targets), row(loss_mask), num_cut,
    )  # fmt: skip
