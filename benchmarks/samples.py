"""Tokens per second per core of building training batches: assembly, objective, collation, as training calls them.

    python benchmarks/samples.py [--store DIR] [--length 512] [--rows 16] [--seconds 1] [--repeats 5]

Texts come from a token store, or from documents made here (log-normal lengths, sentences of 12 words on average). The
time is the processor time of this one process with one thread; each figure is the median of the repeats. A text's
tokens are counted, not the masks, starts and padding that the objective adds. The last line of the output is JSON.
"""

import argparse
import json
import platform
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmkit.config import SpecialIds
from glmkit.data.batches import RowConfig, TrainingBatches
from glmkit.data.samples import Documents, TextSampler
from glmkit.data.store import TokenStore
from glmkit.objective.blank_infilling import BlankInfilling
from glmkit.objective.options import ObjectiveConfig
from glmkit.objective.spans import sentence_end_table

VOCABULARY = 32_000
SPECIAL = SpecialIds(pad=0, eos=1, cls=2, mask=3, smask=4, gmask=5, sop=6, eop=7, dblock=8)
MIXTURES: dict[str, dict[str, Any]] = {
    "token": {"bert_prob": 1.0},
    "sentence": {"bert_prob": 0.0, "gap_sentence_prob": 1.0},
    "generation": {"bert_prob": 0.0, "gpt_min_ratio": 0.25},
    "mix_0.4_0.3_0.3": {"bert_prob": 0.4, "gap_sentence_prob": 0.3, "gpt_min_ratio": 0.25},
    "glm_10b_long": ObjectiveConfig.preset("glm_10b_long").to_dict(),
}


@dataclass(frozen=True)
class MadeUp:
    tokens: NDArray[np.uint16]
    offsets: NDArray[np.int64]


def made_up(num_tokens: int, seed: int = 0) -> tuple[MadeUp, NDArray[np.bool_]]:
    """Documents of 20 to some thousands of tokens; every twelfth token on average ends a sentence."""
    numbers = np.random.default_rng(seed)
    sizes = np.maximum(20, numbers.lognormal(6.5, 1.0, num_tokens // 1000)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    tokens = numbers.integers(20, VOCABULARY, offsets[-1]).astype(np.uint16)
    tokens[numbers.random(len(tokens)) < 1 / 12] = 10
    tokens[offsets[1:] - 1] = SPECIAL.eos
    table = np.zeros(VOCABULARY, np.bool_)
    table[10] = True
    return MadeUp(tokens, offsets), table


def measure(batches: TrainingBatches, seconds: float, repeats: int) -> dict[str, float]:
    """Median rate over the repeats, and what a row holds."""
    index = 0
    for _ in range(3):
        batches.batch(index)
        index += 1
    rates, fills = [], []
    for _ in range(repeats):
        start, texts = time.process_time(), 0
        while (spent := time.process_time() - start) < seconds:
            batch = batches.batch(index)
            index += 1
            texts += batches.rows.rows
            fills.append(batch.fill)
        rates.append(texts / spent)
    per_second = statistics.median(rates)
    return {
        "tokens_per_second": round(per_second * batches.texts.length),
        "microseconds_per_sample": round(1e6 / per_second, 1),
        "slowest": round(min(rates) * batches.texts.length),
        "fastest": round(max(rates) * batches.texts.length),
        "fill": round(statistics.mean(fills), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="directory written by `glm prepare` (default: made-up documents)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a text (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="processor seconds per repeat (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--made_up_tokens", type=int, default=20_000_000, help="without --store (default: %(default)s)")
    options = parser.parse_args()
    documents: Documents
    if options.store:
        documents = store = TokenStore(options.store)
        tokenizer = store.tokenizer()
        special, table = tokenizer.special, sentence_end_table(tokenizer)
    else:
        documents, table = made_up(options.made_up_tokens)
        special = SPECIAL
    results = {}
    for name, values in MIXTURES.items():
        texts = TextSampler(documents, special, table, length=options.length)
        objective = BlankInfilling(ObjectiveConfig(**values), special, table, options.length)
        batches = TrainingBatches(texts, objective, RowConfig(rows=options.rows), seed=1)
        results[name] = measure(batches, options.seconds, options.repeats)
        print(f"{name:16} {results[name]['tokens_per_second']:>12,} tokens/s", flush=True)
    facts = {"length": options.length, "rows": options.rows, "store": options.store or "made up"}
    machine = {"python": platform.python_version(), "numpy": np.__version__, "processor": platform.machine()}
    print(json.dumps({"benchmark": "samples", **facts, "unit": "text tokens/s/core", **machine, "results": results}))


if __name__ == "__main__":
    main()
