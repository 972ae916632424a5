"""What is heard of an answer while it is written."""

from collections.abc import Callable
from dataclasses import dataclass

from .answer import Answer, TokenLogprob


@dataclass(frozen=True)
class Piece:
    """New tokens of one answer, and the text that became certain with them, which may be none.

    number: which answer of a prompt, or which blank of a text, from 0. The texts of an answer's pieces joined are its
    whole text.
    """

    number: int
    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Ended:
    """The answer is complete. Its last text came in a `Piece` before."""

    number: int
    answer: Answer


# Called between two steps of the engine, in the thread that steps it; it must not wait for anything.
Listener = Callable[[Piece | Ended], None]
