"""Training examples of fine-tuning: a row of data before it is ids, and the ids that a family makes of it.

Rows are read into `Dialogue`s by `data/dialogues/`; a `TuningFormat` of the family turns each into `EncodedRow`s.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from .chat_template import Message
from .inputs import RowLayout, Side
from .protocol import Tokenizer

NO_QUIRKS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One example. counted: for each message, True where the loss counts what it says (the assistant's alone).

    cut: the side of a single long question that is given up where it does not fit; earlier rounds go before that.
    where: "FILE: line N", for messages. source: name of the data set.
    """

    messages: tuple[Message, ...]
    counted: tuple[bool, ...]
    where: str
    cut: Side = "left"
    source: str = ""

    def __post_init__(self) -> None:
        assert len(self.messages) == len(self.counted), "one flag for each message"


@dataclass(frozen=True, slots=True)
class Limits:
    """Longest prompt and longest answer in tokens, each with the special tokens that belong to it."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The parts of an example that did not fit: tokens of the prompt and of answers, whole rounds."""

    prompt: int = 0
    answer: int = 0
    rounds: int = 0


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A row as the references record it. ids, counted (n,): counted[i] is True where ids[i] is a label (not shifted).

    layout: positions and prefix of the row. num_answers: assistant's messages that are counted in it.
    """

    ids: list[int]
    counted: list[bool]
    layout: RowLayout
    lost: Lost = field(default_factory=Lost)
    num_answers: int = 1


class TuningFormat(ABC):
    """The rows on which the published code of one family is fine-tuned.

    limits: the published ones. quirks: names of what the reference does and we do not by default -> a sentence on it;
    each is switched on by its name.
    """

    limits: Limits
    quirks: Mapping[str, str] = {}

    @abstractmethod
    def rows(
        self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: AbstractSet[str] = NO_QUIRKS
    ) -> list[EncodedRow]:
        """Training rows, one or several, so that every counted answer is counted once.

        Special words in a text are text. Raises RequestError for what the family has no form for.
        """

    @abstractmethod
    def prompt(
        self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: AbstractSet[str] = NO_QUIRKS
    ) -> list[int]:
        """The ids before the last counted answer, ready for generation, as `rows` trains it."""

    @abstractmethod
    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Ids that training teaches to end an answer."""
