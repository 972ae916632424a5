"""The checks and the report of one fine-tuning run, joined to it: before its first step, during it, after its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glmkit.adapters.attach import detach_adapter, find_attached
from glmkit.adapters.directory import apply_adapter
from glmkit.generate.params import GenerationParams
from glmkit.loading import Parts, load_parts
from glmkit.parallel.mesh import Ranks
from glmkit.progress import Progress
from glmkit.session import LM
from glmkit.tokenizer.dialogue import Example
from glmkit.train import random_state
from glmkit.train.checkpoints import RunLock
from glmkit.train.finetune_config import FULL, FinetuneConfig
from glmkit.train.finetuning_base import load_base, open_base, trained
from glmkit.train.finetuning_data import TuningData
from glmkit.train.run import RunResult

from .effect import Effect, prove_effect
from .generation_scores import GenerationScores, answer_texts
from .probes import BEFORE_FILE, Measured, Probes, measure, measure_before, spread, tuning_probes, untuned
from .questions import Question, question_of
from .tuning_report import Side, TuningReport, read_lines

_SIDE_TOKENS = 64  # the most of an answer that is shown beside another


@dataclass(frozen=True)
class _Before:
    """Facts from before the first step."""

    probes: Probes
    questions: list[Question]
    params: GenerationParams
    answers: list[str]
    data: list[str]
    replay: dict[str, float]
    trained: int
    total: int
    start: tuple[str, Measured] | None


class TuningInspector:
    """One run. Give `prepare` and `scorer` to `finetune` and its outcome to `finish`.

    command: as it was given, for the report.
    """

    def __init__(self, config: FinetuneConfig, command: Sequence[str], progress: Progress) -> None:
        self._config, self._command, self._progress = config, command, progress
        self._before: _Before | None = None
        self._definitions: dict[str, str] = {}

    def prepare(self, parts: Parts, data: TuningData, ranks: Ranks) -> None:
        """Measure the untuned model, and ask it the questions of the report; the first rank alone does.

        Raises DataError when nothing can be measured.
        """
        directory = self._config.output.directory
        if not ranks.is_main or directory is None:
            return
        maker, model = data.maker, parts.model
        groups = _groups(data, self._config)
        probes = tuning_probes(maker, groups, num_ids=model.config.vocab_size)
        shown = groups.get("held_out") or groups.get("trained") or []
        chosen = spread(shown, self._config.evaluation.report_rows)
        questions = [question for row in chosen if (question := question_of(row, maker)).ids]
        params = GenerationParams(max_new_tokens=min(maker.limits.target, _SIDE_TOKENS), stop_ids=maker.stop_ids)
        adapter, start = find_attached(model), None
        with random_state.untouched(ranks.device):
            if adapter is not None and adapter.info.path is not None:  # one that was trained before
                start = str(adapter.info.path), measure(model, probes)
            measure_before(Path(directory), model, probes)
            with untuned(model):
                answers = answer_texts(LM(parts), questions, params)
        self._before = _Before(
            probes,
            questions,
            params,
            answers,
            [*data.sets.lines(), *data.lines()],
            _replay(data, self._config),
            sum(parameter.numel() for parameter in trained(model).values()),
            sum(parameter.numel() for parameter in model.parameters()),
            start,
        )

    def scorer(self, parts: Parts, data: TuningData, config: FinetuneConfig, ranks: Ranks) -> GenerationScores:
        """The evaluator of generated answers (`finetuning.ScorerFactory`); what it costs is told."""
        e, directory = config.evaluation, config.output.directory
        scores = GenerationScores(
            [example for one in data.sets.validation for example in one.examples],
            data.maker,
            e.metrics,
            parts,
            max_tokens=e.generate_tokens,
            rows=e.generate_rows,
            ranks=ranks,
            file=None if directory is None else Path(directory) / "validation_predictions.jsonl",
        )
        self._definitions = scores.definitions()
        with random_state.untouched(ranks.device):
            self._progress.say(scores.plan(parts.model))
        for name, text in self._definitions.items():
            self._progress.say(f"{name}: {text}")
        return scores

    def finish(self, outcome: RunResult, ranks: Ranks) -> Effect | None:
        """Open what the run exported, prove its effect and write the report; None where nothing was trained to its end.

        Call it when the run's own model is no longer in memory, on the first rank. Raises TrainingError when what was
        exported has no effect, or another process has begun to train in the run's directory.
        """
        before, exported = self._before, outcome.model
        if before is None or exported is None:
            return None
        with RunLock(outcome.directory):
            return self._finish(before, exported, outcome, ranks)

    def _finish(self, before: _Before, exported: Path, outcome: RunResult, ranks: Ranks) -> Effect:
        measured = Measured.read(outcome.directory / BEFORE_FILE, before.probes)
        lm = LM(self._open(exported, "auto" if measured is None else measured.dtype, ranks))
        base, start = str(self._config.model.base), before.start
        effect = prove_effect(lm.model, before.probes, measured, where=str(exported), base_name=base, start=start)
        answers = answer_texts(lm, before.questions, before.params)
        sides = [
            Side(question.id, lm.tokenizer.decode(question.ids), question.reference, first, second)
            for question, first, second in zip(before.questions, before.answers, answers, strict=True)
        ]
        report = TuningReport(
            title=outcome.directory.name,
            command=self._command,
            effect=effect,
            sides=sides,
            settings=self._settings(before, outcome),
            data=before.data,
            definitions=self._definitions,
            replay=before.replay,
            lines=read_lines(outcome.directory),
        )
        _, page = report.write(outcome.directory)
        for line in (*effect.lines(), f"forgetting: {report.forgetting()}", f"report: {page}"):
            self._progress.say(line)
        return effect

    def _open(self, exported: Path, dtype: str, ranks: Ranks) -> Parts:
        """Open what was exported: a whole model, or the base as the run loaded it with the adapter on it."""
        config, device = self._config, ranks.device
        if config.tuning.method == FULL:
            return load_parts(exported, device=str(device), dtype=dtype)  # type: ignore[arg-type]
        parts = load_base(config, open_base(config), device)  # with a new adapter on it
        detach_adapter(parts.model)
        apply_adapter(parts.model, exported, family=parts.family)
        return parts

    def _settings(self, before: _Before, outcome: RunResult) -> dict[str, object]:
        """Facts for the report by label."""
        c = self._config
        return {
            "method": c.tuning.method,
            "base": c.model.base,
            "adapter at the start": "a new one" if before.start is None else before.start[0],
            "trained parameters": f"{before.trained:,} of {before.total:,}",
            "steps": outcome.result.step,
            "end": outcome.result.reason,
            "exported": outcome.exported,
            "learning rate": c.optimizer.learning_rate,
            "precision": c.training.precision,
            "quantisation of the base": c.model.quantization_bit or "none",
            "label smoothing": c.tuning.label_smoothing,
            "quirks": ", ".join(c.data.quirks) or "none",
            "seed": c.training.seed,
        }


def _groups(data: TuningData, config: FinetuneConfig) -> dict[str, list[Example]]:
    """Examples to measure: validation rows apart from those of replayed sets, or training rows where there are none."""
    replayed = _replay(data, config).keys()
    groups: dict[str, list[Example]] = {"held_out": [], "replay": []}
    for one in data.sets.validation:
        groups["replay" if one.name in replayed else "held_out"] += one.examples
    if not groups["held_out"]:
        groups = {"trained": [*data.sets.train[0].examples], "replay": groups["replay"]}
    return groups


def _replay(data: TuningData, config: FinetuneConfig) -> dict[str, float]:
    """Share of the rows drawn of every training set but the first, where weights mix several."""
    weights = config.data.weights
    if len(weights) < 2:
        return {}
    return {one.name: weight / sum(weights) for one, weight in zip(data.sets.train[1:], weights[1:], strict=True)}
