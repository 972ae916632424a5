"""What the engine runs: a job is a few rows of one request that grow together, step by step.

Legend: T tokens of a branch, M tokens whose logits are asked for, V vocabulary rows.
The engine knows nothing of sampling, texts or stops: it feeds tokens, gives logits, keeps the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """One row of a job in the next step: what of an earlier row it continues, and the tokens to feed.

    tokens, places_2T: the T >= 1 tokens to feed and both rows of their positions, int64 on the CPU. parent: the row of
    the step before that this one continues (several may name the same: a fork); None begins a new row. dropped: so many
    tokens at the end of the parent's row are forgotten first (drafts that were rejected). part_a: of a new row, how
    many of its first tokens see each other in both directions. logits: for how many of the last tokens they are wanted.
    """

    tokens: Sequence[int]
    places_2T: Tensor
    parent: int | None = None
    dropped: int = 0
    part_a: int = 0
    logits: int = 1


class Job(Protocol):
    """Rows of one request. `start` and `advance` are called by the engine, never at the same time.

    max_rows: the most rows it ever has at once. max_row_tokens: the most tokens a row ever holds, prompt included;
    the engine refuses a job whose numbers can never fit, and needs no more than these.
    """

    max_rows: int
    max_row_tokens: int

    def start(self) -> Sequence[Branch]:
        """The first rows, all of them new."""

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        """Logits (M,V) of every branch of the step before, in their order, in the model's dtype; the next branches.

        None left means that the job is done. An exception ends this job alone; who waits for it gets the exception.
        """
