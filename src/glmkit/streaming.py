"""A model whose layers are read from the files one at a time, for all batches of a text, and its loss on them.

Legend: B rows, T tokens, N targets, H hidden width, R rows of a table.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .checkpoint.materialize import fetch, fetch_panels, refuse_bad
from .checkpoint.open import Checkpoint
from .checkpoint.weights import Weights
from .config import GLMConfig
from .data.packing import Batch
from .devices import CPU
from .filled_model import empty_model
from .model import GLM
from .model.attention import AttentionPlan
from .model.positions import Rotary
from .model.transformer import PreNormBlock
from .objective.loss import linear_cross_entropy
from .quant.layers import QuantMatrix


class StreamedTable(nn.Module):
    """The word table or head of a file, float or integers, of which only the rows that are asked for become floats."""

    def __init__(self, weights: Weights, stem: str, rows: int) -> None:
        super().__init__()
        self._weights, self._name, self.num_rows = weights, f"{stem}.weight", rows
        self.register_buffer("weight", torch.empty(0, dtype=torch.uint8))  # rows come as float32, as integers' do

    def floats(self, start: int = 0, end: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows as floats (R',H)."""
        return self._weights.read_rows(self._name, start, self.num_rows if end is None else end).to(dtype)

    def product(self, x: Tensor) -> Tensor:
        """(..., H) to (..., R)."""
        return functional.linear(x, self.floats(dtype=x.dtype))

    def forward(self, ids: Tensor) -> Tensor:
        """(..., H) float32 word vectors of ids (...)."""
        return self._weights.read(self._name)[ids].float()


@dataclass
class Flow:
    """A batch on its way through the layers: hidden states (1,T,H) before the next layer, and how it is attended to."""

    batch: Batch
    x_BTH: Tensor
    plan: AttentionPlan
    rotary: Rotary | None

    def through(self, layer: PreNormBlock) -> Tensor:
        """Hidden states behind a layer (1,T,H)."""
        made: Tensor = layer(self.x_BTH, self.plan, self.rotary, None)
        return made


class _Start(nn.Module):
    """A layer that remembers what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, AttentionPlan, Rotary | None]] = []

    def forward(
        self, x_BTH: Tensor, plan: AttentionPlan, rotary: Rotary | None, cache: None, prefix: None = None
    ) -> Tensor:
        self.seen.append((x_BTH, plan, rotary))
        return x_BTH


@dataclass(frozen=True)
class StreamedModel:
    """A float32 model of a checkpoint; all batches go through one layer before the next is read.

    Integers stay as panels. `layers` have no memory but in `layer`.
    """

    model: GLM
    layers: nn.ModuleList
    checkpoint: Checkpoint

    @classmethod
    def open(cls, checkpoint: Checkpoint, config: GLMConfig | None = None) -> "StreamedModel":
        """The model with everything but its layers in place. config: with matrices that are rounded on the way."""
        model, weights = empty_model(config or checkpoint.config).eval(), checkpoint.weights
        layers, model.model.layers = model.model.layers, nn.ModuleList([_Start()])
        streamed = cls(model, layers, checkpoint)
        for stem in ("model.embed_tokens", "lm_head"):
            table = getattr(model, stem) if stem == "lm_head" else model.model.embed_tokens
            if isinstance(table, nn.Embedding | nn.Linear):
                rows = weights.info(f"{stem}.weight").shape[0]
                model.set_submodule(stem, StreamedTable(weights, stem, rows))
        streamed._fill("", model, [*model.state_dict()])
        return streamed

    def _fill(self, prefix: str, module: nn.Module, names: list[str]) -> None:
        """Read parameters by the names that the module has for them behind `prefix`."""
        weights, bad, state = self.checkpoint.weights, dict[str, None](), dict[str, Tensor]()
        for name in names:
            stem, _, part = name.rpartition(".")
            owner = module.get_submodule(stem)
            whole = f"{prefix}{name}"
            if isinstance(owner, StreamedTable) or part.endswith("_scale"):
                continue
            if isinstance(owner, QuantMatrix) and part == "weight":
                found = fetch_panels(weights, whole.removesuffix(".weight"), owner.form, CPU, bad)
            else:
                found = {whole: fetch(weights, whole, torch.float32, CPU, bad)}
            state |= {key.removeprefix(prefix): value for key, value in found.items()}
        refuse_bad({name: weights.stored_name(name) for name in bad}, str(self.checkpoint.directory))
        module.load_state_dict(state, strict=False, assign=True)

    @contextmanager
    def layer(self, number: int) -> Iterator[PreNormBlock]:
        """A layer with its weights in memory, which are let go of afterwards."""
        layer, prefix, weights = self.layers[number], f"model.layers.{number}.", self.checkpoint.weights
        assert isinstance(layer, PreNormBlock)
        names, known = [*layer.state_dict()], set(weights.names())
        self._fill(prefix, layer, names)
        yield layer
        layer.to("meta")
        for name in names:
            if f"{prefix}{name}" in known:
                weights.release(f"{prefix}{name}")

    @torch.no_grad()
    def start(self, batches: Sequence[Batch]) -> list[Flow]:
        """Batches before the first layer."""
        (first,) = self.model.model.layers
        assert isinstance(first, _Start)
        for batch in batches:
            self.model.hidden(batch.input_ids, position_ids=batch.position_ids, segments=batch.segments)
        seen, first.seen = first.seen, []
        return [Flow(batch, *own) for batch, own in zip(batches, seen, strict=True)]

    @torch.no_grad()
    def sums(self, batches: Sequence[Batch]) -> list[tuple[float, int]]:
        """Summed cross-entropy of each batch, in nats, and its targets."""
        flows = self.start(batches)
        for number in range(len(self.layers)):
            with self.layer(number) as layer:
                for flow in flows:
                    flow.x_BTH = flow.through(layer)
        assert self.model.model.norm is not None
        sums = []
        for flow in flows:
            hidden_NH = self.model.model.norm(flow.x_BTH)[flow.batch.loss_mask]
            targets_N = flow.batch.targets[flow.batch.loss_mask]
            one = linear_cross_entropy(hidden_NH, self.model.head_matrix, targets_N)
            sums.append((float(one.cross_entropy_sum), one.num_targets))
        return sums

    def loss(self, batches: Sequence[Batch]) -> float:
        """Mean cross-entropy of the targets, in nats."""
        sums = self.sums(batches)
        return math.fsum(value for value, _ in sums) / sum(count for _, count in sums)
