"""The two position rows of blank infilling in plain numbers: one rule for prompts, answers and rows of training.

A row of tokens is part A, then the spans of part B. Row 0 of its positions is the place in the corrupted text, row 1
the place inside a filled span: 0 in part A, 1 on the token that opens a span.
Source: GLM paper section 2.1.1; `THUDM/GLM:blocklm_utils.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .config import GLMConfig, SpecialIds

# Roles of the one blank that part B fills, the first that occurs, by `GLMConfig.blank_order`.
ONE_BLANK: dict[str, tuple[str, ...]] = {"gmask_first": ("gmask", "mask"), "mask_first": ("mask", "smask", "gmask")}


class Span(NamedTuple):
    """A span of part B: the index of the token that opens it, the position of its blank. None: it counts on."""

    first: int
    anchor: int | None


@dataclass(frozen=True)
class PositionRows:
    """Both position rows of one row of tokens, at any distance: what comes last in it goes on without an end.

    spans: in order. offset: the position of the first token. running: row 0 of a span counts on from its blank instead
    of staying there (`ObjectiveConfig.generation_positions`). block_positions False: row 1 stays 1 in a span
    (`block_position_encoding`). max_position: the last row of a learned table, on which longer rows stay.
    """

    spans: tuple[Span, ...] = ()
    offset: int = 0
    running: bool = False
    block_positions: bool = True
    max_position: int | None = None

    @classmethod
    def of(
        cls,
        ids: Sequence[int],
        part_a: int,
        config: GLMConfig,
        *,
        running: bool = False,
        block_positions: bool = True,
    ) -> "PositionRows":
        """Positions as the model itself infers them of `ids` (`infer_spans`), on the rows that its tables have."""
        return cls(
            infer_spans(ids, part_a, config),
            running=running,
            block_positions=block_positions,
            max_position=config.max_positions if config.positions == "learned_2d" else None,
        )

    def at(self, start: int, stop: int) -> tuple[list[int], list[int]]:
        """Row 0 and row 1 of the tokens `start` to before `stop`."""
        row_0: list[int] = []
        row_1: list[int] = []
        end = stop
        for first, anchor in reversed(self.spans):
            begin = max(first, start)
            if begin >= end:
                continue
            inside = range(begin - first + 1, end - first + 1)
            if anchor is None:
                row_0[:0] = range(self.offset + begin, self.offset + end)
            elif self.running:
                row_0[:0] = range(anchor + inside.start, anchor + inside.stop)
            else:
                row_0[:0] = [anchor] * len(inside)
            row_1[:0] = inside if self.block_positions else [1] * len(inside)
            end = begin
        if start < end:
            row_0[:0] = range(self.offset + start, self.offset + end)
            row_1[:0] = [0] * (end - start)
        if self.max_position is not None:
            row_0, row_1 = ([min(position, self.max_position) for position in row] for row in (row_0, row_1))
        return row_0, row_1


def infer_spans(ids: Sequence[int], part_a: int, config: GLMConfig) -> tuple[Span, ...]:
    """Spans of part B behind the first `part_a` ids, by what the ids say.

    Which blank a span fills says `config.blank_order`. `each`: the k-th start-of-piece opens the span of the k-th
    blank; a span beyond the last blank belongs to the last one (`THUDM/GLM:blocklm_utils.py`, spans in source order).
    The other two: all of part B is one span, at the first blank of the first kind that occurs
    (ChatGLM-6B, `modeling_chatglm.py:get_position_ids`; `THUDM/GLM-130B:generation/`).
    Without blanks (or special ids) part B continues from the last token of part A, as in suffix generation; with one
    rotary stream it goes on counting. No part A, no spans: the row is plain text.
    """
    special, each = config.special, config.blank_order == "each"
    if part_a == 0:
        return ()
    blanks = [] if special is None else _blanks(ids[:part_a], special, config.blank_order)
    if special is None or not blanks:
        return () if config.positions == "rope" else (Span(part_a, part_a - 1),)
    anchors = [anchor(ids, blank, config, special) for blank in blanks]
    starts = [index for index in range(part_a, len(ids)) if ids[index] == special.sop] if each else []
    spans = [Span(start, anchors[min(number, len(anchors) - 1)]) for number, start in enumerate(starts)]
    return (*([] if starts[:1] == [part_a] else [Span(part_a, anchors[0])]), *spans)


def anchor(ids: Sequence[int], blank: int, config: GLMConfig, special: SpecialIds) -> int | None:
    """Position of the span that fills the blank at this index; None where it goes on counting.

    With one rotary stream a [gMASK] span does so, where [gMASK] has an id of its own (GLM-130B).
    """
    counts = config.positions == "rope" and special.gmask != special.mask and ids[blank] == special.gmask
    return None if counts else blank


def _blanks(part_a: Sequence[int], special: SpecialIds, order: str) -> list[int]:
    """Indices of the blanks that spans fill, in the order of the spans."""
    if order == "each":
        masks = special.mask_ids()
        return [index for index, token in enumerate(part_a) if token in masks]
    wanted = (getattr(special, role) for role in ONE_BLANK[order])
    return next(([part_a.index(token)] for token in wanted if token in part_a), [])
