"""Prompt lookup: drafts of the next tokens, taken from where the last ones stood before; the model then checks them.

Source: "prompt lookup decoding", `apoorvumang/prompt-lookup-decoding`; here the answer is looked up in as well.
"""

import math
from collections.abc import Sequence

# Earlier places that are compared, the last ones first; only a short run that is very common has more of them.
_PLACES = 64
# A row more costs less than this share of a step of one row (1.7 times as long at 8 rows, `docs/kernels.md`).
_COST = 0.15
# A share of right guesses: at first, how much the newest counts in it, and the most that is taken for true.
_FIRST, _NEWEST, _MOST = 0.5, 0.2, 0.98


class Lookup:
    """The tokens of one sequence, prompt and answer, and where the short run that each place ends stood before."""

    def __init__(self, tokens: Sequence[int], longest: int) -> None:
        """longest: tokens of the run that is looked for first; shorter ones are tried then, but no single token."""
        self._tokens = list(tokens)
        self._longest, self._least = longest, min(longest, 2)
        self._prompt: dict[tuple[int, ...], int] = {}  # of the sequence this one was forked from; never changed here
        self._after: dict[tuple[int, ...], int] = {}  # a run of the least size: the place behind where it stood last
        self._before = [0] * len(self._tokens)  # for each place: the one before with the same run; 0 is none
        for end in range(self._least, len(self._tokens)):
            self._note(end)

    def fork(self) -> "Lookup":
        """Another sequence with the same tokens so far. This one must not grow any more."""
        assert not self._prompt, "sequences fork once"
        fork = Lookup((), self._longest)
        fork._tokens, fork._before, fork._prompt = self._tokens.copy(), self._before.copy(), self._after
        return fork

    def push(self, token: int) -> None:
        """One more token."""
        end = len(self._tokens)
        self._before.append(0)
        if end >= self._least:
            self._note(end)
        self._tokens.append(token)

    def guess(self, count: int) -> list[int]:
        """`count` tokens that may come next, or none."""
        start, _ = self.find() if count > 0 else (0, 0)
        return self.following(start, count) if start else []

    def following(self, start: int, count: int) -> list[int]:
        """`count` tokens from a place on. A run that reaches the end is taken to repeat."""
        tokens = self._tokens
        guess = tokens[start : start + count]
        period = len(tokens) - start
        while len(guess) < count:
            guess.append(guess[-period])
        return guess

    def find(self) -> tuple[int, int]:
        """(the place behind the longest run that also ends the sequence, the last of several; the length of the run).

        (0, 0) where there is none.
        """
        best = size = 0
        end = len(self._tokens)
        place = self._last(end)
        for _ in range(_PLACES):
            if not place:
                break
            same = self._same(place, end)
            if same > size:
                best, size = place, same
            if size == self._longest:
                break
            place = self._before[place]
        return best, size

    def _same(self, place: int, end: int) -> int:
        """Length of the equal runs before both places."""
        tokens, same = self._tokens, 0
        while same < min(self._longest, place) and tokens[place - 1 - same] == tokens[end - 1 - same]:
            same += 1
        return same

    def _last(self, end: int) -> int:
        if end < self._least:
            return 0
        run = tuple(self._tokens[end - self._least : end])
        return self._after.get(run) or self._prompt.get(run, 0)

    def _note(self, end: int) -> None:
        self._before[end] = self._last(end)
        self._after[tuple(self._tokens[end - self._least : end])] = end


class Ahead:
    """Drafts for one answer, as many as are worth their rows by how often the lookup was right of late.

    That is known without feeding them: what would have been guessed is compared with every token that came, for runs of
    each length apart. So an answer that repeats nothing is soon left alone, and one that begins to is noticed.
    """

    def __init__(self, given: Sequence[int], longest: int) -> None:
        """given: the tokens before the answer. longest: as of `Lookup`."""
        self._lookup, self._known = Lookup(given, longest), 0
        self._rights: dict[int, float] = {}

    def guess(self, ids: Sequence[int], most: int) -> list[int]:
        """At most `most` tokens that may follow the answer so far; it has grown since the last time."""
        for token in ids[self._known :]:
            place, size = self._lookup.find()
            if place:
                right = self._rights.get(size, _FIRST)
                hit = self._lookup.following(place, 1) == [token]
                self._rights[size] = right + _NEWEST * (hit - right)
            self._lookup.push(token)
        self._known = len(ids)
        place, size = self._lookup.find()
        if not place:
            return []
        # Draft number d comes with right ** d, and must be worth its row.
        right = min(self._rights.get(size, _FIRST), _MOST)
        return self._lookup.following(place, min(most, int(math.log(_COST) / math.log(right))))
