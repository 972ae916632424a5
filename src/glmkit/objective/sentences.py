"""Which tokens end a sentence: a table over the vocabulary, made once from a tokenizer."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

ASCII_MARKS = ".?!;:\n"
# The full-width colon is not among them. Source: `THUDM/GLM:blocklm_utils.py`.
CHINESE_MARKS = "。？！；…"
# The objective (sentence mode, shorter texts) always knows both; assembly of the published models knew ASCII only.
OBJECTIVE_MARKS = ASCII_MARKS + CHINESE_MARKS


class _Vocabulary(Protocol):
    @property
    def vocab_size(self) -> int: ...
    def id_to_token(self, index: int, /) -> str: ...
    def decode(self, ids: list[int], *, skip_specials: bool = True) -> str: ...


def sentence_end_table(tokenizer: _Vocabulary, *, chinese: bool = True) -> NDArray[np.bool_]:
    """(V,) bool: True where a token contains one of `. ? ! ; :`, a newline or (chinese) `。 ？ ！ ； …`.

    A substring test on the token's text, as in the reference. The vocabulary's own spelling is looked at too, but it
    is not enough alone: a byte-level BPE spells a newline as another symbol and a Chinese mark as three, and byte
    fallback writes <0x0A>; the decoded text shows the mark. Special tokens decode to nothing and never end a sentence.
    A mark that the vocabulary splits over several tokens is not found.
    """
    marks = set(OBJECTIVE_MARKS if chinese else ASCII_MARKS)
    table = np.zeros(tokenizer.vocab_size, np.bool_)
    for index in range(tokenizer.vocab_size):
        text = tokenizer.decode([index])
        if text and not (marks.isdisjoint(text) and marks.isdisjoint(tokenizer.id_to_token(index))):
            table[index] = True
    return table
