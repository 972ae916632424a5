"""Which rows go on in the next pass, which wait, and who gives up blocks when there are none left. No tensors here.

Tasks run in order of arrival: every running task came before every waiting one.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

from .blocks import BlockPool
from .limits import EngineCounters, EngineLimits
from .sequence import Feed, Growth, Plan, Row, Task


class Scheduler:
    """Tasks, the blocks of their rows, and a plan for every pass."""

    def __init__(
        self, limits: EngineLimits, pool: BlockPool, begin: Callable[[Task], bool], counters: EngineCounters
    ) -> None:
        """begin: gives a task its first rows (`grow`); False when it needs none or has failed, then it is gone."""
        self.limits, self.pool, self.counters, self._begin = limits, pool, counters, begin
        self.waiting: deque[Task] = deque()
        self.running: list[Task] = []
        self._lanes = list(range(limits.rows - 1, -1, -1))

    @property
    def rows(self) -> int:
        """Rows of running tasks."""
        return sum(len(task.rows) for task in self.running)

    def worst_blocks(self, task: Task) -> int:
        """The most blocks it can need: where it begins with one row, what is full of that is shared by all others."""
        block = self.limits.block
        shared = len(task.rows[0].tokens) // block if len(task.rows) == 1 else 0
        return shared + task.max_rows * (-(-task.max_row_tokens // block) - shared)

    def add(self, task: Task) -> None:
        """Wait behind all others."""
        self.waiting.append(task)

    def remove(self, task: Task) -> None:
        """Give up everything it has; nothing happens when it is not there."""
        if task.running:
            self.running.remove(task)
            self._give_up(task)
        elif task in self.waiting:
            self.waiting.remove(task)
        task.rows = []

    def _give_up(self, task: Task) -> None:
        """Its rows keep their tokens and nothing else."""
        for row in task.rows:
            self._drop(row)
        task.forget_blocks()

    def _drop(self, row: Row) -> None:
        self.pool.release(row.blocks)
        row.blocks = []
        if row.lane >= 0:
            self._lanes.append(row.lane)
            row.lane = -1

    def grow(self, task: Task, growths: Sequence[Growth]) -> None:
        """The rows of the next steps, of a task whose rows are all fed: as they continue earlier rows, or anew."""
        # All children of a row but the last get copies; the last one takes it over.
        left = Counter(growth.parent for growth in growths)
        old = task.rows
        for index, row in enumerate(old):
            if index not in left:
                self._drop(row)
        moved: set[int] = set()
        task.rows = []
        for growth in growths:
            left[growth.parent] -= 1
            if growth.parent is None:
                row = Row.new(growth)
                row.lane = self._lanes.pop() if task.running else -1
            else:
                row = old[growth.parent]
                if growth.parent not in moved:
                    self.counters.drafted += row.drafts
                    self.counters.accepted += max(0, row.drafts - growth.dropped)
                    moved.add(growth.parent)
                if left[growth.parent]:
                    row = row.fork()
                    for block in row.blocks:
                        self.pool.share(block)
                    row.lane = self._lanes.pop()
                self.pool.release(row.grow(growth, self.limits.block, self.limits.step_tokens))
            task.rows.append(row)

    # --- one pass ---

    def plan(self) -> Plan:
        """What the next pass feeds. Blocks are taken here; `commit` counts what was read."""
        plan = Plan()
        for task in tuple(self.running):
            if task.running:
                self._go_on(task, plan)
        for task in tuple(self.running):
            if task.running:
                self._read(task, plan)
        for task in self._admitted(plan):
            self._read(task, plan)
        return plan

    def commit(self, plan: Plan) -> list[Task]:
        """Count what the pass has read; returns the tasks all of whose rows are fed."""
        block, tasks = self.limits.block, {}
        self.counters.steps += 1
        self.counters.read_tokens += plan.read_tokens
        for feed in plan.feeds:
            row, tasks[id(feed.task)] = feed.row, feed.task
            self.counters.fed_tokens += feed.stop - feed.start
            row.read = feed.stop
            if row.reading:
                row.reading = feed.stop < len(row.tokens)
                continue
            self.counters.decode_rows += 1
            if feed.stop // block > feed.start // block:
                self._name(row, feed.start // block, feed.stop)
        return [task for task in tasks.values() if task.running and task.is_fed]

    def undo(self, plan: Plan) -> None:
        """The pass did not happen: what it would have written is nowhere, and who relies on it reads again."""
        tainted = set(plan.named)
        for block in tainted:
            self.pool.forget(block)
        fed = {id(task) for task in (*(feed.task for feed in plan.feeds), *(copy[0] for copy in plan.copies))}
        for task in reversed(tuple(self.running)):
            if id(task) in fed or any(block in tainted for row in task.rows for block in row.blocks):
                self._preempt(task)

    def _go_on(self, task: Task, plan: Plan) -> None:
        """All rows that are being written, each with all its new tokens."""
        for row in task.rows:
            length = len(row.tokens)
            if row.reading or row.read == length:
                continue
            if self._room(task, row, length, plan) < length:
                return  # those before it need their blocks; it goes on when they are done
            self._feed(task, row, length, plan)

    def _read(self, task: Task, plan: Plan) -> None:
        """Rows that still have a prompt to read, as far as the budget goes."""
        for row in task.rows:
            left = self.limits.step_tokens - plan.read_tokens
            if left <= 0:
                return
            if row.reading and row.read < len(row.tokens):
                self._read_row(task, row, left, plan)

    def _read_row(self, task: Task, row: Row, left: int, plan: Plan) -> None:
        found = self._find(row)
        start = row.read + len(found) * self.limits.block
        count = min(left, len(row.tokens) - start)
        if start < row.part_a:
            if row.part_a - start > left and plan.read_tokens:
                return  # it must be read at once: in a step of its own
            count = max(count, row.part_a - start)
        for block in found:
            self.pool.share(block)
        row.blocks += found
        if not task.preempted:
            task.reused += len(found) * self.limits.block
            self.counters.reused_tokens += len(found) * self.limits.block
        row.read = start
        stop = min(start + count, self._room(task, row, start + count, plan))
        if stop <= start or (start < row.part_a and stop < row.part_a):
            return
        plan.read_tokens += stop - start
        self._feed(task, row, stop, plan)
        plan.named += self._name(row, start // self.limits.block, stop)

    def _feed(self, task: Task, row: Row, stop: int, plan: Plan) -> None:
        pool, block, blocks = self.pool, self.limits.block, row.blocks
        if pool.stale:
            full = stop // block
            pool.stale.difference_update(blocks[row.read // block : full])
            if stop % block and blocks[full] in pool.stale:
                pool.stale.remove(blocks[full])
                plan.cleared.append(blocks[full])
        wanted = stop - max(row.read, len(row.tokens) - row.logits)
        plan.feeds.append(Feed(task, row, row.read, stop, max(0, wanted)))

    def _find(self, row: Row) -> list[int]:
        """Blocks somewhere in the cache that hold what comes next in this row, but for tokens with wanted logits."""
        block, found = self.limits.block, []
        start = row.read // block
        if row.read % block or len(row.blocks) > start:
            return []
        for key in row.chain(block)[start : (len(row.tokens) - max(1, row.logits)) // block]:
            at = self.pool.find(key)
            if at is None:
                break
            found.append(at)
        return found

    def _name(self, row: Row, first: int, stop: int) -> list[int]:
        """Let the full blocks from number `first` on, up to token `stop`, be found; returns those that are now."""
        last = stop // self.limits.block
        if first >= last:
            return []
        keys = row.chain(self.limits.block)
        return [row.blocks[index] for index in range(first, last) if self.pool.name(row.blocks[index], keys[index])]

    # --- blocks ---

    def _room(self, task: Task, row: Row, stop: int, plan: Plan) -> int:
        """Take blocks so that tokens [row.read, stop) can be written; returns up to where they can."""
        size, blocks = self.limits.block, row.blocks
        if row.read % size:
            index = row.read // size
            old = blocks[index]
            if self.pool.is_shared(old):
                new = self._take(task, plan)
                if new is None:
                    return row.read
                plan.copies.append((task, old, new))
                self.pool.stale.discard(new)
                self.pool.release([old])
                blocks[index] = new
                row.synced = min(row.synced, index)
            else:
                self.pool.forget(old)
        while len(blocks) * size < stop:
            new = self._take(task, plan)
            if new is None:
                return len(blocks) * size
            blocks.append(new)
        return stop

    def _take(self, task: Task, plan: Plan) -> int | None:
        """A block, if need be of the task that came last; a task gives up none for one that came after it."""
        block = self.pool.take()
        while block is None and self.running[-1] is not task:
            last = self.running[-1]
            plan.leave_out(last)
            self._preempt(last)
            self.counters.preemptions += 1
            block = self.pool.take()
        if block is None and len(self.running) == 1:
            plan.leave_out(task)
            for named in plan.named:
                self.pool.forget(named)
            plan.named.clear()
            plan.impossible.append(task)
        return block

    def _preempt(self, task: Task) -> None:
        self.running.remove(task)
        self._give_up(task)
        task.preempted = True
        self.waiting.appendleft(task)

    # --- who may run ---

    def _admitted(self, plan: Plan) -> Iterator[Task]:
        """Waiting tasks in order, as long as there are rows, blocks for what they begin with, and prompt budget."""
        while self.waiting and plan.read_tokens < self.limits.step_tokens and not plan.impossible:
            task = self.waiting[0]
            if sum(other.max_rows for other in self.running) + task.max_rows > self.limits.rows:
                return
            if not task.begun:
                task.begun = True
                if not self._begin(task):
                    continue
            if self.running and not self._has_room_for(task):
                return
            self.waiting.popleft()
            self.running.append(task)
            task.running = True
            for row in task.rows:
                row.lane = self._lanes.pop()
            yield task

    def _has_room_for(self, task: Task) -> bool:
        """Whether blocks for all it begins with are there, besides those that others still need for their prompts."""
        block = self.limits.block
        promised = sum(
            -(-len(row.tokens) // block) - len(row.blocks)
            for other in self.running
            for row in other.rows
            if row.reading
        )
        needed = len(task.rows)  # the last block of each; full ones are counted once where rows have them in common
        for key in {key for row in task.rows for key in row.chain(block)}:
            at = self.pool.find(key)
            needed += at is None or self.pool.is_idle(at)
        return needed + promised <= self.pool.available
