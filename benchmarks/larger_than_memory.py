"""Seconds a token of a model larger than memory, over those in which dd reads the same bytes, cold; JSON comes last.

    python benchmarks/larger_than_memory.py --directory DIR [--layers 12] [--resident SHARE] [--tokens 4] [--rounds 3]

DIR gets a model of ChatGLM3-6B's width with random weights in INT4, once. So much of its weights may stay in memory,
and all other pages are dropped after each use, as a machine with less memory would.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from glmkit.checkpoint.native import write_model
from glmkit.config import GLMConfig, Quantization, SpecialIds
from glmkit.generate.engine import Engine
from glmkit.generate.jobs.answers import AnswersJob
from glmkit.generate.params import GenerationParams
from glmkit.generate.prompt import Prompt
from glmkit.loading import load_parts
from glmkit.model import GLM, init_weights
from glmkit.quant import quantize_modules
from glmkit.read_ahead import VARIABLE, ReadAhead

WIDTH: dict[str, Any] = {
    "vocab_size": 65024, "hidden_size": 4096, "num_heads": 32, "num_kv_heads": 2, "ffn_size": 13696,
    "max_positions": 2048, "positions": "rope", "rope_fraction": 0.5, "rope_pairs": "interleaved", "norm": "rms",
    "mlp": "swiglu", "bias": "qkv", "mask": "causal", "tie_embeddings": False,
    "special": SpecialIds(eos=2, pad=0, cls=4, sep=5, mask=6, smask=7, gmask=8, sop=9, eop=10, dblock=11, unk=1),
}  # fmt: skip


def make(directory: Path, layers: int) -> None:
    config = GLMConfig(num_layers=layers, quantization=Quantization.usual(4), **WIDTH)
    small = GLMConfig(**{**WIDTH, "num_layers": 1})
    model = GLM(small).bfloat16()
    init_weights(model, small, 0)
    quantize_modules(model, Quantization.usual(4))
    tensors = dict(model.named_parameters())
    layer = {name: value for name, value in tensors.items() if ".layers.0." in name}
    for number in range(1, layers):
        tensors |= {name.replace(".layers.0.", f".layers.{number}."): value for name, value in layer.items()}
    directory.mkdir(parents=True, exist_ok=True)
    write_model(directory, config, tensors)


def dd(file: Path) -> float:
    """Bytes a second."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    begun = time.perf_counter()
    subprocess.run(["dd", f"if={file}", "of=/dev/null", "bs=1M"], check=True, capture_output=True)
    return file.stat().st_size / (time.perf_counter() - begun)


def note(ahead: ReadAhead, steps: list[tuple[float, int]], before: object, after: object) -> None:
    """Keep time and bytes of a step."""
    steps.append((time.perf_counter(), ahead.read_bytes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--resident", type=float, default=0.0, help="share of the weights")
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if not (args.directory / "config.json").exists():
        make(args.directory, args.layers)
    (file,) = args.directory.glob("*.safetensors")
    os.environ[VARIABLE] = str(int(args.resident * file.stat().st_size))
    parts = load_parts(args.directory, device="cpu")
    (hook,) = parts.model.model.layers[0]._forward_pre_hooks.values()
    ahead: ReadAhead = hook.args[0]  # type: ignore[attr-defined]
    engine, config = Engine(parts.model), parts.config
    ratios, seconds, per_token = [], [], 0
    for turn in range(args.rounds + 1):
        rate = dd(file)
        params = GenerationParams(max_new_tokens=args.tokens + 1, min_new_tokens=args.tokens + 1, prompt_lookup=0)
        job = AnswersJob(Prompt.of([30 + turn], config), params, config)
        steps: list[tuple[float, int]] = []
        engine.on_step = partial(note, ahead, steps)
        engine.run(engine.submit(job))
        (begun, read), *_, (ended, read_then) = steps
        if turn:
            taken = (ended - begun) / (len(steps) - 1)
            per_token = (read_then - read) // (len(steps) - 1)
            seconds.append(taken)
            ratios.append(taken * rate / max(per_token, 1))
            print(f"dd {rate / 1e9:.2f} GB/s, {taken:.2f} s a token, {per_token / 1e9:.2f} GB read: {ratios[-1]:.2f}")
    result = {
        "file_bytes": file.stat().st_size, "read_a_token": per_token, "kept": ahead.kept, "layers": config.num_layers,
        "seconds_a_token": round(statistics.median(seconds), 3), "over_dd": round(statistics.median(ratios), 3),
        "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
