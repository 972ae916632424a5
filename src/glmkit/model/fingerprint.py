"""Telling weights from the same ones after a change, at a price that every request can pay.

Legend: S numbers looked at, of all tensors together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SAMPLE = 16  # numbers of each tensor


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What a model's weights are now. Two are equal as long as nothing was done to them.

    Torch counts what is done to a tensor in its place, and a tensor that takes another's place is another one. It does
    not count what is done to `tensor.data`, as some libraries do when they merge adapters, nor to tensors made in
    inference mode: a few numbers of each tensor, evenly spread, are looked at for that. So such a change of single
    numbers may go unnoticed. Switching an adapter on or off changes which weights want gradients.
    """

    tensors: tuple[tuple[object, ...], ...]
    sample_S: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module) -> "Fingerprint":
        """Of all parameters and buffers."""
        known, samples = [], []
        for tensor in _tensors(model):
            version = 0 if tensor.is_inference() else tensor._version
            known.append((id(tensor), version, tensor.data_ptr(), tensor.dtype, tensor.device, tensor.requires_grad))
            flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach()[:1].reshape(-1)
            samples.append(flat[:: max(1, len(flat) // _SAMPLE)][:_SAMPLE].float())
        # As whole numbers, so that NaN equals itself.
        return cls(tuple(known), torch.cat(samples).view(torch.int32) if samples else torch.zeros(0))

    def __eq__(self, other: object) -> bool:
        """Whether nothing has changed as far as can be seen."""
        if not isinstance(other, Fingerprint):
            return NotImplemented
        return self.tensors == other.tensors and torch.equal(self.sample_S, other.sample_S)

    __hash__ = None  # type: ignore[assignment]


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
