"""`glm generate --input` against one row at a time on the same engine: time of the same answers.

Prompts of 4 to 40 words of this repository's own code, answers of 8 to --tokens tokens, the network of `glm demo` with
random weights. Rounds alternate; the last line is JSON with the ratio of their times.

    python benchmarks/batch.py [--rows 64] [--batch_size 16] [--rounds 3] [--threads N] [--model DIR]
"""

import argparse
import contextlib
import io
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import glmkit
from glmkit import threads
from glmkit.checkpoint.native import write_model
from glmkit.cli.main import main as glm
from glmkit.config import GLMConfig
from glmkit.model import GLM, init_weights
from glmkit.tokenizer.training import train_tokenizer

SOURCES = sorted(Path(glmkit.__file__).parent.rglob("*.py"))


def demo_directory(folder: Path) -> Path:
    """A model of the demo's size with random weights."""
    tokenizer = train_tokenizer((path.read_text(encoding="utf-8") for path in SOURCES), vocab_size=4096)
    shape = {"hidden_size": 192, "num_layers": 4, "num_heads": 3, "positions": "rope_2d", "max_positions": 128}
    config = GLMConfig(vocab_size=tokenizer.vocab_size, special=tokenizer.special, init_std=0.15, **shape)
    model = GLM(config)
    init_weights(model, config, 0)
    write_model(folder, config, dict(model.named_parameters()))
    tokenizer.save(folder)
    return folder


def write_prompts(path: Path, count: int) -> list[str]:
    """Beginnings of lines of code."""
    rng = random.Random(0)
    lines = [line.strip() for source in SOURCES for line in source.read_text(encoding="utf-8").splitlines()]
    lines = sorted({line for line in lines if len(line) > 30})
    prompts = [" ".join(rng.choice(lines).split()[: rng.randint(2, 8)]) for _ in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in prompts), encoding="utf-8")
    return prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32, help="longest answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", type=Path, default=None)
    args = parser.parse_args()
    threads.fix(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = args.model or demo_directory(place)
        prompts = write_prompts(place / "in.jsonl", args.rows)
        lm = glmkit.load(model)

        def batch() -> list[str]:
            command = ["generate", str(model), "--input", str(place / "in.jsonl"), "--output", str(place / "out.jsonl")]
            command += ["--max_new_tokens", str(args.tokens), "--batch_size", str(args.batch_size)]
            with contextlib.redirect_stdout(io.StringIO()):
                status = glm([*command, "--overwrite", "--quiet"])
            if status:
                sys.exit(status)
            return [json.loads(line)["answer"] for line in (place / "out.jsonl").read_text("utf-8").splitlines()]

        def singles() -> list[str]:
            return [lm.generate(text, max_new_tokens=args.tokens) for text in prompts]

        def timed(work: Callable[[], list[str]]) -> tuple[float, list[str]]:
            start = time.perf_counter()
            answers = work()
            return time.perf_counter() - start, answers

        pairs = []
        for _ in range(args.rounds):
            (one, alone), (many, together) = timed(singles), timed(batch)
            pairs.append((one, many))
            different = sum(a != b for a, b in zip(alone, together, strict=True))
            print(f"one at a time {one:.2f} s, batch {many:.2f} s, {different} of {args.rows} answers differ")
    ratio = statistics.median(one / many for one, many in pairs)
    result = {"ratio": round(ratio, 2), "rows": args.rows, "batch_size": args.batch_size, "different": different}
    print(json.dumps({**result, "pairs": pairs, "threads": args.threads}))


if __name__ == "__main__":
    main()
