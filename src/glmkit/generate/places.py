"""Where the tokens of a prompt stand, and all that may follow them.

Legend: T tokens asked for, S tokens worked out so far.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from glmkit.config import GLMConfig
from glmkit.model.positions import infer_positions

_FIRST = 64  # places behind the prompt that are worked out at once; then twice as many, and so on


class Places:
    """Both position rows of a prompt and, at any distance, of an answer.

    They are the model's own for such ids: a span at its blank for prefix models, counting on for causal ones
    (`model.positions.infer_positions`). Behind a prompt they grow by the same step from token to token, so nothing has
    to be known of how long the answer will be.
    """

    def __init__(self, start_2L: Tensor, step_2: Tensor, *, last: int | None = None, last_inside: int | None = None):
        """start_2L: places of L >= 1 tokens. step_2: what each token behind them adds. last: the largest place of a
        learned table, on which longer spans stay. last_inside: the largest of row 1. All int64 on the CPU.
        """
        self._end_21, self._step_21 = start_2L[:, -1:], step_2[:, None]
        self._last, self._last_inside = last, last_inside
        self._length = start_2L.shape[1]
        self._known_2S = self._clamped(start_2L)

    @classmethod
    def of(
        cls,
        ids: Sequence[int],
        part_a: int,
        config: GLMConfig,
        *,
        running: bool = False,
        block_positions: bool = True,
    ) -> "Places":
        """Of a whole prompt with `part_a` tokens that see each other in both directions; at least one token.

        running: row 0 counts on from the blank (ObjectiveConfig.generation_positions); nothing changes in a span that
        goes on counting behind part A anyway. block_positions False: row 1 stays 1 in the span
        (block_position_encoding).
        """
        # What follows must not look like the start of another span.
        filler = ids[-1] if config.special is None else config.special.pad
        ids_1S = torch.tensor([[*ids, filler, filler]])
        places_2S = infer_positions(ids_1S, torch.tensor([part_a]), config)[0]
        if running:
            counts_S = places_2S[0] == torch.arange(places_2S.shape[1])
            places_2S[0] += places_2S[1].masked_fill(counts_S, 0)
        learned = config.max_positions if config.positions == "learned_2d" else None
        inside = None if block_positions else 1
        step_2 = places_2S[:, -1] - places_2S[:, -2]
        return cls(places_2S[:, :-1], step_2, last=learned, last_inside=inside)

    def at(self, start: int, stop: int) -> Tensor:
        """(2,T) int64 on the CPU: of tokens `start` to before `stop`, counted from the prompt's first one."""
        missing = stop - self._known_2S.shape[1]
        if missing > 0:
            known = self._known_2S.shape[1]
            more = torch.arange(known, known + max(missing, _FIRST, known - self._length))
            more_2S = self._end_21 + self._step_21 * (more - (self._length - 1))
            self._known_2S = torch.cat([self._known_2S, self._clamped(more_2S)], 1)
        return self._known_2S[:, start:stop]

    def _clamped(self, places_2S: Tensor) -> Tensor:
        if self._last_inside is not None:
            places_2S = torch.stack([places_2S[0], places_2S[1].clamp_max(self._last_inside)])
        return places_2S if self._last is None else places_2S.clamp_max(self._last)
