"""Rows of one text for a model to read, each of the kind that the model was made for.

A model of blanks reads, in turn, short blanks, masked sentences and a rest to generate; one that fills a single blank
reads the first half of a window and goes on with the second; a causal one reads windows from left to right.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from glmkit.config import GLMConfig, SpecialIds
from glmkit.errors import RequestError
from glmkit.objective.blank_infilling import BlankInfilling, Choice
from glmkit.objective.counter_rng import CounterRng
from glmkit.objective.options import Mode, ObjectiveConfig
from glmkit.objective.sample import Sample, TextSample
from glmkit.objective.spans import sentence_end_table
from glmkit.position_rows import PositionRows
from glmkit.tokenizer.protocol import Tokenizer

from .packing import Batch, pack

WINDOW = 256  # tokens of a row's text
_FEWEST = 16  # tokens of a text
_SAMPLES = 4  # of a batch, side by side in one row without padding
_ADDED = 8  # tokens that a row may have beside its text without leaving the learned positions
_ROWS = 5  # third counter of the generators, see `batches`


def text_batches(tokenizer: Tokenizer, config: GLMConfig, text: str, most: int, *, what: str = "text") -> list[Batch]:
    """At most `most` windows of a text, spread evenly over it, as batches of one packed row without padding.

    The same text gives the same batches. what: the option that the text came from.
    Raises RequestError for a text that is too short.
    """
    ids = np.array(tokenizer.encode(text), np.int64)
    size = min(WINDOW, config.max_positions - _ADDED, len(ids))
    if size < _FEWEST:
        raise RequestError(
            f"the text of --{what} has {len(ids)} tokens, {_FEWEST} is the least", step="give a longer one", param=what
        )
    total = len(ids) // size
    count = min(total, most)
    windows = [ids[start : start + size] for start in (number * total // count * size for number in range(count))]
    samples = _samples(windows, tokenizer, config)
    return [
        pack([samples[start : start + _SAMPLES]], index=start // _SAMPLES) for start in range(0, len(samples), _SAMPLES)
    ]


def _samples(windows: Sequence[NDArray[np.int64]], tokenizer: Tokenizer, config: GLMConfig) -> list[Sample]:
    special = config.special or tokenizer.special
    if config.mask == "causal":
        return [_continued(window, 0, special, config) for window in windows]
    if config.blank_order != "each":
        return [_continued(window, len(window) // 2, special, config) for window in windows]
    modes: list[Mode] = ["bert", "sentence", "gpt"] if special.smask is not None else ["bert", "gpt"]
    ends = sentence_end_table(tokenizer)
    rules = ObjectiveConfig(task_mask=special.smask is not None)
    objective = BlankInfilling(rules, special, ends, max(map(len, windows)) + 1)
    first = [] if special.cls is None else [special.cls]
    made = []
    for number, window in enumerate(windows):
        tokens = np.concatenate([first, window]).astype(np.int64)
        text = TextSample(tokens, np.arange(len(tokens)) >= len(first))
        mode, rng = modes[number % len(modes)], CounterRng(0, number, _ROWS)
        sample = next(iter(objective.apply([text], Choice(mode), rng, insist=True)), None)
        if sample is None or not sample.num_targets:
            (sample,) = objective.apply([text], Choice("bert"), rng, insist=True)
        made.append(sample)
    return made


def _continued(window: NDArray[np.int64], part_a: int, special: SpecialIds, config: GLMConfig) -> Sample:
    """Part A with [gMASK] behind it, and the rest of the window as its continuation; part_a 0: plain text, causal."""
    begin = [special.gmask, special.sop]
    ids = np.concatenate([window[:part_a], begin, window[part_a:]]).astype(np.int64)
    bound = part_a + 1  # the start of the piece
    prefix = bound if config.mask != "causal" else 0
    positions = PositionRows.of(ids.tolist(), prefix, config).at(0, len(ids))
    targets = np.append(ids[1:], special.eop)
    loss_mask = (np.arange(len(ids)) >= bound) & (np.arange(len(ids)) < len(ids) - 1)
    return Sample(ids, targets, loss_mask.astype(np.int64), np.array(positions, np.int64), prefix, "gpt")
