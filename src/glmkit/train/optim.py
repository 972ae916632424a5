"""Optimizers: AdamW with decay groups, or Muon for the hidden matrices and AdamW for the rest."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from glmkit.devices import has_fused_optimizers
from glmkit.errors import CheckpointError, ConfigError

from .run_config import OptimizerSection


class Optimizers:
    """Several torch optimizers that step as one; state is addressed by parameter name, so that it can be stored flat.

    Every group has `scale`: its rate is `scale` times the rate given to `set_rate`.
    """

    def __init__(self, parts: Mapping[str, torch.optim.Optimizer], names: Mapping[nn.Parameter, str]) -> None:
        self.parts = dict(parts)
        self._names = dict(names)

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, in the model's order."""
        return list(self._names)

    def set_rate(self, rate: float) -> None:
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = rate * group["scale"]

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """One update; with `scaler`, skipped where it found infinite gradients."""
        for part in self.parts.values():
            if scaler is None:
                part.step()
            else:
                scaler.step(part)

    def zero_grad(self) -> None:
        for part in self.parts.values():
            part.zero_grad(set_to_none=True)

    def checkpoint_bytes(self) -> int:
        """Bytes of the trained parameters and of their states, of which Muon has one and AdamW two."""
        slots = {name: 1 if name == "muon" else 2 for name in self.parts}
        return sum(p.nbytes * (1 + slots[name]) for name, part in self.parts.items() for _, p in self._named(part))

    def _named(self, part: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
        for group in part.param_groups:
            for parameter in group["params"]:
                yield self._names[parameter], parameter

    def state_tensors(self) -> dict[str, Tensor]:
        """`part/slot/parameter name` -> tensor, for every slot of every parameter (empty before the first step)."""
        tensors: dict[str, Tensor] = {}
        for part_name, part in self.parts.items():
            for name, parameter in self._named(part):
                for slot, value in part.state.get(parameter, {}).items():
                    if not isinstance(value, Tensor):  # torch's AdamW and Muon hold tensors only
                        raise AssertionError(f"{part_name} keeps a {type(value).__name__} in {slot}")
                    tensors[f"{part_name}/{slot}/{name}"] = value
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `state_tensors`. Raises CheckpointError for slots that belong to no parameter, or none."""
        left = dict(tensors)
        for part_name, part in self.parts.items():
            by_name: dict[str, dict[str, Tensor]] = {}
            prefix = f"{part_name}/"
            for key in [key for key in left if key.startswith(prefix)]:
                slot, _, name = key.removeprefix(prefix).partition("/")
                by_name.setdefault(name, {})[slot] = left.pop(key)
            for name, parameter in self._named(part):
                slots = by_name.pop(name, None)
                if slots is None:
                    if tensors:
                        raise CheckpointError(f"the optimizer state has nothing for {name}; was it frozen or renamed?")
                    continue
                part.state[parameter] = {slot: _placed(value, parameter, name) for slot, value in slots.items()}
            if by_name:
                raise CheckpointError(f"the optimizer state names {min(by_name)!r}, which the model does not train")
        if left:
            raise CheckpointError(f"the optimizer state belongs to another optimizer: {min(left)!r}")


def _placed(value: Tensor, parameter: nn.Parameter, name: str) -> Tensor:
    if value.dim() and value.shape != parameter.shape:
        raise CheckpointError(
            f"the optimizer state of {name} has shape {tuple(value.shape)}, the model {tuple(parameter.shape)}"
        )
    return value.to(parameter.device)


def build_optimizers(model: nn.Module, options: OptimizerSection, *, fused: bool = True) -> Optimizers:
    """Optimizers over the parameters of `model` that require gradients.

    Biases, norms and other vectors are not decayed, matrices and embeddings are (`THUDM/GLM:model/modeling_glm.py`).
    Muon (torch.optim.Muon) takes the two-dimensional weights inside the stack of blocks; without a rate of its own it
    uses AdamW's rate with updates scaled to AdamW's size (arXiv 2502.16982, section 2.2).
    Raises ConfigError when nothing is trainable.
    """
    named = {p: name for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ConfigError("no parameter is trainable; unfreeze some or add an adapter")
    hidden = _hidden_matrices(model) if options.name == "muon" else set()
    if options.name == "muon" and not hidden:
        raise ConfigError("optimizer muon needs matrices inside the stack of blocks, and none is trainable; use adamw")
    matrices = [p for p in named if p.dim() >= 2 and p not in hidden]
    vectors = [p for p in named if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay, "scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
    ]
    parts: dict[str, torch.optim.Optimizer] = {}
    groups = [group for group in groups if group["params"]]
    if groups:
        parts["adamw"] = torch.optim.AdamW(
            groups,
            lr=options.learning_rate,
            betas=(options.adam_beta1, options.adam_beta2),
            eps=options.adam_eps,
            fused=fused and all(has_fused_optimizers(p.device) and p.is_floating_point() for p in named),
        )
    if hidden:
        own_rate = options.muon_learning_rate
        decay = options.weight_decay if options.muon_weight_decay is None else options.muon_weight_decay
        scale = 1.0 if own_rate is None else own_rate / options.learning_rate
        parts["muon"] = torch.optim.Muon(
            [{"params": [p for p in named if p in hidden], "scale": scale}],
            lr=options.learning_rate,
            weight_decay=decay,
            momentum=options.muon_momentum,
            nesterov=True,
            adjust_lr_fn="match_rms_adamw" if own_rate is None else "original",
        )
    return Optimizers(parts, named)


def _hidden_matrices(model: nn.Module) -> set[nn.Parameter]:
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inside = {p for stack in stacks for p in stack.parameters() if p.requires_grad and p.dim() == 2}
    tables = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return inside - tables


def slots_per_parameter(options: OptimizerSection, model: nn.Module) -> tuple[int, int]:
    """(numbers of optimizer state, trained numbers): AdamW keeps two per weight, Muon one. Works on the meta device."""
    trained = {p for p in model.parameters() if p.requires_grad}
    hidden = _hidden_matrices(model) if options.name == "muon" else set()
    return sum(p.numel() * (1 if p in hidden else 2) for p in trained), sum(p.numel() for p in trained)


def clip_gradients(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients so that their joint norm is at most `limit` (0 = leave them); the norm before that, ()."""
    if limit > 0:
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    else:
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    full = getattr(norm, "full_tensor", None)  # sharded parameters give a sharded norm
    whole: Tensor = full() if callable(full) else norm
    return whole
