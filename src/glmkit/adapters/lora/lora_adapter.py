"""LoRA as a kind of adapter: read onto a model's modules, made for training, put on, merged, written."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from glmkit.adapters.adapter import Adapter, AdapterInfo, Base, Saving, option
from glmkit.adapters.adapter_files import (
    PADDLE,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    RECORD,
    AdapterFiles,
    existing,
    is_paddle,
    model_names,
    only_adapter,
    peft_type,
    read_files,
    unified,
)
from glmkit.adapters.naming import LAYERS, Naming, Part, choose_naming, namings
from glmkit.checkpoint.native import write_json, write_tensors
from glmkit.errors import CheckpointError, ConfigError
from glmkit.families.common.native_layout import OWN
from glmkit.finite import all_finite
from glmkit.model import GLM
from glmkit.tokenizer.composed import ComposedTokenizer

from .layer import LoraLinear, LowRank, float_weight, linear_shape, scaling, split_rows
from .promised import require_promised
from .reading import LoraContents, read_lora
from .replaced import Replaced, ReplacedParameters, floats_of, own_value, shape_of, token_tables
from .settings import PADDLE_CONFIG, PADDLE_WEIGHTS
from .targets import Exceptions, linears, target_groups, whole_modules
from .writing import collect, paddle_files, peft_files

_PADDLE_FILES = (PADDLE_CONFIG, PADDLE_WEIGHTS)
_MARK = ".lora_"  # in the name of every matrix, wherever it is stored


@dataclass(frozen=True)
class LoraOptions:
    """Untrained LoRA: B is zero, so nothing changes yet; A is drawn as PEFT draws it, uniform within 1 / sqrt(inputs).

    Names of modules are ours ("q_proj") or published ("query_key_value", whose parts then share one A and export at
    this rank), see `targets`. Patterns are read as in PEFT's settings: ends of names, the first that fits.
    """

    targets: tuple[str, ...] = option(
        ("query_key_value",), "modules with an update, by ours or published names; or all"
    )
    rank: int = option(8, "rank of the update")
    alpha: float = option(32.0, "the update is scaled by alpha / rank")
    dropout: float = option(0.0, "dropout on the input of the update, in training")
    root: bool = option(False, "scale by alpha / sqrt(rank) instead (rsLoRA)")
    rank_pattern: Mapping[str, int] = option({}, "ranks of single modules: {end of a name: rank}")
    alpha_pattern: Mapping[str, float] = option({}, "alphas of single modules: {end of a name: alpha}")
    layers_to_transform: tuple[int, ...] | None = option(None, "numbers of the layers with updates; null = all")
    exclude_modules: tuple[str, ...] = option((), "targets without an update after all")
    bias: Literal["none", "all", "lora_only"] = option("none", "biases that are trained as well")
    modules_to_save: tuple[str, ...] = option((), "modules that are trained whole: embeddings, head, norms")
    new_tokens: tuple[str, ...] = option((), "tokens to add; their rows are trained and saved with the tokenizer")

    def build(self, base: Base) -> "LoraAdapter":
        """Raise ConfigError for a name that no naming has, with the known ones, and for values that do not fit."""
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"LoRA dropout is {self.dropout}; it must be in [0, 1)", param="dropout")
        groups = target_groups(base, self.targets, self.exclude_modules, self.layers_to_transform)
        ranks = Exceptions("rank_pattern", self.rank_pattern, self.rank)
        alphas = Exceptions("alpha_pattern", self.alpha_pattern, self.alpha)
        updates: dict[str, LowRank] = {}
        for stem, parts in groups.items():
            rank, alpha = ranks.of(stem, parts), alphas.of(stem, parts)
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise ConfigError(f"LoRA rank is {rank!r}; it must be a whole number of at least 1", param="rank")
            inputs = linear_shape(base.model.get_submodule(parts[0].stem))[1]
            a_RI = torch.empty(rank, inputs, dtype=torch.float32)
            nn.init.kaiming_uniform_(a_RI, a=math.sqrt(5))
            for part in parts:
                scale = scaling(alpha, rank, root=self.root)
                updates[part.stem] = LowRank(a_RI, torch.zeros(len(part.rows), rank), scale)
        ranks.refuse_idle()
        alphas.refuse_idle()
        largest = max(update.rank for update in updates.values())
        info = AdapterInfo(LoraAdapter.kind, None, largest, len(updates), torch.float32, OWN.name)
        replaced = self._replaced(base, updates)
        adapter = LoraAdapter(info, _layers(base.model, updates, self.dropout), replaced, root=self.root)
        if self.new_tokens:
            adapter.new_tokens = dict(zip(self.new_tokens, _new_ids(base, self.new_tokens), strict=True))
        return adapter

    def everywhere(self) -> "LoraOptions":
        """The same in every layer, at the largest rank: what a layer may need."""
        rank = max(self.rank, *self.rank_pattern.values()) if self.rank_pattern else self.rank
        return replace(self, rank=rank, rank_pattern={}, alpha_pattern={}, layers_to_transform=None)

    def _replaced(self, base: Base, updates: Mapping[str, LowRank]) -> dict[str, Replaced]:
        """The parameters of the base that are trained in the adapter's own version."""
        model = base.model
        replaced = {
            f"{stem}.{name}": Replaced(own_value(floats_of(model.get_submodule(stem), name)))
            for stem in whole_modules(base, self.modules_to_save, updates)
            for name, _ in model.get_submodule(stem).named_parameters(recurse=False)
            if not name.endswith("_scale")
        }
        if self.bias != "none":
            names = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
            chosen = [name for name in names if self.bias == "all" or name.removesuffix(".bias") in updates]
            if not chosen:
                what = "this model has no biases" if not names else "the targets have no biases"
                raise ConfigError(f"bias is {self.bias!r}, but {what}", step="use bias none", param="bias")
            for name in chosen:
                replaced.setdefault(name, Replaced(own_value(model.get_parameter(name))))
        for stem in token_tables(model) if self.new_tokens else ():
            if f"{stem}.weight" not in replaced:
                rows = tuple(_new_ids(base, self.new_tokens))
                table = floats_of(model.get_submodule(stem), "weight", rows)
                replaced[f"{stem}.weight"] = Replaced(own_value(table), rows)
        return replaced


class LoraAdapter(Adapter):
    """LoRA layers by our stems, and parameters that take the place of the base's (biases, `modules_to_save`).

    root: scales are rank-stabilised, for the settings that are written.
    """

    kind = "lora"
    options = LoraOptions
    weight_files = (*PEFT_WEIGHTS, PADDLE_WEIGHTS)
    setting_files = (PEFT_CONFIG, PADDLE_CONFIG)
    facts: ClassVar[Mapping[str, str]] = {"r": "rank", "lora_alpha": "alpha", "target_modules": "target_modules"}
    mark = _MARK
    takes_alpha = True

    def __init__(
        self,
        info: AdapterInfo,
        layers: Mapping[str, LoraLinear],
        replaced: Mapping[str, Replaced] | None = None,
        *,
        root: bool = False,
    ) -> None:
        super().__init__(info)
        self.layers, self.root = layers, root
        self.replaced = ReplacedParameters(replaced or {})

    # --- files --------------------------------------------------------------------------------------------------------

    @classmethod
    def claims(cls, directory: Path) -> int:
        if is_paddle(directory, _PADDLE_FILES, "lora"):
            return 3
        if peft_type(directory) is not None:  # other kinds of PEFT's have files of the same names, and claim 3
            return 2
        return 2 if any(_MARK in name for name in model_names(directory)) else 0

    @classmethod
    def open(cls, directory: Path, *, beside_weights: bool) -> AdapterFiles:
        if (found := unified(directory)) is not None:
            return read_files(cls.kind, found[0], PADDLE_CONFIG, origin=PADDLE)
        if is_paddle(directory, _PADDLE_FILES, "lora"):
            return read_files(cls.kind, existing(directory, PADDLE_WEIGHTS), PADDLE_CONFIG, origin=PADDLE)
        found_weights = next((name for name in PEFT_WEIGHTS if (directory / name).exists()), None)
        if found_weights is not None or not any(_MARK in name for name in model_names(directory)):
            return read_files(cls.kind, existing(directory, found_weights or PEFT_WEIGHTS[0]), PEFT_CONFIG)
        return read_files(cls.kind, directory, PEFT_CONFIG, choose=partial(_lora_names, directory, beside_weights))

    @classmethod
    def inspect(cls, files: AdapterFiles) -> list[str]:
        return list(read_lora(files).notes)

    @classmethod
    def no_effect(cls, files: AdapterFiles) -> str:
        outputs = [tensor for name, tensor in files.tensors.items() if ".lora_B" in name]
        return "every lora_B is zero" if outputs and not any(bool(tensor.any()) for tensor in outputs) else ""

    @classmethod
    def read(cls, files: AdapterFiles, base: Base, alpha: float | None) -> Self:
        found = read_lora(files, alpha)
        stems = [*found.updates, *(stem for stem, _ in found.whole)]
        naming = choose_naming(namings(base), stems, transposed=files.origin == PADDLE, source=str(files.weights))
        updates = _own_updates(base.model, found, naming)
        _tie(updates, files)
        replaced: dict[str, Replaced] = {}
        for (stem, parameter), tensor in found.whole.items():
            parts = naming.find(stem) or ()
            rows = found.token_rows.get(stem)
            replaced.update(_replacements(base.model, tensor, parameter, parts, rows, found.names[stem], files))
        _require_rows(files, replaced, base.model)
        require_promised(found, naming, linears(base.model, naming))
        notes = [*found.notes]
        if replaced:
            notes.append(f"replaces {len(replaced)} tensors of the base, {next(iter(replaced))} among them")
        rank = max(update.rank for update in found.updates.values())
        info = AdapterInfo(cls.kind, files.folder, rank, len(updates), files.dtype, naming.name, tuple(notes))
        layers = _layers(base.model, updates, found.settings.dropout)
        return cls(info, layers, replaced, root=found.settings.root)

    def save(self, base: Base, saving: Saving) -> tuple[str, dict[str, object]]:
        found = collect(base, self.layers, self.replaced.values, saving)
        if saving.for_paddle:
            tensors, settings = paddle_files(found, saving.notes)
            saving.write_paddle(PADDLE_WEIGHTS, saving.converted(tensors, self.info.dtype))
            write_json(saving.folder / PADDLE_CONFIG, settings)
        else:
            tensors, settings = peft_files(found, root=self.root, base_name=saving.base_name)
            write_tensors(saving.folder / PEFT_WEIGHTS[0], saving.converted(tensors, self.info.dtype))
            write_json(saving.folder / PEFT_CONFIG, settings)
        groups: dict[int, list[str]] = {}
        for stem, layer in self.layers.items():
            groups.setdefault(id(layer.lora_A), []).append(stem)
        return found.naming.name, {"tied": [stems for stems in groups.values() if len(stems) > 1]}

    # --- on the model -------------------------------------------------------------------------------------------------

    def parameters(self) -> Iterator[nn.Parameter]:
        own = (matrix for layer in self.layers.values() for matrix in (layer.lora_A, layer.lora_B))
        distinct = {id(matrix): matrix for matrix in own}
        return chain(distinct.values(), self.replaced.parameters())

    def put_on(self, model: GLM) -> None:
        self.replaced.put_on(model, trained=self.trained)
        for stem, layer in self.layers.items():
            model.set_submodule(stem, layer.train(layer.base.training))

    def take_off(self, model: GLM) -> None:
        for stem, layer in self.layers.items():
            model.set_submodule(stem, layer.base)
        self.replaced.take_off(model)

    def merge(self, model: GLM) -> None:
        for layer in self.layers.values():
            float_weight(layer.base)
        if self.trained:
            self.take_off(model)
            self.trained = False
            self.put_on(model)
        for stem, layer in self.layers.items():
            layer.base.weight = layer.merged_weight()
            model.set_submodule(stem, layer.base)


def _new_ids(base: Base, texts: Sequence[str]) -> list[int]:
    """The ids of tokens that were added. Raises ConfigError where the tokenizer lacks one."""
    known = base.tokenizer
    ids = [known.token_to_id(text) if isinstance(known, ComposedTokenizer) else None for text in texts]
    found = [index for index in ids if index is not None]
    if len(found) < len(ids):
        what = f"new token {texts[ids.index(None)]!r} has no id"
        raise ConfigError(what, step="add it to the tokenizer first", param="new_tokens")
    return found


def _lora_names(path: Path, beside_weights: bool, names: list[str]) -> list[str]:
    """The matrices of LoRA among the tensors of a file. Raises CheckpointError when others lie beside them."""
    inside = [name for name in names if _MARK in name]
    return only_adapter(path, inside, names, "LoRA matrices", beside_weights=beside_weights)


def _layers(model: GLM, updates: Mapping[str, LowRank], dropout: float) -> dict[str, LoraLinear]:
    """A layer around each module; parts whose updates hold the same A tensor share one parameter."""
    shared: dict[int, nn.Parameter] = {}
    layers: dict[str, LoraLinear] = {}
    for stem, update in updates.items():
        base = model.get_submodule(stem)
        device = next(tensor.device for tensor in (*base.parameters(), *base.buffers()))
        if id(update.a_RI) not in shared:
            shared[id(update.a_RI)] = nn.Parameter(update.a_RI.to(device, copy=True).contiguous())
        matrix_B = nn.Parameter(update.b_OR.to(device, copy=True).contiguous())
        layers[stem] = LoraLinear(base, shared[id(update.a_RI)], matrix_B, update.scale, dropout=dropout)
    return layers


def _own_updates(model: GLM, found: LoraContents, naming: Naming) -> dict[str, LowRank]:
    """One update for each of our modules, float32 or wider. Raises CheckpointError for what does not fit the model."""
    updates: dict[str, LowRank] = {}
    for stem, update in found.updates.items():
        parts = naming.find(stem) or ()
        if not all(part.stem.startswith(LAYERS) for part in parts):
            raise CheckpointError(
                f"{found.path}: LoRA on {stem} is not supported, only on layers", step="merge it first"
            )
        try:
            inputs = linear_shape(model.get_submodule(parts[0].stem))[1]
        except ConfigError as error:
            raise error.behind(f"{found.path}: {stem}: ", CheckpointError) from None
        rows = sum(len(part.rows) for part in parts)
        if update.a_RI.shape[1] != inputs or update.b_OR.shape[0] != rows:
            raise CheckpointError(
                f"{found.path}: {stem} has lora_A {tuple(update.a_RI.shape)} and lora_B {tuple(update.b_OR.shape)}, "
                f"this model needs (r, {inputs}) and ({rows}, r)",
                step="load it on the base it was trained with",
            )
        wide = torch.promote_types(update.a_RI.dtype, torch.float32)
        fused = LowRank(update.a_RI.to(wide), update.b_OR.to(wide), update.scale)
        for part, piece in zip(parts, split_rows(fused, [part.rows for part in parts]), strict=True):
            assert part.stem not in updates, "two published names for one module"
            updates[part.stem] = piece
    return updates


def _tie(updates: dict[str, LowRank], files: AdapterFiles) -> None:
    """Share one A again where it was one when we wrote it, which PEFT's files cannot say."""
    tied = files.record.get("tied", [])
    if not isinstance(tied, list) or not all(isinstance(group, list) for group in tied):
        raise CheckpointError(f"{files.folder}: {RECORD}: tied is {tied!r}; it must be a list of lists of names")
    for group in tied:
        members = [stem for stem in group if stem in updates]
        for stem in members[1:]:
            first, other = updates[members[0]], updates[stem]
            if torch.equal(first.a_RI, other.a_RI):
                updates[stem] = LowRank(first.a_RI, other.b_OR, other.scale)


def _replacements(
    model: GLM,
    tensor: Tensor,
    parameter: str,
    parts: tuple[Part, ...],
    rows: Sequence[int] | None,
    name: str,
    files: AdapterFiles,
) -> dict[str, Replaced]:
    """Our names -> the values of a whole tensor in the file, or of those `rows` of it that it holds."""
    source = f"{files.weights}: {name}"
    if files.origin == PADDLE and tensor.dim() > 1:
        raise CheckpointError(f"{source} replaces a whole matrix (trainable_modules), which is not supported here")
    olds: list[Tensor] = []
    for part in parts:
        module = model.get_submodule(part.stem)
        old = getattr(module, parameter, None)
        if not isinstance(old, nn.Parameter):
            raise CheckpointError(f"{source}: {part.stem} of this model has no {parameter}")
        olds.append(old)
    shapes = [shape_of(model.get_submodule(part.stem), parameter) for part in parts]
    there = shapes[0][0]
    expected = (sum(shape[0] for shape in shapes) if rows is None else len(rows), *shapes[0][1:])
    if tuple(tensor.shape) != expected or (rows is not None and max(rows) >= there):
        has = f" and {max(rows) + 1} rows at least" if rows is not None else ""
        raise CheckpointError(
            f"{source} has shape {tuple(tensor.shape)}{has}, this model needs {expected} of {there} rows",
            step="load it on the base it was trained with",
        )
    if not tensor.is_floating_point() or not all_finite(tensor):
        raise CheckpointError(f"{source} holds NaN or infinity", step="take an earlier checkpoint of the adapter")
    wide = torch.promote_types(tensor.dtype, torch.float32)
    if rows is not None:
        value = nn.Parameter(tensor.to(olds[0].device, wide, copy=True))
        return {f"{parts[0].stem}.{parameter}": Replaced(value, tuple(rows))}
    return {
        f"{part.stem}.{parameter}": Replaced(
            nn.Parameter(tensor.index_select(0, part.rows).to(old.device, wide, copy=True))
        )
        for part, old in zip(parts, olds, strict=True)
    }


def _require_rows(files: AdapterFiles, replaced: Mapping[str, Replaced], model: GLM) -> None:
    """Raise CheckpointError where the record names new tokens whose rows are not in the file."""
    tokens = files.record.get("new_tokens", {})
    for text, index in tokens.items() if isinstance(tokens, Mapping) else ():
        for stem in token_tables(model):
            own = replaced.get(f"{stem}.weight")
            if own is None or (own.rows is not None and index not in own.rows):
                raise CheckpointError(
                    f"{files.weights} lacks the row of {stem} for the new token {text!r} (id {index})",
                    step="copy the adapter again",
                )
