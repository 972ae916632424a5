"""Beam search over one prompt: the bookkeeping on log-probabilities, and the job that runs it.

Legend: K beams, E of them that exist, V vocabulary rows, N tokens of the answers so far, L tokens of prompt and answer,
M rows of logits.
Source: `huggingface/transformers:generation/beam_search.py` (up to 4.35) and its successor in `generation/utils.py`,
whose results `GenerationParams.beam_length` tells apart: "row" is the former, "answer" the latter.
With a temperature the continuations are drawn (multinomial beam sampling): THUDM/GLM's and PaddleNLP's `select_topk`
False, transformers' `do_sample` with beams.
Different on purpose: beams that cannot exist (fewer continuations than beams) are dropped, not scored at -1e9.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from heapq import heappush, heapreplace

import torch
from torch import Tensor

from glmkit.config import GLMConfig
from glmkit.generate.detokenize import MakeDetokenizer
from glmkit.generate.engine.job import Branch
from glmkit.generate.outputs import Answer, Ended, Listener, Piece
from glmkit.generate.params import GenerationParams
from glmkit.generate.penalties import process
from glmkit.generate.prompt import Prompt, max_answer_tokens
from glmkit.generate.sampling import draw_beams

from .decoding import Bounds


@dataclass(frozen=True, order=True)
class _Finished:
    score: float
    age: int  # the earlier of two equal scores is the better: larger is earlier
    ids: tuple[int, ...]
    stop_id: int | None


class Beams:
    """The open and the finished beams of one prompt.

    Until `done`: `advance` by the log-probabilities of K rows, reorder those rows of the cache by `parents_K`, feed
    them the `newest` tokens.
    """

    def __init__(
        self, params: GenerationParams, num_prompt: int, stops: Collection[int], device: torch.device | None = None
    ) -> None:
        """num_prompt: tokens of the prompt as given, padding included; beam_length "row" counts them."""
        self._params, self._stops = params, frozenset(stops)
        self._prompt = num_prompt
        self._base = num_prompt if params.beam_length == "row" else 0
        self._finished: list[_Finished] = []  # a heap, the worst first
        self._age = 0
        size = params.num_beams
        self.answer_KN = torch.empty(size, 0, dtype=torch.long, device=device)
        # All beams start alike: only the first may be continued.
        self.scores_K = torch.full((size,), -torch.inf, device=device)
        self.scores_K[0] = 0.0
        self.parents_K = torch.zeros(size, dtype=torch.long, device=device)
        self.done = False

    def newest(self) -> list[int]:
        """The last token of every open beam; that of beams that do not exist means nothing."""
        newest: list[int] = self.answer_KN[:, -1].tolist()
        return newest

    def advance(self, log_p_KV: Tensor) -> None:
        """Take one step by processed log-probabilities, fp32, -inf for tokens that must not come.

        The likeliest continuations are taken, or with a temperature drawn.
        """
        assert not self.done, "nothing is left to continue"
        params, size, vocabulary = self._params, *log_p_KV.shape
        length = self.answer_KN.shape[1] + 1
        # Enough that K open beams are left when every better candidate ends.
        keep = min(max(2, 1 + len(self._stops)) * size, size * vocabulary)
        if params.greedy:
            scores, flat = (self.scores_K[:, None] + log_p_KV).flatten().topk(keep)
        else:
            scores, flat = draw_beams(log_p_KV, self.scores_K, params.sampling, self._prompt + length - 1, keep)
        last = length == params.max_new_tokens
        running: list[tuple[float, int, int]] = []
        values = scores.tolist()
        for rank, (score, index) in enumerate(zip(values, flat.tolist(), strict=True)):
            if score == -torch.inf:
                break
            parent, token = divmod(index, vocabulary)
            ends = token in self._stops
            if ends or (last and params.beam_length == "answer"):
                if rank < size:
                    self._finish(score, self.answer_KN[parent].tolist(), token, ends)
            elif len(running) < size:
                running.append((score, parent, token))
        best = values[0] if params.beam_length == "row" else (running[0][0] if running else -torch.inf)
        self.done = self._cannot_improve(best, length) or not running
        if last and not self.done:
            for score, parent, token in running:
                self._finish(score, self.answer_KN[parent].tolist(), token, False)
        self.done |= last
        if not (running or self._finished):  # nothing may come: the open beams end where they are, as answers do
            for score, row in zip(self.scores_K.tolist(), self.answer_KN.tolist(), strict=True):
                if score > -torch.inf:
                    self._keep(score, row, None, self._base + length - 1)
        self._continue(running)

    def answers(self) -> list[Answer]:
        """The best finished beams, best first; fewer than num_return_sequences where fewer exist."""
        best = sorted(self._finished, reverse=True)[: self._params.num_return_sequences]
        return [
            Answer(list(item.ids), "length" if item.stop_id is None else "stop", item.stop_id, score=item.score)
            for item in best
        ]

    def _finish(self, score: float, row: list[int], token: int, ends: bool) -> None:
        ids = row if ends else [*row, token]
        length = self._base + (len(ids) if self._params.beam_length == "row" else len(row) + 1)
        self._keep(score, ids, token if ends else None, length)

    def _keep(self, score: float, ids: list[int], stop_id: int | None, length: int) -> None:
        self._age -= 1
        item = _Finished(score / max(1, length) ** self._params.length_penalty, self._age, tuple(ids), stop_id)
        if len(self._finished) < self._params.num_beams:
            heappush(self._finished, item)
        elif item.score > self._finished[0].score:
            heapreplace(self._finished, item)

    def _cannot_improve(self, best: float, length: int) -> bool:
        params = self._params
        if len(self._finished) < params.num_beams:
            return False
        if params.early_stopping is True:
            return True
        if params.early_stopping == "never" and params.length_penalty > 0:
            length = params.max_new_tokens
        attainable: float = best / (self._base + length) ** params.length_penalty
        return self._finished[0].score >= attainable

    def _continue(self, running: list[tuple[float, int, int]]) -> None:
        device, missing = self.scores_K.device, self._params.num_beams - len(running)
        running = running + [(-torch.inf, 0, 0)] * missing
        scores, parents, tokens = zip(*running, strict=True)
        self.scores_K = torch.tensor(scores, device=device)
        self.parents_K = torch.tensor(parents, device=device)
        chosen_K1 = torch.tensor(tokens, device=device)[:, None]
        self.answer_KN = torch.cat([self.answer_KN[self.parents_K], chosen_K1], 1)


class BeamsJob:
    """Reads the prompt once; then every beam is a sequence. The listener is told of the best ones at the end."""

    def __init__(
        self,
        prompt: Prompt,
        params: GenerationParams,
        config: GLMConfig,
        *,
        detokenizer: MakeDetokenizer | None = None,
        listener: Listener | None = None,
    ) -> None:
        """Arguments as of `AnswersJob`. Raises RequestError for a prompt that leaves no room."""
        self.listener, self.adapter = listener, prompt.adapter
        self._params = replace(params, max_new_tokens=max_answer_tokens(prompt, params))
        self.prompt_tokens = len(prompt.ids)
        self.max_sequences, self.spare_rows = int(params.num_beams), 0
        self.max_sequence_tokens = len(prompt.ids) + self._params.max_new_tokens - 1  # the last one is never fed
        self.answers: list[Answer] = []
        self._prompt, self._vocab_size = prompt, config.vocab_size
        self._detokenizer = detokenizer
        self._beams: Beams | None = None
        self._bounds: Bounds | None = None
        self._given_1L = torch.tensor([prompt.given])
        self._existing_E = torch.zeros(1, dtype=torch.long)  # the beams that the sequences of the last step belong to

    def start(self) -> Sequence[Branch]:
        """Begin, as `Job` has it."""
        prompt = self._prompt
        return [Branch(prompt.ids, prompt.positions.at(0, len(prompt.ids)), part_a=prompt.part_a)]

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        """Go on, as `Job` has it."""
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
        if rows < self.max_sequences:
            none_KV = scores_EV.new_full((self.max_sequences, scores_EV.shape[1]), -torch.inf)
            scores_EV = none_KV.index_copy_(0, existing_E, scores_EV)
        beams.advance(scores_EV)
        if beams.done:
            self._end(beams)
            return []
        return self._branches(beams)

    def _branches(self, beams: Beams) -> list[Branch]:
        sequence_of = {beam: index for index, beam in enumerate(self._existing_E.tolist())}
        self._existing_E = (beams.scores_K > -torch.inf).nonzero()[:, 0].cpu()
        tokens, parents = beams.newest(), beams.parents_K.tolist()
        start = self.prompt_tokens + beams.answer_KN.shape[1] - 1
        positions = self._prompt.positions.at(start, start + 1)
        return [Branch([tokens[beam]], positions, sequence_of[parents[beam]]) for beam in self._existing_E.tolist()]

    def _end(self, beams: Beams) -> None:
        """Make the texts of the best beams, and tell of them as of answers that were written one after the other."""
        tell = self.listener or (lambda _: None)
        for number, answer in enumerate(beams.answers()):
            detokenizer = None if self._detokenizer is None else self._detokenizer()
            texts = []
            for token in answer.ids:
                texts.append("" if detokenizer is None else detokenizer.push(token))
                tell(Piece(number, texts[-1], (token,)))
            if detokenizer is not None:
                if rest := detokenizer.flush():
                    tell(Piece(number, rest))
                answer = replace(answer, text="".join([*texts, rest]))
            tell(Ended(number, answer))
            self.answers.append(answer)
