"""Training examples of fine-tuning: a row of data before it is ids, and the ids that a family makes of it.

Rows are read into `Dialogue`s by `data/dialogues/`; a `TuningFormat` of the family turns each into `EncodedRow`s.
"""

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from glmkit.config import SpecialIds
from glmkit.errors import ConfigError, DataError, did_you_mean

from .chat_template import Message
from .inputs import RowLayout, Side
from .protocol import Tokenizer

Quirks = AbstractSet[str]  # by name, see `TuningFormat`
NO_QUIRKS: Quirks = frozenset()
_LONGEST_UNSEEN = 16  # characters of a text that a normaliser may remove as a whole


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One example. counted: for each message, True where the loss counts what it says (the assistant's alone).

    An assistant's message with metadata calls the tool of that name; its content is the arguments as JSON text, which
    each family writes in its own form. None-valued keys of tools are left out by the reader.

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

    layout: positions and prefix of the row. num_answers: assistant's messages that are counted in it. notes: what
    became of the example besides, equal for equal cases.
    """

    ids: list[int]
    counted: list[bool]
    layout: RowLayout
    lost: Lost = field(default_factory=Lost)
    num_answers: int = 1
    notes: tuple[str, ...] = ()


@runtime_checkable
class RowTokenizer(Protocol):
    """A tokenizer that knows the layout of its models' rows."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def special(self) -> SpecialIds: ...

    def row_layout(self, row: Sequence[int]) -> RowLayout: ...


@dataclass(frozen=True, slots=True)
class Tokenized:
    """An example that another program has turned into ids: the first num_prompt of them are the prompt.

    The prompt's last token, a start of the answer, is a label, too. where, source: as in `Dialogue`.
    """

    ids: tuple[int, ...]
    num_prompt: int
    where: str
    source: str = ""

    def row(self, tokenizer: RowTokenizer, limits: Limits, ends: Collection[int] = ()) -> EncodedRow:
        """The row with the layout of its family, as it is where it fits the limits of prompt and answer together.

        A longer one keeps its answer: the prompt loses its beginning, but not the special tokens in front; only an
        answer beyond its own limit loses its end, and is closed by the last id where that is one of `ends`. Raises
        DataError for an id that the tokenizer lacks, and for special tokens that take the whole limit.
        """
        if (odd := max(self.ids)) >= tokenizer.vocab_size or (odd := min(self.ids)) < 0:
            raise DataError(
                f"{self.where}: the id {odd} is not among the {tokenizer.vocab_size} of the vocabulary",
                step="the rows were made with another tokenizer; give the rows before they were tokenized",
                param="input_ids",
                code="id_beyond",
            )
        prompt, answer = list(self.ids[: self.num_prompt]), list(self.ids[self.num_prompt :])
        started = tokenizer.special.sop in prompt
        notes = () if started else ("prompts of ids without a start of an answer: were they made with this tokenizer?",)
        most, lost = limits.source + limits.target, Lost()
        if len(self.ids) > most:
            kept = min(len(answer), max(limits.target, most - len(prompt)))
            special = frozenset(index for index in vars(tokenizer.special).values() if index is not None)
            front = next((place for place, index in enumerate(prompt) if index not in special), len(prompt))
            lost = Lost(max(len(prompt) - most + kept, 0), len(answer) - kept)
            if front + lost.prompt >= len(prompt):
                what = f"the {front} special tokens in front of its prompt leave nothing of it within {most}"
                raise DataError(f"{self.where}: {what}", step="raise data.source_length", param="data.source_length")
            if lost.answer:
                answer = answer[: kept - 1] + (answer[-1:] if answer[-1] in ends else answer[kept - 1 : kept])
            prompt = prompt[:front] + prompt[front + lost.prompt :]
        ids = prompt + answer
        counted = [place >= len(prompt) - 1 for place in range(len(ids))]
        return EncodedRow(ids, counted, tokenizer.row_layout(ids), lost, notes=notes)


Example = Dialogue | Tokenized


class TuningFormat(ABC):
    """The rows on which the published code of one family is fine-tuned.

    limits: the published ones. quirks: names of what the reference does and we do not by default, and of choices that
    it does not have, -> a sentence on each; they are switched on by name (`check_quirks`).

    One rule for all families: whole oldest rounds go first, then the question's side that `Dialogue.cut` names; an
    answer longer than the limit loses its end and is closed by its end token ("open_cut": it is left open).
    """

    limits: Limits

    @property
    def quirks(self) -> Mapping[str, str]:
        return {}

    @abstractmethod
    def rows(
        self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: Quirks = NO_QUIRKS
    ) -> list[EncodedRow]:
        """Training rows, one or several, so that every counted answer is counted once; none without such an answer.

        Special words in a text are text; blank answers (`is_blank`) do not count. Raises RequestError for what the
        family has no form for, and for limits that hold nothing.
        """

    @abstractmethod
    def prompt(self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: Quirks = NO_QUIRKS) -> list[int]:
        """The ids before the last counted answer, ready for generation, as `rows` trains it.

        Without a counted answer, those of the whole conversation.
        """

    @abstractmethod
    def answer(self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: Quirks = NO_QUIRKS) -> list[int]:
        """The ids of the last counted answer that evaluation compares with, cut to the limit, without an end token."""

    @abstractmethod
    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Ids that training teaches to end an answer."""

    def check_quirks(self, quirks: Quirks) -> None:
        """Raise ConfigError for a quirk that this family does not have, naming the closest."""
        for name in sorted(quirks - self.quirks.keys()):
            step = did_you_mean(name, self.quirks)
            raise ConfigError(f"data.quirks: {name!r} is none of this family's", step=step, param="data.quirks")


def is_blank(text: str, tokenizer: Tokenizer | None = None) -> bool:
    """True for a text that says nothing: white space, control and format characters, or nothing after normalisation."""
    if any(unicodedata.category(character)[0] not in "ZC" for character in text):
        return tokenizer is not None and len(text) < _LONGEST_UNSEEN and not tokenizer.encode(text)
    return True
