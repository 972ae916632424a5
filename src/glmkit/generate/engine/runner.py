"""The passes of a model over sequences of different lengths: a plan becomes tensors, hidden states become logits.

Legend: R tokens of a pass, B sequences of a group, T tokens of each, M blocks of the longest, S key slots,
W tokens whose logits are wanted, V vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from glmkit.model import GLM
from glmkit.model.paged import SHORT, Group, PagedCache, PagedStep, Seen
from glmkit.model.routing import Route, on_route
from glmkit.quant import rows_alike
from glmkit.quant.paged_attention import attend, attends_in_place
from glmkit.threads import LayerWork, one_thread, share

from .head_pass import Asked, head_pass
from .sequence import Chunk, Plan

# Numbers that may be gathered for nothing to fill up a table, before sequences get a call of their own.
_WASTE = 1 << 17
# Tokens from which on a part of a pass keeps a thread of its own busy.
_PART = 32
# Largest part of a pass, in shares of the mean, that still counts as equal.
_EQUAL = 1.15

Run = Callable[[], list[Tensor | None]]


class Runner:
    """Owns the cache and the table of blocks, a line for each slot.

    alike: tokens of a pass up to which each has the very numbers that it has alone; 0 where none has.
    """

    def __init__(self, model: GLM, block: int, budget: int, *, allocate: bool) -> None:
        """budget: blocks for sequences. allocate: all at once; else the cache doubles as it is needed."""
        self._block, self._budget, self._allocate = block, budget, allocate
        self.exchange(model)
        self.reset()

    def exchange(self, model: GLM) -> None:
        """Take another model; a `reset` must follow."""
        self._model = model
        self._work = LayerWork.of(model)

    @torch.inference_mode()
    def reset(self) -> None:
        """Forget all keys and values; tuned prefixes are worked out again."""
        model = self._model
        self.cache = PagedCache(
            model.config, self._block, dtype=model.dtype, device=model.device, kv_heads=model.kv_heads
        )
        places = self.cache.seed([one.tuned_prefix() for one in (model, *model.variants.values())])
        self._in_place = attends_in_place(self.cache.arena(0))
        self.alike = rows_alike(model) if self._in_place else 0
        self._prefixes = dict(zip((None, *model.variants), places, strict=True))
        self._front = max(len(place.blocks) for place in places)
        self.first = self.cache.reserved
        if self._allocate:
            self.cache.grow(self.first + self._budget)
        # A sequence's own blocks begin at column `_front`; before them end those of its tuned prefix, behind them and
        # before a shorter prefix is the zero block.
        self._table = np.zeros((0, self._front + 8), dtype=np.int64)
        self._filled: list[int] = []  # blocks of each slot
        self._columns = torch.zeros(0, dtype=torch.long, device=model.device)

    def forward(self, plan: Plan) -> list[Tensor | None]:
        """Logits (wanted,V), or scores (wanted,2), of the last tokens of every chunk; None where none are wanted."""
        self._make_room(plan)
        for chunk in plan.chunks:
            if chunk.fresh or chunk.slot >= len(self._filled) or self._filled[chunk.slot] != chunk.num_blocks:
                self._sync(chunk)
        if plan.cleared:
            self.cache.clear(plan.cleared)
        if plan.copies:
            self.cache.copy([source for source, _ in plan.copies], [target for _, target in plan.copies])
        parts = self._parts(plan)
        runs = [self._prepare([plan.chunks[index] for index in part], number) for number, part in enumerate(parts)]
        with one_thread(self._work.is_small(plan.tokens)):
            logits = share(runs)
        outputs: list[Tensor | None] = [None] * len(plan.chunks)
        for part, own in zip(parts, logits, strict=True):
            for index, logits_MV in zip(part, own, strict=True):
                outputs[index] = logits_MV
        return outputs

    def _prepare(self, chunks: Sequence[Chunk], part: int) -> Run:
        """The forward pass over some chunks of a plan, ready to run; it gives the logits of each."""
        ids: list[int] = []
        first: list[int] = []
        second: list[int] = []
        blocks: list[int] = []
        offsets: list[int] = []
        wanted: list[int] = []
        size, before = self._block, self._front
        for chunk in chunks:
            start, length = chunk.start, len(chunk.tokens)
            ids += chunk.tokens
            first += chunk.positions[0]
            second += chunk.positions[1]
            if length == 1:
                blocks.append(self._table.item(chunk.slot, before + start // size))
                offsets.append(start % size)
            else:
                line = self._table[chunk.slot, before : before + chunk.num_blocks].tolist()
                blocks += [line[index // size] for index in range(start, start + length)]
                offsets += [index % size for index in range(start, start + length)]
            wanted += range(len(ids) - chunk.wanted, len(ids))
        numbers = torch.tensor([ids, first, second, blocks, offsets]).to(self._model.device)
        slots_2RK = self.cache.slots(numbers[3], numbers[4])
        step = PagedStep(self.cache, slots_2RK, self._groups(chunks), part, attend)
        route = None
        if self._model.variants:
            owners, lengths = [chunk.adapter for chunk in chunks], [len(chunk.tokens) for chunk in chunks]
            route = Route.of(owners, lengths, numbers.device)
        asked = [Asked(chunk.wanted, chunk.targets, chunk.adapter) for chunk in chunks]
        return partial(self._run, numbers[:3], step, wanted, asked, route)

    def _run(
        self, inputs_3R: Tensor, step: PagedStep, wanted: Sequence[int], asked: Sequence[Asked], route: Route | None
    ) -> list[Tensor | None]:
        """The logits or scores. wanted: the tokens that `asked` is about."""
        with on_route(route):
            hidden_RH = self._model.hidden(inputs_3R[:1], position_ids=inputs_3R[None, 1:], cache=step)[0]
        if not wanted:
            return [None] * len(asked)
        if len(wanted) < len(hidden_RH):
            hidden_RH = hidden_RH.index_select(0, torch.tensor(wanted, device=hidden_RH.device))
        return head_pass(self._model, hidden_RH, asked)

    def _parts(self, plan: Plan) -> list[list[int]]:
        """Numbers of the chunks that run together: all, or for each thread some where weights are small.

        A chunk that finds blocks which this pass writes runs with their writer. Products that are worth several threads
        are shared out only in equal parts.
        """
        order = self._order(plan.chunks)
        count = min(torch.get_num_threads(), plan.tokens // _PART) if self._work.splits else 1
        if count < 2:
            return [order]
        writers: dict[int, int] = {}
        before, size = self._front, self._block
        for index, chunk in enumerate(plan.chunks):
            line = self._table[chunk.slot, before + chunk.start // size : before + chunk.num_blocks]
            writers |= dict.fromkeys(line.tolist(), index)
        leader = list(range(len(plan.chunks)))
        for index, chunk in enumerate(plan.chunks):
            for other in {leader[writers[block]] for block in chunk.fresh if block in writers} - {leader[index]}:
                leader = [leader[index] if own == other else own for own in leader]
        bundles: dict[int, list[int]] = {}
        for index in order:
            bundles.setdefault(leader[index], []).append(index)
        sizes = {lead: sum(len(plan.chunks[index].tokens) for index in own) for lead, own in bundles.items()}
        loads = [0] * count
        part_of = {}
        for lead in sorted(sizes, key=lambda lead: -sizes[lead]):
            part_of[lead] = loads.index(min(loads))
            loads[part_of[lead]] += sizes[lead]
        if not self._work.is_small(plan.tokens) and max(loads) * count > _EQUAL * plan.tokens:
            return [order]
        parts = [[index for index in order if part_of[leader[index]] == number] for number in range(count)]
        return [part for part in parts if part]

    def _make_room(self, plan: Plan) -> None:
        """Let the cache reach to the last block that is used."""
        if self.cache.blocks < self.first + self._budget:
            used = [block for chunk in plan.chunks for block in chunk.fresh]
            used += [target for _, target in plan.copies]  # of sequences that wait for one more block, too
            last = max(used, default=0)
            if last >= self.cache.blocks:
                self.cache.grow(min(max(last + 1, 2 * self.cache.blocks, 64), self.first + self._budget))

    def _order(self, chunks: Sequence[Chunk]) -> list[int]:
        """Short chunks of equal length side by side, of the longest sequences first; then the others by length.

        Those with tuned prefixes of one size are next to each other, too.
        """
        short = [index for index, chunk in enumerate(chunks) if len(chunk.tokens) <= SHORT]
        short.sort(key=lambda i: (len(chunks[i].tokens), -self._front_of(chunks[i]), -chunks[i].num_blocks))
        long = [index for index, chunk in enumerate(chunks) if len(chunk.tokens) > SHORT]
        long.sort(key=lambda i: (len(chunks[i].tokens), self._front_of(chunks[i]), chunks[i].start, chunks[i].part_a))
        return short + long

    def _front_of(self, chunk: Chunk) -> int:
        """Blocks of the tuned prefix of a chunk's adapter."""
        return len(self._prefixes[chunk.adapter].blocks) if self._front else 0

    def _beginning(self, chunk: Chunk, causal: bool) -> tuple[int, int] | None:
        """Length and part A of a chunk that begins a sequence without a tuned prefix, None for others."""
        length = len(chunk.tokens)
        if chunk.start or self._front_of(chunk):
            return None
        return length, 0 if causal else min(chunk.part_a, length)

    def _groups(self, chunks: Sequence[Chunk]) -> list[Group]:
        groups, at, index = [], 0, 0
        causal = self._model.config.mask == "causal"
        slab = self._block * self.cache.heads * self.cache.width
        while index < len(chunks):
            chunk = chunks[index]
            length = len(chunk.tokens)
            kind = self._beginning(chunk, causal) if length > SHORT else None
            if kind is not None:
                count = 1
                while index + count < len(chunks) and self._beginning(chunks[index + count], causal) == kind:
                    count += 1
                groups.append(Group(at, count, *kind))
                at, index = at + count * length, index + count
                continue
            front, most = self._front_of(chunk), chunk.num_blocks
            count, seen = 1, front + most
            while length <= SHORT and index + count < len(chunks):
                other = chunks[index + count]
                most, seen = max(most, other.num_blocks), seen + self._front_of(other) + other.num_blocks
                if len(other.tokens) != length or ((front + most) * (count + 1) - seen) * slab > _WASTE:
                    break
                count += 1
            groups.append(self._gathering(at, length, chunks[index : index + count], causal))
            at, index = at + count * length, index + count
        return groups

    def _gathering(self, at: int, length: int, chunks: Sequence[Chunk], causal: bool) -> Group:
        """A group of sequences that need what is in the cache."""
        front, cache = max(map(self._front_of, chunks)), self.cache
        ends: list[int] = []
        for chunk in chunks:
            start = chunk.start
            part_a = 0 if causal or start >= chunk.part_a else chunk.part_a
            if length == 1:
                ends.append(max(start + 1, part_a))
            else:
                ends += [max(index, part_a if index <= part_a else 0) for index in range(start + 1, start + length + 1)]
        max_blocks = max(-(-chunk.stop // self._block) for chunk in chunks)
        device = self._model.device
        lines = [chunk.slot for chunk in chunks]
        columns = slice(self._front - front, self._front + max_blocks)
        table_BM = torch.from_numpy(self._table[lines, columns]).to(device)
        own = front * self._block
        if self._in_place and length <= SHORT:
            begins = [own - self._prefixes[chunk.adapter].tokens if front else 0 for chunk in chunks]
            firsts_R, lasts_R = (torch.tensor(each, device=device) for each in (begins, ends))
            seen = Seen(table_BM.repeat_interleave(length, 0), firsts_R.repeat_interleave(length), lasts_R + own)
            return Group(at, len(chunks), length, seen=seen)
        slots = own + max_blocks * self._block
        if len(self._columns) < slots:
            self._columns = torch.arange(2 * slots, device=device)
        ends_BT1 = torch.tensor(ends, device=device).view(len(chunks), length, 1) + own
        hidden_BTS = self._columns[:slots] >= ends_BT1
        if front:
            begins = [own - self._prefixes[chunk.adapter].tokens for chunk in chunks]
            if min(begins) == max(begins):
                hidden_BTS[:, :, : begins[0]] = True
            else:
                hidden_BTS |= self._columns[:slots] < torch.tensor(begins, device=device)[:, None, None]
        bias_BTS = torch.zeros(hidden_BTS.shape, dtype=self._model.dtype, device=device)
        bias_BTS.masked_fill_(hidden_BTS, -torch.inf)
        return Group(at, len(chunks), length, slabs=cache.slabs(table_BM), bias=bias_BTS)

    def _sync(self, chunk: Chunk) -> None:
        """Bring the line of a slot up to date."""
        before, (lines, columns) = self._front, self._table.shape
        slot, count = chunk.slot, chunk.num_blocks
        if slot >= lines or before + count > columns:
            # As many lines as sequences were ever there at once: a full-length one is one long line, not thousands.
            lines = lines if slot < lines else 2 * (slot + 1)
            columns = columns if before + count <= columns else before + 2 * count
            old, self._table = self._table, np.zeros((lines, columns), dtype=np.int64)
            self._table[: len(old), : old.shape[1]] = old
            self._filled += [0] * (lines - len(old))
        if before and not chunk.first_fresh:  # another sequence than before, perhaps
            own = self._prefixes[chunk.adapter].blocks
            self._table[slot, :before] = [0] * (before - len(own)) + [*own]
        self._table[slot, before + chunk.first_fresh : before + count] = chunk.fresh
        self._table[slot, before + count : before + self._filled[slot]] = 0
        self._filled[slot] = count
