"""Models that write what a test tells them, when it tells them: for looking at a server while it answers."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor

from glmkit.errors import RequestError
from glmkit.generate.engine.job import Branch
from glmkit.generate.jobs.answers import AnswersJob
from glmkit.session import LM

PATIENCE = 60.0


class Script:
    """`texts` in turn, one for each answer, a token at a time; each token needs a permit."""

    def __init__(self, lm: LM, texts: Sequence[str]) -> None:
        self._decode, self._first = lm.tokenizer.decode, lm.tokenizer.encode(texts[0])
        self._answers = iter([[*lm.tokenizer.encode(text), _stop(lm)] for text in texts])
        self._ids = WeakKeyDictionary[AnswersJob, Iterator[int]]()
        self._permits, self._permitted = threading.Semaphore(0), 0

    def let(self, tokens: int = 1_000_000) -> None:
        """Permit so many more tokens; all, unless told."""
        self._permitted += tokens
        self._permits.release(tokens)

    def let_until(self, beginning: str) -> None:
        """Permit the first answer until it reads like this."""
        ends = range(1, len(self._first) + 1)
        self.let(next(end for end in ends if self._decode(self._first[:end]).strip() == beginning) - self._permitted)

    def next_id(self, job: AnswersJob) -> int:
        """For the thread of the engine, which waits here for its permit."""
        if job not in self._ids:
            self._ids[job] = iter(next(self._answers))
        assert self._permits.acquire(timeout=PATIENCE), "nobody let the model write on"
        return next(self._ids[job])


def _stop(lm: LM) -> int:
    try:
        return lm.chat_template.stop_ids(lm.tokenizer)[0]  # type: ignore[arg-type]
    except RequestError:
        return lm.special.eop


@contextmanager
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Script]]:
    """Gives `write(lm, *texts)`: from then on every answer of one job is made of these texts. No beams, no drafts."""
    made: list[Script] = []
    advance = AnswersJob.advance

    def scripted(job: AnswersJob, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        token = made[-1].next_id(job)
        wanted_MV = [torch.full_like(own_MV, -30.0) for own_MV in logits_MV]
        for own_MV in wanted_MV:
            own_MV[:, token] = 30.0
        return advance(job, wanted_MV)

    def write(lm: LM, *texts: str) -> Script:
        made.append(Script(lm, texts))
        monkeypatch.setattr(AnswersJob, "advance", scripted)
        return made[-1]

    try:
        yield write
    finally:
        for script in made:
            script.let()
