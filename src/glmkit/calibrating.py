"""Calibration of a whole model: layer after layer, with the inputs that a text gives the rounded layers before.

Held at a time: one layer in float32, the hidden states of all rows, and the Gram matrix of one group of matrices.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .checkpoint.open import Checkpoint
from .config import GLMConfig
from .data.packing import Batch
from .errors import RequestError
from .quant.calibration import Method, RoundedLayer, round_layer
from .quant.rounding import MatrixForm, Rounding, matrix_form
from .streaming import StreamedModel


class Calibration:
    """The layers of a checkpoint in integers, in order.

    target: the config with the form of the integers. started: called with each batch's number and their number while
    the batches of a layer pass.
    """

    def __init__(
        self, checkpoint: Checkpoint, target: GLMConfig, batches: Sequence[Batch], method: Method, rounding: Rounding
    ) -> None:
        self._streamed = StreamedModel.open(checkpoint)
        self._flows = self._streamed.start(batches)
        self._target, self._method, self._rounding = target, method, rounding
        self._infos, self._next = checkpoint.weights.info, 0

    def round(self, number: int) -> RoundedLayer:
        """Round layer `number`, the next one; its tensors have the types of the file.

        Raises RequestError for inputs that are NaN or infinite.
        """
        assert number == self._next, number
        self._next += 1
        prefix = f"model.layers.{number}."
        with self._streamed.layer(number) as layer:
            passes: list[Callable[[], Tensor]] = [partial(flow.through, layer) for flow in self._flows]
            stored = self._infos(f"{prefix}input_layernorm.weight").dtype
            try:
                made = round_layer(layer, passes, partial(self._form, prefix), self._method, self._rounding, stored)
            except RequestError as error:
                raise RequestError(f"layer {number}: {error}", param="calibrate") from None
            with torch.no_grad():
                for flow in self._flows:
                    flow.x_BTH = flow.through(layer)
        made.tensors = {
            name: value.to(self._infos(prefix + name).dtype) if value.dim() == 1 and "_scale" not in name else value
            for name, value in made.tensors.items()
        }
        return made

    def _form(self, prefix: str, name: str) -> MatrixForm:
        form = matrix_form(self._target.quantization, prefix + name)
        assert form is not None, name
        return form
