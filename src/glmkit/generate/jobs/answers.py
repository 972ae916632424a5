"""Jobs for the answers to one prompt: greedy or sampled ones here, beams in `beam_search`.

Legend: M tokens of a branch whose logits are there, V vocabulary rows.
"""

from collections.abc import Generator, Sequence
from contextlib import closing

import torch
from torch import Tensor

from glmkit.config import GLMConfig
from glmkit.errors import RequestError
from glmkit.generate.detokenize import MakeDetokenizer
from glmkit.generate.engine import Engine, Ticket
from glmkit.generate.engine.job import Branch
from glmkit.generate.engine.ticket import MAX_UNREAD
from glmkit.generate.outputs import Answer, Listener, Piece
from glmkit.generate.params import GenerationParams
from glmkit.generate.prompt import Prompt, max_answer_tokens

from .beam_search import BeamsJob
from .decoding import AnswerDecoder, Bounds, check_stops, likeliest
from .prompt_lookup import Lookup


class AnswersJob:
    """Reads the prompt once and writes `params.n` answers behind it, each on a sequence of its own.

    drafted, accepted: tokens guessed ahead (`params.prompt_lookup`) for finished answers, and how many of them came.
    """

    def __init__(
        self,
        prompt: Prompt,
        params: GenerationParams,
        config: GLMConfig,
        *,
        detokenizer: MakeDetokenizer | None = None,
        listener: Listener | None = None,
    ) -> None:
        """detokenizer: makes one for each answer; without it answers are ids alone.

        Raises RequestError for beams, for stop texts without a detokenizer, and for a prompt that leaves no room.
        """
        if params.num_beams > 1:
            raise RequestError(f"num_beams is {params.num_beams}; take one beam, or use make_job", param="num_beams")
        check_stops(params, detokenizer)
        self.listener, self.adapter, self.spare_rows = listener, prompt.adapter, 0
        self.prompt_tokens = len(prompt.ids)
        self.max_sequences = int(params.n)
        self._max_tokens = max_answer_tokens(prompt, params)
        self.max_sequence_tokens = len(prompt.ids) + self._max_tokens - 1  # the last one is never fed
        self.drafted = self.accepted = 0
        self._prompt, self._params, self._vocab_size = prompt, params, config.vocab_size
        self._detokenizer = detokenizer
        self._plain = params.greedy and not params.penalises  # all choices of a step in one look
        self._done: dict[int, Answer] = {}
        self._decoders: list[tuple[int, AnswerDecoder]] = []  # (number of the answer, decoder) of each sequence

    @property
    def answers(self) -> list[Answer]:
        """The finished answers, by number; all of them once the job is over."""
        return [self._done[number] for number in sorted(self._done)]

    def start(self) -> Sequence[Branch]:
        """Begin, as `Job` has it."""
        prompt = self._prompt
        return [Branch(prompt.ids, prompt.positions.at(0, len(prompt.ids)), part_a=prompt.part_a)]

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        """Go on, as `Job` has it."""
        best = None
        if self._plain:
            flat = iter(likeliest(logits_MV[0] if len(logits_MV) == 1 else torch.cat(list(logits_MV))))
            best = [[next(flat) for _ in own_MV] for own_MV in logits_MV]
        forks = not self._decoders
        decoders = self._fork(logits_MV[0].device) if forks else self._decoders
        branches, self._decoders = [], []
        for index, (number, decoder) in enumerate(decoders):
            parent = 0 if forks else index
            decoder.take(logits_MV[parent], None if best is None else best[parent], spare=self.spare_rows)
            if decoder.answer is None:
                branches.append(self._branch(decoder, parent))
                self._decoders.append((number, decoder))
            else:
                self._done[number] = decoder.answer
                self.drafted += decoder.drafted
                self.accepted += decoder.accepted
        return branches

    def _fork(self, device: torch.device) -> list[tuple[int, AnswerDecoder]]:
        prompt, params = self._prompt, self._params
        bounds = Bounds.of(params, self._vocab_size, device, stops=prompt.stops, forbidden=prompt.forbidden)
        lookup = Lookup(prompt.ids, int(params.prompt_lookup_ngram)) if params.prompt_lookup else None
        return [
            (
                number,
                AnswerDecoder(
                    prompt.given,
                    params,
                    bounds,
                    number=number,
                    sampling=params.choice(number),
                    max_tokens=self._max_tokens,
                    detokenizer=None if self._detokenizer is None else self._detokenizer(),
                    listener=self.listener,
                    lookup=None if lookup is None else lookup.fork(),
                ),
            )
            for number in range(self.max_sequences)
        ]

    def _branch(self, decoder: AnswerDecoder, parent: int) -> Branch:
        tokens = [*decoder.unfed, *decoder.drafts]
        start = self.prompt_tokens + len(decoder.ids) - 1
        positions = self._prompt.positions.at(start, start + len(tokens))
        return Branch(tokens, positions, parent, decoder.dropped, logits=1 + len(decoder.drafts))


def text_pieces(engine: Engine, job: AnswersJob | BeamsJob) -> Generator[str]:
    """The text of a job's one answer, in pieces that no later token can change.

    Closing the iterator cancels the rest.
    """
    ticket = engine.submit(job, Ticket(events=True, max_unread=MAX_UNREAD))
    with closing(ticket.stream()) as events:
        for event in events:
            if isinstance(event, Piece) and event.text:
                yield event.text


def make_job(
    prompt: Prompt,
    params: GenerationParams,
    config: GLMConfig,
    *,
    detokenizer: MakeDetokenizer | None = None,
    listener: Listener | None = None,
) -> AnswersJob | BeamsJob:
    """The job that writes the answers to a prompt: beams where `num_beams` asks for them. Errors as of the jobs."""
    kind = BeamsJob if params.num_beams > 1 else AnswersJob
    return kind(prompt, params, config, detokenizer=detokenizer, listener=listener)
