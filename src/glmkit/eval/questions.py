"""Questions to a tuned model: the prompts that its training had, and the answers that references hold."""

import json
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from glmkit.errors import DataError, GLMKitError
from glmkit.tokenizer.dialogue import NO_QUIRKS, Example, Limits, RowTokenizer, Tokenized, TuningFormat
from glmkit.tokenizer.protocol import Tokenizer

_WIDE = 1 << 30  # tokens; no answer is cut


@dataclass(frozen=True)
class Question:
    """One row to answer. id: its place in the data. ids: the whole prompt, empty where there is none for it, which
    `problem` explains. reference: what evaluation compares with, "" where the row has no answer; cut: tokens that it
    lost to the limit of answers.
    """

    id: str
    ids: list[int]
    reference: str = ""
    problem: str = ""
    cut: int = 0


@dataclass(frozen=True)
class QuestionMaker:
    """Prompts of one model. quirks: of training and prediction alike."""

    tokenizer: Tokenizer
    tuning: TuningFormat
    limits: Limits
    quirks: AbstractSet[str] = NO_QUIRKS

    def question(self, example: Example) -> Question:
        """The question before the last answer that training counts. What the family has no form for has a problem."""
        try:
            if isinstance(example, Tokenized):
                return self._of_ids(example)
            ids = self.tuning.prompt(self.tokenizer, example, self.limits, self.quirks)
            answer = self.tuning.answer(self.tokenizer, example, self.limits, self.quirks)
            whole = self.tuning.answer(self.tokenizer, example, replace(self.limits, target=_WIDE), self.quirks)
        except GLMKitError as error:
            return Question(example.where, [], problem=str(error))
        cut = max(len(whole) - len(answer), 0)
        return Question(example.where, ids, self.tokenizer.decode(answer).strip(), cut=cut)

    def _of_ids(self, example: Tokenized) -> Question:
        if not isinstance(self.tokenizer, RowTokenizer):
            raise DataError("the row is ids already, and this model's tokenizer cannot lay them out")
        row = example.row(self.tokenizer, self.limits, self.stop_ids)
        start = row.counted.index(True) + 1
        reference = self.tokenizer.decode(row.ids[start:]).strip()
        return Question(example.where, row.ids[:start], reference, cut=row.lost.answer)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that training taught to end an answer."""
        return self.tuning.stop_ids(self.tokenizer)


def prediction_line(question: Question, predict: str) -> bytes:
    """A line of `generated_predictions.jsonl`."""
    values = {"id": question.id, "labels": question.reference, "predict": predict}
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def published_line(labels: str, predict: str | None) -> bytes:
    """A line of `generated_predictions.txt` as ChatGLM-6B's `main.py` writes it."""
    values = {"labels": labels.strip(), "predict": (predict or "").strip()}
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
