"""Tokens per second of the engine with 1, 8 and 32 rows at once, and of one row on a plain cache; last comes JSON.

Greedy answers to random prompts. Ways are timed in turn, rounds apart, and compared as ratios: other programs slow all
of them alike.

    python benchmarks/decode.py [--model DIR] [--threads N] [--rounds 5] [--rows 1 8 32] [--prompt 32] [--tokens 64]

Without --model: a small model, and one as wide as ChatGLM-6B but of --layers layers and with an eighth of its
vocabulary, both with random weights.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

import glmkit
from glmkit import threads
from glmkit.config import GLMConfig
from glmkit.generate.engine import EngineCore, EngineLimits, Ticket
from glmkit.generate.engine.job import Branch
from glmkit.model import GLM, KVCache, init_weights

SMALL = {"vocab_size": 4096, "hidden_size": 192, "num_layers": 4, "num_heads": 3, "max_positions": 128}
WIDE = {
    "vocab_size": 16384, "hidden_size": 4096, "num_heads": 32, "ffn_size": 16384, "max_positions": 2048,
    "positions": "rope_2d", "residual": "deepnorm", "tie_embeddings": False,
}  # fmt: skip


class Greedy:
    """A prompt and the most likely tokens after it."""

    max_sequences = 1
    spare_rows = 0
    listener = None
    adapter = None

    def __init__(self, prompt: Sequence[int], count: int, limit: int) -> None:
        self.max_sequence_tokens = len(prompt) + count
        self._prompt, self._count = prompt, count
        self._positions = [min(place, limit) for place in range(self.max_sequence_tokens)]
        self.answer: list[int] = []

    def start(self) -> Sequence[Branch]:
        return [self._branch(self._prompt, 0)]

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        self.answer.append(int(logits_MV[0][-1].argmax()))
        if len(self.answer) == self._count:
            return []
        at = self.max_sequence_tokens - self._count + len(self.answer) - 1
        return [self._branch(self.answer[-1:], at, parent=0)]

    def _branch(self, tokens: Sequence[int], at: int, parent: int | None = None) -> Branch:
        first = self._positions[at : at + len(tokens)]
        return Branch(tokens, (first, [0] * len(tokens)), parent)


@torch.inference_mode()
def plain(model: GLM, prompt: Sequence[int], count: int) -> float:
    """Seconds for the tokens after the first, one row on a contiguous cache."""
    total = len(prompt) + count
    cache = KVCache(model.config, 1, total, dtype=model.dtype, device=model.device)
    places = torch.stack([torch.arange(total), torch.zeros(total)]).long()[None].clamp_max(model.config.max_positions)
    fed, at = torch.tensor([prompt]), 0
    begun = 0.0
    for step in range(count):
        logits = model(fed, position_ids=places[:, :, at : at + fed.shape[1]], cache=cache, logits_at="last")
        at += fed.shape[1]
        fed = torch.tensor([[int(logits[0].argmax())]])
        if step == 0:
            begun = time.perf_counter()
    return time.perf_counter() - begun


def engine_seconds(engine: EngineCore, prompts: Sequence[Sequence[int]], count: int) -> float:
    """Seconds for the tokens after the first of all rows; the prompts are read before."""
    jobs = [Greedy(prompt, count, engine.model.config.max_positions) for prompt in prompts]
    for job in jobs:
        ticket = Ticket()
        ticket.attach(job)
        engine.submit(ticket)
    while not all(job.answer for job in jobs):
        engine.step()
    done = sum(len(job.answer) for job in jobs) - len(jobs)
    begun = time.perf_counter()
    while engine.step():
        pass
    seconds = time.perf_counter() - begun
    return seconds / (len(jobs) * (count - 1) - done)


def measure(name: str, model: GLM, args: argparse.Namespace) -> dict[str, object]:
    config = model.config
    count = min(args.tokens, config.max_positions - args.prompt)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(20, config.vocab_size - 600, (max(args.rows), args.prompt), generator=generator).tolist()
    tokens = max(args.rows) * (args.prompt + count + 16)
    engine = EngineCore(model, EngineLimits(tokens=tokens, rows=max(args.rows), step_tokens=tokens), allocate=True)
    times: dict[str, list[float]] = {"plain": []}
    for turn in range(args.rounds + 1):
        seconds = plain(model, prompts[0], count) / (count - 1)
        if turn:
            times["plain"].append(seconds)
        for rows in args.rows:
            if engine.counters.steps:
                engine.reset()
            seconds = engine_seconds(engine, prompts[:rows], count)
            if turn:
                times.setdefault(f"rows {rows}", []).append(seconds)
    row: dict[str, object] = {"model": name, "dtype": str(model.dtype)[6:], "prompt": args.prompt, "tokens": count}
    for way, values in times.items():
        row[way] = round(1 / statistics.median(values), 1)
        row[f"{way} / plain"] = round(
            statistics.median(plain / value for plain, value in zip(times["plain"], values, strict=True)), 2
        )
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--only", choices=["small", "wide-fp32", "wide-bf16"])
    args = parser.parse_args()
    threads.fix(args.threads)
    results = []
    if args.model:
        results.append(measure(args.model, glmkit.load(args.model).parts.model, args))
    else:
        if args.only in (None, "small"):
            results.append(measure("small", random_model(SMALL, torch.float32), args))
        for dtype, label in ((torch.bfloat16, "wide-bf16"), (torch.float32, "wide-fp32")):
            if args.only in (None, label):
                values = {**WIDE, "num_layers": args.layers}
                results.append(measure("wide", random_model(values, dtype), args))
    print(json.dumps({"threads": args.threads, "unit": "tokens per second, all rows together", "results": results}))


def random_model(values: dict[str, object], dtype: torch.dtype) -> GLM:
    config = GLMConfig(**values)  # type: ignore[arg-type]
    with torch.device("meta"):
        model = GLM(config).to(dtype)
    model = model.to_empty(device="cpu")
    init_weights(model, config, 0)
    return model.eval()


if __name__ == "__main__":
    main()
