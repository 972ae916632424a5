"""The model's configuration: orthogonal axes, readable without torch.

Every published model of the family is a point in this table; nothing here or in `model/` asks for a family's name.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, get_args

from .errors import ConfigError, did_you_mean

Positions = Literal["learned_2d", "rope", "rope_2d"]
RopeFrequencies = Literal["float32", "float16"]
RopePairs = Literal["half", "interleaved"]
Norm = Literal["layer", "rms"]
Residual = Literal["pre", "deepnorm", "sandwich"]
MLP = Literal["gelu", "geglu", "swiglu"]
GeluKind = Literal["tanh", "erf"]
Bias = Literal["all", "qkv", "none"]
MaskKind = Literal["prefix", "causal"]
BlankOrder = Literal["each", "gmask_first", "mask_first"]
Init = Literal["gpt", "xavier"]
Scales = Literal["float16", "byte"]
Packing = Literal["rows", "panels"]

GROUP_STEP = 32  # columns that share a scale are a multiple of it


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """Token ids by role. `eos` ends a document and part A; `sop`/`eop` open and close a filled span.

    A role that the published vocabulary lacks is None (ChatGLM-6B has neither [CLS] nor [sMASK]).
    """

    pad: int
    eos: int
    cls: int | None
    mask: int
    smask: int | None
    gmask: int
    sop: int
    eop: int
    dblock: int | None = None
    sep: int | None = None
    unk: int | None = None

    def mask_ids(self) -> tuple[int, ...]:
        """The distinct ids that mark a blank, [MASK] first."""
        return tuple(dict.fromkeys(i for i in (self.mask, self.smask, self.gmask) if i is not None))

    def require(self, role: str) -> int:
        """The id of a role that may be absent. Raises ConfigError naming the role when it is."""
        value: int | None = getattr(self, role)
        if value is None:
            raise ConfigError(
                f"this model's special ids have no {role!r}, which is needed here", step=f"give special.{role}"
            )
        return value


@dataclass(frozen=True)
class Quantization:
    """Integer weights: their width, which matrices have them, what shares a scale, and how files hold them.

    `embeddings`: the word table and the head are quantised as well, in `head_bits` (None: in `bits`). `column_blocks`:
    scales per output row of `o_proj` and `down_proj`, whose input is what tensor parallelism cuts: a file quantised per
    rank has one scale per row and rank. Every other matrix has one scale per row (`group_size` 0), or one for every
    `group_size` columns of a row, in the type of `scales`: bytes are numbers from 1 to 16, times a float of the row.
    The groups are of matrices of `bits` alone, so an INT8 head of an INT4 model has a scale per row.
    `packing`: "rows" as published for ChatGLM and GLM-130B; "panels" as products read them (`quant/panels.py`).
    """

    bits: int
    embeddings: bool = False
    column_blocks: int = 1
    group_size: int = 0
    scales: Scales = "float16"
    head_bits: int | None = None
    packing: Packing = "rows"

    def __post_init__(self) -> None:
        for name, width in (("bits", self.bits), ("head_bits", 8 if self.head_bits is None else self.head_bits)):
            if isinstance(width, bool) or width not in (4, 8):
                raise ConfigError(f"quantization.{name} is {width!r}; it must be 4 or 8")
        if not isinstance(self.embeddings, bool):
            raise ConfigError(f"quantization.embeddings is {self.embeddings!r}; it must be true or false")
        if not _is_count(self.column_blocks):
            raise ConfigError(f"quantization.column_blocks is {self.column_blocks!r}; it must be at least 1")
        size = self.group_size
        if isinstance(size, bool) or not isinstance(size, int) or size not in range(0, _LARGEST, GROUP_STEP):
            raise ConfigError(f"quantization.group_size is {size!r}", step=f"0 for rows, or a multiple of {GROUP_STEP}")
        for name, choices in (("scales", get_args(Scales)), ("packing", get_args(Packing))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"quantization.{name} is {getattr(self, name)!r}", step=" or ".join(choices))
        if self.scales == "byte" and (self.bits, bool(size)) != (4, True):
            raise ConfigError("quantization.scales are bytes, which go with groups of 4-bit numbers only")
        if size and self.column_blocks > 1:
            raise ConfigError(f"quantization has groups of {size} columns and {self.column_blocks} column_blocks")
        if self.packing == "rows" and (size or self.head_bits not in (None, self.bits)):
            raise ConfigError("quantization.packing is 'rows', which has one width and a scale per row", step="panels")

    @classmethod
    def usual(cls, bits: int) -> "Quantization":
        """The form of weights that are quantised here: INT8 with a scale per row, INT4 in groups of 32, byte scales.

        Word table and head are INT8 in both: 4 bits there cost more than everywhere else together.
        """
        if bits == 4:
            return cls(4, True, group_size=GROUP_STEP, scales="byte", head_bits=8, packing="panels")
        return cls(bits, True, packing="panels")

    @property
    def about(self) -> str:
        """The scales, and the word table and head, in words."""
        unit = f"groups of {self.group_size}, {self.scales} scales" if self.group_size else "a scale per row"
        return f"{unit}, word table and head {f'INT{self.table_bits}' if self.embeddings else 'in floats'}"

    @property
    def table_bits(self) -> int:
        """Width of the word table and the head, where they are quantised."""
        return self.head_bits or self.bits


@dataclass(frozen=True, kw_only=True)
class GLMConfig:
    """Shape and axes of one model.

    Counts are `num_*`; sizes are widths in channels. Impossible combinations raise ConfigError when the config is made.
    Axes follow the code of the published models: GLM (`THUDM/GLM:model/modeling_glm.py`), GLM-130B
    (`THUDM/GLM-130B:configs/model_glm_130b.sh`), ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B
    (`modeling_chatglm.py` beside their weights), GLM-4-0414 (`huggingface/transformers:models/glm4`).
    """

    family: str = "glm"  # a label for people and for file lookup; the model never reads it
    vocab_size: int  # stored rows of the embedding, padding rows included
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None  # heads of keys and values, each shared by several query heads; None = num_heads
    head_size: int | None = None  # channels of one head; None = hidden_size / num_heads
    ffn_size: int | None = None  # inner width; None = 4 * hidden_size
    max_positions: int = 512  # P: learned tables have P + 1 rows
    positions: Positions = "learned_2d"
    rope_base: float = 10000.0
    rope_interpolation: float = 1.0  # positions are divided by it before they become angles (linear interpolation)
    rope_frequencies: RopeFrequencies = "float32"  # float16: rounded as the first ChatGLM-6B and GLM-130B code did
    rope_fraction: float = 1.0  # share of each head's channels that turn, the first ones
    rope_pairs: RopePairs = "half"  # channels that turn together: j and j + width/2, or 2j and 2j + 1
    norm: Norm = "layer"
    norm_eps: float = 1e-5
    residual: Residual = "pre"
    deepnorm_alpha: float | None = None  # None = sqrt(2 * num_layers)
    mlp: MLP = "gelu"
    gelu: GeluKind = "tanh"
    bias: Bias = "all"  # which linear layers have one; LayerNorm always does
    mask: MaskKind = "prefix"
    # Which blank a piece fills when positions are inferred. each: the k-th piece fills the k-th blank (GLM).
    # gmask_first: one piece, at the first [gMASK], else the first [MASK] (ChatGLM-6B). mask_first: one piece, at the
    # first [MASK], else [sMASK], else [gMASK] (GLM-130B).
    blank_order: BlankOrder = "each"
    tie_embeddings: bool = True
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    init: Init = "gpt"
    init_std: float = 0.02
    # GLM-130B section 2: in training, scale of the gradient that reaches the embedding through the input; 1 = off.
    embedding_gradient_scale: float = 1.0
    special: SpecialIds | None = None
    quantization: Quantization | None = None  # None = floating-point weights

    def __post_init__(self) -> None:
        self._check_types()
        self._check_heads()
        for name, choices in _AXES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", step=f"choose one of {', '.join(choices)}")
        for name in ("embedding_dropout", "attention_dropout", "hidden_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        for name in ("norm_eps", "init_std", "rope_base", "rope_interpolation"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value}; it must be positive")
        if self.deepnorm_alpha is not None and (self.residual != "deepnorm" or self.deepnorm_alpha <= 0):
            raise ConfigError(
                f"deepnorm_alpha is {self.deepnorm_alpha} with residual {self.residual!r}; it must be positive "
                f"and goes with residual 'deepnorm' only"
            )
        for name in ("embedding_gradient_scale", "rope_fraction"):
            value = getattr(self, name)
            if not 0.0 < value <= 1.0:
                raise ConfigError(f"{name} is {value}; it must be in (0, 1]")
        self._check_rotary()
        self._check_special()
        self._check_quantization()

    def _check_types(self) -> None:
        family = self.family
        if not isinstance(family, str) or not 0 < len(family) <= 100 or not family.isprintable():
            raise ConfigError(f"family is {family!r}", step="give a printable name")
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions"):
            value = getattr(self, name)
            if not _is_count(value):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1")
            _refuse_huge(name, value)
        for name in _NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                hint = "; YAML reads 1e-5 as text, write 1.0e-5" if isinstance(value, str) else ""
                raise ConfigError(f"{name} is {value!r}; it must be a number{hint}")
        if not isinstance(self.tie_embeddings, bool):
            raise ConfigError(f"tie_embeddings is {self.tie_embeddings!r}; it must be true or false")
        for name, default in _OPTIONAL_COUNTS.items():
            value = getattr(self, name)
            if value is not None and not _is_count(value):
                raise ConfigError(f"{name} is {value!r}; it must be at least 1, or null for {default}")
            _refuse_huge(name, value or 1)

    def _check_heads(self) -> None:
        if self.head_size is None and self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}",
                step=f"try {self.hidden_size // self.num_heads * self.num_heads or self.num_heads}",
            )
        if self.num_heads * self.head_dim > _LARGEST:
            raise ConfigError(
                f"{self.num_heads} heads of {self.head_dim} channels are more than {_LARGEST} in all", step="check both"
            )
        if self.num_heads % self.kv_heads:
            divisors = [n for n in range(1, min(self.num_heads, 1024) + 1) if self.num_heads % n == 0]
            raise ConfigError(
                f"num_kv_heads {self.kv_heads} does not divide num_heads {self.num_heads}",
                step=f"choose one of {', '.join(map(str, divisors))}",
            )

    def _check_rotary(self) -> None:
        streams = {"rope": 1, "rope_2d": 2}.get(self.positions, 0)
        if not streams:
            for name in ("rope_fraction", "rope_pairs", "rope_interpolation"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ConfigError(f"{name} is {getattr(self, name)!r}; it goes with rotary positions only")
            return
        unit = 2 * streams
        if self.rope_fraction == 1.0 and self.head_dim % unit:
            raise ConfigError(
                f"{self.positions} positions need a head size that is a multiple of {unit}, not {self.head_dim}",
                step="change num_heads",
            )
        turning = self.head_dim * self.rope_fraction
        whole = round(turning)
        if whole < unit or whole % unit or abs(turning - whole) > 1e-6:
            raise ConfigError(
                f"rope_fraction {self.rope_fraction} of a head of {self.head_dim} is {turning:g}; {self.positions} "
                f"positions need a multiple of {unit}"
            )

    def _check_special(self) -> None:
        if self.special is None:
            return
        if not isinstance(self.special, SpecialIds):
            raise ConfigError(f"special is {self.special!r}; it must be a table of token ids by role, or null")
        for name, value in asdict(self.special).items():
            if value is None and name in _OPTIONAL_ROLES:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"special id {name} is {value!r}; it must be a token id")
            if not 0 <= value < self.vocab_size:
                what = f"special id {name}={value} is outside the vocabulary of {self.vocab_size} rows"
                raise ConfigError(what, code="mixed_releases")

    def _check_quantization(self) -> None:
        quantization = self.quantization
        if quantization is None:
            return
        if not isinstance(quantization, Quantization):
            raise ConfigError(f"quantization is {quantization!r}; it must be a table with bits 4 or 8, or null")
        widths = {"head_dim * num_heads": self.head_dim * self.num_heads, "ffn_size": self.inner_size}
        blocks, packed = quantization.column_blocks, 8 // quantization.bits if quantization.packing == "rows" else 1
        for name, width in widths.items():
            if width % (blocks * packed):
                unit = blocks * packed
                raise ConfigError(f"{name} is {width}; {blocks} column_blocks of whole bytes need a multiple of {unit}")
        if self.hidden_size % packed:
            raise ConfigError(f"hidden_size is {self.hidden_size}; 4-bit weights are stored in pairs, it must be even")

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.head_size if self.head_size is not None else self.hidden_size // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads if self.num_kv_heads is not None else self.num_heads

    @property
    def rotary_dim(self) -> int:
        """Leading channels of each head that turn; 0 without rotary positions."""
        return 0 if self.positions == "learned_2d" else round(self.head_dim * self.rope_fraction)

    @property
    def inner_size(self) -> int:
        """Width between the two matrices of the MLP."""
        return self.ffn_size if self.ffn_size is not None else 4 * self.hidden_size

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values; `from_dict` inverts it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config") -> "GLMConfig":
        """Build from plain values. Raises ConfigError on an unknown key, naming the closest known one."""
        values = dict(values)
        _check_keys(values, cls, source)
        tables: dict[str, type[SpecialIds] | type[Quantization]] = {"special": SpecialIds, "quantization": Quantization}
        for name, table in tables.items():
            given = values.get(name)
            if isinstance(given, Mapping):
                _check_keys(given, table, f"{source}: {name}")
                values[name] = table(**given)
        return cls(**values)


_LARGEST = 1 << 26  # far beyond any model; the number of weights of a layer still fits in 64 bits
_NUMBERS = (
    "embedding_dropout",
    "attention_dropout",
    "hidden_dropout",
    "norm_eps",
    "init_std",
    "rope_base",
    "rope_interpolation",
    "rope_fraction",
    "embedding_gradient_scale",
)
_OPTIONAL_COUNTS = {
    "ffn_size": "4 * hidden_size",
    "num_kv_heads": "num_heads",
    "head_size": "hidden_size / num_heads",
}
_OPTIONAL_ROLES = ("cls", "smask", "dblock", "sep", "unk")
_AXES: dict[str, tuple[str, ...]] = {
    "positions": get_args(Positions),
    "rope_frequencies": get_args(RopeFrequencies),
    "rope_pairs": get_args(RopePairs),
    "norm": get_args(Norm),
    "residual": get_args(Residual),
    "mlp": get_args(MLP),
    "gelu": get_args(GeluKind),
    "bias": get_args(Bias),
    "mask": get_args(MaskKind),
    "blank_order": get_args(BlankOrder),
    "init": get_args(Init),
}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _refuse_huge(name: str, value: int) -> None:
    if value > _LARGEST:
        raise ConfigError(f"{name} is {value}; no model has more than {_LARGEST}")


def _check_keys(values: Mapping[str, Any], cls: type[Any], source: str) -> None:
    """Raise ConfigError for a key that the class does not know, and for one that it needs."""
    known = [field.name for field in fields(cls)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{source}: unknown key {key!r}", step=did_you_mean(key, known), param=str(key))
    for field in fields(cls):
        if field.default is MISSING and field.name not in values:
            raise ConfigError(f"{source}: {cls.__name__} needs the key {field.name!r}", param=field.name)


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Settings of generation that a checkpoint publishes; None leaves the choice to the model's family.

    stop_ids: ids that end an answer. pad_id: the padding id. generation_mask_id: the mask behind which a text is
    continued. add_cls: part A begins with [CLS]. running_positions, block_positions: row 0 of the positions goes on
    counting behind part A, row 1 counts inside a span.
    """

    stop_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    generation_mask_id: int | None = None
    add_cls: bool | None = None
    running_positions: bool | None = None
    block_positions: bool | None = None

    def to_dict(self) -> dict[str, bool | int | list[int]]:
        """The settings that say something, for JSON."""
        values = {**vars(self), "stop_ids": list(self.stop_ids) or None}
        return {name: value for name, value in values.items() if value is not None}
