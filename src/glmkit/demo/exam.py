"""The demo's exam: blanks from held-out modules, how the model answers them, and the counts it is compared with."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from glmkit.data.store import TokenStore
from glmkit.demo.blanks import KINDS, Blank, Kind, Tokenized, blankable, draw, pieces, tokenize_texts
from glmkit.demo.corpus import Module, Split
from glmkit.demo.counts import NeighbourCounts
from glmkit.demo.measure import Fill, tune_counts
from glmkit.generate.engine import Engine, EngineLimits
from glmkit.generate.jobs.infill import FillJob
from glmkit.generate.params import GenerationParams
from glmkit.session import LM
from glmkit.tokenizer.trained import TrainedTokenizer

_TUNING_BLANKS = 5000
# Longest answer in tokens. A single-token blank is known to be one token, for the counts as for the model.
_LONGEST: dict[Kind, int] = {"single_token": 1, "multi_token": 8, "identifier": 16}


class Exam:
    """Blanks drawn once; `window` tokens of text around and including each."""

    def __init__(self, tokenizer: TrainedTokenizer, parts: Split, *, count: int, window: int, seed: int) -> None:
        self.tokenizer = tokenizer
        self.spelled = pieces(tokenizer)
        self.allowed = blankable(self.spelled)
        self._draw = partial(
            draw, allowed=self.allowed, spelled=self.spelled, eos=tokenizer.special.eos, window=window, seed=seed
        )
        self.texts = {module.name: module.text for module in parts.held_out}
        self._validation = self._tokenized(parts.validation)
        held_out = self._tokenized(parts.held_out)
        drawn = {
            kind: self._draw(held_out, kind, count if kind == "single_token" else -(-count // 5)) for kind in KINDS
        }
        self.blanks = {kind: one.blanks for kind, one in drawn.items()}
        self.left_out: dict[str, dict[str, int]] = {kind: one.left_out for kind, one in drawn.items()}

    def counts(self, store: Path) -> NeighbourCounts:
        """Count baselines on the tokens the model trained on, tuned on validation blanks."""
        counts = NeighbourCounts(np.asarray(TokenStore(store, "train").tokens), len(self.spelled), self.allowed)
        places = sum(int(self.allowed[text.ids].sum()) for text in self._validation)
        tune_counts(counts, self._draw(self._validation, "single_token", min(_TUNING_BLANKS, places)).blanks)
        return counts

    def filler(self, lm: LM) -> Fill:
        """Greedy filling, as many blanks at once as the engine takes. Like the counts, it is told that no blank is
        white space alone when the blank is a single token."""
        white = tuple(index for index, allowed in enumerate(self.allowed) if not allowed)
        # No reader waits for a token here, and larger passes can be cut into more equal parts.
        engine = Engine(lm.model, EngineLimits(step_tokens=2048))

        def fill(blanks: Sequence[Blank]) -> list[list[int]]:
            jobs = []
            for blank in blanks:
                params = GenerationParams(
                    max_new_tokens=_LONGEST[blank.kind], forbidden=white if blank.kind == "single_token" else ()
                )
                row = [lm.special.require("cls"), *blank.window[: blank.start], lm.special.mask]
                jobs.append(FillJob([*row, *blank.window[blank.end :]], params, lm.config, lm.special))
            engine.run_all(jobs, rows=engine.limits.rows)
            return [job.spans[0] for job in jobs]

        return fill

    def _tokenized(self, modules: Sequence[Module]) -> list[Tokenized]:
        return tokenize_texts(self.tokenizer, [(module.name, module.text) for module in modules], self.spelled)
