"""Questions to a tuned model: the prompts that its training had, and the answers that references hold."""

import json
from dataclasses import dataclass, replace

from glmkit.data.tuning_rows import RowMaker
from glmkit.errors import GLMKitError
from glmkit.tokenizer.dialogue import Example, Tokenized

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


def question_of(example: Example, maker: RowMaker) -> Question:
    """The question before the last answer that training counts. What the family has no form for has a problem."""
    form, tokenizer, limits, quirks = maker.form, maker.tokenizer, maker.limits, maker.quirks
    try:
        if isinstance(example, Tokenized):
            row = maker.row_of_ids(example, maker.stop_ids)
            start = row.counted.index(True) + 1
            ids, answer, cut = row.ids[:start], row.ids[start:], row.lost.answer
        else:
            ids = form.prompt(tokenizer, example, limits, quirks)
            answer = form.answer(tokenizer, example, limits, quirks)
            whole = form.answer(tokenizer, example, replace(limits, target=_WIDE), quirks)
            cut = max(len(whole) - len(answer), 0)
    except GLMKitError as error:
        return Question(example.where, [], problem=str(error))
    return Question(example.where, ids, tokenizer.decode(answer).strip(), cut=cut)


def prediction_line(question: Question, predict: str) -> bytes:
    """A line of `generated_predictions.jsonl`."""
    values = {"id": question.id, "labels": question.reference, "predict": predict}
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def published_line(labels: str, predict: str | None) -> bytes:
    """A line of `generated_predictions.txt` as ChatGLM-6B's `main.py` writes it."""
    values = {"labels": labels.strip(), "predict": (predict or "").strip()}
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
