"""The model's configuration: orthogonal axes, readable without torch.

Every published model of the family is a point in this table; nothing here or in `model/` asks for a family's name.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from .errors import ConfigError

Positions = Literal["learned_2d", "rope", "rope_2d"]
RopeFrequencies = Literal["float32", "float16"]
Norm = Literal["layer"]
Residual = Literal["pre", "deepnorm"]
MLP = Literal["gelu", "geglu"]
GeluKind = Literal["tanh", "erf"]
MaskKind = Literal["prefix", "causal"]
Init = Literal["gpt", "xavier"]


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """Token ids by role. `eos` ends a document and part A; `sop`/`eop` open and close a filled span."""

    pad: int
    eos: int
    cls: int
    mask: int
    smask: int
    gmask: int
    sop: int
    eop: int
    dblock: int | None = None
    sep: int | None = None
    unk: int | None = None

    def mask_ids(self) -> tuple[int, ...]:
        """The distinct ids that mark a blank, [MASK] first."""
        return tuple(dict.fromkeys((self.mask, self.smask, self.gmask)))


@dataclass(frozen=True, kw_only=True)
class GLMConfig:
    """Shape and axes of one model.

    Counts are `num_*`; sizes are widths in channels. Impossible combinations raise ConfigError when the config is made.
    Axes follow spec pages of the published models: GLM (`THUDM/GLM:model/modeling_glm.py`), GLM-130B
    (`THUDM/GLM-130B:configs/model_glm_130b.sh`).
    """

    family: str = "glm"  # a label for people and for file lookup; the model never reads it
    vocab_size: int  # stored rows of the embedding, padding rows included
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int | None = None  # inner width; None = 4 * hidden_size
    max_positions: int = 512  # P: learned tables have P + 1 rows
    positions: Positions = "learned_2d"
    rope_base: float = 10000.0
    rope_frequencies: RopeFrequencies = "float32"  # float16: rounded as the first ChatGLM-6B and GLM-130B code did
    norm: Norm = "layer"
    norm_eps: float = 1e-5
    residual: Residual = "pre"
    deepnorm_alpha: float | None = None  # None = sqrt(2 * num_layers)
    mlp: MLP = "gelu"
    gelu: GeluKind = "tanh"
    mask: MaskKind = "prefix"
    tie_embeddings: bool = True
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    init: Init = "gpt"
    init_std: float = 0.02
    # GLM-130B section 2: scale of the gradient that reaches the embedding through the input; 1 = off.
    embedding_gradient_scale: float = 1.0
    special: SpecialIds | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1")
        for name in _NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                hint = "; YAML reads 1e-5 as text, write 1.0e-5" if isinstance(value, str) else ""
                raise ConfigError(f"{name} is {value!r}; it must be a number{hint}")
        if not isinstance(self.tie_embeddings, bool):
            raise ConfigError(f"tie_embeddings is {self.tie_embeddings!r}; it must be true or false")
        if self.ffn_size is not None and (not isinstance(self.ffn_size, int) or self.ffn_size < 1):
            raise ConfigError(f"ffn_size is {self.ffn_size!r}; it must be at least 1, or null for 4 * hidden_size")
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                f"try {self.hidden_size // self.num_heads * self.num_heads or self.num_heads}"
            )
        for name, choices in _AXES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        for name in ("embedding_dropout", "attention_dropout", "hidden_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        for name in ("norm_eps", "init_std", "rope_base"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value}; it must be positive")
        if self.deepnorm_alpha is not None and (self.residual != "deepnorm" or self.deepnorm_alpha <= 0):
            raise ConfigError(
                f"deepnorm_alpha is {self.deepnorm_alpha} with residual {self.residual!r}; it must be positive "
                f"and goes with residual 'deepnorm' only"
            )
        if not 0.0 < self.embedding_gradient_scale <= 1.0:
            raise ConfigError(f"embedding_gradient_scale is {self.embedding_gradient_scale}; it must be in (0, 1]")
        unit = {"rope": 2, "rope_2d": 4}.get(self.positions, 1)
        if self.head_dim % unit:
            raise ConfigError(
                f"{self.positions} positions need a head size that is a multiple of {unit}, not {self.head_dim}; "
                f"change num_heads"
            )
        if self.special is not None:
            if not isinstance(self.special, SpecialIds):
                raise ConfigError(f"special is {self.special!r}; it must be a table of token ids by role, or null")
            for name, value in asdict(self.special).items():
                if value is not None and not isinstance(value, int):
                    raise ConfigError(f"special id {name} is {value!r}; it must be a token id")
                if value is not None and not 0 <= value < self.vocab_size:
                    raise ConfigError(f"special id {name}={value} is outside the vocabulary of {self.vocab_size} rows")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

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
        _refuse_unknown(values, cls, source)
        special = values.get("special")
        if isinstance(special, Mapping):
            _refuse_unknown(special, SpecialIds, f"{source}: special")
        try:
            if isinstance(special, Mapping):
                values["special"] = SpecialIds(**special)
            return cls(**values)
        except TypeError as error:
            # Only missing keys are left: "GLMConfig.__init__() missing 1 required keyword-only argument: 'vocab_size'".
            raise ConfigError(f"{source}: {str(error).replace('.__init__()', '')}") from error


_NUMBERS = (
    "embedding_dropout",
    "attention_dropout",
    "hidden_dropout",
    "norm_eps",
    "init_std",
    "rope_base",
    "embedding_gradient_scale",
)
_AXES: dict[str, tuple[str, ...]] = {
    "positions": get_args(Positions),
    "rope_frequencies": get_args(RopeFrequencies),
    "norm": get_args(Norm),
    "residual": get_args(Residual),
    "mlp": get_args(MLP),
    "gelu": get_args(GeluKind),
    "mask": get_args(MaskKind),
    "init": get_args(Init),
}


def _refuse_unknown(values: Mapping[str, Any], cls: type, source: str) -> None:
    known = [field.name for field in fields(cls)]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(known)}"
            raise ConfigError(f"{source}: unknown key {key!r}{hint}")
