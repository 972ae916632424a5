"""Tokens a second with prompt lookup by itself over those without, on a directory's weights; the last line is JSON.

    python benchmarks/prompt_lookup.py MODEL [--rounds 5] [--tokens 96]

The passes are the model's; the tokens are given, so that any weights will do: "summary" repeats sentences of its prompt
between words of its own, "nothing" repeats none of it and is what drafts must not slow down. The two ways alternate.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from glmkit.config import GLMConfig
from glmkit.generate.engine import Engine
from glmkit.generate.engine.job import Branch
from glmkit.generate.jobs.answers import AnswersJob
from glmkit.generate.params import GenerationParams
from glmkit.generate.prompt import Prompt
from glmkit.loading import load_parts


class Given(AnswersJob):
    """An answer whose tokens are given, whatever the model says."""

    def __init__(self, prompt: Sequence[int], answer: Sequence[int], config: GLMConfig, lookup: int | None) -> None:
        params = GenerationParams(max_new_tokens=len(answer), prompt_lookup=lookup)
        super().__init__(Prompt.of(prompt, config), params, config)
        self._answer, self.begun = answer, 0.0

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        done = len(self._decoders[0][1].ids) if self._decoders else 0
        self.begun = self.begun or time.perf_counter()
        given_MV = torch.zeros_like(logits_MV[0])
        for row, token in enumerate(self._answer[done : done + len(given_MV)]):
            given_MV[row, token] = 1
        return super().advance([given_MV])


def texts(tokens: int, vocabulary: int) -> dict[str, tuple[list[int], list[int]]]:
    """Prompts and answers by name: words by Zipf's law, sentences of 12 to 30."""
    draw = random.Random(0)
    ids = range(100, min(vocabulary, 20_000))
    weights = [1 / rank for rank in range(1, len(ids) + 1)]
    sentences = [draw.choices(ids, weights, k=draw.randrange(12, 31)) for _ in range(20)]
    article = [token for sentence in sentences for token in sentence]
    summary: list[int] = []
    while len(summary) < tokens:
        summary += [*draw.choices(ids, weights, k=4), *draw.choice(sentences)]
    return {"summary": (article, summary[:tokens]), "nothing": (article, draw.choices(ids, weights, k=tokens))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    args = parser.parse_args()
    parts = load_parts(args.model, device="cpu")
    engine, result = Engine(parts.model), {"model": args.model, "notes": parts.notes}
    for name, (prompt, answer) in texts(args.tokens, parts.config.vocab_size).items():
        ratios = []
        for turn in range(args.rounds + 1):
            seconds = []
            for lookup in (0, None):
                job = Given(prompt, answer, parts.config, lookup)
                engine.run(engine.submit(job))
                assert job.answers[0].ids == answer
                seconds.append(time.perf_counter() - job.begun)
            if turn:
                ratios.append(seconds[0] / seconds[1])
        result[name] = round(statistics.median(ratios), 2)
        result[f"{name} drafted, accepted"] = [job.drafted, job.accepted]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
