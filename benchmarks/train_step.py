"""One training step of the GLM-base shape against transformers' GPT-2 of the same size, alternating in one run.

Rows of 512 tokens, micro-batch 8, bf16 autocast, no dropout, AdamW, clipping at 1. Three contenders: our step on
[MASK] batches (Poisson spans, 15 %), our step on GPT-like batches (every token of the text is a target), GPT-2 with
its own loss. Beside them: the machine's bf16 matmul peak measured in the same run, and each step's share of it.

    python benchmarks/train_step.py [--compile] [--rounds 3] [--threads N]

The last line is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glmkit import threads
from glmkit.config import GLMConfig, SpecialIds
from glmkit.model import GLM, Segments, init_weights
from glmkit.objective.blank_infilling import BlankInfilling
from glmkit.objective.counter_rng import CounterRng
from glmkit.objective.loss import linear_cross_entropy
from glmkit.objective.options import ObjectiveConfig
from glmkit.objective.sample import TextSample

VOCABULARY, WIDTH, LAYERS, HEADS, ROWS, LENGTH = 30522, 768, 12, 12, 8, 512
SPECIAL = SpecialIds(pad=0, eos=0, cls=101, sep=102, mask=103, smask=103, gmask=103, unk=100, sop=30520, eop=30521)


def glm_batch(gpt_like: bool) -> dict[str, Any]:
    """Eight samples whose part A and part B together fill 512 tokens (to within a span)."""
    rng = CounterRng(1, 0)
    config = ObjectiveConfig.preset("gpt_like") if gpt_like else ObjectiveConfig(bert_prob=1.0)
    objective = BlankInfilling(config, SPECIAL, np.zeros(VOCABULARY, bool), LENGTH)
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    positions = torch.zeros(ROWS, 2, LENGTH, dtype=torch.long)
    targets, loss_mask, bounds = ids.clone(), torch.zeros(ROWS, LENGTH, dtype=torch.bool), []
    for row in range(ROWS):
        text = np.random.default_rng(row).integers(1000, 30000, LENGTH)
        text[0] = SPECIAL.cls
        sample = None
        for size in range(LENGTH, 16, -1):
            shorter = TextSample(text[:size], np.ones(size, np.int64))
            objective.draw_short(rng)
            sample = objective.apply([shorter], objective.draw_mode(rng), rng)[0]
            if len(sample) <= LENGTH:
                break
        assert sample is not None
        n = len(sample)
        ids[row, :n] = torch.from_numpy(np.asarray(sample.input_ids))
        positions[row, :, :n] = torch.from_numpy(np.asarray(sample.position_ids))
        targets[row, :n] = torch.from_numpy(np.asarray(sample.targets))
        loss_mask[row, :n] = torch.from_numpy(np.asarray(sample.loss_mask)).bool()
        bounds.append((row, 0, sample.prefix_length, n))
    return {
        "ids": ids,
        "positions": positions,
        "targets": targets,
        "loss_mask": loss_mask,
        "segments": Segments(tuple(bounds)),
        "tokens": sum(end for *_, end in bounds),
    }


class Contender:
    """A model with its optimizer; `step` runs one update and returns seconds."""

    def __init__(self, name: str, model: torch.nn.Module, loss: Callable[[], Tensor], tokens: int) -> None:
        self.name, self.model, self.loss, self.tokens = name, model, loss, tokens
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.times: list[float] = []

    def step(self) -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start


def ours(name: str, gpt_like: bool, compiled: bool) -> Contender:
    config = GLMConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        max_positions=LENGTH,
        special=SPECIAL,
    )
    model = GLM(config)
    init_weights(model, config, 0)
    model.train()
    if compiled:
        for block in model.model.layers:
            block.compile()
    batch = glm_batch(gpt_like)

    def loss() -> Tensor:
        hidden = model.hidden(batch["ids"], position_ids=batch["positions"], segments=batch["segments"])
        mask = batch["loss_mask"]
        sums = linear_cross_entropy(hidden[mask], model.head_weight, batch["targets"][mask])
        return sums.loss_sum / sums.num_targets

    return Contender(name, model, loss, batch["tokens"])


def gpt2(compiled: bool) -> Contender:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        )
    )  # fmt: skip
    model.train()
    if compiled:
        model.compile()
    ids = torch.from_numpy(np.random.default_rng(0).integers(1000, 30000, (ROWS, LENGTH)))
    return Contender("gpt2", model, lambda: model(input_ids=ids, labels=ids).loss, ROWS * LENGTH)


def matmul_peak() -> float:
    """Best of a few 4096^3 bf16 products, in FLOP/s."""
    a, b = torch.randn(4096, 4096).bfloat16(), torch.randn(4096, 4096).bfloat16()
    best = 0.0
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * 4096**3 / (time.perf_counter() - start))
    return best


def flops(contender: Contender, gpt_like: bool | None) -> float:
    """Matmul FLOP of one step: 6 per weight and token, the head only where there is a target, plus attention."""
    blocks = 12 * LAYERS * WIDTH * WIDTH * contender.tokens
    if gpt_like is False:
        targets = int(glm_batch(False)["loss_mask"].sum())
    else:
        targets = contender.tokens
    return 6.0 * (blocks + VOCABULARY * WIDTH * targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="compile all contenders")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds after one warm-up (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    threads.fix(args.threads)
    kinds: dict[str, bool | None] = {"glm_mask": False, "glm_gpt_like": True, "gpt2": None}
    contenders = [
        ours("glm_mask", False, args.compile),
        ours("glm_gpt_like", True, args.compile),
        gpt2(args.compile),
    ]
    for contender in contenders:
        print(f"warm-up {contender.name}: {contender.step():.1f} s", flush=True)
    peaks = []
    for round_number in range(args.rounds):
        peaks.append(matmul_peak())
        for contender in contenders:
            contender.times.append(contender.step())
        print(f"round {round_number}: " + ", ".join(f"{c.name} {c.times[-1]:.2f} s" for c in contenders), flush=True)
    peak = statistics.median(peaks)
    result: dict[str, Any] = {"compiled": args.compile, "threads": args.threads, "peak_gflops": round(peak / 1e9)}
    base = next(c for c in contenders if c.name == "gpt2")
    for contender in contenders:
        rate = contender.tokens / statistics.median(contender.times)
        ratios = [contender.tokens / t / (base.tokens / b) for t, b in zip(contender.times, base.times, strict=True)]
        share = flops(contender, kinds[contender.name]) / statistics.median(contender.times) / peak
        ratio = statistics.median(ratios)
        result[contender.name] = {
            "tokens_per_second": round(rate, 1),
            "seconds": [round(t, 3) for t in contender.times],
            "ratio_to_gpt2": round(ratio, 3),
            "share_of_matmul_peak": round(share, 3),
        }
        print(f"{contender.name:>14}: {rate:7.1f} tokens/s, {ratio:.2f} x gpt2, {share:.0%} of the matmul peak")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
