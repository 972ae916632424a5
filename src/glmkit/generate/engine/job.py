"""The protocol of a job: a few sequences of one request that grow together, step by step.

Legend: M tokens of a branch whose logits are asked for, V vocabulary rows.
The engine knows nothing of sampling, texts or stops: it feeds tokens, gives logits, keeps the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from glmkit.generate.outputs import Listener

Positions = tuple[list[int], list[int]]  # both rows


@dataclass(frozen=True)
class Branch:
    """One sequence of a job in the next step: the earlier sequence that it continues, and the tokens to feed.

    tokens, positions: at least one token to feed, and both rows of their positions. parent: the sequence of the step
    before that this one continues (several may name the same: a fork); None begins a new one. dropped: tokens at the
    end of the parent to forget first (drafts that were rejected). part_a: of a new sequence, how many of its first
    tokens see each other in both directions. logits: for how many of the last tokens they are wanted.
    targets: the token that comes after each of these, where only scores of them are wanted (`head_pass.target_scores`).
    """

    tokens: Sequence[int]
    positions: Positions
    parent: int | None = None
    dropped: int = 0
    part_a: int = 0
    logits: int = 1
    targets: Sequence[int] = ()


class Job(Protocol):
    """The sequences of one request. The engine's thread calls `start` and `advance`, one after the other.

    max_sequences: the most that it ever has at once. max_sequence_tokens: the most tokens of one of them, prompt
    included; the engine refuses a job whose numbers can never fit, and needs no more than these. adapter: the one of
    the model's variants that reads them, None for the model alone. listener: called with every event of an answer; the
    engine sets it for a job whose ticket gives events. spare_rows: tokens that each of its sequences may feed ahead at
    little cost and with the numbers of single tokens; the engine sets it before every `advance`.
    """

    max_sequences: int
    max_sequence_tokens: int
    adapter: str | None
    listener: Listener | None
    spare_rows: int

    def start(self) -> Sequence[Branch]:
        """The first sequences, all of them new."""

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        """Take the logits (M,V) of every branch of the step before, in order, in the model's dtype; the next branches.

        Of a branch with targets their scores (M,2) in place of logits.
        None left means that the job is done. An exception ends this job alone; its ticket gives the exception.
        """
