"""`from_pretrained` and its like on the core's strict reading: nothing missing, nothing left over, no code executed.

transformers fills what it does not find with random numbers and shows a table; here every tensor is accounted for
before the first one is read, whatever layout the directory has.
"""

import os
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig

from glmkit.adapters.adapter import Base, all_kinds
from glmkit.adapters.directory import open_adapter
from glmkit.adapters.prefix.prefix_adapter import PrefixAdapter
from glmkit.checkpoint.files.tensors import TensorInfo
from glmkit.checkpoint.hub import local_directory
from glmkit.checkpoint.native import read_generation
from glmkit.checkpoint.open import Checkpoint, open_checkpoint
from glmkit.checkpoint.run_directory import model_directory
from glmkit.config import GenerationSettings, GLMConfig, Quantization
from glmkit.devices import cuda_device, is_cpu, require_present
from glmkit.errors import MismatchWarning, RequestError, UnreadWarning
from glmkit.families.common.native_layout import MODEL_TYPE, OWN
from glmkit.families.judge import with_identity
from glmkit.loading import stored_dtype
from glmkit.model import GLM
from glmkit.quant.apply import exchange_layers
from glmkit.quant.layers import QuantMatrix

from .configuration import Meaning, PublishedConfig
from .published_integers import checked_bits, quantize_tree
from .state_calls import StateCalls
from .tree_weights import read_tree

# Options of transformers that change nothing here: there is one reader, and it maps files and executes nothing.
_HARMLESS_TEXT = """
trust_remote_code code_revision cache_dir force_download resume_download local_files_only token use_auth_token proxies
empty_init low_cpu_mem_usage use_safetensors weights_only disable_mmap adapter_kwargs mirror
_from_auto _from_pipeline _commit_hash _fast_init offload_state_dict allow_all_kernels
"""
_HARMLESS = frozenset(_HARMLESS_TEXT.split())
# Options that would change what is read or computed, with what to do instead.
_REFUSED = {
    "ignore_mismatched_sizes": "every tensor must fit; give the config of these weights",
    "key_mapping": "names are read by the tables of the family; use glm convert for others",
    "subfolder": "give the path of the folder itself",
    "variant": "give a directory that holds this variant alone",
    "gguf_file": "give the original weights",
    "tp_plan": "start several ranks with glm serve or glm finetune",
    "tp_size": "start several ranks with glm serve or glm finetune",
    "distributed_config": "start several ranks with glm serve or glm finetune",
    "fusion_config": "leave it out",
    "use_flash_attention_2": "leave it out: attention is glmkit's own",
    "from_tf": "give PyTorch weights",
    "from_flax": "give PyTorch weights",
}


class LoadingCalls(StateCalls):
    """Mixin of the calls that read, place, convert and write a model."""

    config_class: ClassVar[Any]
    config: Any
    generation_config: Any
    core: GLM
    meaning: Meaning
    device: torch.device
    _drawn: Collection[str] = ()  # parameters of a head that no file had

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **options: Any
    ) -> Any:
        """Read a model directory, or a name on a hub, in any layout of the family, in evaluation mode.

        Options are those of transformers. dtype (torch_dtype): "auto" is that of the files. quantize on the way in:
        load_in_8bit, load_in_4bit or a BitsAndBytesConfig, which all mean glmkit's INT8 and INT4. device, device_map
        (through accelerate). state_dict: tensors by published names instead of the directory's. output_loading_info:
        the pair with transformers' report; whatever does not fit is an error, and missing may be a new head alone.
        Raises CheckpointError, ConfigError, RequestError; TypeError for an unknown option.
        """
        options = {name: value for name, value in options.items() if name not in _HARMLESS}
        _refuse(cls.__name__, model_args, options)
        bits = _asked_bits(options)
        config = options.pop("config", None)
        state, info = options.pop("state_dict", None), options.pop("output_loading_info", False)
        generation = options.pop("generation_config", None)
        dtype = _as_dtype(options.pop("dtype", None), options.pop("torch_dtype", None))
        device, device_map = options.pop("device", None), options.pop("device_map", None)
        placing = {name: options.pop(name, None) for name in ("max_memory", "offload_folder", "offload_buffers")}
        attention = options.pop("attn_implementation", None)
        revision = options.pop("revision", None)
        if state is not None or pretrained_model_name_or_path is None:
            model = cls._of_state(config, state, dtype)
        else:
            directory = _directory(pretrained_model_name_or_path, revision)
            if not isinstance(config, PublishedConfig):
                where = directory if config is None else config
                config, options = cls.config_class.from_pretrained(where, return_unused_kwargs=True, **options)
            if not isinstance(config, PublishedConfig):  # a model_type may be that of a class of transformers as well
                raise RequestError(f"{directory} is none that {cls.__name__} reads", step="load it with AutoModel")
            if attention is not None:
                config._attn_implementation = attention
            _refuse_unknown(cls.__name__, options)
            model = cls._read(directory, config, dtype, bits)
        model.eval()
        if generation is not None:
            model.generation_config = generation
        if device is not None and device_map is not None:
            raise RequestError("both device and device_map were given", step="give one of them", param="device_map")
        if device is not None:
            model = model.to(device)
        if device_map is not None:
            model = _dispatched(model, device_map, placing)
        report: dict[str, Any] = {
            "missing_keys": set(model._drawn),
            "unexpected_keys": set(),
            "mismatched_keys": set(),
            "error_msgs": [],
        }
        return (model, report) if info else model

    @classmethod
    def _read(cls, directory: Path, config: PublishedConfig, dtype: torch.dtype | None, bits: int | None) -> Any:
        checkpoint = open_checkpoint(directory, added=partial(cls._added, config))
        meaning = _agreed(cls, checkpoint, config, bits)
        with torch.device("meta"):
            model: Any = cls(config, meaning=meaning)  # type: ignore[call-arg]
        dtype = stored_dtype(checkpoint) if dtype is None else dtype
        read_tree(model, checkpoint, meaning, dtype)
        model._fill_added(checkpoint, dtype)
        _read_prefix(model, checkpoint, directory, dtype)
        own = checkpoint.layout is OWN
        settings = read_generation(directory, meaning.config.vocab_size) if own else checkpoint.generation
        model.generation_config = generation_config(settings)
        model.__dict__["settings"] = settings
        config.dtype = dtype
        encoder = model.body._modules.pop("prefix_encoder", None)  # in float32 for good, and computed as it is
        exchange_layers(model, model.get_input_embeddings())
        if encoder is not None:
            model.set_prefix(encoder)
        return model

    @classmethod
    def _added(cls, config: PublishedConfig, core: GLMConfig) -> dict[str, TensorInfo]:
        """Parameters that a class adds to the model, all of which a directory has, or none; here none."""
        return {}

    def _fill_added(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        """Read them, or draw first values; here none."""

    @classmethod
    def _of_state(cls, config: Any, state: Mapping[str, Tensor] | None, dtype: torch.dtype | None) -> Any:
        if not isinstance(config, PublishedConfig) or state is None:
            raise RequestError(
                "without a directory both config and state_dict are needed", step="give them", param="state_dict"
            )
        model: Any = cls(config)  # type: ignore[call-arg]
        model.load_state_dict(state)
        return model if dtype is None else model.to(dtype)

    # --- integers -----------------------------------------------------------------------------------------------------

    def quantize(self, bits: int, empty_init: bool = False, device: Any = None, **options: Any) -> Any:
        """Round the matrices of all blocks to 4 or 8 bits in place, a scale a row, as published; returns the model.

        Head and word table stay. 0 changes nothing. empty_init, device: of the published call, without effect here.
        Raises RequestError for other numbers, and for a model that has integers of another width.
        """
        if bits == 0:
            return self
        bits = checked_bits(bits)
        meaning = self.meaning
        old = meaning.config.quantization
        if old is not None and old.bits != bits:
            raise RequestError(
                f"quantize({bits}): these weights are INT{old.bits} already", step="leave it out", param="bits"
            )
        if old is None:
            if meaning.layout.remote is None:
                raise RequestError(
                    "a model in glmkit's own format is quantised as a whole", step="use glm quantize", param="bits"
                )
            quantization = Quantization(bits, packing="panels")
            self._require_plain()
            quantize_tree(self.core.model, quantization, [])
            self._means(replace(meaning.config, quantization=quantization))
        return self

    def _require_plain(self) -> None:
        if getattr(self, "peft_config", None) is not None:
            raise RequestError("a model with adapters on it is not quantised", step="quantise it first", param="bits")

    def _means(self, config: Any) -> None:
        """Take another config of the core."""
        self.__dict__["meaning"] = self.meaning._replace(config=config)
        self.core.config = config
        if config.quantization is not None:
            self.config.quantization_bit = config.quantization.bits

    # --- places -------------------------------------------------------------------------------------------------------

    def cuda(self, device: int | str | torch.device | None = None) -> Any:
        """Move to a GPU. Raises RequestError naming the way of a CPU where there is none."""
        return self.to(cuda_device(device))

    def to(self, *arguments: Any, **options: Any) -> Any:
        """Move or convert, as `nn.Module.to`. Raises RequestError for a device that is not there."""
        for value in (*arguments, *options.values()):
            if isinstance(value, str | torch.device):
                require_present(value)
        return super().to(*arguments, **options)  # type: ignore[misc]

    def half(self, *arguments: Any) -> Any:
        """Convert floating-point weights to float16; on a CPU that is slow and rounds much, which is said once."""
        if is_cpu(self.device):
            warnings.warn(
                "float16 on a CPU is slow and rounds every step; .float() or .bfloat16() is meant for it",
                MismatchWarning,
                stacklevel=2,
            )
        return super().half(*arguments)  # type: ignore[misc]


def generation_config(settings: GenerationSettings) -> GenerationConfig:
    """The ids that end and fill answers, for transformers."""
    stops = list(settings.stop_ids)
    return GenerationConfig(eos_token_id=(stops[0] if len(stops) == 1 else stops) or None, pad_token_id=settings.pad_id)


def _directory(source: str | os.PathLike[str], revision: str | None) -> Path:
    named = os.fspath(source)
    if revision not in (None, "main") and not Path(named).is_dir():
        named = f"{named}@{revision}"
    return model_directory(local_directory(named, param="pretrained_model_name_or_path"))[0]


def _agreed(cls: Any, checkpoint: Checkpoint, config: PublishedConfig, bits: int | None) -> Meaning:
    """The meaning of config and files together. Raises RequestError where they are of different kinds of model."""
    remote = next((own for own in checkpoint.family.layouts if own.remote is not None), checkpoint.layout)
    own = config.model_type == MODEL_TYPE
    if own != (checkpoint.layout is OWN) or (not own and config.model_type not in remote.model_types):
        raise RequestError(
            f"{checkpoint.directory} is {checkpoint.family.title} in the layout {checkpoint.layout.name}, which "
            f"{cls.__name__} (model_type {config.model_type!r}) does not read",
            step="load it with AutoModel, or write another layout with glm convert",
            param="config",
        )
    layout = checkpoint.layout if own else remote
    found = checkpoint.config
    if bits is not None:
        if found.quantization is not None:
            raise RequestError(f"these weights are INT{found.quantization.bits} already", step="leave load_in_*bit out")
        if own:
            raise RequestError("this format is quantised as a whole", step="use glm quantize", param="load_in_8bit")
        found = replace(found, quantization=Quantization(bits, packing="panels"))
        config.quantization_bit = bits
    elif found.quantization is not None and not own:
        quantization = found.quantization
        found = replace(found, quantization=replace(quantization, packing="panels"))
        config.quantization_bit, config.quantization_embeddings = quantization.bits, quantization.embeddings
    for key, value in with_identity(config.values, checkpoint.family, layout, checkpoint.name).items():
        if key.startswith("glmkit_"):
            setattr(config, key, value)
    return Meaning(checkpoint.family, layout, found)


def _read_prefix(model: Any, checkpoint: Checkpoint, directory: Path, dtype: torch.dtype) -> None:
    """Put the prefix that lies among the weights in its place; an untrained one gets its first weights."""
    encoder = getattr(model.body, "prefix_encoder", None)
    if checkpoint.adapter:
        files = open_adapter(directory, beside_weights=True)
        adapter = all_kinds()[files.kind].read(files, Base(model.core, checkpoint.family, checkpoint.layout), None)
        if not isinstance(adapter, PrefixAdapter):
            raise RequestError(
                f"{directory} holds a {adapter.kind} among its weights, as {checkpoint.adapter[0]}",
                step=f"make one model of them with glm merge {directory} OUT",
            )
        model.set_prefix(adapter.encoder)
        model.config.pre_seq_len, model.config.prefix_projection = adapter.stated.values()
        return
    if encoder is None:
        return
    model.config.pre_seq_len = model.config.pre_seq_len or encoder.length
    model._place_prefix(model.config)
    model.body.prefix_encoder.output_dtype = dtype


def _asked_bits(options: dict[str, Any]) -> int | None:
    asked = [bits for name, bits in (("load_in_8bit", 8), ("load_in_4bit", 4)) if options.pop(name, None)]
    settings = options.pop("quantization_config", None)
    if settings is not None:
        kind = type(settings).__name__
        values = settings if isinstance(settings, dict) else vars(settings)
        found = [
            bits
            for name, bits in (("load_in_8bit", 8), ("load_in_4bit", 4))
            for key in (name, f"_{name}")
            if values.get(key)
        ]
        if not found:
            raise RequestError(
                f"quantization_config is a {kind}: weights are quantised by glmkit's own INT8 and INT4 here",
                step="give load_in_8bit=True or load_in_4bit=True, or use glm quantize",
                param="quantization_config",
            )
        asked += found[:1]
    if len(asked) > 1:
        raise RequestError("both 8 and 4 bits were asked for", step="give one of them", param="load_in_8bit")
    if asked:
        warnings.warn(
            f"load_in_{asked[0]}bit means glmkit's INT{asked[0]}, a scale a row; bitsandbytes is not used",
            UnreadWarning,
            stacklevel=3,
        )
    return asked[0] if asked else None


def _as_dtype(*given: Any) -> torch.dtype | None:
    value = next((each for each in given if each is not None), None)
    if value is None or value == "auto":
        return None
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise RequestError(f"dtype {value!r} is no floating-point type", step="give torch.float32", param="dtype")
    return dtype


def _refuse(name: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    if arguments:
        raise TypeError(f"{name}.from_pretrained takes one positional argument, the directory")
    for key, step in _REFUSED.items():
        if options.get(key):
            raise RequestError(f"{key}={options[key]!r} is not taken by {name}", step=step, param=key)


def _refuse_unknown(name: str, options: Mapping[str, Any]) -> None:
    if unknown := sorted(set(options) - set(_REFUSED)):
        raise TypeError(f"{name}.from_pretrained has no option {unknown[0]!r}")


def _dispatched(model: Any, device_map: Any, placing: Mapping[str, Any]) -> Any:
    """The model on the devices of a map, "auto" or by names of modules. Raises RequestError without accelerate."""
    try:
        import accelerate
    except ImportError as error:
        raise RequestError(
            "device_map needs accelerate", step='pip install "glmkit[hf]"', param="device_map"
        ) from error
    ways = ("auto", "balanced", "balanced_low_0", "sequential")
    if isinstance(device_map, str | int | torch.device) and device_map not in ways:
        device_map = {"": device_map}
    blocks = list(model._no_split_modules)
    if isinstance(device_map, str):
        memory = accelerate.utils.get_balanced_memory(model, placing["max_memory"], no_split_module_classes=blocks)
        device_map = accelerate.infer_auto_device_map(model, max_memory=memory, no_split_module_classes=blocks)
    places = set(map(str, device_map.values()))
    offloaded = places & {"disk"} or (places & {"cpu"} and places - {"cpu"})
    if offloaded and any(isinstance(module, QuantMatrix) for module in model.modules()):
        raise RequestError(
            f"device_map puts modules with integers on the {min(offloaded)}, from where they would be fetched",
            step="put all of them on devices that compute, or load floats",
            param="device_map",
        )
    if "disk" in places and placing["offload_folder"] is None:
        raise RequestError(
            "device_map puts modules on the disk", step="give offload_folder=DIR", param="offload_folder"
        )
    return accelerate.dispatch_model(model, device_map=device_map, offload_dir=placing["offload_folder"])
