"""Guesses at the next tokens, looked up where the last ones stood before: drafts that the model then checks.

Source: "prompt lookup decoding", `apoorvumang/prompt-lookup-decoding`; here the answer is looked up in as well.
"""

from collections.abc import Sequence


class Lookup:
    """The tokens of one row, prompt and answer, and where each short run of them stood last."""

    def __init__(self, tokens: Sequence[int], longest: int) -> None:
        """longest: tokens of the run that is looked for first; shorter ones are tried then, but no single token."""
        self._tokens = list(tokens)
        self._sizes = range(longest, min(longest, 2) - 1, -1)
        self._prompt: dict[tuple[int, ...], int] = {}  # of the rows this one was forked from; never changed here
        self._after: dict[tuple[int, ...], int] = {}  # a run of tokens: the place behind where it stood last
        for end in range(1, len(self._tokens)):
            self._note(end)

    def fork(self) -> "Lookup":
        """Another row with the same tokens so far. This one must not grow any more."""
        assert not self._prompt, "rows fork once"
        fork = Lookup((), self._sizes.start)
        fork._tokens, fork._prompt = self._tokens.copy(), self._after
        return fork

    def push(self, token: int) -> None:
        """One more token."""
        self._note(len(self._tokens))
        self._tokens.append(token)

    def guess(self, count: int) -> list[int]:
        """`count` tokens that may come next, or none. A run that reaches the end is taken to repeat."""
        if count < 1:
            return []
        tokens = self._tokens
        for size in self._sizes:
            key = tuple(tokens[-size:])
            start = self._after.get(key) or self._prompt.get(key)
            if start is not None:
                guess = tokens[start : start + count]
                period = len(tokens) - start
                while len(guess) < count:
                    guess.append(guess[-period])
                return guess
        return []

    def _note(self, end: int) -> None:
        for size in self._sizes:
            if size <= end:
                self._after[tuple(self._tokens[end - size : end])] = end
