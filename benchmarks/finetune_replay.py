"""Forgetting and replay on real texts: DuReaderQG in all weights of the small bilingual model, alone and with replay.

Texts that the model was pretrained on (Tang poems, plays) are cut in halves: the first is the question, the second the
answer. A share of such rows is replayed; halves of files that no training ever read are measured before and after. The
rows of the task, its steps and everything else are the same. The last line is JSON.

    python benchmarks/finetune_replay.py BASE TEXTS --output DIR [--shares 0 0.1 0.3] [--rate 1e-3] [--seeds 3]
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import glmkit
from glmkit.data.dialogues.dialogue_set import DialogueSpec, open_dialogues
from glmkit.data.dialogues.texts import Reader
from glmkit.eval.effect import compare
from glmkit.eval.probes import Measured, Probes, measure
from glmkit.session import LM
from glmkit.tokenizer.dialogue import Dialogue, EncodedRow, Limits
from glmkit.train.finetune_config import FinetuneConfig
from glmkit.train.finetuning import finetune
from glmkit.train.finetuning_recipes import FINETUNING

LIMITS = Limits(320, 64)
EPOCHS, BATCH = 4, 16
PIECE = 120  # characters of a row, both halves
TEXTS = ("chinese_poetry/tang_poems_{}.txt", "tinyshakespeare/{}.txt")
MEASURED = 200  # rows of a group


def halves(folder: Path, part: str, target: Path) -> Path:
    """Write the pieces of the files of one part as rows: the first half a prompt, the second its response."""
    with target.open("w", encoding="utf-8") as file:
        for name in TEXTS:
            text = (folder / "text" / name.format(part)).read_text(encoding="utf-8")
            for start in range(0, len(text) - PIECE, PIECE):
                piece = text[start : start + PIECE]
                row = {"prompt": piece[: PIECE // 2], "response": piece[PIECE // 2 :]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return target


def encoded(lm: LM, path: Path) -> list[EncodedRow]:
    """Rows of a file, spread over it."""
    family = lm.parts.family
    assert family is not None
    assert family.tuning is not None
    sets = open_dialogues(DialogueSpec(train=[str(path)]), Reader.of(family, lm.tokenizer))
    rows = list(sets.train[0])
    rows = rows[:: max(1, len(rows) // MEASURED)][:MEASURED]
    return [family.tuning.rows(lm.tokenizer, row, LIMITS)[0] for row in rows if isinstance(row, Dialogue)]


def tuned(base: str, task: Path, replay: Path, output: Path, share: float, seed: int, rate: float, rows: int) -> LM:
    """Train, unless the run is there, and open it. Every run sees the rows of the task `EPOCHS` times."""
    if not (output / "model").exists():
        given: dict[str, object] = {
            "model.base": base,
            "data.train": [str(task), str(replay)] if share else [str(task)],
            "data.weights": [1 - share, share] if share else [],
            "data.source_length": LIMITS.source,
            "data.target_length": LIMITS.target,
            "tuning.method": "full",
            "optimizer.learning_rate": rate,
            "training.max_steps": round(EPOCHS * rows / BATCH / (1 - share)),
            "training.micro_batch_size": BATCH,
            "training.batch_size": BATCH,
            "training.precision": "bf16",
            "training.seed": seed,
            "evaluation.every": 0,
            "checkpoint.every": 0,
            "output.plot": False,
            "output.directory": str(output),
        }
        finetune(FinetuneConfig.from_dict(FINETUNING.merge({}, given)), quiet=True, resume="auto")
    return glmkit.load(output)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="run of scripts/bilingual_small.py")
    parser.add_argument("texts", type=Path, help="folder with the data sets")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs; those that are there are used")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 0.1, 0.3])
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    task = args.texts / "dureader_qg" / "train.json"
    replay = halves(args.texts, "train", args.output / "replay.jsonl")
    lm = glmkit.load(args.base)
    rows = sum(1 for line in task.open(encoding="utf-8") if line.strip())
    general = encoded(lm, halves(args.texts, "dev", args.output / "general.jsonl"))
    probes = Probes({"task": encoded(lm, args.texts / "dureader_qg" / "dev.json"), "general": general})
    before = measure(lm.model, probes)
    table: list[dict[str, object]] = []
    for share in args.shares:
        found: list[Measured] = []
        for seed in range(1, args.seeds + 1):
            run = args.output / f"replay-{share}-{seed}"
            found.append(measure(tuned(args.base, task, replay, run, share, seed, args.rate, rows).model, probes))
        changes = [compare(before, after, probes) for after in found]
        line: dict[str, object] = {"share": share}
        for group in ("task", "general"):
            after = [change[group].loss_after for change in changes]
            kl = [change[group].kl for change in changes]
            line[group] = {"before": changes[0][group].loss_before, "after": after, "kl": kl}
            losses = ", ".join(f"{loss:.4f}" for loss in after)
            print(
                f"replay {share:.0%}, {group}: loss {changes[0][group].loss_before:.4f} -> "
                f"{statistics.mean(after):.4f} ({losses}), KL from the base {statistics.mean(kl):.3f} nats",
                flush=True,
            )
        table.append(line)
    print(json.dumps(table))


if __name__ == "__main__":
    main(sys.argv[1:])
