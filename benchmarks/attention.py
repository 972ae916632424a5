"""Prefix-LM attention: one call with a (T,T) mask, the split plan, and plain products, forward and backward.

The numbers decide two constants: `language_model.SPLIT_FROM` and `attention.SHORT`. The last line is JSON.

    python benchmarks/attention.py [--threads N] [--rounds 7]
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from glmkit.model import attention
from glmkit.model.attention import DensePlan, SplitPlan
from glmkit.model.masks import dense_from_segments, from_prefix

# rows, heads, tokens, head width
SHAPES = [(16, 3, 160, 64), (16, 6, 160, 32), (8, 12, 256, 64), (8, 12, 512, 64), (1, 32, 1024, 128)]


def timed(
    attend: Callable[[Tensor, Tensor, Tensor, float], Tensor], inputs: list[Tensor], grad: Tensor
) -> tuple[float, float]:
    start = time.perf_counter()
    out = attend(*inputs, 0.0)
    middle = time.perf_counter()
    out.backward(grad)
    return middle - start, time.perf_counter() - middle


def by_products(q: Tensor, k: Tensor, v: Tensor, dropout: float, bias: Tensor) -> Tensor:
    return attention.products(q, k, v, bias, dropout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    attention.SHORT = 0  # "dense" is the fused kernel here
    results = []
    for rows, heads, tokens, width in SHAPES:
        for share in (0.15, 0.6, 0.9):
            for dtype in (torch.bfloat16, torch.float32):
                segments = from_prefix([int(share * tokens)] * rows, tokens)
                mask = dense_from_segments(segments, rows, tokens)
                plans = {
                    "dense": DensePlan(mask).attend,
                    "split": SplitPlan(segments).attend,
                    "products": functools.partial(by_products, bias=attention.as_bias(mask, dtype)),
                }
                inputs = [torch.randn(rows, tokens, heads, width, dtype=dtype, requires_grad=True) for _ in range(3)]
                grad = torch.randn(rows, tokens, heads, width, dtype=dtype)
                times: dict[str, list[tuple[float, float]]] = {name: [] for name in plans}
                for _ in range(args.rounds + 1):
                    for name, plan in plans.items():
                        times[name].append(timed(plan, inputs, grad))
                row = {"shape": [rows, heads, tokens, width], "prefix": share, "dtype": str(dtype)[6:]}
                for name, values in times.items():
                    forward = statistics.median(v[0] for v in values[1:])
                    both = statistics.median(sum(v) for v in values[1:])
                    row[name] = [round(forward * 1e3, 2), round(both * 1e3, 2)]
                results.append(row)
                print(row, flush=True)
    print(json.dumps({"threads": args.threads, "milliseconds": "forward, forward + backward", "results": results}))


if __name__ == "__main__":
    main()
