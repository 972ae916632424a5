"""The passes of a model over rows of different lengths: a plan becomes tensors, hidden states become logits.

Legend: R tokens of a pass, B rows of a group, T tokens of each, M blocks of the longest, S key slots, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glmkit.model import GLM
from glmkit.model.paged import SHORT, Group, PagedCache, PagedStep

from .sequence import Feed, Plan

# What filling up a table may cost, in numbers that are gathered for nothing, before rows get a call of their own.
_WASTE = 1 << 17


class Runner:
    """Owns the cache and the table of blocks, a line for each row."""

    def __init__(self, model: GLM, block: int, budget: int, *, allocate: bool) -> None:
        """budget: blocks for rows. allocate: all at once; else the cache doubles as it is needed."""
        self._model, self._block, self._budget, self._allocate = model, block, budget, allocate
        self.reset()

    @torch.inference_mode()
    def reset(self) -> None:
        """Forget all keys and values; the tuned prefix is worked out again."""
        model = self._model
        self.cache = PagedCache(
            model.config, self._block, dtype=model.dtype, device=model.device, kv_heads=model.kv_heads
        )
        self.cache.seed(model.tuned_prefix())
        self.first = self.cache.reserved
        if self._allocate:
            self.cache.grow(self.first + self._budget)
        self._table = np.zeros((0, self.first + 7), dtype=np.int64)
        self._filled: list[int] = []
        self._columns = torch.zeros(0, dtype=torch.long, device=model.device)

    def forward(self, plan: Plan) -> list[tuple[Feed, Tensor | None]]:
        """Every feed with the logits (wanted,V) of its last tokens, None where none are wanted."""
        self._make_room(plan)
        if plan.cleared:
            self.cache.clear(plan.cleared)
        if plan.copies:
            self.cache.copy([source for _, source, _ in plan.copies], [target for _, _, target in plan.copies])
        feeds = self._sorted(plan.feeds)
        ids: list[int] = []
        first: list[int] = []
        second: list[int] = []
        blocks: list[int] = []
        offsets: list[int] = []
        wanted: list[int] = []
        size, at = self._block, 0
        for feed in feeds:
            row, start, stop = feed.row, feed.start, feed.stop
            if stop - start == 1:
                ids.append(row.tokens[start])
                first.append(row.places[0][start])
                second.append(row.places[1][start])
                blocks.append(row.blocks[start // size])
                offsets.append(start % size)
            else:
                ids += row.tokens[start:stop]
                first += row.places[0][start:stop]
                second += row.places[1][start:stop]
                blocks += [row.blocks[index // size] for index in range(start, stop)]
                offsets += [index % size for index in range(start, stop)]
            at += stop - start
            wanted += range(at - feed.wanted, at)
        numbers = torch.tensor([ids, first, second, blocks, offsets]).to(self._model.device)
        slots_2RK = self.cache.slots(numbers[3], numbers[4])
        step = PagedStep(self.cache, slots_2RK, self._groups(feeds))
        hidden_RH = self._model.hidden(numbers[:1], position_ids=numbers[None, 1:3], cache=step)[0]
        if not wanted:
            return [(feed, None) for feed in feeds]
        if len(wanted) < len(ids):
            hidden_RH = hidden_RH.index_select(0, torch.tensor(wanted, device=hidden_RH.device))
        logits_WV = self._model.head(hidden_RH)
        parts = torch.split(logits_WV, [feed.wanted for feed in feeds])
        return [(feed, part if feed.wanted else None) for feed, part in zip(feeds, parts, strict=True)]

    def _make_room(self, plan: Plan) -> None:
        """Let the cache reach to the last block that is used."""
        if self.cache.blocks < self.first + self._budget:
            last = max(max(feed.row.blocks) for feed in plan.feeds)
            last = max([last, *(target for _, _, target in plan.copies)])  # of rows that wait for one more block, too
            if last >= self.cache.blocks:
                self.cache.grow(min(max(last + 1, 2 * self.cache.blocks, 64), self.first + self._budget))

    def _sorted(self, feeds: Sequence[Feed]) -> list[Feed]:
        """Short feeds of equal length side by side, the longest rows first; then the others."""
        short = [feed for feed in feeds if feed.stop - feed.start <= SHORT]
        long = [feed for feed in feeds if feed.stop - feed.start > SHORT]
        short.sort(key=lambda feed: (feed.stop - feed.start, -len(feed.row.blocks)))
        return short + long

    def _groups(self, feeds: Sequence[Feed]) -> list[Group]:
        groups, at, index = [], 0, 0
        causal, fresh = self._model.config.mask == "causal", not self.cache.prefix
        slab = self._block * self.cache.heads * self.cache.width
        while index < len(feeds):
            feed = feeds[index]
            length = feed.stop - feed.start
            part_a = 0 if causal else feed.row.part_a
            if length > SHORT and feed.start == 0 and fresh:
                groups.append(Group(at, 1, length, min(part_a, length)))
                at, index = at + length, index + 1
                continue
            count, waste, most = 1, 0, len(feed.row.blocks)
            while length <= SHORT and index + count < len(feeds):
                other = feeds[index + count]
                waste += (most - len(other.row.blocks)) * slab
                if other.stop - other.start != length or waste > _WASTE:
                    break
                count += 1
            groups.append(self._gathering(at, length, feeds[index : index + count], causal))
            at, index = at + count * length, index + count
        return groups

    def _gathering(self, at: int, length: int, feeds: Sequence[Feed], causal: bool) -> Group:
        """Rows that need what is in the cache."""
        reserved, cache = self.first - 1, self.cache
        lines, ends, most = [], [], 0
        for feed in feeds:
            row = feed.row
            count = len(row.blocks)
            if row.synced != count or row.lane >= len(self._filled) or self._filled[row.lane] != count:
                self._sync(row.lane, row.blocks, row.synced)
                row.synced = count
            lines.append(row.lane)
            most = max(most, -(-feed.stop // self._block))
            part_a = 0 if causal or feed.start >= row.part_a else row.part_a
            if length == 1:
                ends.append(max(feed.stop, part_a))
            else:
                ends += [max(index, part_a if index <= part_a else 0) for index in range(feed.start + 1, feed.stop + 1)]
        device = self._model.device
        table_BM = torch.from_numpy(self._table[lines, : reserved + most]).to(device)
        own = reserved * self._block
        slots = own + most * self._block
        if len(self._columns) < slots:
            self._columns = torch.arange(2 * slots, device=device)
        ends_BT1 = torch.tensor(ends, device=device).view(len(feeds), length, 1) + own
        hidden_BTS = self._columns[:slots] >= ends_BT1
        if cache.prefix < own:
            hidden_BTS[:, :, cache.prefix : own] = True
        bias_BTS = torch.zeros(hidden_BTS.shape, dtype=self._model.dtype, device=device)
        bias_BTS.masked_fill_(hidden_BTS, -torch.inf)
        return Group(at, len(feeds), length, slabs=cache.slabs(table_BM), bias=bias_BTS)

    def _sync(self, lane: int, blocks: Sequence[int], start: int) -> None:
        """Bring a line up to date from block number `start` on."""
        first, (lines, columns) = self.first - 1, self._table.shape
        if lane >= lines or first + len(blocks) > columns:
            # As many lines as rows were ever there at once: a row of full length is one long line, not thousands.
            lines = lines if lane < lines else 2 * (lane + 1)
            columns = columns if first + len(blocks) <= columns else first + 2 * len(blocks)
            old, self._table = self._table, np.zeros((lines, columns), dtype=np.int64)
            # Lines begin with the blocks of the tuned prefix; behind a row's own comes the zero block.
            self._table[:, :first] = np.arange(1, first + 1)
            self._table[: len(old), : old.shape[1]] = old
            self._filled += [0] * (lines - len(old))
        self._table[lane, first + start : first + len(blocks)] = blocks[start:]
        self._table[lane, first + len(blocks) : first + self._filled[lane]] = 0
        self._filled[lane] = len(blocks)
