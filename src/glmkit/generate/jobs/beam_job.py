"""Beam search behind one prompt as a job of the engine; `beam.Beams` is its bookkeeping.

Legend: K beams, E of them that exist, V vocabulary rows, L tokens so far.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from glmkit.config import GLMConfig
from glmkit.generate.answer import Answer
from glmkit.generate.events import Listener
from glmkit.generate.job import Branch
from glmkit.generate.params import GenerationParams
from glmkit.generate.processors import process
from glmkit.generate.prompt import Prompt
from glmkit.generate.reading import TextReader

from .answers import most_tokens
from .beam import Beams
from .growing import Bounds
from .writing import Heard, MakeReader


class BeamsJob:
    """Reads the prompt once; then every beam is a row. Who listens hears of the best ones when the search is over."""

    def __init__(
        self,
        prompt: Prompt,
        params: GenerationParams,
        config: GLMConfig,
        *,
        reader: MakeReader | None = None,
        listener: Listener | None = None,
    ) -> None:
        """Arguments as of `AnswersJob`. Raises RequestError for a prompt that leaves no room."""
        self._params = replace(params, max_new_tokens=most_tokens(prompt, params))
        self.prompt_tokens = len(prompt.ids)
        self.max_rows = int(params.num_beams)
        self.max_row_tokens = len(prompt.ids) + self._params.max_new_tokens - 1  # the last one is never fed
        self.answers: list[Answer] = []
        self.readers: list[TextReader] = []
        self._prompt, self._vocab_size = prompt, config.vocab_size
        self._reader, self._listener = reader, listener
        self._beams: Beams | None = None
        self._bounds: Bounds | None = None
        self._given_1L = torch.tensor([prompt.given])
        self._existing_E = torch.zeros(1, dtype=torch.long)  # which beams the rows of the last step belong to

    def start(self) -> Sequence[Branch]:
        """As in `Job`."""
        prompt = self._prompt
        return [Branch(prompt.ids, prompt.places.at(0, len(prompt.ids)), part_a=prompt.part_a)]

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        """As in `Job`."""
        params, given = self._params, self._prompt.given
        if self._beams is None:
            device, stops, forbidden = logits_MV[0].device, self._prompt.stops, self._prompt.forbidden
            self._bounds = Bounds.of(params, self._vocab_size, device, stops=stops, forbidden=forbidden)
            self._beams = Beams(params, len(given), self._bounds.ends, device)
            self._given_1L = self._given_1L.to(device)
        beams, bounds = self._beams, self._bounds
        assert bounds is not None
        existing_E = self._existing_E.to(logits_MV[0].device)
        rows, length = len(existing_E), len(given) + beams.answer_KN.shape[1]
        if params.penalises:
            answers_EN = beams.answer_KN.index_select(0, existing_E)
            tokens_EL = torch.cat([self._given_1L.expand(rows, -1), answers_EN], 1)
        else:  # nobody looks at them, only at how many there are
            tokens_EL = self._given_1L[:, :1].expand(rows, length)
        log_p_EV = torch.log_softmax(torch.cat(list(logits_MV)).float(), dim=-1)
        scores_EV = process(log_p_EV, params, tokens_EL, len(given), stops=bounds.stops, forbidden=bounds.forbidden)
        if rows < self.max_rows:
            none_KV = scores_EV.new_full((self.max_rows, scores_EV.shape[1]), -torch.inf)
            scores_EV = none_KV.index_copy_(0, existing_E, scores_EV)
        beams.advance(scores_EV)
        if beams.done:
            self._end(beams)
            return []
        return self._branches(beams)

    def _branches(self, beams: Beams) -> list[Branch]:
        row_of = {beam: row for row, beam in enumerate(self._existing_E.tolist())}
        self._existing_E = (beams.scores_K > -torch.inf).nonzero()[:, 0].cpu()
        tokens, parents = beams.newest(), beams.parents_K.tolist()
        start = self.prompt_tokens + beams.answer_KN.shape[1] - 1
        place_21 = self._prompt.places.at(start, start + 1)
        return [Branch([tokens[beam]], place_21, row_of[parents[beam]]) for beam in self._existing_E.tolist()]

    def _end(self, beams: Beams) -> None:
        for number, answer in enumerate(beams.answers()):
            reader = None if self._reader is None else self._reader()
            self.readers += [] if reader is None else [reader]
            heard = Heard(number, (), reader, self._listener)
            for token in answer.ids:
                heard.token(token)
            self.answers.append(heard.end(answer))
