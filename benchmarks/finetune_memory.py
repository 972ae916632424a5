"""Peak memory of steps of full tuning of GLM-large-Chinese, and of LoRA and P-Tuning v2 on INT4 as wide as ChatGLM-6B.

Full tuning is measured at its whole size, in float32, with the rows of PaddleNLP's script: 2 of 608 + 160, recomputed.
On INT4 (groups of 32) word table and head are INT8, as `quantization_bit: 4` of glm finetune makes them. Each case is
a process of its own, with 2 and with 4 layers: their difference is what one layer costs, so 28 layers are the 4
measured ones and 24 times that. Rows are random ids of the full length of the published scripts: P-Tuning v2 at
64 + 64 with a prefix of 128 (ptuning/train.sh), LoRA of rank 8 at 6 rows of 200 (ChatGLM-Tuning) with recomputation,
and at 64 + 64. Beside them the published numbers for a GPU: 7 GB for P-Tuning v2 on INT4, 13 GB for the model in half
precision alone. The last line is JSON.

    python benchmarks/finetune_memory.py [--layers 2 4] [--steps 2] [--threads N] [--only full|prefix|lora]
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from glmkit.adapters.attach import new_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.adapters.prefix.prefix_adapter import PrefixOptions
from glmkit.config import Quantization
from glmkit.data.packing import Batch, pack
from glmkit.devices import CPU, peak_memory
from glmkit.families.family import preset
from glmkit.model import GLM, init_weights
from glmkit.objective.sample import Sample
from glmkit.parallel.apply import ParallelPlan, apply
from glmkit.parallel.mesh import Ranks
from glmkit.quant import quantize_modules
from glmkit.quant.layers import QuantMatrix
from glmkit.train.batch_loss import batch_loss
from glmkit.train.optim import build_optimizers
from glmkit.train.run_config import OptimizerSection
from glmkit.train.trainer import Objective

DEPTH = 28
PUBLISHED = {"P-Tuning v2 on INT4, GPU": 7.0, "the model in half precision, GPU": 13.0}


@dataclass(frozen=True)
class Case:
    """One way to tune: rows of one micro-batch, their length, and what is trained."""

    method: str
    rows: int
    source: int
    target: int
    recompute: bool = False


WHOLE = "all weights, GLM-large-Chinese, 2 x 768, recomputed"
CASES = {
    WHOLE: Case("full", 2, 608, 160, recompute=True),
    "P-Tuning v2, prefix 128, 1 x 128": Case("prefix", 1, 64, 64),
    "LoRA r 8, 1 x 128": Case("lora", 1, 64, 64),
    "LoRA r 8, 6 x 200, recomputed": Case("lora", 6, 100, 100, recompute=True),
}


def base(layers: int) -> GLM:
    """INT4 matrices of random bytes in a bfloat16 model: floats for them never exist."""
    quantization = Quantization.usual(4)
    shape = replace(preset("chatglm-6b"), num_layers=layers, special=None, quantization=quantization)
    with torch.device("meta"):
        model = GLM(shape).to(torch.bfloat16)
        quantize_modules(model, quantization)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, QuantMatrix):
                module.weight.random_(0, 256, generator=generator)
                scale = 1 if module.group_scale is None else 8
                module.row_scale.fill_(0.02 / module.form.most / scale)
                if module.group_scale is not None:
                    module.group_scale.fill_(scale)
            elif isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.bias"):
                parameter.zero_()
    return model.train()


def whole_model() -> GLM:
    """GLM-large-Chinese in float32, with random weights."""
    config = replace(preset("glm-large-chinese"), special=None)
    model = GLM(config)
    init_weights(model, config, 0)
    return model.train()


def batch_of(case: Case, vocabulary: int) -> Batch:
    """Full rows, the answer at their end counted."""
    size = case.source + case.target - 1
    places = np.stack([np.minimum(np.arange(size), case.source - 2), np.maximum(np.arange(size) - case.source + 2, 0)])
    counted = (np.arange(size) >= case.source - 2).astype(np.int64)
    samples = []
    for row in range(case.rows):
        ids = np.random.default_rng(row).integers(0, vocabulary, size + 1)
        samples.append(Sample(ids[:-1], ids[1:], counted, places, case.source - 1, "tuning"))
    return pack([[sample] for sample in samples])


def measure(case: Case, layers: int, steps: int) -> dict[str, float]:
    """Whole steps with AdamW: bytes of the weights, resident before and at the peak, seconds of the last step."""
    model = whole_model() if case.method == "full" else base(layers)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    before = peak_memory(CPU)
    if case.method != "full":
        lora = LoraOptions(("q_proj", "k_proj", "v_proj"), rank=8)
        new_adapter(model, lora if case.method == "lora" else PrefixOptions(128))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    objective = Objective(model, batch_loss())
    apply(objective, ParallelPlan(recompute=case.recompute), Ranks())
    optimizers = build_optimizers(model, OptimizerSection())
    optimizers.set_rate(1e-4)
    batch = batch_of(case, model.config.vocab_size)
    seconds = 0.0
    for _ in range(steps):
        begin = time.perf_counter()
        sums = objective(batch)
        (sums.loss_sum / sums.num_targets).backward()
        del sums
        optimizers.step()
        optimizers.zero_grad()
        seconds = time.perf_counter() - begin
        gc.collect()
    return {
        "weights": weights,
        "loaded": before,
        "peak": peak_memory(CPU),
        "trained": trained,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs=2, default=[2, 4])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=["full", "prefix", "lora"])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.case is not None:
        print(json.dumps(measure(CASES[args.case], args.layers[0], args.steps)))
        return
    report: dict[str, object] = {"published_gb": PUBLISHED}
    few, many = args.layers
    for name, case in CASES.items():
        if args.only not in (None, case.method):
            continue
        found = []
        for layers in (few, many) if case.method != "full" else (many,):
            command = [sys.executable, __file__, "--case", name, "--layers", str(layers), str(layers)]
            command += ["--steps", str(args.steps), "--threads", str(args.threads)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        if case.method == "full":
            peak, weights, seconds = found[0]["peak"] / 1e9, found[0]["weights"] / 1e9, found[0]["seconds"]
            print(f"{name}: peak {peak:.2f} GB (weights {weights:.2f}); a step {seconds:.1f} s")
            report[name] = asdict(case) | {"measured": found}
            continue
        a_layer = (found[1]["peak"] - found[0]["peak"]) / (many - few)
        whole = found[1]["peak"] + (DEPTH - many) * a_layer
        peak, weights = found[1]["peak"] / 1e9, found[1]["weights"] / 1e9
        print(
            f"{name}: peak of {many} layers {peak:.2f} GB (weights {weights:.2f}), a layer {a_layer / 1e6:.0f} MB, so "
            f"{DEPTH} layers {whole / 1e9:.2f} GB; a step {found[1]['seconds']:.1f} s"
        )
        report[name] = asdict(case) | {"measured": found, "layer_bytes": a_layer, "projected_bytes": whole}
    print("published: " + ", ".join(f"{value:g} GB {name}" for name, value in PUBLISHED.items()))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
