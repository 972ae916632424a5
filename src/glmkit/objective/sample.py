"""Input and output of the objective: a text, a sample, and the tally of what was lost between them."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TextSample:
    """Tokens before corruption. tokens (n,) int64: [CLS] in front of each document, eos behind each finished one.

    loss_mask (n,) int64 or bool: 0 on [CLS]. Used where a text is its own target (suffixes, masked_lm); blanks are
    always predicted. stretch: a part of a document that is longer than a text; the published rule alone blanks it.
    """

    tokens: Ints
    loss_mask: NDArray[np.generic]
    stretch: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    def head(self, length: int) -> "TextSample":
        """The first `length` tokens."""
        return TextSample(self.tokens[:length], self.loss_mask[:length], self.stretch)


@dataclass(frozen=True, slots=True)
class Sample:
    """One corrupted text: part A, then the spans of part B. All arrays are int64.

    input_ids, targets, loss_mask (n,); position_ids (2,n): row 0 the place in part A, row 1 the place inside a span
    (0 in part A). Targets are aligned with inputs: targets[i] is what position i predicts where loss_mask[i] is 1.
    prefix_length: the number of part A tokens, which all see each other. mode: what made it, for the record.
    """

    input_ids: Ints
    targets: Ints
    loss_mask: Ints
    position_ids: Ints
    prefix_length: int
    mode: str

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        return int(np.count_nonzero(self.loss_mask))


@dataclass
class Tally:
    """Count of what became of texts: nothing leaves the objective uncounted."""

    texts: int = 0  # texts that entered corruption (after cutting into shorter ones)
    dropped: int = 0  # spans did not fit, or the text is too short to mask
    without_targets: int = 0  # kept, but nothing was masked (no sentence, or too short for one token)
    masked_tokens: int = 0
    text_tokens: int = 0
    modes: dict[str, int] = field(default_factory=dict)  # samples made, by mode
