"""Prefixes as a kind of adapter: read, made for training, put on, written."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import nn

from glmkit.adapters.adapter import Adapter, AdapterInfo, Base, Saving, option
from glmkit.adapters.adapter_files import (
    PADDLE,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    AdapterFiles,
    existing,
    is_paddle,
    is_prompt,
    model_names,
    only_adapter,
    peft_type,
    read_files,
    unified,
)
from glmkit.checkpoint.native import write_json
from glmkit.errors import RequestError
from glmkit.families.common.layout import Extras
from glmkit.families.common.native_layout import OWN
from glmkit.model import GLM

from .encoder import PrefixEncoder
from .published import MARK, PEFT_TYPE, PUBLISHED_PREFIX, check_settings, paddle_prefix, read_prefix

_WEIGHTS = ("pytorch_model.bin", "model.safetensors")
_CONFIG = "config.json"
_PADDLE_CONFIG, _PADDLE_WEIGHTS = "prefix_config.json", "prefix_model_state.pdparams"


@dataclass(frozen=True)
class PrefixOptions:
    """An untrained prefix of `length` positions, drawn as the published code draws it; see `PrefixEncoder`."""

    length: int = option(128, "positions of the prefix (pre_seq_len)")
    projection: bool = option(False, "the prefix comes out of a small network (prefix_projection)")
    inner_width: int | None = option(None, "width inside that network; null = the model's hidden width")
    dropout: float = option(0.1, "dropout on the prefix, in training")

    def build(self, base: Base) -> "PrefixAdapter":
        """Raise ConfigError for a length below 1 and for a dropout outside [0, 1)."""
        encoder = PrefixEncoder(
            base.config,
            self.length,
            projection=self.projection,
            inner_width=self.inner_width,
            dropout=self.dropout,
            dtype=base.float_tensor.dtype,
        )
        layers = base.config.num_layers
        info = AdapterInfo(PrefixAdapter.kind, None, self.length, layers, torch.float32, OWN.name)
        return PrefixAdapter(info, encoder.to(base.float_tensor.device))


class PrefixAdapter(Adapter):
    """A prefix encoder. settings: what lay beside a published one, written again with it."""

    kind = "prefix"
    options = PrefixOptions
    weight_files = (_PADDLE_WEIGHTS,)
    setting_files = (_PADDLE_CONFIG,)
    mark = MARK
    facts: ClassVar[Mapping[str, str]] = {
        "pre_seq_len": "prefix_length",
        "num_prefix_tokens": "prefix_length",
        "num_virtual_tokens": "prefix_length",
        "prefix_projection": "prefix_projection",
    }

    def __init__(self, info: AdapterInfo, encoder: PrefixEncoder, settings: Mapping[str, object] | None = None) -> None:
        super().__init__(info)
        self.encoder, self.settings = encoder, settings or {}

    # --- files --------------------------------------------------------------------------------------------------------

    @classmethod
    def claims(cls, directory: Path) -> int:
        if is_paddle(directory, (_PADDLE_CONFIG, _PADDLE_WEIGHTS), "ptuning") or peft_type(directory) == PEFT_TYPE:
            return 3
        names = () if (found := _published_weights(directory)) is not None else model_names(directory)
        return int(found is not None or any(MARK in name or is_prompt(name) for name in names))

    @classmethod
    def open(cls, directory: Path, *, beside_weights: bool) -> AdapterFiles:
        if (found := unified(directory)) is not None:
            return read_files(cls.kind, found[0], _PADDLE_CONFIG, origin=PADDLE)
        if is_paddle(directory, (_PADDLE_CONFIG, _PADDLE_WEIGHTS), "ptuning"):
            return read_files(cls.kind, existing(directory, _PADDLE_WEIGHTS), _PADDLE_CONFIG, origin=PADDLE)
        weights = _published_weights(directory)
        peft = next((directory / name for name in PEFT_WEIGHTS if (directory / name).is_file()), None)
        prompts = any(map(is_prompt, model_names(directory)))
        if peft_type(directory) == PEFT_TYPE and (peft is not None or not prompts):
            return read_files(cls.kind, peft or existing(directory, PEFT_WEIGHTS[0]), PEFT_CONFIG, origin="peft")
        path = weights or directory
        choose = partial(_prefix_names, path, beside_weights)
        if prompts:  # a trainer saved PEFT's model with its own call
            return read_files(cls.kind, path, PEFT_CONFIG, origin="peft", choose=choose)
        return read_files(cls.kind, path, _CONFIG, choose=choose)

    @classmethod
    def inspect(cls, files: AdapterFiles) -> list[str]:
        return check_settings(files)

    @classmethod
    def read(cls, files: AdapterFiles, base: Base, alpha: float | None) -> Self:
        counted = base.layout is not None and base.layout.prefix_counts
        encoder, notes = read_prefix(files, base.config, base.float_tensor.dtype, counted=counted)
        layers = base.config.num_layers
        info = AdapterInfo(cls.kind, files.folder, encoder.length, layers, files.dtype, OWN.name, tuple(notes))
        settings = files.settings if files.origin == "torch" else None
        return cls(info, encoder.to(base.float_tensor.device), settings)

    def save(self, base: Base, saving: Saving) -> tuple[str, dict[str, object]]:
        if saving.for_paddle:
            tensors, settings = paddle_prefix(self.encoder, base.config)
            saving.write_paddle(_PADDLE_WEIGHTS, saving.converted(tensors, self.info.dtype))
            write_json(saving.folder / _PADDLE_CONFIG, settings)
            return PADDLE, {}
        known = self.settings
        if not known and saving.layout is not None:
            known = saving.layout.write_config(base.config, Extras())
        if not known:
            saving.notes.append(f"{_CONFIG} holds the prefix's two settings only; give a layout for the base's as well")
        tensors = {PUBLISHED_PREFIX + name: tensor.detach() for name, tensor in self.encoder.state_dict().items()}
        torch.save(saving.converted(tensors, self.info.dtype), saving.folder / _WEIGHTS[0])
        write_json(saving.folder / _CONFIG, {**known, **self.stated})
        return OWN.name, {}

    @property
    def stated(self) -> Mapping[str, object]:
        return {"pre_seq_len": self.encoder.length, "prefix_projection": self.encoder.trans is not None}

    # --- on the model -------------------------------------------------------------------------------------------------

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.encoder.parameters()

    def put_on(self, model: GLM) -> None:
        model.prefix = self.encoder.train(model.training)

    def take_off(self, model: GLM) -> None:
        model.prefix = None

    def merge(self, model: GLM) -> None:
        raise RequestError(
            "a prefix adds keys and values, no weights, so it cannot be merged", step="keep it as an adapter"
        )


def _published_weights(directory: Path) -> Path | None:
    names = (*_WEIGHTS, *(f"{name}.index.json" for name in _WEIGHTS))
    return next((directory / name for name in names if (directory / name).exists()), None)


def _prefix_names(path: Path, beside_weights: bool, names: list[str]) -> list[str]:
    """The prefix encoder's tensors among those of a file. Raises CheckpointError when others lie beside it."""
    bare = ("embedding.", "trans.")  # the encoder alone, saved by its own state_dict
    inside = [
        name for name in names if MARK in name or is_prompt(name) or (not beside_weights and name.startswith(bare))
    ]
    return only_adapter(path, inside, names, "prefix encoder", beside_weights=beside_weights)
