"""Packed rows of short documents against full rows of the same number of tokens: time of one training step each.

GLM-base shape scaled by --layers; rows of 512 tokens, micro-batch 8. The mixed batch holds documents of 24 to 200
tokens, packed with isolation. Rounds alternate; the last line is JSON with the ratio of their times.

    python benchmarks/packing.py [--rounds 5] [--layers 4] [--threads N]
"""

import argparse
import json
import random
import statistics
import time

import torch

from glmkit.config import GLMConfig
from glmkit.model import GLM, Segments, init_weights
from glmkit.objective.loss import linear_cross_entropy

ROWS, LENGTH, VOCABULARY = 8, 512, 30592


def bounds(mixed: bool) -> Segments:
    """Full rows: one sample with 0.85 of its tokens in part A. Mixed: as many documents as fill each row exactly."""
    rng = random.Random(1)
    found: list[tuple[int, int, int, int]] = []
    for row in range(ROWS):
        start = 0
        while start < LENGTH:
            end = min(LENGTH, start + (rng.randint(24, 200) if mixed else LENGTH))
            if LENGTH - end < 24:
                end = LENGTH
            found.append((row, start, start + max(1, int(0.85 * (end - start))), end))
            start = end
    return Segments(tuple(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = GLMConfig(
        vocab_size=VOCABULARY, hidden_size=768, num_layers=args.layers, num_heads=12, max_positions=LENGTH
    )
    model = GLM(config)
    init_weights(model, config, 0)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    positions = torch.zeros(ROWS, 2, LENGTH, dtype=torch.long)
    targets_at = torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.18

    def step(segments: Segments) -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.hidden(ids, position_ids=positions, segments=segments)
            linear_cross_entropy(hidden[targets_at], model.head_weight, ids[targets_at]).loss_sum.backward()
        model.zero_grad()
        return time.perf_counter() - start

    full, mixed = bounds(False), bounds(True)
    step(full), step(mixed)
    pairs = [(step(full), step(mixed)) for _ in range(args.rounds)]
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"full rows {statistics.median(a for a, _ in pairs):.2f} s, {len(mixed.bounds)} packed documents "
          f"{statistics.median(b for _, b in pairs):.2f} s: {ratio:.3f} x")  # fmt: skip
    print(
        json.dumps({"ratio": round(ratio, 3), "documents": len(mixed.bounds), "pairs": pairs, "threads": args.threads})
    )


if __name__ == "__main__":
    main()
