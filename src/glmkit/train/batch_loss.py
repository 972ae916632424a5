"""The loss of a batch of samples: logits at its labels alone."""

from collections.abc import Callable

from torch import nn

from glmkit.data.packing import Batch
from glmkit.model import GLM
from glmkit.objective.loss import LossSums, linear_cross_entropy


def batch_loss(z_loss: float = 0.0, label_smoothing: float = 0.0) -> Callable[[nn.Module, Batch], LossSums]:
    """The summed cross-entropy at the labels of a batch, padded or packed; see `linear_cross_entropy`."""

    def loss(model: nn.Module, batch: Batch) -> LossSums:
        assert isinstance(model, GLM)
        hidden_BTH = model.hidden(batch.input_ids, position_ids=batch.position_ids, segments=batch.segments)
        return linear_cross_entropy(
            hidden_BTH[batch.loss_mask],
            model.head_matrix,
            batch.targets[batch.loss_mask],
            z_loss=z_loss,
            label_smoothing=label_smoothing,
        )

    return loss
