"""Greedy jobs for tests of the engine, and what they must give: the same on a plain cache of one row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from glmkit.generate.engine import EngineCore
from glmkit.generate.engine.job import Branch
from glmkit.model import GLM, KVCache
from glmkit.model.positions import infer_positions, infer_prefix

LOWEST = 11  # special ids do not come


def positions_of(model: GLM, prompt: Sequence[int], more: int) -> tuple[Tensor, int]:
    """(2,T+more) positions of a prompt and what follows, and the length of its part A."""
    config, ids = model.config, torch.tensor([prompt])
    prefix = infer_prefix(ids, config.special) if config.mask == "prefix" else torch.zeros(1, dtype=torch.long)
    filler = torch.full((1, more), 1)
    positions = infer_positions(torch.cat([ids, filler], 1), prefix, config)[0]
    return (positions.clamp_max(config.max_positions) if config.positions == "learned_2d" else positions), int(prefix)


def best(logits_V: Tensor, count: int = 1) -> list[int]:
    """The most likely ordinary tokens."""
    return logits_V.index_fill(0, torch.arange(LOWEST), -torch.inf).topk(count).indices.tolist()


@torch.inference_mode()
def plain(model: GLM, prompt: Sequence[int], count: int, begin: int | None = None) -> tuple[list[int], Tensor]:
    """Tokens and (count,V) logits on a contiguous cache; the first token is the `begin`-th best instead of the best."""
    positions, part_a = positions_of(model, prompt, count)
    cache = KVCache(model.config, 1, len(prompt) + count, dtype=model.dtype, device=model.device)
    fed, answer, seen = list(prompt), list[int](), []
    for step in range(count):
        at = cache.length
        logits = model(
            torch.tensor([fed]),
            position_ids=positions[None, :, at : at + len(fed)],
            prefix_length=torch.tensor([part_a]) if step == 0 else None,
            cache=cache,
            logits_at="last",
        )[0]
        answer.append(best(logits, 1 + (begin or 0))[-1] if step == 0 else best(logits)[0])
        seen.append(logits)
        fed = answer[-1:]
    return answer, torch.stack(seen)


class Greedy:
    """`count` tokens after a prompt. `logits` keeps what each was chosen from.

    copies: so many rows go on from the prompt, with the best, second best, ... first token. draft: what the answer is
    guessed to be; three tokens of it are fed ahead in every step, and taken back where they are wrong.
    """

    listener = None
    spare_rows = 0
    adapter = None

    def __init__(
        self,
        model: GLM,
        prompt: Sequence[int],
        count: int,
        *,
        copies: int = 1,
        draft: Sequence[int] = (),
        fail_at: int | None = None,
    ) -> None:
        positions, self.part_a = positions_of(model, prompt, count + 3)
        self.positions: list[list[int]] = positions.tolist()
        self.prompt, self.count = list(prompt), count
        self.max_sequences, self.max_sequence_tokens = copies, len(prompt) + count + (3 if draft else 0)
        self.answers: list[list[int]] = [[] for _ in range(copies)]
        self.logits: list[list[Tensor]] = [[] for _ in range(copies)]
        self.steps = 0
        self._draft, self._fail_at = list(draft), fail_at
        self._fed: list[list[int]] = []

    def start(self) -> Sequence[Branch]:
        return [Branch(self.prompt, self.at(0, len(self.prompt)), part_a=self.part_a)]

    def advance(self, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        self.steps += 1
        if self.steps == self._fail_at:
            raise ValueError("this job fails")
        if self.steps == 1:
            assert [logits.shape[0] for logits in logits_MV] == [1]
            for number, token in enumerate(best(logits_MV[0][0], len(self.answers))):
                self._take(number, token, logits_MV[0][0])
            return self._branches([0] * len(self.answers), [0] * len(self.answers))
        dropped = [self._check(number, logits_TV) for number, logits_TV in enumerate(logits_MV)]
        return self._branches(range(len(logits_MV)), dropped)

    def at(self, start: int, stop: int) -> tuple[list[int], list[int]]:
        """Both rows of positions of these tokens."""
        first, second = self.positions
        return first[start:stop], second[start:stop]

    def _take(self, number: int, token: int, logits_V: Tensor) -> None:
        self.answers[number].append(token)
        self.logits[number].append(logits_V.clone())

    def _check(self, number: int, logits_TV: Tensor) -> int:
        """Take tokens as long as the guesses were right; returns how many were not."""
        guesses = self._fed[number][1:]
        for right, logits_V in enumerate(logits_TV):
            if len(self.answers[number]) == self.count:
                return 0
            token = best(logits_V)[0]
            self._take(number, token, logits_V)
            if right == len(guesses) or guesses[right] != token:
                return len(guesses) - right
        raise AssertionError("as many logits as tokens")

    def _branches(self, parents: Sequence[int], dropped: Sequence[int]) -> list[Branch]:
        if len(self.answers[0]) == self.count:
            return []
        self._fed, branches = [], []
        for answer, parent, back in zip(self.answers, parents, dropped, strict=True):
            tokens = [answer[-1], *self._draft[len(answer) : len(answer) + 3]]
            at = len(self.prompt) + len(answer) - 1
            self._fed.append(tokens)
            branches.append(Branch(tokens, self.at(at, at + len(tokens)), parent, back, logits=len(tokens)))
        return branches


def check_blocks(core: EngineCore) -> None:
    """Every block is free, cached or referenced exactly as counted, and every sequence has a slot."""
    scheduler, table = core._scheduler, core._runner._table
    running = [sequence for ticket in scheduler.running for sequence in ticket.sequences]
    scheduler.pool.check(sequence.blocks for sequence in running)
    assert all(not sequence.blocks for ticket in scheduler.waiting for sequence in ticket.sequences)
    assert sorted([sequence.slot for sequence in running] + scheduler._slots) == list(range(core.limits.rows))
    for sequence in running:  # the runner was told of them in parts
        if sequence.synced:
            own = table[sequence.slot, core._runner._front :][: sequence.synced]
            assert own.tolist() == sequence.blocks[: sequence.synced]


def check_empty(core: EngineCore) -> None:
    """Nobody is there and everything can be taken."""
    check_blocks(core)
    now = core.snapshot()
    assert (now.waiting, now.running, now.rows) == (0, 0, 0)
    assert now.free_tokens == core.limits.tokens


def check_answers(model: GLM, job: Greedy) -> None:
    """What the job got is what a plain cache gives: the same tokens, logits within 1e-5 of the largest."""
    for number, (answer, logits) in enumerate(zip(job.answers, job.logits, strict=True)):
        tokens, expected = plain(model, job.prompt, job.count, number)
        assert answer == tokens
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(torch.stack(logits), expected, rtol=0, atol=1e-5 * scale)
