"""Memory that each use of a model needs, against what this machine has free."""

from dataclasses import dataclass

from glmkit.config import GLMConfig
from glmkit.errors import size_text
from glmkit.memory import RESERVE

from .finding import Finding
from .sizes import Sizes

# A parameter that AdamW trains: float32 weight, gradient and two moments.
TRAINED_BYTES = 16
LORA_RANK = 8
PREFIX_LENGTH = 128


_STORED, _HALF = "load as stored", "load in bfloat16"
_IN = {"int8": "load in INT8", "int4": "load in INT4"}


@dataclass(frozen=True)
class Use:
    """`num_bytes` of weights and training states, activations left out. fits_*: None where there is no such memory."""

    name: str
    num_bytes: int
    fits_ram: bool | None
    fits_gpu: bool | None
    remark: str = ""


def forecast(config: GLMConfig, counted: Sizes, stored: int | None, *, ram: int | None, gpu: int | None) -> list[Use]:
    """The table of uses. stored: bytes of the tensors on disk. ram, gpu: free bytes; None = unknown or absent.

    A use fits when its bytes and what `glmkit.memory` keeps in reserve are free, as the loader asks.
    """
    prefix = PREFIX_LENGTH * 2 * config.num_layers * config.kv_heads * config.head_dim
    rows: list[tuple[str, int | None, str]] = []
    if stored is not None:
        repacked = config.quantization is not None and config.quantization.packing == "rows"
        remark = "integers are repacked in memory" if repacked else "memory-mapped: pages are read when used"
        rows.append((_STORED, stored, remark))
    base, name = counted.bfloat16, "bfloat16 base"
    if config.quantization is not None:  # the integers stay what they are: no other type, no training of all
        base, name = stored or counted.bfloat16, f"INT{config.quantization.bits} base"
    else:
        rows += [
            (_HALF, counted.bfloat16, ""),
            ("load in float32", counted.float32, ""),
            (_IN["int8"], counted.int8, "tables and head as well; scales per row"),
            (_IN["int4"], counted.int4, "groups of 32; tables and head in INT8"),
            ("fine-tune everything", TRAINED_BYTES * counted.total, "AdamW: float32 weights, gradients, two moments"),
        ]
    rows += [
        ("fine-tune with LoRA", base + TRAINED_BYTES * lora_parameters(config), f"{name}; rank {LORA_RANK} on q, k, v"),
        ("P-Tuning v2", base + TRAINED_BYTES * prefix, f"{name}; {PREFIX_LENGTH} positions"),
    ]
    return [
        Use(name, size, _fits(size, ram), _fits(size, gpu), remark) for name, size, remark in rows if size is not None
    ]


def lora_parameters(config: GLMConfig) -> int:
    """Numbers of a LoRA of rank LORA_RANK on the q, k and v projections of all layers."""
    query = config.num_heads * config.head_dim
    value = config.kv_heads * config.head_dim
    return config.num_layers * LORA_RANK * (3 * config.hidden_size + query + 2 * value)


def _fits(size: int, free: int | None) -> bool | None:
    return None if free is None else size + RESERVE <= free


def quantize_to_fit(uses: list[Use]) -> str:
    """int8 or int4 where the weights fit in it but not as they are; "" where that is no help or not needed."""
    fitting = [use.name for use in uses if use.fits_ram or use.fits_gpu]
    needed = any(use.fits_ram is False for use in uses) and not {_STORED, _HALF} & set(fitting)
    return next((bits for bits in ("int8", "int4") if needed and _IN[bits] in fitting), "")


def check_fit(uses: list[Use]) -> list[Finding]:
    """A warning when the memory of the machine is too small for the weights, with the ways that are left."""
    loads = [use for use in uses if use.name.startswith("load")]
    if not loads or any(use.fits_ram or use.fits_gpu for use in loads[:2]) or loads[0].fits_ram is None:
        return []
    left = [f"{use.name} ({size_text(use.num_bytes)})" for use in loads[2:] if use.fits_ram or use.fits_gpu]
    what = f"the weights need {size_text(loads[0].num_bytes)}, more than is free"
    step = f"what fits: {', '.join(left)}" if left else "take a machine with more memory, or a smaller model"
    return [Finding("warning", what, "", step)]
