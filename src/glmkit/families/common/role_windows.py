"""Conversations by roles that are longer than a row: which messages stand in which row, and what is cut inside one.

A conversation is turns, each begun by the user, and a turn is exchanges, each ended by a message of the assistant: a
turn with calls of tools has several.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from glmkit.tokenizer.chat_template import Message, turns_of
from glmkit.tokenizer.inputs import Side

from .tuning import cut, no_room


@dataclass(frozen=True, slots=True)
class Part:
    """A message as ids. index: in the conversation, None for one that the template adds. shortened: lost its end."""

    index: int | None
    role: str
    head: list[int]
    content: list[int]
    shortened: bool = False

    def __len__(self) -> int:
        return len(self.head) + len(self.content)


@dataclass(frozen=True)
class Window:
    """Messages of one row. kept: indices of those that stand in it, besides the system's up to its end.

    new: the messages whose answers count in it. dropped: turns and exchanges before it that are left out.
    """

    kept: frozenset[int]
    new: range
    dropped: int

    def parts(self, parts: Sequence[Part]) -> list[Part]:
        """The parts that stand in the row."""

        def stays(index: int | None, role: str) -> bool:
            return index is None or index in self.kept or (role == "system" and index < self.new.stop)

        return [part for part in parts if stays(part.index, part.role)]


class Windows:
    """The rows of one conversation. fixed: tokens of each: the opening, and what the template and the system say."""

    def __init__(self, messages: Sequence[Message], parts: Sequence[Part], opening: int) -> None:
        self._messages, self._turns = messages, turns_of(messages)
        self._sizes = {p.index: len(p) for p in parts if p.index is not None and p.role != "system"}
        self._contents = {part.index: len(part.content) for part in parts}
        self.fixed = opening + sum(map(len, parts)) - sum(self._sizes.values())
        self._exchanges: list[range] = []
        self._turn_of: list[int] = []
        for number, turn in enumerate(self._turns):
            ends = [index + 1 for index in turn if messages[index].role == "assistant"]
            bounds = [turn.start, *ends, *([turn.stop] if not ends or ends[-1] < turn.stop else [])]
            self._exchanges += [range(a, b) for a, b in pairwise(bounds)]
            self._turn_of += [number] * (len(bounds) - 1)

    def rows(self, counts: Sequence[bool], source: int, most: int) -> Iterator[Window]:
        """Rows of at most `most` tokens in which every answer counts once, behind what fits `source` before it.

        A single exchange may be longer than that.
        """
        exchanges, sizes = self._exchanges, [self._size(exchange) for exchange in self._exchanges]
        counting = [any(counts[index] for index in exchange) for exchange in exchanges]
        first = 0
        while True in counting[first:]:
            first = counting.index(True, first)
            answer = sum(self._contents.get(index, 0) for index in exchanges[first] if counts[index])
            before = self._before(first, source - self.fixed - sizes[first] + answer)
            used = self.fixed + 1 + sum(map(self._size, before)) + sizes[first]
            while len(before) > 1 and used > most:
                used -= self._size(before.pop())
            end = first + 1
            while end < len(exchanges) and used + sizes[end] <= most:
                used += sizes[end]
                end += 1
            while not counting[end - 1]:
                end -= 1
            new = range(exchanges[first].start, exchanges[end - 1].stop)
            yield Window(frozenset(new).union(*before), new, self._groups(first) - len(before))
            first = end

    def prompt(self, source: int) -> Window:
        """The newest of the conversation that fits `source` tokens, with one more behind it."""
        last = self._messages[-1].role == "assistant"
        if last:
            end = len(self._messages)
            self._exchanges.append(range(end, end))
            self._turn_of.append(self._turn_of[-1])
        first = len(self._exchanges) - 1
        new = self._exchanges[first]
        before = self._before(first, source - self.fixed - self._size(new) - 1)
        return Window(frozenset(new).union(*before), new, self._groups(first) - len(before))

    def _before(self, first: int, room: int) -> list[list[int]]:
        """Groups of messages before an exchange that fit, the newest first; the question of its own turn always.

        Behind the question come the exchanges of the turn and then whole turns.
        """
        turn, messages = self._turn_of[first], self._messages
        earlier = [self._exchanges[i] for i in range(first) if self._turn_of[i] == turn]
        question = [i for exchange in earlier for i in exchange if messages[i].role == "user"]
        groups = [question]
        room -= self._size(question)
        rest = [[i for i in exchange if messages[i].role != "user"] for exchange in reversed(earlier)]
        for group in [*rest, *(list(t) for t in reversed(self._turns[:turn]))]:
            room -= self._size(group)
            if room < 0:
                break
            groups.append(group)
        return groups

    def _groups(self, first: int) -> int:
        """The number of groups that `_before` gives where there is room for all."""
        turn = self._turn_of[first]
        return 1 + turn + sum(self._turn_of[i] == turn for i in range(first))

    def _size(self, indices: Collection[int]) -> int:
        return sum(self._sizes.get(index, 0) for index in indices)


def shortened(parts: Sequence[Part], counts: Sequence[bool], excess: int, side: Side, source: int) -> list[Part]:
    """The parts with `excess` tokens less: questions and outcomes first, as long as more than `source` is asked.

    The longest of them is cut first, a question on its side, an outcome of a tool on the right; then answers on the
    right, the last one first. Raises RequestError where nothing of a question would be left.
    """
    kept = list(parts)
    answers = [part.index is not None and counts[part.index] for part in parts]
    asked = 2 + sum(len(p.head) + (0 if a else len(p.content)) for p, a in zip(parts, answers, strict=True))
    spare = min(excess, max(asked - source, 0)) if True in answers else excess
    excess -= spare
    cuttable = [i for i, part in enumerate(parts) if not answers[i] and part.role in ("user", "observation")]
    for i in sorted(cuttable, key=lambda i: -len(kept[i].content)):
        content = kept[i].content
        taken = min(spare, max(len(content) - 1, 0))
        shorter = cut(content, len(content) - taken, side if kept[i].role == "user" else "right")
        kept[i] = replace(kept[i], content=shorter)
        spare -= taken
    if spare > 0:
        raise no_room(source + spare, source)
    for i in reversed(range(len(kept))):
        if answers[i] and excess > 0:
            content = kept[i].content
            taken = min(excess, max(len(content) - 1, 0))
            kept[i] = replace(kept[i], content=content[: len(content) - taken], shortened=taken > 0)
            excess -= taken
    if excess > 0:
        raise no_room(source + excess, source)
    return kept
