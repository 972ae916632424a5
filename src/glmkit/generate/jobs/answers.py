"""The answers to one prompt, greedy or sampled, as a job of the engine.

Legend: M tokens of a branch whose logits are there, V vocabulary rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from glmkit.config import GLMConfig
from glmkit.errors import RequestError
from glmkit.generate.detokenize import TextReader
from glmkit.generate.engine.job import Branch
from glmkit.generate.outputs import Answer, Listener
from glmkit.generate.params import GenerationParams
from glmkit.generate.prompt import Prompt, max_answer_tokens

from .beam_search import BeamsJob
from .decoding import Bounds, GrowingAnswer, Heard, MakeReader, Writing, likeliest
from .prompt_lookup import Lookup


class AnswersJob:
    """Reads the prompt once and writes `params.n` answers behind it, each on a row of its own.

    drafted, accepted: tokens guessed ahead (`params.prompt_lookup`) for finished answers, and how many of them came.
    """

    def __init__(
        self,
        prompt: Prompt,
        params: GenerationParams,
        config: GLMConfig,
        *,
        reader: MakeReader | None = None,
        listener: Listener | None = None,
    ) -> None:
        """reader: makes what reads the text of one answer; without it answers are ids alone.

        Raises RequestError for beams, for stop texts without a reader, and for a prompt that leaves no room.
        """
        if params.num_beams > 1:
            raise RequestError(f"num_beams is {params.num_beams}; take one beam, or use make_job", param="num_beams")
        most = max_answer_tokens(prompt, params)
        self.prompt_tokens = len(prompt.ids)
        self.max_rows = int(params.n)
        self.max_row_tokens = len(prompt.ids) + most - 1  # the last one is never fed
        self.readers: list[TextReader] = []
        self.drafted = self.accepted = 0
        self._prompt, self._params, self._most, self._vocab_size = prompt, params, most, config.vocab_size
        self._heard: list[Heard] = []
        for number in range(self.max_rows):
            own = None if reader is None else reader()
            self.readers += [] if own is None else [own]
            self._heard.append(Heard(number, params.stop, own, listener))
        self._done: dict[int, Answer] = {}
        self._rows: list[tuple[int, Writing]] = []  # (number of the answer, the answer) for every row of the last step

    @property
    def answers(self) -> list[Answer]:
        """The finished answers, by number; all of them once the job is over."""
        return [self._done[number] for number in sorted(self._done)]

    def start(self) -> Sequence[Branch]:
        """As in `Job`."""
        prompt = self._prompt
        return [Branch(prompt.ids, torch.tensor(prompt.positions.at(0, len(prompt.ids))), part_a=prompt.part_a)]

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        """As in `Job`."""
        best = None
        if self._params.greedy and not self._params.penalises:
            flat = iter(likeliest(logits_MV[0] if len(logits_MV) == 1 else torch.cat(list(logits_MV))))
            best = [[next(flat) for _ in own_MV] for own_MV in logits_MV]
        forks = not self._rows
        if forks:
            self._rows = self._fork(logits_MV[0].device)
        branches, rows = [], []
        for index, (number, writing) in enumerate(self._rows):
            parent = 0 if forks else index
            writing.take(logits_MV[parent], None if best is None else best[parent])
            if writing.answer is None:
                branches.append(self._branch(writing, parent))
                rows.append((number, writing))
            else:
                self._done[number] = writing.answer
                self.drafted += writing.drafted
                self.accepted += writing.accepted
        self._rows = rows
        return branches

    def _fork(self, device: torch.device) -> list[tuple[int, Writing]]:
        prompt, params = self._prompt, self._params
        bounds = Bounds.of(params, self._vocab_size, device, stops=prompt.stops, forbidden=prompt.forbidden)
        most_drafts = int(params.prompt_lookup)
        lookup = Lookup(prompt.ids, int(params.prompt_lookup_ngram)) if most_drafts else None
        rows = []
        for number, heard in enumerate(self._heard):
            growing = GrowingAnswer(prompt.given, params, bounds, number=number, most=self._most)
            own = None if lookup is None else lookup.fork()
            rows.append((number, Writing(growing, heard, own, most_drafts=most_drafts)))
        return rows

    def _branch(self, writing: Writing, parent: int) -> Branch:
        tokens = [*writing.unfed, *writing.drafts]
        start = self.prompt_tokens + writing.size - 1
        positions_2T = torch.tensor(self._prompt.positions.at(start, start + len(tokens)))
        return Branch(tokens, positions_2T, parent, writing.dropped, logits=1 + len(writing.drafts))


# --- FOLDED generate/jobs/making
# The right job for a request.


def make_job(
    prompt: Prompt,
    params: GenerationParams,
    config: GLMConfig,
    *,
    reader: MakeReader | None = None,
    listener: Listener | None = None,
) -> AnswersJob | BeamsJob:
    """What writes the answers to a prompt: beams where `num_beams` asks for them. Errors as of the jobs."""
    kind = BeamsJob if params.num_beams > 1 else AnswersJob
    return kind(prompt, params, config, reader=reader, listener=listener)
