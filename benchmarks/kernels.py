"""Products of the kernels against PyTorch's own in the same run, and decoding beside a busy process; JSON comes last.

    python benchmarks/kernels.py [--check] [--rounds 20] [--busy] [--layers 8]

Many rows: 512 rows of activations times 4096 x 4096 integers, beside `torch._int_mm`, which has no scales. With --check
the exit status is 1 where the kernels do less than a share of its work a second (FLOORS): a compiler that keeps sums in
memory changes no value and halves the speed. --busy: one row through the engine, INT4, ChatGLM3-6B's width, alone and
beside one process that computes all the time; shares of the rate at which the same weights are read alone.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from decode import Greedy

from glmkit import threads
from glmkit.config import Quantization
from glmkit.diagnosis.speed import random_model, step_tensors
from glmkit.families.family import preset
from glmkit.generate.engine import EngineCore, EngineLimits, Ticket
from glmkit.quant.native import library
from glmkit.quant.panels import Panels, Scales
from glmkit.quant.products import linear

ROWS, WIDTH = 512, 4096
# PyTorch's product has no scales to apply, which costs most where it runs on matrix tiles: 0.52 to 0.63 measured there.
FLOORS = {"amx": 0.4}
FORMS: dict[str, tuple[int, int, Scales]] = {
    "int8, a row": (8, 0, "byte"),
    "int4, 32, byte scales": (4, 32, "byte"),
    "int4, 128, float16 scales": (4, 128, "float16"),
}
BUSY = "while True: pass"


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


@torch.inference_mode()
def many_rows(rounds: int) -> dict[str, Any]:
    """Giga-operations a second, and the median ratio to PyTorch's."""
    x_NC = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    left, right = (torch.randint(-127, 128, (n, WIDTH), dtype=torch.int8) for n in (ROWS, WIDTH))
    operations = 2 * ROWS * WIDTH * WIDTH / 1e9
    found: dict[str, Any] = {}
    for name, (bits, group, scales) in FORMS.items():
        panels = Panels.empty(bits, WIDTH, WIDTH, group, scales)
        panels.weight.random_(0, 255)
        panels.row_scale.fill_(0.01)
        if panels.scales is not None:
            panels.scales.fill_(1)
        pairs = []
        for _ in range(rounds):
            ours = seconds(lambda panels=panels: linear(x_NC, [panels], "fast"))
            pairs.append((ours, seconds(lambda: torch._int_mm(left, right.t()))))
        ours, theirs = (statistics.median(operations / pair[place] for pair in pairs[1:]) for place in (0, 1))
        ratio = statistics.median(other / own for own, other in pairs[1:])
        found[name] = {"GOP/s": round(ours), "_int_mm": round(theirs), "ratio": round(ratio, 2)}
    return found


@contextmanager
def busy_process(there: bool) -> Any:
    if not there:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def beside_others(layers: int, rounds: int) -> dict[str, Any]:
    """Shares of the read rate, and the slowest token over the median one, alone and beside a busy process."""
    config = replace(preset("chatglm3-6b"), num_layers=layers, quantization=Quantization.usual(4))
    model = random_model(config, torch.bfloat16, None)
    tensors = step_tensors(model)
    engine = EngineCore(model, EngineLimits(tokens=1024, rows=1, step_tokens=512), allocate=True)
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name in ("alone", "beside one busy process"):
            read = max(library.read(tensors, n) / seconds(lambda n=n: library.read(tensors, n)) for n in (1, 4))
            if engine.counters.steps:
                engine.reset()
            ticket, job = Ticket(), Greedy([100] * 16, 40, config.max_positions)
            ticket.attach(job)
            engine.submit(ticket)
            with busy_process(name != "alone"):
                while not job.answer:
                    engine.step()
                times = [seconds(engine.step) for _ in range(38)]
            while engine.step():
                pass
            own = found.setdefault(name, {"share": [], "slowest": []})
            size = sum(tensor.nbytes for tensor in tensors)
            own["share"].append(size / statistics.fmean(times) / read)
            own["slowest"].append(max(times) / statistics.median(times))
    return {name: {key: round(statistics.median(own), 2) for key, own in of.items()} for name, of in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    threads.fix(args.threads)
    found: dict[str, Any] = {"level": library.kernels().level, "many rows": many_rows(args.rounds)}
    if args.busy:
        found["one row"] = beside_others(args.layers, max(3, args.rounds // 4))
    for part in found.values():
        print(part)
    print(json.dumps(found))
    floor = FLOORS.get(library.kernels().level, 0.7)
    if args.check and any(form["ratio"] < floor for form in found["many rows"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
