"""Packed against padded training steps on real rows: useful tokens a second, beside the most that packing can give.

The shape of ChatGLM-6B at a smaller scale, its head with the same share of the arithmetic, LoRA on its attention, at
the limits of the published scripts: AdvertiseGen at 64 + 64 (train.sh) and a chat history at 256 + 256 (train_chat.sh).
Three ways through the same rows: padded to the limits as those scripts pad, where attention takes the padding along,
padded to the longest of a micro-batch, where it does not, and packed. Rounds alternate; the ratio is the median of
pairs. With one thread the clock is the processor's, so that other work on the machine counts less. Rows come from
../shared beside the checkout (--data). The last line is JSON.

    python benchmarks/finetune_packing.py [--rows 192] [--rounds 3] [--layers 8] [--width 512] [--threads N]
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from glmkit.adapters.attach import new_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.data.dialogues.dialogue_set import DialogueSpec, open_dialogues
from glmkit.data.dialogues.row_forms import Columns
from glmkit.data.packing import Batch, pack
from glmkit.data.tuning_batches import TuningBatches, TuningLayout
from glmkit.data.tuning_epochs import Epochs
from glmkit.data.tuning_rows import RowMaker, RowSet, encode_rows
from glmkit.families.family import family_named, preset
from glmkit.model import GLM, init_weights
from glmkit.objective.sample import Sample
from glmkit.tokenizer.dialogue import Limits
from glmkit.tokenizer.inputs import InputTokenizer
from glmkit.train.batch_loss import batch_loss

MICRO = 8
# Numbers of the head for each of the layers: 130528 x 4096 for 28 x 12 x 4096 x 4096.
HEAD_SHARE = 130528 / (28 * 12 * 4096)
SETS = {
    "advertisegen 64+64": ("advertisegen/train.json", Columns(prompt="content", response="summary"), Limits(64, 64)),
    "chat history 256+256": (
        "chat_history/ptuning_chat_train.json",
        Columns(prompt="prompt", response="response", history="history"),
        Limits(256, 256),
    ),
}


def read(data: Path, name: str, count: int, vocabulary: int) -> RowSet:
    """The rows of a set by ChatGLM-6B's rules, ids folded into a smaller vocabulary."""
    path, columns, limits = SETS[name]
    family = family_named("chatglm")
    tokenizer = family.tokenizer(data / "tokenizers" / "chatglm-6b", None)
    assert isinstance(tokenizer, InputTokenizer)
    assert family.tuning is not None
    spec = DialogueSpec(train=[str(data / "data" / path)], columns=columns, max_rows=count, on_bad_row="skip")
    rows = encode_rows(open_dialogues(spec).train[0], RowMaker(tokenizer, family.tuning, limits), on_bad_row="skip")
    return replace(rows, ids_N=(rows.ids_N % vocabulary).astype(np.int32))


def filled(sample: Sample, length: int) -> Sample:
    """The sample with padding behind it that takes part in everything but the loss, as in the published scripts."""
    more = (0, length - len(sample))
    return replace(
        sample,
        input_ids=np.pad(sample.input_ids, more),
        targets=np.pad(sample.targets, more),
        loss_mask=np.pad(sample.loss_mask, more),
        position_ids=np.pad(sample.position_ids, ((0, 0), more), mode="edge"),
    )


def contenders(rows: RowSet, limits: Limits) -> dict[str, list[Batch]]:
    """The same rows three ways, in micro-batches of at most MICRO rows of the limits."""
    length = limits.source + limits.target
    made: dict[str, list[Batch]] = {}
    samples = [rows.sample(number) for number in range(len(rows))]
    parts = [samples[first : first + MICRO] for first in range(0, len(samples), MICRO)]
    made["limits"] = [pack([[filled(sample, length)] for sample in part]) for part in parts]
    for layout, size in (("padded", MICRO), ("packed", len(rows))):
        options = {"row_length": MICRO * length} if layout == "packed" else {}
        plan = TuningBatches(
            Epochs([rows], seed=0),
            TuningLayout(micro_batch_size=MICRO, batch_size=size, layout=layout, **options),  # type: ignore[arg-type]
        )
        starts = range(0, len(rows), size)
        made[layout] = [plan.batch(seen + part) for seen in starts for part in range(plan.micro_batches(seen))]
    assert len({sum(batch.num_targets for batch in batches) for batches in made.values()}) == 1
    return made


def seconds(model: GLM, batches: list[Batch]) -> float:
    """Forward and backward passes of all batches."""
    loss = batch_loss()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    for batch in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss(model, batch).loss_sum.backward()  # type: ignore[no-untyped-call]
        model.zero_grad()
    return clock() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not (args.data / "data").is_dir():
        print(f"{args.data} is not there: no rows to pack; give --data", file=sys.stderr)
        print(json.dumps({"skipped": "no data"}))
        return
    vocabulary = round(HEAD_SHARE * args.layers * 12 * args.width / 64) * 64
    shape = replace(
        preset("chatglm-6b"),
        vocab_size=vocabulary,
        hidden_size=args.width,
        num_layers=args.layers,
        num_heads=args.width // 64,
        ffn_size=4 * args.width,
        special=None,
    )
    model = GLM(shape)
    init_weights(model, shape, 0)
    new_adapter(model.train(), LoraOptions(("q_proj", "k_proj", "v_proj"), rank=8))
    report: dict[str, object] = {"threads": args.threads, "layers": args.layers, "width": args.width}
    for name, (_, _, limits) in SETS.items():
        rows = read(args.data, name, args.rows, vocabulary)
        made = contenders(rows, limits)
        useful = sum(batch.num_tokens for batch in made["packed"])
        for batches in made.values():
            seconds(model, batches)
        rounds = [{way: seconds(model, batches) for way, batches in made.items()} for _ in range(args.rounds)]
        gains = {way: statistics.median(one["limits"] / one[way] for one in rounds) for way in made}
        most = (limits.source + limits.target) / float(np.mean(rows.lengths + 1))
        speed = {way: useful / statistics.median(one[way] for one in rounds) for way in made}
        print(
            f"{name}, {len(rows)} rows: padded to the limits {speed['limits']:,.0f} useful tokens/s, to the longest "
            f"{speed['padded']:,.0f} ({gains['padded']:.2f} x), packed {speed['packed']:,.0f} ({gains['packed']:.2f} "
            f"x) of at most {most:.2f} x: {gains['packed'] / most:.2f} of it"
        )
        report[name] = {
            "gain": round(gains["packed"], 3),
            "gain_of_padded": round(gains["padded"], 3),
            "most": round(most, 3),
            "share_of_most": round(gains["packed"] / most, 3),
            "rounds": rounds,
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
