"""Every option of the blank-infilling objective, under its published name, and the named mixtures.

Names and defaults: `THUDM/GLM:arguments.py` and `THUDM/GLM:blocklm_utils.py`. docs/objective.md explains each one.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from glmkit.errors import ConfigError

Mode = Literal["bert", "sentence", "gpt"]
SpanLengths = Literal["poisson", "fixed"]
SpanPlacement = Literal["spread", "published"]
GenerationSpan = Literal["uniform", "all", "second_text"]
GenerationPositions = Literal["mask", "running"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Rules that turn texts into blanks and targets. Probabilities are in [0, 1], ratios are shares of a text's tokens.

    Raises ConfigError when a value or a combination cannot be used.
    """

    bert_prob: float = 0.5  # a batch of short blanks ([MASK])
    gap_sentence_prob: float = 0.0  # a batch of masked sentences ([sMASK] with task_mask); the rest generates
    bert_ratio: float = 0.15
    gap_sentence_ratio: float = 0.15
    gpt_infill_prob: float = 0.5  # of generation samples: probability of the SUFFIX form (the published name misleads)
    gpt_min_ratio: float = 0.5  # shortest generation, as a share of the batch's shortest text
    average_block_length: float = 3  # lambda of the Poisson law; the length itself with span_lengths="fixed"
    max_block_length: int = 40  # lengths 1 .. max_block_length - 1
    block_mask_prob: float = 0.0  # token blanks: inputs of part B replaced by [dBLOCK]
    context_mask_ratio: float = 0.0  # token blanks: part A tokens near a blank replaced by [dBLOCK]
    context_mask_range: int = 3
    short_seq_prob: float = 0.0  # a batch whose texts are first cut into shorter ones
    single_span_prob: float = 0.0  # a batch with one short blank a text
    block_position_encoding: bool = True  # False: position row 1 is 1 in all of part B
    shuffle_blocks: bool = True
    sentinel_token: bool = False  # numbered masks and starts instead of a position row
    task_mask: bool = False  # [sMASK] and [gMASK] for sentences and generation instead of [MASK]
    random_position: bool = False  # one random offset to all positions of a sample with blanks
    masked_lm: bool = False  # BERT's form: one mask a token, predicted in place
    encoder_decoder: bool = False  # part B is one target: spans in order, one end
    # Beyond the published options.
    span_lengths: SpanLengths = "poisson"
    # Texts of several documents. spread: each gets blanks in proportion to its words. published: the shorter ones
    # first, the longest takes what is left, and a text in which it does not fit is dropped.
    span_placement: SpanPlacement = "spread"
    generation_span: GenerationSpan = "uniform"
    generation_positions: GenerationPositions = "mask"

    def __post_init__(self) -> None:
        for name in _SHARES:
            _check_number(name, getattr(self, name), 0.0, 1.0)
        if self.bert_prob + self.gap_sentence_prob > 1 + 1e-9:
            raise ConfigError(
                f"bert_prob {self.bert_prob} + gap_sentence_prob {self.gap_sentence_prob} is above 1; "
                "what they leave of 1 is the share of generation"
            )
        _check_number("average_block_length", self.average_block_length, 1e-3, 1e6)
        if not isinstance(self.max_block_length, int) or not 2 <= self.max_block_length <= _LONGEST_BLOCK:
            raise ConfigError(
                f"max_block_length is {self.max_block_length!r}; it must be a whole number from 2 to {_LONGEST_BLOCK}"
            )
        if self.context_mask_range < 1:
            raise ConfigError(f"context_mask_range is {self.context_mask_range}; it must be at least 1 token")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if self.span_lengths == "fixed" and self.average_block_length != int(self.average_block_length):
            raise ConfigError(
                f"span_lengths 'fixed' needs a whole average_block_length, not {self.average_block_length}; "
                f"try {max(1, round(self.average_block_length))}"
            )
        if self.span_lengths == "poisson" and sum(self.length_weights()) <= 0.0:
            raise ConfigError(
                f"average_block_length {self.average_block_length} puts no weight on 1 .. {self.max_block_length - 1}; "
                "lower it or raise max_block_length"
            )
        if self.masked_lm and (self.bert_prob < 1 or self.encoder_decoder or self.sentinel_token):
            raise ConfigError("masked_lm predicts token blanks in place; set bert_prob 1 and no other form of part B")
        if self.sentinel_token and self.encoder_decoder:
            raise ConfigError("sentinel_token and encoder_decoder are two forms of the same target; choose one")
        if self.generation_positions == "running" and self.gpt_prob > 0:
            if self.generation_span == "second_text":
                raise ConfigError("generation_positions 'running' is for suffixes; second_text makes blanks")
            if self.generation_span == "uniform" and self.gpt_infill_prob < 1:
                raise ConfigError(
                    f"generation_positions 'running' needs suffixes only: set gpt_infill_prob 1, not "
                    f"{self.gpt_infill_prob}"
                )

    @property
    def gpt_prob(self) -> float:
        """The share of generation batches."""
        return max(0.0, 1.0 - self.bert_prob - self.gap_sentence_prob)

    @property
    def uses_dblock(self) -> bool:
        return self.block_mask_prob > 0 or self.context_mask_ratio > 0

    def length_weights(self) -> list[float]:
        """Relative weights of span lengths 1, 2, ...: Poisson(k; average_block_length), GLM paper, section 2.1."""
        if self.span_lengths == "fixed":
            length = int(self.average_block_length)
            return [0.0] * (length - 1) + [1.0]
        rate = float(self.average_block_length)
        return [math.exp(k * math.log(rate) - rate - math.lgamma(k + 1)) for k in range(1, self.max_block_length)]

    def mean_span_length(self) -> float:
        """Expected length of one drawn span, in tokens: 3.157 for the published values."""
        weights = self.length_weights()
        return sum(k * w for k, w in enumerate(weights, start=1)) / sum(weights)

    def only(self, mode: Mode) -> "ObjectiveConfig":
        """The same objective with one mode and whole texts, for evaluation per mode."""
        bert, sentence = float(mode == "bert"), float(mode == "sentence")
        return replace(
            self, bert_prob=bert, gap_sentence_prob=sentence, short_seq_prob=0.0, single_span_prob=0.0,
            masked_lm=self.masked_lm and mode == "bert",
        )  # fmt: skip

    def modes(self) -> tuple[Mode, ...]:
        """The modes that this mixture can draw."""
        shares = {"bert": self.bert_prob, "sentence": self.gap_sentence_prob, "gpt": self.gpt_prob}
        return tuple(mode for mode in get_args(Mode) if shares[mode] > 1e-9)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON-able values."""
        return asdict(self)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "ObjectiveConfig":
        """A named mixture of PRESETS, with single values changed. Raises ConfigError for an unknown name."""
        if name not in PRESETS:
            raise ConfigError(f"unknown objective preset {name!r}; choose one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; it must be a number in [{low:g}, {high:g}]")


_LONGEST_BLOCK = 1 << 16  # tokens; each length has a weight of its own
_SHARES = (
    "bert_prob", "gap_sentence_prob", "gpt_infill_prob", "block_mask_prob", "short_seq_prob", "single_span_prob",
    "bert_ratio", "gap_sentence_ratio", "gpt_min_ratio", "context_mask_ratio",
)  # fmt: skip
_CHOICES: dict[str, tuple[str, ...]] = {
    "span_lengths": get_args(SpanLengths),
    "span_placement": get_args(SpanPlacement),
    "generation_span": get_args(GenerationSpan),
    "generation_positions": get_args(GenerationPositions),
}

# What recipes can name. Published mixtures: `THUDM/GLM:config/*.sh`; GLM-130B paper, section 2.2 and Table 11. The last
# three are the equivalences of the GLM paper's comparison with BERT, GPT and encoder-decoder models.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "glm_base": {"bert_prob": 1.0},
    "glm_10b": {
        "bert_prob": 0.5, "gap_sentence_prob": 0.3, "gpt_min_ratio": 0.25, "block_mask_prob": 0.1,
        "short_seq_prob": 0.02, "task_mask": True,
    },
    "glm_10b_long": {
        "bert_prob": 0.4, "gap_sentence_prob": 0.3, "gpt_min_ratio": 0.25, "block_mask_prob": 0.1,
        "short_seq_prob": 0.5, "single_span_prob": 0.05, "task_mask": True,
    },
    "glm_large_chinese": {"bert_prob": 0.4, "gap_sentence_prob": 0.3, "gpt_min_ratio": 0.25, "task_mask": True},
    "glm_10b_chinese": {"bert_prob": 0.5, "gap_sentence_prob": 0.3, "gpt_min_ratio": 0.25, "task_mask": True},
    "glm_130b": {
        "bert_prob": 0.3, "gpt_infill_prob": 1.0, "gpt_min_ratio": 0.2, "short_seq_prob": 0.02,
        "single_span_prob": 0.02, "task_mask": True, "generation_positions": "running",
    },
    "bert_like": {"bert_prob": 1.0, "span_lengths": "fixed", "average_block_length": 1},
    "gpt_like": {"bert_prob": 0.0, "generation_span": "all", "task_mask": True},
    "t5_like": {"bert_prob": 0.0, "generation_span": "second_text", "task_mask": True},
}  # fmt: skip
