"""State dicts of a model: what is written under the published names, and what is taken or refused when one is read.

transformers and PEFT read most of them with strict=False: what fits nothing is left out without a word, and the model
goes on with what it had. Here it is said, and of an adapter it is an error.
"""

import os
import re
import warnings
from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glmkit.checkpoint.native import GENERATION_FILE, write_json
from glmkit.checkpoint.published_tensors import fused_tensors
from glmkit.checkpoint.weights import expected_tensors
from glmkit.config import GenerationSettings
from glmkit.errors import CheckpointError, RequestError, UnreadWarning, names_text
from glmkit.families.common.layout import template_match
from glmkit.families.common.native_layout import OWN
from glmkit.model import GLM
from glmkit.quant.layers import QuantMatrix

from .configuration import Meaning
from .published_tree import TreeNames

# PEFT before 0.3 did not have the adapter's name in these.
_OLD_LORA = re.compile(r"(.*\.lora_(?:A|B))\.(weight)")

_HEADS_OF_PEFT = {"classifier", "score", "qa_outputs"}  # which it adds to modules_to_save by itself


class StateCalls:
    """Mixin of the calls that write and take state dicts, and change the size of the vocabulary."""

    config: Any
    core: GLM
    meaning: Meaning
    names: TreeNames
    _tied_weights_keys: dict[str, str] | None

    # --- writing ------------------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Write config.json and safetensors under the published names, a tied head as often as it was published.

        Options are those of transformers (state_dict, max_shard_size, ...). The directory loads here and in the core.
        With adapters of transformers' own `add_adapter` only these are written, as PEFT's files. Raises RequestError
        for tensors that no name was published for, such as those of a PEFT model's inside.
        """
        state = options.pop("state_dict", None)
        state = dict(self.state_dict() if state is None else state)  # type: ignore[attr-defined]
        if not getattr(self, "_hf_peft_config_loaded", False):
            state = self._published_state(state)
        super().save_pretrained(save_directory, state_dict=state, **options)  # type: ignore[misc]
        settings: GenerationSettings | None = self.__dict__.get("settings")
        if self.meaning.layout is OWN and settings is not None and options.get("is_main_process", True):
            write_json(Path(save_directory) / GENERATION_FILE, settings.to_dict())

    def _published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors by published names; one under another name as well is that of the published one."""
        layout, config = self.meaning.layout, self.meaning.config
        if config.quantization is not None and not layout.quantized:
            raise RequestError(
                f"{self.meaning.family.title} was never published in integers, so their names are not known",
                step="save it before quantize, or write glmkit's own format with glm quantize",
                code="no_integers",
            )
        head = self.names.head
        if head is not None and f"{head}.0.weight" in state:  # a head inside an nn.Sequential, as CastOutputToFloat is
            state[f"{head}.weight"] = state.pop(f"{head}.0.weight")
        table = f"{self.names.body}.{self.names.top['embed_tokens']}"
        for alias in layout.aliases:
            for part in ("weight", "weight_scale"):
                if alias.stored and config.tie_embeddings and f"{table}.{part}" in state:
                    state[f"{alias.theirs}.{part}"] = state[f"{table}.{part}"].clone()
        known = self._published_names()
        held = {state[name].data_ptr() for name in known if name in state}
        for name in [name for name in state if name not in known]:
            if state[name].data_ptr() not in held or state[name].is_meta:
                raise RequestError(
                    f"{name} has no place in a directory of this model",
                    step="save adapters through their own model (PeftModel.save_pretrained), or merge them first",
                    code="unknown_tensor",
                )
            del state[name]
        return state

    def _published_names(self) -> set[str]:
        layout, config = self.meaning.layout, self.meaning.config
        stored = config
        if layout.remote is not None and config.quantization is not None:
            stored = replace(config, quantization=replace(config.quantization, packing="rows"))
        names = {tensor.name for tensor in fused_tensors(layout, stored, expected_tensors(stored))}
        names |= self._added(self.config, config).keys()  # type: ignore[attr-defined]
        prefix = f"{self.names.body}.prefix_encoder."
        return names | {name for name, _ in self.named_parameters() if name.startswith(prefix)}  # type: ignore[attr-defined]

    # --- adapters -----------------------------------------------------------------------------------------------------

    @property
    def peft_config(self) -> Any:
        """Settings of the adapters that PEFT put on the model, by their names; absent without any."""
        try:
            return self.__dict__["_peft_config"]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} carries no adapters of PEFT") from None

    @peft_config.setter
    def peft_config(self, settings: Any) -> None:
        """Take what PEFT sets when its layers are in place, and warn of module names that are none of the model's."""
        self.__dict__["_peft_config"] = settings
        known = {name for path, _ in self.named_modules() for name in path.split(".")}  # type: ignore[attr-defined]
        for each in settings.values() if isinstance(settings, dict) else ():
            for key in ("target_modules", "modules_to_save"):
                names = getattr(each, key, None)
                names = [] if names is None or isinstance(names, str) else names
                if lost := [name for name in names if name.split(".")[-1] not in known | _HEADS_OF_PEFT]:
                    own = sorted({*self.names.attention.values(), *self.names.mlp.values(), *self.names.fused} - {""})
                    text = f"{key}: {names_text(sorted(lost))} is no module of this model, and nothing comes of it; "
                    warnings.warn(f"{text}its layers have {', '.join(own)}", UnreadWarning, stacklevel=2)

    @peft_config.deleter
    def peft_config(self) -> None:
        self.__dict__.pop("_peft_config", None)

    # --- taking -------------------------------------------------------------------------------------------------------

    def load_adapter(self, *arguments: Any, **options: Any) -> Any:
        """Put a PEFT adapter on the model, as transformers does. Raises CheckpointError for names that fit nothing."""
        report = super().load_adapter(*arguments, **options)  # type: ignore[misc]
        for what, found in (("fits nothing in this model", "unexpected_keys"), ("is missing", "missing_keys")):
            if names := sorted(getattr(report, found, None) or ()):
                raise _unfit(names, what)
        return report

    def _load_from_state_dict(self, state: MutableMapping[str, Any], prefix: str, *rest: Any) -> None:
        """Leave out what carries nothing learned, and see to it that no tensor is passed over without a word."""
        layout = self.meaning.layout
        for name in list(state):
            own = name.removeprefix(prefix)
            derived = any(template_match(each.theirs, own) is not None for each in layout.derived)
            if name.startswith(prefix) and (derived or layout.is_ignored(own)):
                del state[name]
        known = set(self._names_taken(prefix))
        for name in list(state):
            old = _OLD_LORA.fullmatch(name)
            if old is not None and f"{old[1]}.default.{old[2]}" in known:
                state[f"{old[1]}.default.{old[2]}"] = state.pop(name)
        self._require_tied(state, prefix)
        unfit = [name for name in state if name.startswith(prefix) and name not in known]
        if unfit and getattr(self, "peft_config", None):
            raise _unfit(unfit, "fits nothing in this model")
        if unfit:
            text = f"{len(unfit)} of {len(state)} tensors fit nothing in this model: {names_text(unfit)}"
            warnings.warn(text, UnreadWarning, stacklevel=4)
        super()._load_from_state_dict(state, prefix, *rest)  # type: ignore[misc]

    def _names_taken(self, prefix: str) -> Iterator[str]:
        for stem, module in self.named_modules(remove_duplicate=False):  # type: ignore[attr-defined]
            start = f"{prefix}{stem}." if stem else prefix
            for name in (*module._parameters, *module._buffers):
                yield start + name
            if isinstance(module, QuantMatrix):
                yield f"{start}weight_scale"

    def _require_tied(self, state: MutableMapping[str, Any], prefix: str) -> None:
        for head, table in (self._tied_weights_keys or {}).items():
            one, other = (state.get(prefix + name) for name in (head, table))
            if one is not None and other is not None and not one.is_meta and not torch.equal(one, other):
                raise CheckpointError(
                    f"{head} differs from {table}, and both are one tensor in this model",
                    step="save the state dict as a directory and load it, which makes a model with a head of its own",
                )

    # --- vocabulary ---------------------------------------------------------------------------------------------------

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *arguments: Any, **options: Any
    ) -> nn.Embedding:
        """Give the word table and the head other numbers of rows, as transformers does.

        Raises RequestError for integers, ConfigError where a special token would be cut off.
        """
        if isinstance(self.get_input_embeddings(), QuantMatrix):  # type: ignore[attr-defined]
            what = "a word table in integers is not resized"
            raise RequestError(what, step="resize before quantising", param="new_num_tokens")
        if new_num_tokens is not None:
            replace(self.meaning.config, vocab_size=new_num_tokens)  # special tokens must stay inside
        table: nn.Embedding = super().resize_token_embeddings(new_num_tokens, *arguments, **options)  # type: ignore[misc]
        self._means(replace(self.meaning.config, vocab_size=table.num_embeddings))  # type: ignore[attr-defined]
        return table


def _unfit(names: list[str], what: str) -> CheckpointError:
    return CheckpointError(
        f"{names[0]} {what}" + (f", and so do {len(names) - 1} more" if len(names) > 1 else ""),
        step="load the adapter on the model that it was trained on; glmkit.load(MODEL, adapter=DIR) knows the names of "
        "every layout of a family",
        code="adapter_names",
    )
