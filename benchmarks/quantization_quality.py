"""Loss of a model under each way to quantise it: `quantization_quality.py RUN [--data STORE=SHARE ...] --output DIR`.

RUN is a pretraining run (`scripts/bilingual_small.py` makes one). Calibration texts are documents of the training
split, drawn at random; losses are those of the held-out split, every token once in each mode of the recipe. Differences
are paired by document: in percent of the float32 loss, with the 95 % interval of a bootstrap over documents.
"""

import argparse
import json
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from glmkit.config import Quantization
from glmkit.data.packing import Batch
from glmkit.data.store import TokenStore
from glmkit.loading import load_parts
from glmkit.model import GLM
from glmkit.quant import dequantize_modules
from glmkit.quant.calibration import Method
from glmkit.quant.rounding import Rounding
from glmkit.quantizing import choose_form, quantize
from glmkit.train.pretraining_data import PretrainingData
from glmkit.train.pretraining_recipes import PRETRAINING
from glmkit.train.recipe_config import TrainConfig

Floats = NDArray[np.float64]

RESAMPLES = 4000


@dataclass(frozen=True)
class Variant:
    """One way to quantise: options of `glm quantize`."""

    name: str
    bits: int
    group: int | None = None
    scales: str | None = None
    head_bits: int | None = None
    rounding: Rounding | None = "nearest"
    method: Method | None = None

    @property
    def form(self) -> Quantization:
        return choose_form(self.bits, group=self.group, scales=self.scales, head_bits=self.head_bits)


def calibrated(name: str, method: Method, group: int | None = None, **more: int) -> Variant:
    return Variant(name, 4, group, rounding=None, method=method, **more)


VARIANTS = (
    Variant("INT8 row", 8),
    Variant("INT8 128", 8, 128),
    Variant("INT4 row", 4, 0),
    Variant("INT4 row, head in floats", 4, 0, head_bits=16),
    Variant("INT4 128", 4, 128),
    Variant("INT4 64", 4, 64),
    Variant("INT4 32, byte scales", 4),
    Variant("INT4 32, float16 scales", 4, 32, "float16"),
    Variant("INT4 row, searched", 4, 0, rounding="searched"),
    Variant("INT4 32, searched", 4, rounding="searched"),
    Variant("INT4 32, head INT4", 4, head_bits=4),
    calibrated("INT4 32, weighted", "weighted"),
    calibrated("INT4 32, awq", "awq"),
    calibrated("INT4 32, gptq", "gptq"),
    calibrated("INT4 32, awq-gptq", "awq-gptq"),
    calibrated("INT4 64, gptq", "gptq", 64),
    calibrated("INT4 128, gptq", "gptq", 128),
    calibrated("INT4 row, gptq", "gptq", 0),
    calibrated("INT4 32, gptq, head INT4", "gptq", head_bits=4),
)
FAST = ("INT8 row", "INT4 32, byte scales", "INT4 32, gptq")  # measured in both computations


@dataclass(frozen=True)
class HeldOut:
    """Batches of the held-out split and the document of each of their rows."""

    batches: list[Batch]
    documents: list[NDArray[np.int64]]

    @classmethod
    def open(cls, config: TrainConfig, limit: int | None) -> "HeldOut":
        whole = replace(config, evaluation=replace(config.evaluation, rows=1 << 30, batches=None))
        data = PretrainingData.open(config.data.path)
        places, first = [], 0
        for store in data.stores:
            sizes = np.diff(store.split("validation").offsets)
            counts = np.where(sizes < 2, 0, -(-sizes // (config.data.sequence_length - config.data.add_cls)))
            places.append(np.repeat(np.arange(len(sizes)) + first, counts))
            first += len(sizes)
        of_piece = np.concatenate(places)
        batches, documents = [], []
        for made in data.validation(whole).values():
            start = 0
            for number in range(len(made)):
                batch = made.batch(number)
                rows = len(batch.input_ids)
                if limit is None or number % max(1, len(made) // limit) == 0:
                    batches.append(batch)
                    documents.append(of_piece[start : start + rows])
                start += rows
            assert start == len(of_piece), (start, len(of_piece))
        return cls(batches, documents)

    @torch.no_grad()
    def losses(self, model: GLM) -> Floats:
        """(D,2): summed loss of each document, and its targets."""
        sums = np.zeros((max(int(part.max()) for part in self.documents) + 1, 2))
        for batch, documents in zip(self.batches, self.documents, strict=True):
            hidden = model.hidden(batch.input_ids, position_ids=batch.position_ids, segments=batch.segments)
            log_p = model.head(hidden[batch.loss_mask]).float().log_softmax(-1)
            loss = -log_p.gather(1, batch.targets[batch.loss_mask][:, None])[:, 0].double().numpy()
            rows = documents[batch.loss_mask.nonzero()[:, 0].numpy()]
            np.add.at(sums, rows, np.stack([loss, np.ones_like(loss)], 1))
        return sums


def change(after: Floats, before: Floats) -> tuple[float, float, float]:
    """Change of the mean loss in percent, and the ends of its 95 % interval over documents."""
    draws = np.random.default_rng(0).integers(len(before), size=(RESAMPLES, len(before)))
    drawn = 100 * (after[draws, 0].sum(1) / before[draws, 0].sum(1) - 1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return 100 * float(after[:, 0].sum() / before[:, 0].sum() - 1), float(low), float(high)


def training_text(config: TrainConfig, size: int, seed: int) -> str:
    """Documents of the training split, about `size` characters of each store by its share."""
    data, generator, parts = PretrainingData.open(config.data.path), random.Random(seed), []
    weights = data.weights or (1.0,)
    for store, weight in zip(data.stores, weights, strict=True):
        left = size * weight / sum(weights)
        for text in _documents(store, generator):
            parts.append(text[: int(left)])
            left -= len(text)
            if left <= 0:
                break
    return "\n".join(parts)


def _documents(store: TokenStore, generator: random.Random) -> Iterator[str]:
    tokenizer = store.tokenizer()
    for number in generator.sample(range(len(store)), len(store)):
        yield tokenizer.decode(store.document(number).tolist())


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run of scripts/bilingual_small.py")
    parser.add_argument("--data", nargs="+", metavar="STORE=SHARE", help="stores, if not where the recipe has them")
    parser.add_argument("--output", type=Path, required=True, help="folder for the models, each removed after its use")
    parser.add_argument("--only", nargs="+", choices=[variant.name for variant in VARIANTS])
    parser.add_argument("--batches", type=int, help="at most about so many of each mode (default: all)")
    parser.add_argument("--characters", type=int, default=120_000, help="of the calibration text")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration text")
    args = parser.parse_args(argv)
    config = PRETRAINING.read(args.run / "recipe.yaml", {} if args.data is None else {"data.path": args.data})
    held_out, text = HeldOut.open(config, args.batches), training_text(config, args.characters, args.seed)
    source = args.run / "model"
    base = held_out.losses(load_parts(source, dtype="float32").model)
    loss, documents = float(base[:, 0].sum() / base[:, 1].sum()), int((base[:, 1] > 0).sum())
    base = base[base[:, 1] > 0]
    print(f"float32: {loss:.4f} nats a target, {int(base[:, 1].sum()):,} targets in {documents} documents", flush=True)
    found: dict[str, object] = {"loss": loss, "targets": int(base[:, 1].sum()), "documents": documents}

    def show(name: str, after: Floats, before: Floats, **more: object) -> None:
        middle, low, high = change(after, before)
        found[name] = {"percent": middle, "interval": [low, high], **more}
        extra = "".join(f"  {key} {value}" for key, value in more.items())
        print(f"{name:44s} {middle:+7.3f} %  [{low:+.3f}, {high:+.3f}]{extra}", flush=True)

    def measured(directory: Path, dtype: str, compute: str | None = None) -> Floats:
        model = load_parts(directory, dtype=dtype, compute=compute).model  # type: ignore[arg-type]
        if dtype == "float32":  # what "exact" computes, faster
            dequantize_modules(model, torch.float32)
        sums = held_out.losses(model)
        return sums[sums[:, 1] > 0]

    halves = measured(source, "bfloat16")
    show("bfloat16", halves, base)
    for variant in VARIANTS:
        if args.only and variant.name not in args.only:
            continue
        made = args.output / "model"
        shutil.rmtree(made, ignore_errors=True)
        report = quantize(
            source, made, variant.form, rounding=variant.rounding, method=variant.method,
            calibration=None if variant.method is None else text,
        )  # fmt: skip
        outputs = [error.outputs for error in report.errors if error.outputs is not None]
        more = {"outputs": round(100 * sum(outputs) / len(outputs), 2)} if outputs else {}
        show(variant.name, measured(made, "float32"), base, megabytes=round(report.bytes / 1e6, 2), **more)
        if variant.name in FAST:
            exact, fast = (measured(made, "bfloat16", compute) for compute in ("exact", "fast"))
            show(f"{variant.name}: bfloat16, fast over exact", fast, exact)
        shutil.rmtree(made)
    print(json.dumps({**found, "variants": [asdict(variant) for variant in VARIANTS]}))


if __name__ == "__main__":
    main(sys.argv[1:])
