"""The steps of an engine, without threads: jobs are begun, fed, asked for more, and ended."""

import torch
from torch import Tensor

from glmkit.adapters.named import unknown_adapter
from glmkit.devices import available_memory
from glmkit.errors import RequestError
from glmkit.memory import require_memory
from glmkit.model import GLM
from glmkit.model.paged import PagedCache

from .blocks import BlockPool
from .job import Branch, Job
from .limits import EngineCounters, EngineLimits, Snapshot
from .runner import Runner
from .scheduler import Scheduler
from .sequence import Plan
from .ticket import Ticket

# Sequences up to which a pass has room for rows that may be for nothing.
_FEW = 2


class EngineCore:
    """Runs jobs together, step by step, on one model and one cache. For one thread.

    Every step is one pass over all sequences that decode and over parts of prompts that wait. Sequences share the
    blocks of what they have in common, also with sequences that are gone. What a job gets does not depend on others.
    news: tickets that have something to tell since `take_news`.
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
        self._news: dict[Ticket, None] = {}
        self._runner = Runner(model, self.limits.block, self.limits.blocks, allocate=allocate)
        self._begin_anew()

    def _begin_anew(self) -> None:
        pool = BlockPool(self._runner.first, self.limits.blocks)
        self._scheduler = Scheduler(self.limits, pool, self._start, self.counters)

    @property
    def cache_bytes(self) -> int:
        """Memory of the whole budget, in the type that the model has now."""
        token = PagedCache.token_bytes(self.model.config, self.model.dtype, self.model.kv_heads)
        return token * self.limits.blocks * self.limits.block

    def check(self, job: Job) -> None:
        """Raise RequestError for a job that can never fit (too many sequences, tokens), and for an unknown adapter."""
        self._check_adapter(job)
        count, tokens, limits = job.max_sequences, job.max_sequence_tokens, self.limits
        if count > limits.rows:
            raise RequestError(
                f"{count} answers or beams at once are more than this engine's {limits.rows} rows; ask for fewer",
                param="max_rows",
            )
        # Sequences may share all but their last block.
        if -(-tokens // limits.block) + count - 1 > limits.blocks:
            raise RequestError(
                f"{count} x {tokens} tokens do not fit this engine's cache of {limits.tokens}; shorten the prompt, "
                f"ask for fewer tokens, or give the engine more",
                code="context_length_exceeded",
            )

    def submit(self, ticket: Ticket) -> Ticket:
        """Let a ticket with a job wait for its turn."""
        self._live[ticket] = None
        self._scheduler.add(ticket)
        try:
            self._check_adapter(ticket.job)
        except RequestError as error:  # taken away since the first look
            self._end(ticket, error)
        return ticket

    def _check_adapter(self, job: Job) -> None:
        if job.adapter is not None and job.adapter not in self.model.variants:
            raise unknown_adapter(job.adapter, self.model.variants)

    def remove(self, ticket: Ticket) -> None:
        """Free what a ticket has; nothing happens when it is not here."""
        if ticket in self._live:
            del self._live[ticket]
            self._scheduler.remove(ticket)

    def reset(self) -> None:
        """Forget every cached prefix: needed when weights change. Raises RequestError while jobs run or wait."""
        running, waiting = len(self._scheduler.running), len(self._scheduler.waiting)
        if running or waiting:
            raise RequestError(f"{running} jobs run and {waiting} wait; let them end or cancel them before a reset")
        self.reread()

    def reread(self) -> None:
        """Forget all that is cached: what jobs have so far is read again, by the weights as they are now."""
        self._runner.reset()
        self._begin_anew()
        for ticket in self._live:
            ticket.running = False
            for sequence in ticket.sequences:
                sequence.forget_blocks()
            self._scheduler.add(ticket)

    def exchange(self, model: GLM) -> None:
        """Go on with another joined model (`model.routing.route`) of the same base, as `reread` does.

        Raises RequestError while jobs of an adapter that it does not have run or wait.
        """
        gone = {name for name in self.model.variants if name not in model.variants}
        if used := sorted({str(ticket.job.adapter) for ticket in self._live if ticket.job.adapter in gone}):
            count = sum(ticket.job.adapter in used for ticket in self._live)
            raise RequestError(
                f"{count} requests run by the adapter {', '.join(used)}", step="let them end, or cancel them"
            )
        self.model = model
        self._runner.exchange(model)
        self.reread()

    def snapshot(self) -> Snapshot:
        """The counts between two steps."""
        scheduler = self._scheduler
        return Snapshot(
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            rows=scheduler.sequences,
            free_tokens=scheduler.pool.available * self.limits.block,
            counters=EngineCounters(**vars(self.counters)),
        )

    def take_news(self) -> list[Ticket]:
        """The tickets that have told something, or are over, since the last time."""
        news = list(self._news)
        self._news.clear()
        return news

    # --- a step ---

    @torch.inference_mode()
    def step(self) -> bool:
        """One pass through the model; then every job whose sequences are all fed goes on. False: nothing can move.

        An error in a job ends that job. One in the pass (no memory) ends the jobs of the pass, with a RequestError.
        """
        for ticket in tuple(self._live):
            if ticket.over:  # cancelled
                self.remove(ticket)
        before = len(self._live)
        if all(ticket.held for ticket in self._live):
            return False
        plan = self._scheduler.plan()
        for ticket in self._scheduler.impossible:
            self._end(ticket, self._too_small(ticket))
        if plan.chunks:
            self._forward(plan)
        assert plan.chunks or len(self._live) < before, "jobs wait and nothing can move"
        return True

    def _forward(self, plan: Plan) -> None:
        try:
            logits = self._runner.forward(plan)
        except Exception as error:
            what = str(error).split("\n", 1)[0]
            for ticket in self._scheduler.undo():
                failure = RequestError(f"a pass of {plan.tokens} tokens in {len(plan.chunks)} rows failed: {what}")
                failure.__cause__ = error
                self._end(ticket, failure)
            return
        for ticket in self._scheduler.commit(logits):
            if not ticket.over:
                self._advance(ticket)

    def _start(self, ticket: Ticket) -> bool:
        """The first sequences of a ticket; False when it is over."""
        if not ticket.over:
            self._ask(ticket, None)
        if not ticket.over and self._scheduler.worst_blocks(ticket) > self.limits.blocks:
            self._end(ticket, self._too_small(ticket))
        if ticket.over:
            self.remove(ticket)
        return not ticket.over

    def _advance(self, ticket: Ticket) -> None:
        logits_MV = []
        for sequence in ticket.sequences:
            outputs, sequence.outputs = sequence.outputs, []
            logits_MV.append(outputs[0] if len(outputs) == 1 else torch.cat(outputs))
        self._ask(ticket, logits_MV)

    def _ask(self, ticket: Ticket, logits_MV: list[Tensor] | None) -> None:
        """Let a job say what comes next, and end it when that is nothing, or an error."""
        job = ticket.job
        try:
            job.spare_rows = self._spare_rows()
            branches = job.start() if logits_MV is None else job.advance(logits_MV)
            for branch in branches:
                self._check(ticket, branch)
            assert len(branches) <= job.max_sequences, f"{len(branches)} of {job.max_sequences} announced sequences"
        except Exception as error:
            self._end(ticket, error)
            return
        if ticket.has_news:
            self.counters.written_tokens += ticket.publish()
            self._news[ticket] = None
        if not branches:
            self._end(ticket)
        elif not ticket.over:  # the listener of its events may have cancelled it
            self._scheduler.grow(ticket, branches)

    def _spare_rows(self) -> int:
        """Tokens that each running sequence may feed ahead: while there are few, together as many rows as are alike."""
        count = sum(ticket.job.max_sequences for ticket in self._scheduler.running)
        return max(0, self._runner.alike // count - 1) if 0 < count <= _FEW else 0

    def _check(self, ticket: Ticket, branch: Branch) -> None:
        """Raise RequestError for ids and positions that the model does not have."""
        tokens, config = branch.tokens, self.model.config
        first, second = branch.positions
        length = len(tokens)
        assert length == len(first) == len(second) > 0, "each token has two positions"
        assert 0 <= branch.logits <= length, f"logits of {branch.logits} of {length} tokens"
        assert branch.parent is None or branch.part_a == 0, "a part A begins a sequence"
        assert len(branch.targets) in (0, branch.logits), "each token whose score is wanted has a target"
        if min(tokens) < 0 or max(tokens) >= config.vocab_size:
            wrong = next(token for token in tokens if not 0 <= token < config.vocab_size)
            raise RequestError(f"id {wrong} is outside the vocabulary of {config.vocab_size} rows")
        if config.positions == "learned_2d":
            low, high = min(*first, *second), max(*first, *second)
            if low < 0 or high > config.max_positions:
                raise RequestError(
                    f"positions {low} to {high} are outside this model's 0 to {config.max_positions}; shorten the text"
                )
        before = 0 if branch.parent is None else len(ticket.sequences[branch.parent].tokens)
        assert 0 <= branch.dropped <= before, f"{branch.dropped} of {before} tokens dropped"
        after, announced = before - branch.dropped + length, ticket.job.max_sequence_tokens
        assert after <= announced, f"{after} tokens, {announced} were announced"

    def _end(self, ticket: Ticket, error: BaseException | None = None) -> None:
        self.remove(ticket)
        if ticket.has_news:
            self.counters.written_tokens += ticket.publish()
        ticket.end("done" if error is None else "failed", error)
        if ticket.batch is not None:
            ticket.batch.open = False
        self._news[ticket] = None

    def _too_small(self, ticket: Ticket) -> RequestError:
        job = ticket.job
        return RequestError(
            f"{job.max_sequences} x {job.max_sequence_tokens} tokens do not fit this engine's cache of "
            f"{self.limits.tokens}; ask for fewer or shorter answers, or give the engine more tokens",
            code="context_length_exceeded",
        )
