"""Cross-entropy of the output head without ever holding all logits.

Legend: N targets, C targets of one chunk, H hidden width, V vocabulary rows.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from glmkit.errors import TrainingError

# Logits of one chunk: 2^24 fp32 numbers are 64 MB.
_CHUNK_NUMBERS = 1 << 24
# Chunks are padded to a multiple of this many targets: oneDNN compiles and keeps a kernel for every shape it meets, and
# the number of targets differs from batch to batch (docs/log.md, 2026-11-22).
_ROUND = 64


@dataclass(frozen=True)
class LossSums:
    """Sums over the targets of a batch. The caller takes the mean: it knows the targets of the whole step.

    `loss_sum` carries the gradient and includes the z-loss; `cross_entropy_sum` and `z_sum` are detached.
    """

    loss_sum: Tensor
    cross_entropy_sum: Tensor
    z_sum: Tensor
    num_targets: int


def linear_cross_entropy(
    hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, *, z_loss: float = 0.0, chunk_size: int | None = None
) -> LossSums:
    """Summed cross-entropy of `hidden @ weight.T` against `targets`, chunk by chunk, logits and softmax in fp32.

    hidden_NH are the hidden states at the targets only. z_loss: weight of log(Z)^2, Z the softmax's denominator
    (PaLM, section 5). Under autocast the products run in the autocast dtype. Gradients are computed in the same pass
    as the loss, so that no chunk's logits outlive it.
    Raises TrainingError when there is no target.
    """
    if targets_N.numel() == 0:
        raise TrainingError("a batch has no target: every label is masked; look at it with `glm show`")
    chunk = chunk_size or max(64, _CHUNK_NUMBERS // weight_VH.shape[0])
    loss, entropy, z = _LinearCrossEntropy.apply(hidden_NH, weight_VH, targets_N, z_loss, chunk)  # type: ignore[no-untyped-call]
    return LossSums(loss, entropy, z, targets_N.numel())


class _Context(Protocol):
    """The part of autograd's context that the loss uses."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor | None, Tensor | None]
    weight_dtype: torch.dtype

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, z_loss: float, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VH.dtype
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        weight = weight_VH.detach().to(dtype)
        grad_hidden = torch.empty_like(hidden_NH) if need_hidden else None
        grad_weight = torch.zeros(weight_VH.shape, dtype=torch.float32, device=weight.device) if need_weight else None
        entropy = torch.zeros((), dtype=torch.float64, device=weight.device)
        z_sum = torch.zeros((), dtype=torch.float64, device=weight.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, targets_N.numel(), chunk):
                part = slice(start, start + chunk)
                count = targets_N[part].numel()
                filling = -count % _ROUND
                hidden_CH = pad(hidden_NH[part].detach().to(dtype), (0, 0, 0, filling))
                targets_C1 = pad(targets_N[part], (0, filling))[:, None]
                logits_CV = (hidden_CH @ weight.T).float()
                log_p_CV = torch.log_softmax(logits_CV, dim=-1)
                target_log_p_C1 = log_p_CV.gather(1, targets_C1)
                entropy -= target_log_p_C1[:count].double().sum()
                log_z_C1 = logits_CV.gather(1, targets_C1) - target_log_p_C1 if z_loss else None
                if log_z_C1 is not None:
                    z_sum += log_z_C1[:count].double().square().sum()
                if grad_hidden is None and grad_weight is None:
                    continue
                del logits_CV
                grad_CV = log_p_CV.exp_()  # the softmax, in place
                if log_z_C1 is not None:
                    grad_CV *= 1 + 2 * z_loss * log_z_C1
                grad_CV.scatter_add_(1, targets_C1, torch.full_like(targets_C1, -1, dtype=torch.float32))
                grad_CV[count:] = 0
                grad_CV = grad_CV.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = (grad_CV @ weight)[:count]
                if grad_weight is not None:
                    grad_weight += grad_CV.T @ hidden_CH
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VH.dtype
        ctx.mark_non_differentiable(entropy, z_sum)
        return (entropy + z_loss * z_sum).float(), entropy, z_sum

    @staticmethod
    def backward(ctx: _Context, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_loss.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_loss).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None
