"""Choice of the sequences that go on in the next pass, and of those that give up their blocks.

Tickets run in order of arrival. A ticket that is held (its reader is behind) is not scheduled, and gives up its blocks
to any other.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

from torch import Tensor

from .blocks import BlockPool
from .job import Branch
from .limits import EngineCounters, EngineLimits
from .sequence import CachedSequence, Chunk, Plan
from .ticket import Ticket


class _Feed(NamedTuple):
    """Tokens [start, stop) of a sequence; logits of the last `wanted` are needed."""

    ticket: Ticket
    sequence: CachedSequence
    start: int
    stop: int
    wanted: int


@dataclass
class _Pass:
    """A pass that is being planned, and what must be undone when it fails.

    named: blocks whose content can be found from now on, though this pass writes it. impossible: tickets that will
    never have the blocks they need.
    """

    feeds: list[_Feed] = field(default_factory=list)
    copies: list[tuple[Ticket, int, int]] = field(default_factory=list)
    cleared: list[int] = field(default_factory=list)
    named: list[int] = field(default_factory=list)
    impossible: list[Ticket] = field(default_factory=list)
    read_tokens: int = 0

    def leave_out(self, ticket: Ticket) -> None:
        """Take a ticket out of the pass."""
        self.feeds = [feed for feed in self.feeds if feed.ticket is not ticket]
        self.copies = [copy for copy in self.copies if copy[0] is not ticket]


class Scheduler:
    """Tickets, the blocks of their sequences, and a plan for every pass."""

    def __init__(
        self, limits: EngineLimits, pool: BlockPool, begin: Callable[[Ticket], bool], counters: EngineCounters
    ) -> None:
        """begin: gives a ticket its first sequences (`grow`); False when it needs none or has failed: it is gone."""
        self.limits, self.pool, self.counters, self._begin = limits, pool, counters, begin
        self.waiting: deque[Ticket] = deque()
        self.running: list[Ticket] = []
        self._slots = list(range(limits.rows - 1, -1, -1))
        self._pass = _Pass()

    @property
    def sequences(self) -> int:
        """Sequences of running tickets."""
        return sum(len(ticket.sequences) for ticket in self.running)

    @property
    def impossible(self) -> list[Ticket]:
        """Tickets that the last plan found to need more blocks than there are."""
        return self._pass.impossible

    def worst_blocks(self, ticket: Ticket) -> int:
        """The most blocks it can need: full ones of a single first sequence are shared by all others."""
        block, job = self.limits.block, ticket.job
        shared = len(ticket.sequences[0].tokens) // block if len(ticket.sequences) == 1 else 0
        return shared + job.max_sequences * (-(-job.max_sequence_tokens // block) - shared)

    def add(self, ticket: Ticket) -> None:
        """Wait behind all others."""
        self.waiting.append(ticket)

    def remove(self, ticket: Ticket) -> None:
        """Give up everything it has; nothing happens when it is not there."""
        if ticket.running:
            self.running.remove(ticket)
            self._give_up(ticket)
        elif ticket in self.waiting:
            self.waiting.remove(ticket)
        ticket.sequences = []

    def grow(self, ticket: Ticket, branches: Sequence[Branch]) -> None:
        """The sequences of the next steps, of a ticket whose sequences are all fed: continued, or new."""
        # All children of a sequence but the last get copies; the last one takes it over.
        left = Counter(branch.parent for branch in branches)
        old = ticket.sequences
        for index, sequence in enumerate(old):
            if index not in left:
                self._drop(sequence)
        moved: set[int] = set()
        ticket.sequences = []
        for branch in branches:
            parent = branch.parent
            left[parent] -= 1
            if parent is None:
                first, second = branch.positions
                positions, adapter = ([*first], [*second]), ticket.job.adapter
                sequence = CachedSequence([*branch.tokens], positions, branch.part_a, branch.logits, adapter)
                sequence.targets = [*branch.targets]
                sequence.slot = self._slots.pop() if ticket.running else -1
            else:
                sequence = old[parent]
                if parent not in moved:
                    self.counters.drafted += sequence.drafts
                    self.counters.accepted += max(0, sequence.drafts - branch.dropped)
                    moved.add(parent)
                if left[parent]:
                    sequence = sequence.fork()
                    for block in sequence.blocks:
                        self.pool.share(block)
                    sequence.slot = self._slots.pop()
                if given_up := sequence.grow(branch, self.limits.block):
                    self.pool.release(given_up)
                # Given tokens are no decoding: many rows of them at once would have no bound.
                sequence.prefill = bool(branch.targets) or len(branch.tokens) > self.limits.step_tokens
            ticket.sequences.append(sequence)

    # --- one pass ---

    def plan(self) -> Plan:
        """The next pass. Blocks are taken here; `commit` counts what was read."""
        now = self._pass = _Pass()
        for ticket in tuple(self.running):
            if ticket.running and not ticket.held:
                self._decode(ticket, now)
        for ticket in tuple(self.running):
            if ticket.running and not ticket.held:
                self._prefill(ticket, now)
        for ticket in self._admitted(now):
            self._prefill(ticket, now)
        copies = [(source, target) for _, source, target in now.copies]
        return Plan([self._chunk(feed) for feed in now.feeds], copies, now.cleared)

    def commit(self, logits: Sequence[Tensor | None] = ()) -> list[Ticket]:
        """Count what the pass has read, and keep its logits; returns the tickets all of whose sequences are fed."""
        block, tickets = self.limits.block, dict[Ticket, None]()
        self.counters.steps += 1
        self.counters.read_tokens += self._pass.read_tokens
        for (ticket, sequence, start, stop, _), logits_MV in zip_longest(self._pass.feeds, logits):
            tickets[ticket] = None
            if logits_MV is not None:
                sequence.outputs.append(logits_MV)
            sequence.read = stop
            if sequence.prefill:
                sequence.prefill = stop < len(sequence.tokens)
                continue
            self.counters.decode_rows += 1
            if stop // block > start // block:
                self._name(sequence, start // block, stop)
        return [ticket for ticket in tickets if ticket.running and ticket.is_fed]

    def undo(self) -> list[Ticket]:
        """Take the pass back: nothing that it would have written is found, and who relies on it reads again.

        Returns the tickets of the pass.
        """
        tainted = set(self._pass.named)
        for block in tainted:
            self.pool.forget(block)
        tickets = dict.fromkeys(feed.ticket for feed in self._pass.feeds)
        touched = tickets.keys() | {copy[0] for copy in self._pass.copies}
        for ticket in reversed(tuple(self.running)):
            blocks = (block for sequence in ticket.sequences for block in sequence.blocks)
            if ticket in touched or any(block in tainted for block in blocks):
                self._preempt(ticket)
        return list(tickets)

    def _decode(self, ticket: Ticket, now: _Pass) -> None:
        """Plan all sequences that decode, each with all its new tokens."""
        for sequence in ticket.sequences:
            length = len(sequence.tokens)
            if sequence.prefill or sequence.read == length:
                continue
            if self._room(ticket, sequence, length, now) < length:
                return  # those before it need their blocks; it goes on when they are done
            self._feed(ticket, sequence, length, now)

    def _prefill(self, ticket: Ticket, now: _Pass) -> None:
        """Sequences that still have a prompt to read, as far as the budget goes."""
        for sequence in ticket.sequences:
            left = self.limits.step_tokens - now.read_tokens
            if left <= 0:
                return
            if sequence.prefill and sequence.read < len(sequence.tokens):
                self._prefill_one(ticket, sequence, left, now)

    def _prefill_one(self, ticket: Ticket, sequence: CachedSequence, left: int, now: _Pass) -> None:
        found = self._find(sequence)
        start = sequence.read + len(found) * self.limits.block
        count = min(left, len(sequence.tokens) - start)
        if start < sequence.part_a:
            if sequence.part_a - start > left and now.read_tokens:
                return  # it must be read at once: in a step of its own
            count = max(count, sequence.part_a - start)
        for block in found:
            self.pool.share(block)
        sequence.blocks += found
        if not ticket.preempted:
            ticket.reused_tokens += len(found) * self.limits.block
            self.counters.reused_tokens += len(found) * self.limits.block
        sequence.read = start
        stop = min(start + count, self._room(ticket, sequence, start + count, now))
        if stop <= start or (start < sequence.part_a and stop < sequence.part_a):
            return
        now.read_tokens += stop - start
        self._feed(ticket, sequence, stop, now)
        now.named += self._name(sequence, start // self.limits.block, stop)

    def _feed(self, ticket: Ticket, sequence: CachedSequence, stop: int, now: _Pass) -> None:
        pool, block, blocks = self.pool, self.limits.block, sequence.blocks
        if pool.stale:
            full = stop // block
            pool.stale.difference_update(blocks[sequence.read // block : full])
            if stop % block and blocks[full] in pool.stale:
                pool.stale.remove(blocks[full])
                now.cleared.append(blocks[full])
        wanted = stop - max(sequence.read, len(sequence.tokens) - sequence.logits)
        now.feeds.append(_Feed(ticket, sequence, sequence.read, stop, max(0, wanted)))

    def _chunk(self, feed: _Feed) -> Chunk:
        """A feed in numbers; the runner knows all blocks of its sequence afterwards."""
        _, sequence, start, stop, wanted = feed
        first, second = sequence.positions
        known, sequence.synced = sequence.synced, len(sequence.blocks)
        return Chunk(
            sequence.slot, start, sequence.tokens[start:stop], (first[start:stop], second[start:stop]),
            sequence.part_a, wanted, len(sequence.blocks), known, sequence.blocks[known:], sequence.adapter,
            sequence.targets_of(stop, wanted),
        )  # fmt: skip

    def _find(self, sequence: CachedSequence) -> list[int]:
        """Blocks in the cache that hold what comes next in this sequence, but for tokens with wanted logits."""
        block, found = self.limits.block, []
        start = sequence.read // block
        if sequence.read % block or len(sequence.blocks) > start:
            return []
        for key in sequence.chain(block)[start : (len(sequence.tokens) - max(1, sequence.logits)) // block]:
            at = self.pool.find(key)
            if at is None:
                break
            found.append(at)
        return found

    def _name(self, sequence: CachedSequence, first: int, stop: int) -> list[int]:
        """Let the full blocks from number `first` on, up to token `stop`, be found; returns those that are now."""
        last = stop // self.limits.block
        if first >= last:
            return []
        keys, blocks = sequence.chain(self.limits.block), sequence.blocks
        return [blocks[index] for index in range(first, last) if self.pool.name(blocks[index], keys[index])]

    # --- blocks and slots ---

    def _room(self, ticket: Ticket, sequence: CachedSequence, stop: int, now: _Pass) -> int:
        """Take blocks so that tokens [sequence.read, stop) can be written; returns up to where they can."""
        size, blocks = self.limits.block, sequence.blocks
        if sequence.read % size:
            index = sequence.read // size
            old = blocks[index]
            if self.pool.is_shared(old):
                new = self._take(ticket, now)
                if new is None:
                    return sequence.read
                now.copies.append((ticket, old, new))
                self.pool.stale.discard(new)
                self.pool.release([old])
                blocks[index] = new
                sequence.synced = min(sequence.synced, index)
            else:
                self.pool.forget(old)
        while len(blocks) * size < stop:
            new = self._take(ticket, now)
            if new is None:
                return len(blocks) * size
            blocks.append(new)
        return stop

    def _take(self, ticket: Ticket, now: _Pass) -> int | None:
        """A block, if need be of a ticket that is put off, or of the one that came last.

        A ticket gives up none for one that came after it.
        """
        block = self.pool.take()
        while block is None:
            last = self._last_held() or self.running[-1]
            if last is ticket:
                break
            now.leave_out(last)
            self._preempt(last)
            self.counters.preemptions += 1
            block = self.pool.take()
        if block is None and len(self.running) == 1:
            now.leave_out(ticket)
            for named in now.named:
                self.pool.forget(named)
            now.named.clear()
            now.impossible.append(ticket)
        return block

    def _last_held(self) -> Ticket | None:
        """The last running ticket that is held."""
        return next((ticket for ticket in reversed(self.running) if ticket.held), None)

    def _preempt(self, ticket: Ticket) -> None:
        self.running.remove(ticket)
        self._give_up(ticket)
        ticket.preempted = True
        self.waiting.appendleft(ticket)

    def _give_up(self, ticket: Ticket) -> None:
        """Its sequences keep their tokens and nothing else."""
        ticket.running = False
        for sequence in ticket.sequences:
            self._drop(sequence)
            sequence.forget_blocks()

    def _drop(self, sequence: CachedSequence) -> None:
        self.pool.release(sequence.blocks)
        if sequence.slot >= 0:
            self._slots.append(sequence.slot)

    # --- who may run ---

    def _admitted(self, now: _Pass) -> Iterator[Ticket]:
        """Waiting tickets in order, as long as there are slots, blocks for what they begin with, and prompt budget."""
        for ticket in tuple(self.waiting):
            if now.read_tokens >= self.limits.step_tokens or now.impossible:
                return
            if ticket.held:
                continue
            while not self._has_slots_for(ticket):
                if not self._make_way():
                    return
            if not ticket.begun:
                ticket.begun = True
                if not self._begin(ticket):
                    continue
            while self.running and not self._has_room_for(ticket):
                if not self._make_way():
                    return
            self.waiting.remove(ticket)
            self.running.append(ticket)
            ticket.running = True
            for sequence in ticket.sequences:
                sequence.slot = self._slots.pop()
            yield ticket

    def _make_way(self) -> bool:
        """Let a ticket that is held give up its place; False when there is none."""
        ticket = self._last_held()
        if ticket is not None:
            self._preempt(ticket)
            self.counters.preemptions += 1
        return ticket is not None

    def _has_slots_for(self, ticket: Ticket) -> bool:
        taken = sum(other.job.max_sequences for other in self.running)
        return taken + ticket.job.max_sequences <= self.limits.rows

    def _has_room_for(self, ticket: Ticket) -> bool:
        """True when blocks for all it begins with are there, besides those that others still need for their prompts."""
        block = self.limits.block
        promised = sum(
            -(-len(sequence.tokens) // block) - len(sequence.blocks)
            for other in self.running
            for sequence in other.sequences
            if sequence.prefill
        )
        needed = len(ticket.sequences)  # the last block of each; full ones are counted once where they are shared
        for key in {key for sequence in ticket.sequences for key in sequence.chain(block)}:
            at = self.pool.find(key)
            needed += at is None or self.pool.is_idle(at)
        return needed + promised <= self.pool.available
