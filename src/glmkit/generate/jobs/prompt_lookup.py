"""Prompt lookup: drafts of the next tokens, taken from where the last ones stood before; the model then checks them.

Source: "prompt lookup decoding", `apoorvumang/prompt-lookup-decoding`; here the answer is looked up in as well.
"""

from collections.abc import Sequence

# Earlier places that are compared, the last ones first; only a short run that is very common has more of them.
_PLACES = 64


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
        """`count` tokens that may come next, or none. A run that reaches the end is taken to repeat."""
        start = self._place(len(self._tokens)) if count > 0 else 0
        if not start:
            return []
        tokens = self._tokens
        guess = tokens[start : start + count]
        period = len(tokens) - start
        while len(guess) < count:
            guess.append(guess[-period])
        return guess

    def _place(self, end: int) -> int:
        """The place behind the longest run that also ends at `end`, the last of several; 0 where there is none."""
        best = size = 0
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
        return best

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
