"""Learning by the three methods, from the small bilingual model (`scripts/bilingual_small.py`), on real rows.

For each data set, method and seed: a run on the training rows, then loss and greedy answers on the development rows,
which no choice ever saw: the settings below were chosen with `--choose` on a tenth of the training rows. Differences to
the untuned model are given with the 95 % interval of a bootstrap over rows.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import glmkit
from glmkit.adapters.attach import find_attached
from glmkit.data.dialogues.dialogue_set import DialogueSpec, open_dialogues
from glmkit.data.dialogues.texts import Reader
from glmkit.data.tuning_rows import RowMaker
from glmkit.eval.answer_scores import Scorer, choose_metrics
from glmkit.eval.cloze import mean_interval
from glmkit.eval.probes import Probes, measure
from glmkit.eval.questions import question_of
from glmkit.generate.params import GenerationParams
from glmkit.session import LM
from glmkit.tokenizer.dialogue import Dialogue, Example, Limits
from glmkit.train.finetune_config import FinetuneConfig
from glmkit.train.finetuning import finetune
from glmkit.train.finetuning_recipes import FINETUNING

Floats = NDArray[np.float64]
Values = dict[str, object]

SETS: dict[str, tuple[str, str, Values]] = {  # name -> training rows, development rows, overrides
    "advertisegen": (
        "advertisegen/train.json",
        "advertisegen/dev.json",
        {"data.source_length": 96, "data.target_length": 160},
    ),
    "dureader_qg": (
        "dureader_qg/train.json",
        "dureader_qg/dev.json",
        {"data.source_length": 320, "data.target_length": 40},
    ),
}
SAME: Values = {
    "training.micro_batch_size": 16,
    "training.batch_size": 16,
    "training.precision": "bf16",
    "evaluation.every": 0,
    "checkpoint.every": 0,
    "output.plot": False,
}
METHODS: dict[str, Values] = {
    "full": {"tuning.method": "full", "training.num_epochs": 4, "optimizer.learning_rate": 1e-3},
    "lora": {
        "tuning.method": "lora",
        "training.num_epochs": 4,
        "optimizer.learning_rate": 1e-2,
        "adapter.rank": 7,
        "adapter.alpha": 14,
        "adapter.targets": "all",
    },
    "prefix": {
        "tuning.method": "prefix",
        "training.num_epochs": 6,
        "optimizer.learning_rate": 1e-1,
        "adapter.length": 128,
    },
}
# What a set likes better than the method's own values.
OWN: dict[tuple[str, str], Values] = {("dureader_qg", "full"): {"optimizer.learning_rate": 2e-3}}
ROWS_ANSWERED = 200
SHARE, SPLIT_SEED = 0.1, 0  # of the training rows, for choosing


@dataclass(frozen=True)
class Result:
    """Development rows of one model: summed loss and labels of each, ROUGE-L of the answered ones."""

    loss_R: Floats
    labels_R: Floats
    rouge_R: Floats

    @property
    def loss(self) -> float:
        return float(self.loss_R.sum() / self.labels_R.sum())


def dialogues(lm: LM, path: Path, share: float = 0.0) -> tuple[list[Example], list[Example]]:
    """Rows of a file, or of its two parts, split as a run with this validation_share splits them."""
    family = lm.parts.family
    assert family is not None
    spec = DialogueSpec(train=[str(path)], validation_share=share, seed=SPLIT_SEED)
    sets = open_dialogues(spec, Reader.of(family, lm.tokenizer))
    return list(sets.train[0]), list(sets.validation[0]) if sets.validation else []


def score(lm: LM, rows: Sequence[Example], limits: Limits, *, answered: int = ROWS_ANSWERED) -> Result:
    """Loss over all rows, ROUGE-L of greedy answers to the first `answered`."""
    family, tokenizer = lm.parts.family, lm.tokenizer
    assert family is not None
    assert family.tuning is not None
    maker = RowMaker(tokenizer, family.tuning, limits)
    encoded = [family.tuning.rows(tokenizer, row, limits)[0] for row in rows if isinstance(row, Dialogue)]
    log_p = measure(lm.model, Probes({str(n): [row] for n, row in enumerate(encoded)})).log_p_N.double().numpy()
    labels = np.array([sum(row.counted[1:]) for row in encoded])
    losses = np.array([-part.sum() for part in np.split(log_p, np.cumsum(labels)[:-1])])
    questions = [question_of(row, maker) for row in rows[:answered]]
    params = GenerationParams(max_new_tokens=limits.target, stop_ids=maker.stop_ids)
    jobs = [lm.continue_job(question.ids, params) for question in questions]
    lm.engine.run_all(jobs)
    scorer = Scorer(choose_metrics(["rouge-l"]), tokenizer.encode)
    answers = [(job.answers[0].text or "").strip() for job in jobs]
    pairs = zip(questions, answers, strict=True)
    rouge = [scorer.add(answer, question.reference, question.id)["rouge-l"] for question, answer in pairs]
    return Result(losses, labels.astype(np.float64), np.array(rouge))


def tuned(base: str, data: Path, output: Path, values: Values) -> tuple[LM, int]:
    """Train, unless the run is there, and open it: (model, trained numbers)."""
    if not (output / "model").exists():
        given = {"model.base": base, "data.train": [str(data)], "output.directory": str(output), **values}
        finetune(FinetuneConfig.from_dict(FINETUNING.merge({}, given)), quiet=True, resume="auto")
    lm = glmkit.load(output)
    adapter = find_attached(lm.model)
    return lm, sum(p.numel() for p in (lm.model if adapter is None else adapter).parameters())


def interval(differences: Floats) -> tuple[float, float, float]:
    """Mean of the rows' differences, and its 95 % interval."""
    return (float(differences.mean()), *mean_interval(differences))


def choose(base: str, texts: Path, output: Path, name: str, method: str, grid: Sequence[Values]) -> None:
    """Print the loss of each setting on a tenth of the training rows; the development rows are not read."""
    file, _, lengths = SETS[name]
    limits = Limits(int(str(lengths["data.source_length"])), int(str(lengths["data.target_length"])))
    own = {"data.validation_share": SHARE, "training.seed": SPLIT_SEED}
    for number, values in enumerate(grid):
        run = output / "choose" / f"{name}-{method}-{number}"
        lm, count = tuned(base, texts / file, run, {**SAME, **lengths, **METHODS[method], **values, **own})
        _, held_out = dialogues(lm, texts / file, SHARE)
        result = score(lm, held_out, limits, answered=1)
        shown = {key.partition(".")[2]: value for key, value in values.items()}
        print(f"{name} {method} {shown}: loss {result.loss:.4f}, {count:,} trained numbers", flush=True)


def measure_set(base: str, texts: Path, output: Path, name: str, methods: Sequence[str], seeds: int) -> Values:
    """Table of one data set."""
    train, dev, lengths = SETS[name]
    limits = Limits(int(str(lengths["data.source_length"])), int(str(lengths["data.target_length"])))
    lm = glmkit.load(base)
    size = sum(parameter.numel() for parameter in lm.model.parameters())
    rows, _ = dialogues(lm, texts / dev)
    before = score(lm, rows, limits)
    print(f"{name}: untuned loss {before.loss:.4f}, ROUGE-L {before.rouge_R.mean():.2f} ({len(rows)} rows)", flush=True)
    found: Values = {"untuned": {"loss": before.loss, "rouge_l": float(before.rouge_R.mean())}}
    gains: dict[str, float] = {}
    for method in methods:
        losses, rouges, drops, rises = [], [], [], []
        for seed in range(1, seeds + 1):
            run = output / f"{name}-{method}-{seed}"
            values = {**SAME, **lengths, **METHODS[method], **OWN.get((name, method), {}), "training.seed": seed}
            tuned_lm, count = tuned(base, texts / train, run, values)
            after = score(tuned_lm, rows, limits)
            losses.append(after.loss)
            rouges.append(float(after.rouge_R.mean()))
            drops.append((after.loss_R - before.loss_R) / before.labels_R)
            rises.append(after.rouge_R - before.rouge_R)
        drop, rise = interval(np.mean(drops, axis=0)), interval(np.mean(rises, axis=0))
        gains[method] = before.loss - float(np.mean(losses))
        share = gains[method] / gains["full"] if "full" in gains else float("nan")
        print(
            f"{name} {method}: {count / size:.2%} of the parameters, loss {np.mean(losses):.4f} "
            f"({', '.join(f'{loss:.4f}' for loss in losses)}), {share:.0%} of full tuning's gain; per row and label "
            f"{drop[0]:+.3f} [{drop[1]:+.3f}, {drop[2]:+.3f}]; ROUGE-L {np.mean(rouges):.2f}, "
            f"{rise[0]:+.2f} [{rise[1]:+.2f}, {rise[2]:+.2f}]",
            flush=True,
        )
        found[method] = {"trained": count, "losses": losses, "rouge_l": rouges, "gain": share, "loss_interval": drop}
        found[method] |= {"rouge_interval": rise}  # type: ignore[operator]
    return found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="run of scripts/bilingual_small.py")
    parser.add_argument("texts", type=Path, help="folder with the data sets")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs; those that are there are used")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--choose", metavar="JSON", help="list of overrides to compare on a tenth of the training rows")
    args = parser.parse_args(argv)
    found: Values = {}
    for name in args.sets:
        if args.choose:
            for method in args.methods:
                choose(args.base, args.texts, args.output, name, method, json.loads(args.choose))
        else:
            found[name] = measure_set(args.base, args.texts, args.output, name, args.methods, args.seeds)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
