"""How much an engine may hold and do at once."""

from dataclasses import dataclass, fields, replace

from glmkit.config import GLMConfig
from glmkit.errors import RequestError

# What the engine chooses by itself: so many rows of the model's full length, or more where that is little memory, and
# never more than this share of what is free.
_FULL_ROWS = 8
_LITTLE = 256 << 20
_SHARE = 3


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """tokens: of all rows together, in the cache; a tuned prefix is not counted. None: chosen by the engine.

    rows: answers or beams in one step. step_tokens: prompt tokens read in one step, besides one token of every row
    that is being written; a part A, which must be read at once, may exceed it. block: tokens of a block.
    """

    tokens: int | None = None
    rows: int = 64
    step_tokens: int = 512
    block: int = 16

    def __post_init__(self) -> None:
        """Raises RequestError for values that are no whole numbers of at least 1."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "tokens" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RequestError(f"the engine's {field.name} is {value!r}; give a whole number of at least 1")
        if self.tokens is not None and self.tokens < self.block:
            raise RequestError(f"the engine's tokens are {self.tokens}; give at least one block, {self.block}")

    @property
    def blocks(self) -> int:
        """Whole blocks of the token budget; 0 as long as it is not chosen."""
        return (self.tokens or 0) // self.block

    def resolved(self, config: GLMConfig, token_bytes: int, free: int | None) -> "EngineLimits":
        """The same with a token budget, in whole blocks.

        token_bytes: memory of one token in all layers. free: bytes that can be allocated, None where nobody says.
        A chosen budget holds 8 rows of the model's full length, or up to `rows` of them in 256 MB, within a third of
        what is free; one row of full length and one block in any case, if all that is free holds them.
        """
        tokens = self.tokens
        if tokens is None:
            row = config.max_positions + self.block
            tokens = max(min(_FULL_ROWS, self.rows) * row, min(self.rows * row, _LITTLE // token_bytes))
            if free is not None and tokens * token_bytes * _SHARE > free:
                tokens = max(free // (_SHARE * token_bytes), min(row, free // (2 * token_bytes)), self.block)
        return replace(self, tokens=-(-tokens // self.block) * self.block)


# --- FOLDED generate/engine/counters
# What an engine has done since it was made.


@dataclass
class EngineCounters:
    """All count upwards. fed_tokens: through the model, of which read_tokens are prompts and rows read again.

    reused_tokens: of prompts, found in the cache. decode_rows: rows that went on, summed over steps. drafted: tokens
    that jobs fed ahead of the model's choice; accepted: those of them that stayed.
    """

    steps: int = 0
    fed_tokens: int = 0
    read_tokens: int = 0
    reused_tokens: int = 0
    decode_rows: int = 0
    preemptions: int = 0
    drafted: int = 0
    accepted: int = 0
