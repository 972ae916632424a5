"""A third kind of adapter, for tests: outputs of linear layers scaled by learned vectors, in PEFT's IA3 layout."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from glmkit.adapters.adapter import Adapter, AdapterInfo, Base, Saving
from glmkit.adapters.adapter_files import AdapterFiles, existing, read_files
from glmkit.adapters.naming import bare_name, leaf
from glmkit.checkpoint.native import read_json, write_json, write_tensors
from glmkit.errors import CheckpointError, ConfigError
from glmkit.model import GLM

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class ScaledLinear(nn.Module):
    """base(x) * scale."""

    def __init__(self, base: nn.Module, scale_O: Tensor) -> None:
        super().__init__()
        self.base, self.scale = base, nn.Parameter(scale_O)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out * self.scale.to(out.dtype)


@dataclass(frozen=True)
class ScalingOptions:
    """Untrained scaling, all ones, of the modules with these last parts of names."""

    targets: Sequence[str]

    def build(self, base: Base) -> "ScalingAdapter":
        found = {
            stem: torch.ones(module.out_features)
            for stem, module in base.model.named_modules()
            if leaf(stem) in self.targets and isinstance(module, nn.Linear)
        }
        if not found:
            raise ConfigError(f"no linear layer is called {self.targets}")
        return ScalingAdapter.made(base, found, None)


class ScalingAdapter(Adapter):
    """Scaled layers by our stems."""

    kind = "scaling"
    options = ScalingOptions

    def __init__(self, info: AdapterInfo, layers: Mapping[str, ScaledLinear]) -> None:
        super().__init__(info)
        self.layers = layers

    @classmethod
    def made(cls, base: Base, scales: Mapping[str, Tensor], path: Path | None) -> "ScalingAdapter":
        layers = {
            stem: ScaledLinear(base.model.get_submodule(stem), scale_O.to(torch.float32, copy=True))
            for stem, scale_O in scales.items()
        }
        return cls(AdapterInfo(cls.kind, path, 1, len(layers), torch.float32, "glmkit"), layers)

    @classmethod
    def claims(cls, directory: Path) -> int:
        path = directory / CONFIG
        return 3 if path.exists() and read_json(path).get("peft_type") == "IA3" else 0

    @classmethod
    def open(cls, directory: Path, *, beside_weights: bool) -> AdapterFiles:
        return read_files(cls.kind, existing(directory, WEIGHTS), CONFIG)

    @classmethod
    def inspect(cls, files: AdapterFiles) -> list[str]:
        return [f"{len(files.tensors)} scaled layers"]

    @classmethod
    def read(cls, files: AdapterFiles, base: Base, alpha: float | None) -> "ScalingAdapter":
        scales = {bare_name(name).removesuffix(".ia3_l"): tensor for name, tensor in files.tensors.items()}
        known = dict(base.model.named_modules())
        if unknown := [stem for stem in scales if stem not in known]:
            raise CheckpointError(f"{files.weights}: {unknown[0]} is no module of this model")
        return cls.made(base, scales, files.weights.parent)

    def save(self, base: Base, saving: Saving) -> tuple[str, dict[str, object]]:
        tensors = {f"base_model.model.{stem}.ia3_l": layer.scale.detach() for stem, layer in self.layers.items()}
        write_tensors(saving.folder / WEIGHTS, saving.converted(tensors, self.info.dtype))
        write_json(saving.folder / CONFIG, {"peft_type": "IA3", "target_modules": sorted(map(leaf, self.layers))})
        return "glmkit", {}

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter([layer.scale for layer in self.layers.values()])

    def put_on(self, model: GLM) -> None:
        for stem, layer in self.layers.items():
            model.set_submodule(stem, layer)

    def take_off(self, model: GLM) -> None:
        for stem, layer in self.layers.items():
            model.set_submodule(stem, layer.base)

    def merge(self, model: GLM) -> None:
        for layer in self.layers.values():
            for name, value in list(layer.base.named_parameters()):
                shape = (-1,) + (1,) * (value.dim() - 1)
                scaled = value.detach() * layer.scale.detach().to(value.dtype).view(shape)
                setattr(layer.base, name, nn.Parameter(scaled, requires_grad=value.requires_grad))
        self.take_off(model)


ADAPTER = ScalingAdapter
