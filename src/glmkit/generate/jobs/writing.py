"""One answer that is being written: tokens are chosen, drafts checked, its text read, and who listens told.

Legend: M tokens whose logits are there, V vocabulary rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from glmkit.errors import RequestError
from glmkit.generate.answer import Answer, TokenLogprob
from glmkit.generate.events import Ended, Listener, Piece
from glmkit.generate.reading import TextReader
from glmkit.generate.stop_text import StopText

from .growing import Best, GrowingAnswer, likeliest
from .lookup import Lookup

MakeReader = Callable[[], TextReader]


class Heard:
    """The text of one answer as it becomes certain, up to a stop text, and the listener that hears of it."""

    def __init__(
        self, number: int, stops: Sequence[str], reader: TextReader | None = None, listener: Listener | None = None
    ) -> None:
        """Raises RequestError for stop texts without a reader."""
        if stops and reader is None:
            raise RequestError("stop texts need a reader of the text; give one, or use stop_ids")
        self.reader = reader
        self._number, self._listener = number, listener
        self._stop = StopText(stops) if stops else None
        self._pieces: list[str] = []

    def token(self, token: int, logprob: TokenLogprob | None = None) -> bool:
        """One more token; whether a stop text is complete with it."""
        if self.reader is None and self._listener is None:
            return False
        text = "" if self.reader is None else self._shown(self.reader.push(token))
        if self._listener is not None:
            self._listener(Piece(self._number, text, (token,), () if logprob is None else (logprob,)))
        return self._found is not None

    def end(self, answer: Answer) -> Answer:
        """The finished answer with its text; a stop text may be complete only here."""
        if self.reader is not None:
            rest = "" if self._found is not None else self._shown(self.reader.flush())
            if self._stop is not None:
                held = self._stop.finish()
                self._pieces.append(held)
                rest += held
            if rest and self._listener is not None:
                self._listener(Piece(self._number, rest))
            answer = replace(answer, text="".join(self._pieces), stop=self._found)
            if self._found is not None:
                answer = replace(answer, finish="stop")
        if self._listener is not None:
            self._listener(Ended(self._number, answer))
        return answer

    @property
    def _found(self) -> str | None:
        return None if self._stop is None else self._stop.found

    def _shown(self, text: str) -> str:
        shown = text if self._stop is None else self._stop.feed(text)
        self._pieces.append(shown)
        return shown


class Writing:
    """An answer, its drafts, and what of it the model has not read yet.

    Until `answer` is there: forget the last `dropped` tokens that were fed, feed `unfed` and `drafts`, and `take` the
    logits behind the last unfed token and every draft.
    """

    def __init__(self, growing: GrowingAnswer, heard: Heard, lookup: Lookup | None = None, *, most_drafts: int = 0):
        """lookup: of the tokens before the answer. most_drafts: of one step."""
        self.answer: Answer | None = None
        self.unfed: list[int] = []
        self.drafts: list[int] = []
        self.dropped = self.drafted = self.accepted = 0
        self._growing, self._heard, self._lookup = growing, heard, lookup
        self._most, self._reach = most_drafts, most_drafts

    @property
    def size(self) -> int:
        """Tokens of the answer so far."""
        return len(self._growing.ids)

    def take(self, logits_MV: Tensor, best: Sequence[Best] | None = None) -> None:
        """Go on by one token, and by one more for each draft that is what would have come anyway.

        best: `likeliest` of the logits, where it is known.
        """
        drafts, place = self.drafts, 0
        if best is None and self._growing.plain:
            best = likeliest(logits_MV)
        while True:
            token = self._growing.take(logits_MV[place : place + 1], None if best is None else best[place])
            if token is not None:
                if self._lookup is not None:
                    self._lookup.push(token)
                logprobs = self._growing.logprobs
                if self._heard.token(token, logprobs[-1] if logprobs else None):
                    self._growing.finish(stopped=True)
            fed = token is not None and place < len(drafts) and token == drafts[place]
            place += fed
            if not fed or self._growing.answer is not None:
                break
        self.drafted += len(drafts)
        self.accepted += place
        self.unfed = [] if token is None or fed else [token]
        self.dropped = len(drafts) - place
        if self._growing.answer is not None:
            self.drafts, self.answer = [], self._heard.end(self._growing.answer)
        elif self._lookup is not None:
            self._reach = min(self._most, 2 * place + 1) if drafts else self._most
            room = self._growing.most - len(self._growing.ids) - 1
            self.drafts = self._lookup.guess(min(self._reach, room))
