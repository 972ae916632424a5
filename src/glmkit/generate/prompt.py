"""A prompt ready for prefill: ids, positions, and the limits of what may follow."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from glmkit.config import GLMConfig
from glmkit.errors import RequestError
from glmkit.model.positions import infer_prefix
from glmkit.position_rows import PositionRows

from .params import GenerationParams


@dataclass(frozen=True, eq=False)
class Prompt:
    """The tokens that an answer continues.

    ids: the whole prompt, added tokens included. part_a: how many of its first tokens see each other in both
    directions. positions: of the prompt and everything behind it. stops: the model's own ids that end an answer.
    forbidden: ids never produced, unless they are stops. max_positions: the most tokens that prompt and answer may
    have together, None where nothing ends. padding: ids that stood in front of the prompt where it was given; they are
    never read, but penalties and beam_length "row" count them, as transformers does. adapter: what reads prompt and
    answer, as `Job` has it.
    """

    ids: tuple[int, ...]
    part_a: int
    positions: PositionRows
    stops: frozenset[int] = frozenset()
    forbidden: tuple[int, ...] = ()
    max_positions: int | None = None
    padding: tuple[int, ...] = ()
    adapter: str | None = None

    @classmethod
    def of(
        cls,
        ids: Sequence[int],
        config: GLMConfig,
        *,
        stops: Iterable[int] = (),
        forbidden: Iterable[int] = (),
        max_positions: int | None = None,
        padding: Sequence[int] = (),
        running: bool = False,
        block_positions: bool = True,
        name: str = "the prompt",
        adapter: str | None = None,
    ) -> "Prompt":
        """Build it with part A and positions as the model itself infers them.

        running, block_positions: as in `PositionRows`. name: how errors call it.
        Raises RequestError for no tokens, more than the model's positions, or an id that the model lacks.
        """
        ids = tuple(ids)
        check_ids(ids, config, name)
        part_a = int(infer_prefix(torch.tensor([ids]), config.special)) if config.mask == "prefix" else 0
        # The token that opens a span comes on top of the text, as it does for every blank of `jobs.infill`; families
        # whose prompts are whole rows count it.
        opens = part_a == len(ids) - 1 and config.blank_order != "gmask_first"
        length = part_a if opens else len(ids)
        if length > config.max_positions:
            what = f"{name} has {length} tokens, the model takes {config.max_positions}; shorten it"
            raise RequestError(what, code="context_length_exceeded")
        positions = PositionRows.of(ids, part_a, config, running=running, block_positions=block_positions)
        return cls(ids, part_a, positions, frozenset(stops), tuple(forbidden), max_positions, tuple(padding), adapter)

    def check_room(self, count: int, config: GLMConfig, name: str) -> None:
        """Raise RequestError where `count` given tokens behind the prompt leave the model's positions.

        A span has positions of its own: it must fit them alone. The last token of all is never read.
        """
        last = len(self.ids) + count - 2
        rows = replace(self.positions, max_position=None).at(last, last + 1)
        used = max(row[0] for row in rows) + (config.positions != "learned_2d")
        if used > config.max_positions:
            raise RequestError(
                f"{name} has {count} tokens behind {len(self.ids)} of its context, which need {used} positions; the "
                f"model has {config.max_positions}",
                step="shorten one of them",
                code="context_length_exceeded",
            )

    @property
    def given(self) -> tuple[int, ...]:
        """The ids as penalties count them, padding included."""
        return self.padding + self.ids


def check_ids(ids: Sequence[int], config: GLMConfig, name: str) -> None:
    """Raise RequestError for no tokens, or an id that the model lacks."""
    if not ids:
        raise RequestError(f"{name} has no tokens; give at least 1")
    low, high = min(ids), max(ids)
    if low < 0 or high >= config.vocab_size:
        wrong = low if low < 0 else high
        raise RequestError(f"{name} has the id {wrong}; the model's ids are 0 to {config.vocab_size - 1}")


def max_answer_tokens(prompt: Prompt, params: GenerationParams) -> int:
    """The longest answer. Raises RequestError where the positions end before its first token."""
    if prompt.max_positions is None:
        return int(params.max_new_tokens)
    room = prompt.max_positions - len(prompt.ids)
    if room < 1:
        raise RequestError(
            f"the prompt has {len(prompt.ids)} tokens of {prompt.max_positions} that it and the answer may have; "
            "shorten it",
            code="context_length_exceeded",
        )
    return min(int(params.max_new_tokens), room)
