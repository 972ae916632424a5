"""Cross-entropy of the output head without ever holding all logits.

Legend: N targets, C targets of one chunk, H hidden width, V vocabulary rows, R of them at once.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from glmkit.errors import ConfigError, TrainingError
from glmkit.model.integer_packing import IntegerMatrix

# Logits of one chunk: 2^24 fp32 numbers are 64 MB.
_CHUNK_NUMBERS = 1 << 24
# With a frozen head, to whose gradient no chunk has to be added: less than the 32 MB from which on glibc asks the
# system for every buffer anew, unless these are very few targets.
_FROZEN_NUMBERS, _FEWEST = 7 << 20, 128
# Chunks are padded to a multiple of this many targets: oneDNN compiles and keeps a kernel for every shape it meets, and
# the number of targets differs from batch to batch (docs/log.md, 2026-11-22).
_ROUND = 64
# Numbers of an integer head that are floats at once: 16 MB.
_FLOATS = 1 << 22


@dataclass(frozen=True)
class LossSums:
    """Sums over the targets of a batch. The caller takes the mean: it knows the targets of the whole step.

    `loss_sum` carries the gradient and includes smoothing and z-loss; `cross_entropy_sum`, of the labels as they are,
    and `z_sum` are detached.
    """

    loss_sum: Tensor
    cross_entropy_sum: Tensor
    z_sum: Tensor
    num_targets: int


def linear_cross_entropy(
    hidden_NH: Tensor,
    head_VH: Tensor | IntegerMatrix,
    targets_N: Tensor,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
) -> LossSums:
    """Summed cross-entropy of `hidden @ head.T` against `targets`, chunk by chunk, logits and softmax in fp32.

    hidden_NH are the hidden states at the targets only, so that masked positions count for nothing. head_VH: the
    output matrix, or the layer that holds it in integers, which then gets no gradient and of which a few rows at a time
    are floats. z_loss: weight of log(Z)^2, Z the softmax's denominator (PaLM, section 5). label_smoothing e: the loss
    of a target is (1 - e) * cross-entropy + e * the mean over all V columns of -log p (`THUDM/GLM:finetune_glm.py`).
    Under autocast the products run in the autocast dtype. Gradients are computed in the same pass as the loss, so that
    no chunk's logits outlive it.
    Raises TrainingError when there is no target, ConfigError for a smoothing outside [0, 1).
    """
    if targets_N.numel() == 0:
        raise TrainingError("a batch has no target: every label is masked; look at it with `glm show`")
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"label_smoothing is {label_smoothing}; it must be in [0, 1)", param="label_smoothing")
    apply = _LinearCrossEntropy.apply if isinstance(head_VH, Tensor) else _IntegerCrossEntropy.apply
    loss, entropy, z = apply(  # type: ignore[no-untyped-call]
        hidden_NH, head_VH, targets_N, z_loss, label_smoothing, chunk_size
    )
    return LossSums(loss, entropy, z, targets_N.numel())


class _Context(Protocol):
    """The part of autograd's context that the loss uses."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor | None, ...]
    weight_dtype: torch.dtype

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        targets_N: Tensor,
        z_loss: float,
        smoothing: float,
        chunk_size: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_columns = weight_VH.shape[0]
        dtype = _product_dtype(hidden_NH, weight_VH.dtype)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        chunk = chunk_size or (
            max(64, _CHUNK_NUMBERS // num_columns) if need_weight else max(_FEWEST, _FROZEN_NUMBERS // num_columns)
        )
        weight = weight_VH.detach().to(dtype)
        grad_hidden = torch.empty_like(hidden_NH) if need_hidden else None
        grad_weight = torch.zeros(weight_VH.shape, dtype=torch.float32, device=weight.device) if need_weight else None
        entropy, spread, z_sum = torch.zeros(3, dtype=torch.float64, device=weight.device).unbind()
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for start in range(0, targets_N.numel(), chunk):
                part = slice(start, start + chunk)
                count = targets_N[part].numel()
                filling = -count % _ROUND
                hidden_CH = pad(hidden_NH[part].detach().to(dtype), (0, 0, 0, filling))
                targets_C1 = pad(targets_N[part], (0, filling))[:, None]
                logits_CV = (hidden_CH @ weight.T).float()
                log_p_CV = torch.log_softmax(logits_CV, dim=-1)
                target_log_p_C1 = log_p_CV.gather(1, targets_C1)
                entropy = entropy - target_log_p_C1[:count].double().sum()
                if smoothing:
                    spread = spread - log_p_CV[:count].mean(-1).double().sum()
                log_z_C1 = logits_CV.gather(1, targets_C1) - target_log_p_C1 if z_loss else None
                if log_z_C1 is not None:
                    z_sum = z_sum + log_z_C1[:count].double().square().sum()
                if grad_hidden is None and grad_weight is None:
                    continue
                del logits_CV
                grad_CV = log_p_CV.exp_()  # the softmax, in place
                if log_z_C1 is not None:
                    grad_CV *= 1 + 2 * z_loss * log_z_C1
                if smoothing:
                    grad_CV -= smoothing / num_columns
                off = torch.full_like(targets_C1, smoothing - 1, dtype=torch.float32)
                grad_CV.scatter_add_(1, targets_C1, off)
                grad_CV[count:] = 0
                grad_CV = grad_CV.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = (grad_CV @ weight)[:count]
                if grad_weight is not None:
                    grad_weight += grad_CV.T @ hidden_CH
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VH.dtype
        ctx.mark_non_differentiable(entropy, z_sum)
        return _total(entropy, spread, z_sum, z_loss, smoothing), entropy, z_sum

    @staticmethod
    def backward(ctx: _Context, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_loss.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_loss).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None


class _IntegerCrossEntropy(torch.autograd.Function):
    """The same with a head of integers: twice over its rows for all targets, instead of over the targets.

    Turning rows into floats costs more than multiplying with them, so each row becomes floats twice a batch, whatever
    the number of targets: for the softmax's denominators, then for the gradient.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        hidden_NH: Tensor,
        head: IntegerMatrix,
        targets_N: Tensor,
        z_loss: float,
        smoothing: float,
        chunk_size: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, width = hidden_NH.shape
        num_columns = head.num_rows
        dtype = _product_dtype(hidden_NH, hidden_NH.dtype)
        step = chunk_size or max(64, min(_FLOATS // width, _CHUNK_NUMBERS // count))
        hidden = hidden_NH.detach().to(dtype)
        blocks = [(start, min(start + step, num_columns)) for start in range(0, num_columns, step)]
        with torch.autocast(hidden.device.type, enabled=False):
            log_z_N = torch.full((count,), -torch.inf, device=hidden.device)
            target_logits_N, logit_sums_N = torch.zeros(2, count, device=hidden.device).unbind()
            for start, end in blocks:
                logits_NR = (hidden @ head.floats(start, end, dtype).T).float()
                log_z_N = torch.logaddexp(log_z_N, logits_NR.logsumexp(-1))
                inside_N, places_N1 = _inside(targets_N, start, end)
                target_logits_N += logits_NR.gather(1, places_N1)[:, 0] * inside_N
                if smoothing:
                    logit_sums_N += logits_NR.sum(-1)
            entropy = (log_z_N - target_logits_N).double().sum()
            spread = (log_z_N - logit_sums_N / num_columns).double().sum()
            z_sum = log_z_N.double().square().sum() if z_loss else torch.zeros_like(entropy)
            grad_NH = None
            if ctx.needs_input_grad[0]:
                grad_NH = torch.zeros(count, width, device=hidden.device)
                scale_N1 = 1 + 2 * z_loss * log_z_N[:, None]
                for start, end in blocks:
                    rows_RH = head.floats(start, end, dtype)
                    grad_NR = (hidden @ rows_RH.T).float().sub_(log_z_N[:, None]).exp_().mul_(scale_N1)
                    if smoothing:
                        grad_NR -= smoothing / num_columns
                    inside_N, places_N1 = _inside(targets_N, start, end)
                    grad_NR.scatter_add_(1, places_N1, (smoothing - 1) * inside_N.float()[:, None])
                    grad_NH += grad_NR.to(dtype) @ rows_RH
                grad_NH = grad_NH.to(hidden_NH.dtype)
        ctx.save_for_backward(grad_NH)
        ctx.mark_non_differentiable(entropy, z_sum)
        return _total(entropy, spread, z_sum, z_loss, smoothing), entropy, z_sum

    @staticmethod
    def backward(ctx: _Context, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NH,) = ctx.saved_tensors
        assert grad_NH is not None
        return grad_NH * grad_loss.to(grad_NH.dtype), None, None, None, None, None


def _product_dtype(hidden_NH: Tensor, own: torch.dtype) -> torch.dtype:
    device = hidden_NH.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else own


def _inside(targets_N: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
    """The targets among columns [start, end), and the place of each there (0 of the others), (N,1)."""
    inside_N = (targets_N >= start) & (targets_N < end)
    return inside_N, ((targets_N - start) * inside_N)[:, None]


def _total(entropy: Tensor, spread: Tensor, z_sum: Tensor, z_loss: float, smoothing: float) -> Tensor:
    """(1 - e) * CE + e * mean of -log p + z * log(Z)^2, summed."""
    return ((1 - smoothing) * entropy + smoothing * spread + z_loss * z_sum).float()
