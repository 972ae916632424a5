"""Bounds of what an engine holds and does at once, and the numbers that it keeps of its work."""

from dataclasses import dataclass, field, fields, replace

from glmkit.config import GLMConfig
from glmkit.errors import RequestError

# A budget that the engine chooses itself: so many sequences of the model's full length, or more where that is little
# memory, and never more than this share of what is free.
_FULL_ROWS = 8
_LITTLE = 256 << 20
_SHARE = 3


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """tokens: of all sequences together, in the cache; a tuned prefix is not counted. None: chosen by the engine.

    rows: answers or beams in one step. step_tokens: prompt tokens of one step, besides one token of every sequence that
    decodes; a part A, which is read at once, may exceed it. block: tokens of a block.
    """

    tokens: int | None = None
    rows: int = 64
    step_tokens: int = 512
    block: int = 16

    def __post_init__(self) -> None:
        """Raise RequestError for values that are no whole numbers of at least 1."""
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "tokens" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RequestError(f"the engine's {item.name} is {value!r}; give a whole number of at least 1")
        if self.tokens is not None and self.tokens < self.block:
            raise RequestError(f"the engine's tokens are {self.tokens}; give at least one block, {self.block}")

    @property
    def blocks(self) -> int:
        """Whole blocks of the token budget; 0 as long as it is not chosen."""
        return (self.tokens or 0) // self.block

    def longest(self, sequences: int = 1) -> int:
        """The most tokens of each of so many sequences of one job, which may share all but their last block."""
        return max(self.blocks - sequences + 1, 1) * self.block

    def resolved(self, config: GLMConfig, token_bytes: int, free: int | None) -> "EngineLimits":
        """The same with a token budget, in whole blocks.

        token_bytes: memory of one token in all layers. free: bytes that can be allocated, None where nobody says.
        A chosen budget holds 8 sequences of the model's full length, or up to `rows` of them in 256 MB, within a third
        of what is free; one of full length and one block in any case, if all that is free holds them.
        """
        tokens = self.tokens
        if tokens is None:
            full = config.max_positions + self.block
            tokens = max(min(_FULL_ROWS, self.rows) * full, min(self.rows * full, _LITTLE // token_bytes))
            if free is not None and tokens * token_bytes * _SHARE > free:
                tokens = max(free // (_SHARE * token_bytes), min(full, free // (2 * token_bytes)), self.block)
        return replace(self, tokens=-(-tokens // self.block) * self.block)


@dataclass(kw_only=True)
class EngineCounters:
    """Counts since the engine was made; none ever falls.

    read_tokens: of prompts, of given continuations, and of sequences that had lost their blocks, through the model.
    reused_tokens: of prompts, found in the cache. decode_rows: sequences that decoded, summed over steps. preemptions:
    jobs that gave up their blocks for a while. drafted: tokens fed ahead of the model's choice; accepted: those of them
    that stayed.
    written_tokens: of answers, as told in the events of tickets.
    """

    steps: int = 0
    read_tokens: int = 0
    reused_tokens: int = 0
    decode_rows: int = 0
    preemptions: int = 0
    drafted: int = 0
    accepted: int = 0
    written_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The engine between two steps. waiting, running: jobs without and with blocks; rows: sequences of running jobs.

    free_tokens: what the cache can still take; tokens that are only kept to be found again count as free. counters: a
    copy of the engine's.
    """

    waiting: int = 0
    running: int = 0
    rows: int = 0
    free_tokens: int = 0
    counters: EngineCounters = field(default_factory=EngineCounters)
