"""A model whose layers are read from the files one at a time, for one pass over a text, and its loss on a text.

Legend: B windows, T tokens, C input columns of a linear layer, H hidden width.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .checkpoint.materialize import fetch, fetch_panels, refuse_bad
from .checkpoint.open import Checkpoint
from .checkpoint.weights import Weights
from .devices import CPU
from .errors import RequestError
from .filled_model import empty_model
from .model import GLM
from .objective.loss import linear_cross_entropy
from .quant.layers import QuantMatrix
from .tokenizer.protocol import Tokenizer

WINDOW = 256  # tokens that see each other
_FEWEST = 16  # tokens that a loss is measured on


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


@dataclass(frozen=True)
class StreamedModel:
    """A float32 model of a checkpoint; a pass holds one layer's weights, integers as panels."""

    model: GLM
    checkpoint: Checkpoint

    @classmethod
    def open(cls, checkpoint: Checkpoint) -> "StreamedModel":
        """The model with everything but its layers in place."""
        model, weights = empty_model(checkpoint.config).eval(), checkpoint.weights
        streamed = cls(model, checkpoint)
        for number, layer in enumerate(model.model.layers):
            assert isinstance(layer, nn.Module)
            streamed._fill_when_called(f"model.layers.{number}", layer)
        for stem in ("model.embed_tokens", "lm_head"):
            table = getattr(model, stem) if stem == "lm_head" else model.model.embed_tokens
            if isinstance(table, nn.Embedding | nn.Linear):
                rows = weights.info(f"{stem}.weight").shape[0]
                model.set_submodule(stem, StreamedTable(weights, stem, rows))
        streamed._fill("", [name for name in model.state_dict() if not name.startswith("model.layers.")])
        return streamed

    def _fill(self, prefix: str, names: list[str]) -> None:
        """Read parameters by the names that the model has for them behind `prefix`."""
        weights, bad, state = self.checkpoint.weights, dict[str, None](), dict[str, Tensor]()
        module = self.model.get_submodule(prefix) if prefix else self.model
        for name in names:
            stem, _, part = name.rpartition(".")
            owner = module.get_submodule(stem)
            whole = f"{prefix}.{name}".lstrip(".")
            if isinstance(owner, StreamedTable) or part.endswith("_scale"):
                continue
            if isinstance(owner, QuantMatrix) and part == "weight":
                found = fetch_panels(weights, whole.removesuffix(".weight"), owner.form, CPU, bad)
            else:
                found = {whole: fetch(weights, whole, torch.float32, CPU, bad)}
            state |= {key.removeprefix(prefix).lstrip("."): value for key, value in found.items()}
        refuse_bad({name: weights.stored_name(name) for name in bad}, str(self.checkpoint.directory))
        module.load_state_dict(state, strict=False, assign=True)

    def _fill_when_called(self, prefix: str, layer: nn.Module) -> None:
        names = [*layer.state_dict()]

        def fill(*_: object) -> None:
            self._fill(prefix, names)

        def empty(*_: object) -> None:
            layer.to("meta")
            for name in names:
                if f"{prefix}.{name}" in known:
                    self.checkpoint.weights.release(f"{prefix}.{name}")

        known = set(self.checkpoint.weights.names())
        layer.register_forward_pre_hook(fill)
        layer.register_forward_hook(empty)

    @torch.no_grad()
    def loss(self, ids_BT: Tensor, start: int) -> float:
        """Mean cross-entropy of the tokens from column `start` on."""
        hidden_BTH = self.model.hidden(ids_BT)[:, start - 1 : -1]
        targets = ids_BT[:, start:].flatten()
        sums = linear_cross_entropy(hidden_BTH.flatten(0, 1), self.model.head_matrix, targets)
        return float(sums.cross_entropy_sum) / sums.num_targets

    @torch.no_grad()
    def mean_squares(self, ids_BT: Tensor) -> dict[str, Tensor]:
        """Mean square of each input column (C,) of the layers' linear layers, by the stems of our names."""
        sums: defaultdict[str, Tensor | float] = defaultdict(float)
        hooks = [
            module.register_forward_pre_hook(_adder(sums, stem))
            for stem, module in self.model.named_modules()
            if ".layers." in stem and isinstance(module, nn.Linear)
        ]
        self.model.hidden(ids_BT)
        for hook in hooks:
            hook.remove()
        return {stem: total for stem, total in sums.items() if isinstance(total, Tensor)}


def _adder(sums: defaultdict[str, Tensor | float], stem: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sums[stem] += inputs[0].float().square().flatten(0, -2).mean(0)

    return add


def windows(tokenizer: Tokenizer, checkpoint: Checkpoint, text: str, most: int) -> tuple[Tensor, int]:
    """Windows (B,T) of a text, at most `most`, behind the tokens that begin a piece, and the column of its first token.

    Raises RequestError for a text that is too short.
    """
    special, ids = checkpoint.config.special or tokenizer.special, tokenizer.encode(text)
    first = [index for index in (special.cls, special.gmask, special.sop) if index is not None]
    size = min(WINDOW, checkpoint.config.max_positions - len(first), len(ids))
    if size < _FEWEST:
        raise RequestError(f"the text has {len(ids)} tokens, too few to measure on", step="give a longer one")
    count = min(len(ids) // size, most)
    rows = torch.tensor(ids[: count * size]).view(count, size)
    return torch.cat([torch.tensor([first]).expand(count, -1), rows], 1), len(first)
