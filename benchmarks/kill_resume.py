"""Kill -9 a training run at random moments, resume it each time, and compare with an uninterrupted run, bit for bit.

    python benchmarks/kill_resume.py --kills 20
    python benchmarks/kill_resume.py --kills 20 --method lora

Every run is a real `glm pretrain` process on a small store of made-up text, or with --method a `glm finetune` process
on made-up rows, with dropout, evaluation, data workers and frequent checkpoints.
After every kill each visible checkpoint is read in full. The last line of the output is JSON.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from glmkit.checkpoint.native import WEIGHTS_FILE, load_weights, read_config  # noqa: E402
from glmkit.checkpoint.run_directory import inspect  # noqa: E402
from glmkit.model import GLM  # noqa: E402
from glmkit.train.checkpoints import CheckpointStore, read_optimizer  # noqa: E402
from support.finetuning import toy_base, toy_rows  # noqa: E402
from support.store import toy_store  # noqa: E402

PATIENCE = 300.0  # seconds until a step must have come


@dataclass
class Outcome:
    """What the kills did."""

    kills: int = 0
    kills_before_the_first_checkpoint: int = 0
    half_written: int = 0  # kills that left a temporary directory behind
    checkpoints_read: int = 0
    steps_repeated: int = 0
    equal_metrics: bool = False
    equal_weights: bool = False
    equal_optimizer: bool = False

    @property
    def passed(self) -> bool:
        return self.equal_metrics and self.equal_weights and self.equal_optimizer


def write_recipe(path: Path, steps: int, workers: int = 1) -> Path:
    """A model of seconds, with everything on that could break a resume."""
    dropout = {f"{name}_dropout": 0.1 for name in ("embedding", "attention", "hidden")}
    recipe = {
        "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 64, **dropout},
        "data": {"sequence_length": 40, "workers": workers},
        "objective": {"preset": "glm_10b", "short_seq_prob": 0.0},
        "training": {"max_steps": steps, "micro_batch_size": 2, "batch_size": 4},
        "optimizer": {"name": "muon", "learning_rate": 2e-3},
        "schedule": {"lr_decay_style": "cosine", "warmup_ratio": 0.1},
        "checkpoint": {"every": 7, "keep_last": 2, "keep_every": 50},
        "evaluation": {"every": 10, "rows": 8},
        "output": {"plot": False},
    }
    path.write_text(yaml.safe_dump(recipe))
    return path


def write_tuning_recipe(folder: Path, method: str, steps: int, workers: int = 1) -> tuple[Path, Path]:
    """The same of a fine-tuning, with its base; (recipe, rows)."""
    rows = toy_rows(folder / "rows.jsonl", 37)
    recipe: dict[str, object] = {
        "model": {"base": str(toy_base(folder / "base"))},
        "tuning": {"method": method},
        "adapter": {"lora": {"dropout": 0.1}, "prefix": {"length": 4}}.get(method, {}),
        "data": {"workers": workers, "validation": [str(rows)]},
        "training": {"max_steps": steps, "micro_batch_size": 2, "batch_size": 4},
        "optimizer": {"learning_rate": 2e-3},
        "checkpoint": {"every": 7, "keep_last": 2, "keep_every": 50},
        "evaluation": {"every": 10, "rows": 8},
        "output": {"plot": False},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path, rows


def start(recipe: Path, data: Path, output: Path, verb: str = "pretrain") -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "glmkit", verb, str(recipe), "--data", str(data), "--output", str(output)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    return subprocess.Popen(
        [*command, "--resume", "auto", "--quiet"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]") -> None:
    _, errors = process.communicate(timeout=PATIENCE)
    if process.returncode:
        raise SystemExit(f"a run ended with status {process.returncode}: {errors}")


def last_step(output: Path) -> int:
    """The newest step in metrics.jsonl, without minding a half-written line."""
    try:
        lines = (output / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-1])["step"]) if lines else 0


def kill_at(process: "subprocess.Popen[str]", output: Path, step: int, delay: float) -> bool:
    """SIGKILL `delay` seconds after `step` was reported; False when the run had ended before."""
    deadline = time.monotonic() + PATIENCE
    while last_step(output) < step and process.poll() is None:
        if time.monotonic() > deadline:
            raise SystemExit(f"step {step} did not come within {PATIENCE:.0f} s")
        time.sleep(0.002)
    try:
        process.wait(delay)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True


def read_all(output: Path) -> int:
    """Read every visible checkpoint in full; how many there were. Raises when one is damaged."""
    store = CheckpointStore(output)
    for step in store.steps():
        path = store.path(step)
        if damages := inspect(path).damages:
            raise SystemExit(f"{damages[0]}")
        read_optimizer(path)
        if (path / WEIGHTS_FILE).is_file():
            load_weights(GLM(read_config(path)), path)
    return len(store.steps())


def same_tensors(paths: Sequence[Path]) -> bool:
    """True where the weights of two checkpoints are equal in every bit; a pickle's own bytes tell nothing."""
    safe = [sorted(path.glob("*model.safetensors")) for path in paths]
    if safe[0]:
        return len({file.read_bytes() for (file,) in safe}) == 1
    first, second = (torch.load(path / "pytorch_model.bin") for path in paths)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def run(folder: Path, kills: int, steps: int, seed: int = 0, workers: int = 1, method: str | None = None) -> Outcome:
    """One uninterrupted run, and one with `kills` kills; of a fine-tuning with `method`."""
    rng, outcome = random.Random(seed), Outcome()
    if method is None:
        data, recipe, verb = (
            toy_store(folder / "store"),
            write_recipe(folder / "recipe.yaml", steps, workers),
            "pretrain",
        )
    else:
        recipe, data = write_tuning_recipe(folder, method, steps, workers)
        verb = "finetune"
    whole, broken = folder / "whole", folder / "broken"
    finish(start(recipe, data, whole, verb))
    while outcome.kills < kills:
        done = max([0, *CheckpointStore(broken).steps()])
        share = max(1, 2 * (steps - 1 - done) // (kills - outcome.kills + 1))
        target = min(done + rng.randint(0, share), steps - 1)
        process = start(recipe, data, broken, verb)
        # Every fourth kill comes while the process is still starting up or loading.
        early = rng.random() < 0.25
        killed = kill_at(process, broken, 0 if early else target, rng.uniform(0, 4) if early else rng.uniform(0, 0.05))
        if not killed:
            raise SystemExit(f"the run ended before kill {outcome.kills + 1}; give more --steps")
        outcome.kills += 1
        outcome.checkpoints_read += read_all(broken)
        after = max([0, *CheckpointStore(broken).steps()])
        outcome.kills_before_the_first_checkpoint += after == 0
        outcome.steps_repeated += max(0, last_step(broken) - after)
        hidden = broken / "checkpoints"
        outcome.half_written += hidden.is_dir() and any(p.name.startswith(".step-") for p in hidden.iterdir())
        print(f"kill {outcome.kills}: at step {last_step(broken)}, resuming from {after}", flush=True)
    finish(start(recipe, data, broken, verb))
    read_all(broken)
    final = CheckpointStore(whole).path(steps), CheckpointStore(broken).path(steps)
    outcome.equal_metrics = (whole / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()
    outcome.equal_weights = same_tensors(final)
    outcome.equal_optimizer = len({(path / "optimizer.safetensors").read_bytes() for path in final}) == 1
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=None, help="default: 40 per kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--method", choices=("full", "lora", "prefix"), help="fine-tune instead of pretraining")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(Path(folder), args.kills, args.steps or 40 * args.kills, args.seed, method=args.method)
    print(json.dumps({"benchmark": "kill_resume", "method": args.method, "passed": outcome.passed, **asdict(outcome)}))
    return 0 if outcome.passed else 1


if __name__ == "__main__":
    sys.exit(main())
