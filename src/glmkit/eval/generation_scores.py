"""Scores of generated answers while a model is trained: it answers some validation rows at every evaluation.

Each token takes a pass of the model, so that answering 50 rows may take longer than the loss over thousands: the number
of rows is bounded, and what it costs is told before it begins.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from glmkit.data.tuning_rows import RowMaker
from glmkit.errors import DataError
from glmkit.files import atomic_write
from glmkit.generate.engine import EngineLimits
from glmkit.generate.params import GenerationParams
from glmkit.loading import Parts
from glmkit.model import GLM
from glmkit.parallel.mesh import Ranks
from glmkit.session import LM
from glmkit.tokenizer.dialogue import Example

from .answer_scores import Scorer, Scores, choose_metrics, definitions
from .probes import evaluating
from .questions import Question, prediction_line, question_of

_AT_ONCE = 16  # questions that are answered together
_TRIED_TOKENS = 4  # of each answer, to see how long they take


class GenerationScores:
    """An evaluator (`train.trainer.Evaluator`): scores of greedy answers to the first `rows` validation rows.

    The ranks share the rows, and every rank returns the same numbers. The answers of the newest evaluation are in
    `file`, written before they are scored.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        maker: RowMaker,
        metrics: Sequence[str],
        parts: Parts,
        *,
        max_tokens: int | None = None,
        rows: int = 50,
        ranks: Ranks | None = None,
        file: Path | None = None,
    ) -> None:
        """metrics: names for `choose_metrics`. parts: the model, but for its weights. max_tokens: of an answer; None:
        as long as the limit.

        Raises ConfigError for metrics that are not known or whose library is missing, DataError when no row has both a
        prompt and a reference.
        """
        self.ranks, self.file = ranks or Ranks(), file
        self._metrics, self._maker, self._parts = choose_metrics(metrics), maker, parts
        self.questions = [question for row in examples[:rows] if (question := question_of(row, maker)).ids]
        if not any(question.reference for question in self.questions):
            raise DataError("no validation row has a question and an answer to score", param="evaluation.metrics")
        self.params = GenerationParams(max_new_tokens=max_tokens or maker.limits.target, stop_ids=maker.stop_ids)
        self._scorer()
        self.last: Scores | None = None

    @property
    def most_tokens(self) -> int:
        """The most new tokens of one evaluation, all ranks together."""
        return len(self.questions) * int(self.params.max_new_tokens)

    def definitions(self) -> dict[str, str]:
        """The definition of each number by its name."""
        return definitions(self._metrics)

    def estimate(self, model: GLM) -> float:
        """Seconds that one evaluation takes at most, from a few tokens of one batch on this machine."""
        own = self.questions[self.ranks.rank :: self.ranks.world_size]
        batch = own[:_AT_ONCE]
        if not batch:
            return 0.0
        since = time.perf_counter()
        self._answers(model, batch, replace(self.params, max_new_tokens=1, min_new_tokens=0))
        first = time.perf_counter()
        self._answers(model, batch, replace(self.params, max_new_tokens=1 + _TRIED_TOKENS, min_new_tokens=0))
        reading = first - since
        token = max(time.perf_counter() - first - reading, 0.0) / _TRIED_TOKENS
        return math.ceil(len(own) / _AT_ONCE) * (reading + token * int(self.params.max_new_tokens))

    def plan(self, model: GLM) -> str:
        """One sentence on what an evaluation costs, for the log before a run."""
        seconds = self.estimate(model)
        shown = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
        return (
            f"each scored evaluation answers {len(self.questions):,} rows with at most {self.most_tokens:,} tokens, in "
            f"{shown} or less (estimated)"
        )

    def __call__(self, model: nn.Module) -> Mapping[str, object]:
        """Answer and score: the metrics by name, and `rows`, `empty_predictions`."""
        own = [*range(self.ranks.rank, len(self.questions), self.ranks.world_size)]
        assert isinstance(model, GLM)
        texts = self._answers(model, [self.questions[number] for number in own], self.params)
        shares = self.ranks.gather([*zip(own, texts, strict=True)])
        answers = [text for _, text in sorted(entry for share in shares for entry in share)]
        if self.file is not None and self.ranks.is_main:
            with atomic_write(self.file) as file:
                for question, answer in zip(self.questions, answers, strict=True):
                    file.write(prediction_line(question, answer))
        scorer = self._scorer()
        for question, answer in zip(self.questions, answers, strict=True):
            scorer.add(answer, question.reference, question.id)
        self.last = scores = scorer.scores()
        return {**scores.values, "rows": scores.num_rows, "empty_predictions": scores.empty_predictions}

    def _answers(self, model: GLM, questions: Sequence[Question], params: GenerationParams) -> list[str]:
        return answer_texts(LM(replace(self._parts, model=model)), questions, params)

    def _scorer(self) -> Scorer:
        return Scorer(self._metrics, self._maker.tokenizer.encode)


def answer_texts(lm: LM, questions: Sequence[Question], params: GenerationParams) -> list[str]:
    """Texts that a model answers, in evaluation mode. The engine's cache is there only as long as they are made."""
    if not questions:
        return []
    with evaluating(lm.model):
        engine = lm.start_engine(EngineLimits(rows=_AT_ONCE))
        try:
            jobs = [lm.continue_job(question.ids, params) for question in questions]
            engine.run_all(jobs, rows=_AT_ONCE)
            return [(job.answers[0].text or "").strip() for job in jobs]
        finally:
            engine.close()
