"""One engine for everything that is generated: it feeds jobs' rows through the model together and keeps their cache."""

from collections import deque
from collections.abc import Generator, Iterable
from typing import Literal, TypeVar

import torch
from torch import Tensor

from glmkit.devices import available_memory
from glmkit.errors import RequestError
from glmkit.memory import require_memory
from glmkit.model import GLM
from glmkit.model.paged import PagedCache

from .blocks import BlockPool
from .job import Branch, Job
from .limits import EngineCounters, EngineLimits
from .lock import FairLock
from .runner import Runner
from .scheduler import Scheduler
from .sequence import Growth, Task

TicketState = Literal["waiting", "running", "done", "failed", "cancelled"]


class Ticket:
    """What has become of a submitted job. error: why it failed."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.error: BaseException | None = None
        self.task = Task(job.max_rows, job.max_row_tokens, self)
        self.ended: Literal["done", "failed", "cancelled"] | None = None

    @property
    def state(self) -> TicketState:
        """Waiting also means: put off, because others needed its place in the cache."""
        return self.ended or ("running" if self.task.running else "waiting")

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.ended is not None

    @property
    def reused_tokens(self) -> int:
        """Tokens of its prompts that were found in the cache."""
        return self.task.reused


class Engine:
    """Runs jobs (`glmkit.generate.job`) together, step by step, on one model and one cache. Safe to use from threads.

    Every step is one pass over all rows that are being written and over parts of prompts that wait. Rows share the
    blocks of what they have in common, also with rows that are gone. What a job gets does not depend on the others.
    """

    def __init__(self, model: GLM, limits: EngineLimits | None = None, *, allocate: bool = False) -> None:
        """allocate: take the memory of the whole budget now (a server); else it grows by doubling, as needed.

        Raises RequestError when memory does not hold the budget.
        """
        token_bytes = PagedCache.token_bytes(model.config, model.dtype, model.kv_heads)
        free = available_memory(model.device)
        self.model = model
        self.limits = (limits or EngineLimits()).resolved(model.config, token_bytes, free)
        what = f"a cache of {self.limits.tokens} tokens"
        require_memory(self.cache_bytes, model.device, what, "give the engine fewer tokens")
        self.counters = EngineCounters()
        self._live: dict[Ticket, None] = {}  # in order of arrival
        self._dropped: list[Ticket] = []  # to be cancelled when the step is over
        self._advancing = False
        self._lock = FairLock()
        self._runner = Runner(model, self.limits.block, self.limits.blocks, allocate=allocate)
        self._begin_anew()

    def _begin_anew(self) -> None:
        pool = BlockPool(self._runner.first, self.limits.blocks)
        self._scheduler = Scheduler(self.limits, pool, self._start, self.counters)

    # --- jobs come and go ---

    def submit(self, job: Job) -> Ticket:
        """Let a job wait for its turn. Raises RequestError when it can never fit: too many rows or tokens."""
        rows, tokens, limits = job.max_rows, job.max_row_tokens, self.limits
        if rows > limits.rows:
            raise RequestError(
                f"{rows} answers or beams at once are more than this engine's {limits.rows} rows; ask for fewer",
                param="max_rows",
            )
        # Rows may share all but their last block.
        if -(-tokens // limits.block) + rows - 1 > limits.blocks:
            raise RequestError(
                f"{rows} x {tokens} tokens do not fit this engine's cache of {limits.tokens}; shorten the prompt, "
                f"ask for fewer tokens, or give the engine more",
                code="context_length_exceeded",
            )
        ticket = Ticket(job)
        with self._lock:
            self._live[ticket] = None
            self._scheduler.add(ticket.task)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Stop a job and free what it has; nothing happens when it is over."""
        if self._lock.mine and not self._advancing:
            # In the middle of this thread's own step: an iterator that nobody has any more was collected as garbage.
            self._dropped.append(ticket)
            return
        with self._lock:
            self._drop(ticket)

    def _drop(self, *tickets: Ticket) -> None:
        try:
            for ticket in tickets:
                if not ticket.over:
                    self._end(ticket, "cancelled")
        except BaseException:  # interrupted
            self._recover()
            raise

    def _drop_late(self) -> None:
        while self._dropped:
            self._drop(self._dropped.pop())

    def run(self, *tickets: Ticket) -> None:
        """Step until these are over. Raises the error of the first one that fails; the others are cancelled then.

        Whatever interrupts it (KeyboardInterrupt too) cancels them all.
        """
        try:
            while True:
                left = False
                for ticket in tickets:
                    if ticket.error is not None:
                        raise ticket.error
                    left = left or not ticket.over
                if not left:
                    return
                moved = self.step()
                assert moved or all(ticket.over for ticket in tickets), "jobs wait and nothing can move"
        except BaseException:
            for ticket in tickets:
                self.cancel(ticket)
            raise

    def reset(self) -> None:
        """Forget every cached prefix: needed when weights change. Raises RequestError while jobs run or wait."""
        with self._lock:
            if self.running or self.waiting:
                raise RequestError(
                    f"{self.running} jobs run and {self.waiting} wait; let them end or cancel them before a reset"
                )
            self._runner.reset()
            self._begin_anew()

    def reread(self) -> None:
        """As `reset`, but jobs that run go on: what they have so far is read again, by the weights as they are now."""
        with self._lock:
            self._runner.reset()
            self._recover()

    # --- what is going on ---

    @property
    def cache_bytes(self) -> int:
        """Memory of the whole budget, in the type that the model has now."""
        token = PagedCache.token_bytes(self.model.config, self.model.dtype, self.model.kv_heads)
        return token * self.limits.blocks * self.limits.block

    @property
    def waiting(self) -> int:
        """Jobs that have no rows in the cache yet, or none any more."""
        with self._lock:
            self._drop_late()
            return len(self._scheduler.waiting)

    @property
    def running(self) -> int:
        """Jobs with rows in the cache."""
        with self._lock:
            self._drop_late()
            return len(self._scheduler.running)

    @property
    def rows(self) -> int:
        """Rows of running jobs."""
        with self._lock:
            self._drop_late()
            return self._scheduler.rows

    @property
    def free_tokens(self) -> int:
        """What the cache can still take; tokens that are only kept to be found again count as free."""
        with self._lock:
            self._drop_late()
            return self._scheduler.pool.available * self.limits.block

    # --- a step ---

    @torch.inference_mode()
    def step(self) -> bool:
        """One pass through the model, then every job whose rows are all fed goes on. False: nothing was there to do.

        An error in a job ends that job. One in the pass (no memory) ends the jobs of the pass, with a RequestError.
        """
        with self._lock:
            self._drop_late()
            if not self._live:
                return False
            try:
                self._pass()
                self._drop_late()
            except BaseException:  # interrupted, anywhere
                self._recover()
                raise
            return True

    def _pass(self) -> None:
        plan = self._scheduler.plan()
        for task in plan.impossible:
            self._end(task.owner, "failed", self._too_small(task))
        if not plan.feeds:
            return
        try:
            outputs = self._runner.forward(plan)
        except Exception as error:
            self._scheduler.undo(plan)
            what = str(error).split("\n", 1)[0]
            for task in {id(feed.task): feed.task for feed in plan.feeds}.values():
                failure = RequestError(f"a pass of {plan.tokens} tokens in {len(plan.feeds)} rows failed: {what}")
                failure.__cause__ = error
                self._end(task.owner, "failed", failure)
            return
        for feed, logits in outputs:
            if logits is not None:
                feed.row.outputs.append(logits)
        for task in self._scheduler.commit(plan):
            if task.running:
                self._advance(task.owner)

    def _start(self, task: Task) -> bool:
        """The first rows of a task; False when it is over."""
        ticket: Ticket = task.owner
        self._ask(ticket, None)
        if not ticket.over and self._scheduler.worst_blocks(task) > self.limits.blocks:
            self._end(ticket, "failed", self._too_small(task))
        return not ticket.over

    def _advance(self, ticket: Ticket) -> None:
        logits_MV = []
        for row in ticket.task.rows:
            logits_MV.append(row.outputs[0] if len(row.outputs) == 1 else torch.cat(row.outputs))
            row.outputs = []
        self._ask(ticket, logits_MV)

    def _ask(self, ticket: Ticket, logits_MV: list[Tensor] | None) -> None:
        """Let a job say what comes next, and end it when that is nothing, or an error."""
        job = ticket.job
        try:
            if logits_MV is None:
                branches = job.start()
            else:  # its listener may cancel it, or others
                before, self._advancing = self._advancing, True
                try:
                    branches = job.advance(logits_MV)
                finally:
                    self._advancing = before
            growths = [self._growth(ticket.task, branch) for branch in branches]
            assert len(growths) <= job.max_rows, f"{len(growths)} rows, {job.max_rows} were announced"
        except Exception as error:
            if not ticket.over:
                self._end(ticket, "failed", error)
            return
        except BaseException as error:
            self._interrupted(ticket, error)
            raise
        if ticket.over:  # its listener cancelled it
            return
        if not growths:
            self._end(ticket, "done")
            return
        try:
            self._scheduler.grow(ticket.task, growths)
        except BaseException as error:  # interrupted: half of the rows have grown, and nobody knows which
            self._interrupted(ticket, error)
            raise

    def _interrupted(self, ticket: Ticket, error: BaseException) -> None:
        """The job cannot go on, as nobody knows how far it came; `_recover` does the rest."""
        if not ticket.over:
            self._live.pop(ticket, None)
            ticket.ended, ticket.error = "failed", RequestError(f"interrupted by {type(error).__name__}; ask again")
            ticket.error.__cause__ = error

    def _growth(self, task: Task, branch: Branch) -> Growth:
        """A branch in plain numbers. Raises RequestError for ids and places that the model does not have."""
        tokens, places, config = branch.tokens, branch.places_2T.tolist(), self.model.config
        length = len(tokens)
        assert [len(places), len(places[0]), length > 0] == [2, length, True], "each token has two places"
        assert 0 <= branch.logits <= length, f"logits of {branch.logits} of {length} tokens"
        assert branch.parent is None or branch.part_a == 0, "a part A begins a row"
        if min(tokens) < 0 or max(tokens) >= config.vocab_size:
            wrong = next(token for token in tokens if not 0 <= token < config.vocab_size)
            raise RequestError(f"id {wrong} is outside the vocabulary of {config.vocab_size} rows")
        if config.positions == "learned_2d":
            low, high = min(map(min, places)), max(map(max, places))
            if low < 0 or high > config.max_positions:
                raise RequestError(
                    f"positions {low} to {high} are outside this model's 0 to {config.max_positions}; shorten the text"
                )
        before = 0 if branch.parent is None else len(task.rows[branch.parent].tokens)
        assert 0 <= branch.dropped <= before, f"{branch.dropped} of {before} tokens dropped"
        after = before - branch.dropped + length
        assert after <= task.max_row_tokens, f"{after} tokens, {task.max_row_tokens} were announced"
        return Growth(tokens, places, branch.parent, branch.dropped, branch.part_a, branch.logits)

    def _end(
        self, ticket: Ticket, ended: Literal["done", "failed", "cancelled"], error: BaseException | None = None
    ) -> None:
        self._live.pop(ticket, None)
        ticket.ended, ticket.error = ended, error
        self._scheduler.remove(ticket.task)

    def _too_small(self, task: Task) -> RequestError:
        return RequestError(
            f"{task.max_rows} x {task.max_row_tokens} tokens do not fit this engine's cache of {self.limits.tokens}; "
            f"ask for fewer or shorter answers, or give the engine more tokens",
            code="context_length_exceeded",
        )

    def _recover(self) -> None:
        """After an interruption nothing is known of the cache: everybody waits and will be read again."""
        self._begin_anew()
        pool = self._scheduler.pool
        pool.stale.update(range(pool.first, pool.first + pool.count))
        for ticket in self._live:
            ticket.task.forget_blocks()
            ticket.task.begun = bool(ticket.task.rows)
            self._scheduler.add(ticket.task)


# --- FOLDED generate/listening
# Running jobs on an engine: one whose events are taken as they come, or many to their end.


Heard = TypeVar("Heard")


def listen(engine: Engine, job: Job, heard: deque[Heard]) -> Generator[Heard]:
    """Run a job whose listener puts what it hears into `heard`, and give it on.

    The engine makes a step only when somebody waits for an event, but then all of its jobs go on. Closing or dropping
    the iterator cancels the job and frees its rows. Raises what ended the job.
    """
    ticket = engine.submit(job)
    try:
        while True:
            over = ticket.over  # asked first: another thread may make the step that ends the job
            while heard:
                yield heard.popleft()
            if over:
                break
            engine.step()
    finally:
        engine.cancel(ticket)
    if ticket.error is not None:
        raise ticket.error


def run_all(engine: Engine, jobs: Iterable[Job], *, rows: int = 64) -> None:
    """Run jobs to their end, `rows` rows of them at a time or one job that has more, in their order.

    Raises the first error, and cancels the others.
    """
    tickets: list[Ticket] = []
    try:
        waiting = iter(jobs)
        job = next(waiting, None)
        while job is not None or tickets:
            while job is not None and sum(ticket.job.max_rows for ticket in tickets) <= max(rows - job.max_rows, 0):
                tickets.append(engine.submit(job))
                job = next(waiting, None)
            engine.step()
            for ticket in tickets:
                if ticket.error is not None:
                    raise ticket.error
            tickets = [ticket for ticket in tickets if not ticket.over]
    finally:
        for ticket in tickets:
            engine.cancel(ticket)
