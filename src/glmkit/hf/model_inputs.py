"""Inputs of a call in the forms of the published code, made into those of the core.

Legend: B batch, T tokens of the call, M cached tokens, S = M + T, V vocabulary rows, C classes or choices.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from glmkit.config import GLMConfig
from glmkit.errors import RequestError
from glmkit.families.common.layout import RemoteCode

from .configuration import PublishedConfig

PACKING_STEP = "leave packing and padding_free out, or use glm finetune, which packs"
IGNORED = -100  # the label that does not count


@dataclass(frozen=True)
class CoreInputs:
    """Arguments of `GLM.hidden`. mask: (B,T) of real tokens or (B,1,T,S) of what is seen. real_BS: with cached ones."""

    position_ids: Tensor | None
    prefix_length: Tensor | None
    mask: Tensor | None
    real_BS: Tensor | None


def read_inputs(
    ids_BT: Tensor,
    position_ids: Tensor | None,
    attention_mask: Tensor | None,
    *,
    past: int,
    config: GLMConfig,
    remote: RemoteCode,
) -> CoreInputs:
    """Understand masks and positions.

    attention_mask: (B,T) or (B,S), nonzero = real; (B,1,T,S) or (1,1,T,S), nonzero = seen, or hidden where the
    published code has it so; for prefix masks otherwise also (B,) or (B,1), the length of part A. position_ids: (B,T),
    (B,2,T), or longer ones whose last T columns count. Raises RequestError for other shapes, and for a row whose mask
    and start of piece are missing where they decide (`RemoteCode.needs_blank`).
    """
    batch, length = ids_BT.shape
    mask, real_BS, prefix_B = None, None, None
    if attention_mask is not None and attention_mask.dim() == 4:
        mask = _seen(attention_mask, batch, length, past, remote)
    elif attention_mask is not None and _is_length(attention_mask, batch, length, config, remote):
        prefix_B = attention_mask.reshape(-1).long()
    elif attention_mask is not None:
        real_BS = _real(attention_mask, batch, length, past)
        mask = None if real_BS is None else real_BS[:, past:]
    if position_ids is not None:
        position_ids = _positions(position_ids, batch, length)
        if attention_mask is None and past == 0:
            _refuse_packed(position_ids)
    elif remote.needs_blank and past == 0:
        _require_blank(ids_BT, config)
    return CoreInputs(position_ids, prefix_B, mask, real_BS)


def _seen(mask: Tensor, batch: int, length: int, past: int, remote: RemoteCode) -> Tensor:
    if mask.is_floating_point() and bool((mask < 0).any()):
        raise RequestError(
            "attention_mask holds negative numbers, as masks that are added to scores do",
            step="give booleans, True = hidden" if remote.hidden_masks else "give booleans, True = visible",
            param="attention_mask",
        )
    shape = (batch, 1, length, past + length)
    if mask.shape[0] not in (1, batch) or tuple(mask.shape[1:]) != shape[1:]:
        what = f"attention_mask has shape {tuple(mask.shape)}"
        raise RequestError(what, step=f"give {shape}", param="attention_mask")
    seen = mask == 0 if remote.hidden_masks else mask != 0
    return seen.expand(shape)


def _is_length(mask: Tensor, batch: int, length: int, config: GLMConfig, remote: RemoteCode) -> bool:
    one = tuple(mask.shape) in {(batch,), (batch, 1)} and (mask.dim() == 1 or length > 1)
    return one and config.mask == "prefix" and not remote.hidden_masks


def _real(mask: Tensor, batch: int, length: int, past: int) -> Tensor | None:
    """(B,S), None where nothing is padding."""
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] not in (length, past + length):
        raise RequestError(
            f"attention_mask has shape {tuple(mask.shape)}",
            step=f"give ({batch}, {past + length}) with 1 for real tokens",
            param="attention_mask",
        )
    real_BS = mask != 0
    if bool(real_BS.all()):
        return None
    if mask.shape[1] < past + length:
        real_BS = functional.pad(real_BS, (past, 0), value=True)
    return real_BS


def _positions(position_ids: Tensor, batch: int, length: int) -> Tensor:
    position_ids = position_ids.long()
    if position_ids.dim() == 1:
        position_ids = position_ids[None]
    fits = position_ids.dim() == 2 or (position_ids.dim() == 3 and position_ids.shape[1] == 2)
    if not fits or position_ids.shape[0] not in (1, batch) or position_ids.shape[-1] < length:
        raise RequestError(
            f"position_ids have shape {tuple(position_ids.shape)}",
            step=f"give ({batch}, 2, {length}), or ({batch}, {length}) for the first row alone",
            param="position_ids",
        )
    return position_ids[..., -length:].expand(batch, *position_ids.shape[1:-1], length)


def _refuse_packed(position_ids: Tensor) -> None:
    """Raise RequestError for positions that begin anew inside a row: texts behind each other, and no mask between."""
    if position_ids.dim() != 2 or position_ids.shape[1] < 3:
        return
    before, here, after = position_ids[:, :-2], position_ids[:, 1:-1], position_ids[:, 2:]
    if bool(((before > 0) & (here == 0) & (after == 1)).any()):
        raise RequestError(
            "position_ids begin at 0 again inside a row: its texts would see each other",
            step=f"give attention_mask (B,1,T,T) as well; or {PACKING_STEP}",
            param="position_ids",
            code="packed",
        )


def _require_blank(ids_BT: Tensor, config: GLMConfig) -> None:
    special = config.special
    if special is None:
        return
    masks = torch.tensor(special.mask_ids(), device=ids_BT.device)
    has_mask_B = torch.isin(ids_BT, masks).any(1)
    has_start_B = (ids_BT == special.sop).any(1)
    for row, (mask, start) in enumerate(zip(has_mask_B.tolist(), has_start_B.tolist(), strict=True)):
        if not (mask and start):
            lacks = "a start of piece" if mask else "a mask"
            raise RequestError(
                f"row {row} of input_ids lacks {lacks}: masks have the ids {special.mask_ids()}, the start of piece "
                f"{special.sop} in this model",
                step="encode with this model's own tokenizer (releases differ in their ids) and cut texts before the "
                "special tokens are added, or give attention_mask and position_ids",
                param="input_ids",
                code="no_blank",
            )


def label_loss(logits_BTV: Tensor, labels_BT: Tensor, *, shifts: bool) -> Tensor:
    """Mean cross-entropy in float32 over labels that are not -100; each label is of its own column, or of the next one.

    shifts: labels stand where their ids stand. Raises RequestError for labels of another shape.
    """
    if labels_BT.shape != logits_BTV.shape[:2]:
        raise RequestError(
            f"labels have shape {tuple(labels_BT.shape)}, the logits {tuple(logits_BTV.shape[:2])}",
            step="give one label for each id, -100 where none counts, and leave logits_to_keep out",
            param="labels",
        )
    if shifts:
        logits_BTV, labels_BT = logits_BTV[:, :-1], labels_BT[:, 1:]
    labels_BT = labels_BT.to(logits_BTV.device)
    return functional.cross_entropy(logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=IGNORED)


def class_loss(logits_BC: Tensor, labels: Tensor, config: PublishedConfig) -> Tensor:
    """The loss of a classifier in float32, by `config.problem_type`, which is set by the labels where it is None.

    "regression": mean squared error, labels (B,) or (B,C); one class alone means it. "single_label_classification":
    cross-entropy, labels (B,) whole numbers. "multi_label_classification": one yes or no for each class, labels (B,C).
    Raises RequestError for labels that do not fit.
    """
    batch, classes = logits_BC.shape
    if config.problem_type is None:
        whole = not (labels.is_floating_point() or labels.dtype == torch.bool)
        kind = "single_label_classification" if whole else "multi_label_classification"
        config.problem_type = "regression" if classes == 1 else kind
    if config.problem_type == "single_label_classification":
        return one_of(logits_BC, labels)
    if labels.numel() != batch * classes:
        raise RequestError(
            f"labels have shape {tuple(labels.shape)} for {config.problem_type} of {batch} texts in {classes} classes",
            step=f"give ({batch}, {classes}), or another problem_type or num_labels on loading",
            param="labels",
        )
    wanted_BC = labels.reshape(batch, classes).to(logits_BC.device).float()
    if config.problem_type == "regression":
        return functional.mse_loss(logits_BC.float(), wanted_BC)
    return functional.binary_cross_entropy_with_logits(logits_BC.float(), wanted_BC)


def one_of(scores_BC: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in float32 of one right number a row. Raises RequestError for labels that are none."""
    batch, classes = scores_BC.shape
    if labels.numel() != batch or labels.is_floating_point():
        what = f"labels have shape {tuple(labels.shape)} and type {str(labels.dtype).removeprefix('torch.')}"
        raise RequestError(what, step=f"give ({batch},) whole numbers below {classes}", param="labels")
    labels_B = labels.reshape(batch).to(scores_BC.device).long()
    wrong_B = ((labels_B < 0) | (labels_B >= classes)) & (labels_B != IGNORED)
    if bool(wrong_B.any()):
        what = f"a label is {int(labels_B[wrong_B][0])}, and there are {classes} to choose from"
        raise RequestError(what, step="count from 0", param="labels")
    return functional.cross_entropy(scores_BC.float(), labels_B, ignore_index=IGNORED)
