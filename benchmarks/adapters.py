"""Tokens per second of eight rows at once by the base alone, by one adapter, and mixed by several; last comes JSON.

Greedy answers to random prompts, as in decode.py. Ways are timed in turn, rounds apart, and compared as ratios with the
base in an engine without adapters.

    python benchmarks/adapters.py [--threads N] [--rounds 5] [--rows 8] [--prompt 32] [--tokens 64] [--cpu_time]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from decode import SMALL, WIDE, Greedy, random_model

from glmkit import threads
from glmkit.adapters.adapter import NewAdapter
from glmkit.adapters.attach import attached, new_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.adapters.prefix.prefix_adapter import PrefixOptions
from glmkit.generate.engine import EngineCore, EngineLimits, Ticket
from glmkit.model import GLM
from glmkit.model.routing import route, share_modules

LORA = LoraOptions(["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"], rank=8)
ADAPTERS: dict[str, NewAdapter] = {"a": LORA, "b": LORA, "prefix": PrefixOptions(32)}
WAYS: dict[str, list[str | None]] = {
    "base": [None],
    "one lora": ["a"],
    "two loras": ["a", "b"],
    "base and two loras": [None, "a", None, "b"],
    "base, lora, prefix": [None, "a", "prefix"],
}


def joined(model: GLM) -> GLM:
    """The model with all adapters."""
    variants = {}
    for number, (name, options) in enumerate(ADAPTERS.items()):
        variants[name] = share_modules(model)
        new_adapter(variants[name], options)
        with torch.no_grad():
            for parameter in attached(variants[name]).parameters():
                parameter.normal_(0, 0.02, generator=torch.Generator().manual_seed(number))
        variants[name].eval()
    found = route(model, variants)
    found.variants = variants
    return found


def seconds(
    core: EngineCore, prompts: list[list[int]], count: int, owners: list[str | None], clock: Callable[[], float]
) -> float:
    """Seconds of a token of all rows together, after the first ones."""
    jobs = [Greedy(prompt, count, core.model.config.max_positions) for prompt in prompts]
    for number, job in enumerate(jobs):
        job.adapter = owners[number % len(owners)]
        ticket = Ticket()
        ticket.attach(job)
        core.submit(ticket)
    while not all(job.answer for job in jobs):
        core.step()
    done = sum(len(job.answer) for job in jobs) - len(jobs)
    begun = clock()
    while core.step():
        pass
    return (clock() - begun) / (len(jobs) * (count - 1) - done)


def measure(name: str, model: GLM, args: argparse.Namespace) -> dict[str, object]:
    config = model.config
    count = min(args.tokens, config.max_positions - args.prompt)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(20, config.vocab_size - 600, (args.rows, args.prompt), generator=generator).tolist()
    tokens = args.rows * (args.prompt + count + 16)
    limits = EngineLimits(tokens=tokens, rows=args.rows, step_tokens=tokens)
    clock = time.process_time if args.cpu_time else time.perf_counter
    alone, core = (EngineCore(one, limits, allocate=True) for one in (model, joined(model)))
    times: dict[str, list[float]] = {way: [] for way in ("alone", *WAYS)}
    for turn in range(args.rounds + 1):
        found = {"alone": seconds(alone, prompts, count, [None], clock)}
        found |= {way: seconds(core, prompts, count, owners, clock) for way, owners in WAYS.items()}
        alone.reset()
        core.reset()
        for way, value in found.items() if turn else ():
            times[way].append(value)
    row: dict[str, object] = {"model": name, "rows": args.rows, "prompt": args.prompt, "tokens": count}
    for way, values in times.items():
        row[way] = round(1 / statistics.median(values), 1)
        ratios = [base / value for base, value in zip(times["alone"], values, strict=True)]
        row[f"{way} / alone"] = round(statistics.median(ratios), 3)
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--cpu_time", action="store_true", help="time of the processor, where others use it, too")
    parser.add_argument("--only", choices=["small", "wide"])
    args = parser.parse_args()
    threads.fix(args.threads)
    models = {"small": SMALL, "wide": {**WIDE, "num_layers": 2}}
    results = [
        measure(name, random_model(values, torch.float32), args)
        for name, values in models.items()
        if args.only in (None, name)
    ]
    print(json.dumps({"threads": args.threads, "unit": "tokens per second, all rows together", "results": results}))


if __name__ == "__main__":
    main()
