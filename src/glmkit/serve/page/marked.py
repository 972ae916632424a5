"""Texts with answers in them as HTML: everything a person or the model wrote is escaped."""

import re
from collections.abc import Sequence
from html import escape

EMPTY = '<div class="result empty"></div>'


class BlankedText:
    """A text with blanks, cut where they are. marks: what a blank is written as."""

    def __init__(self, text: str, marks: Sequence[str]) -> None:
        pattern = "|".join(map(re.escape, marks))
        pieces = re.split(f"({pattern})", text) if marks else [text]
        self.around, self.blanks = pieces[0::2], pieces[1::2]

    def html(self, answers: Sequence[str], done: Sequence[bool]) -> str:
        """The text with the answers so far; a blank without any shows its mark."""
        parts = [_escaped(self.around[0])]
        for blank, after, answer, over in zip(self.blanks, self.around[1:], answers, done, strict=True):
            if over or answer:
                parts.append(f'<mark class="{"answer" if over else "answer writing"}">{_escaped(answer)}</mark>')
            else:
                parts.append(f'<mark class="waiting">{_escaped(blank)}</mark>')
            parts.append(_escaped(after))
        return _view("".join(parts))

    def final(self, text: str, answers: Sequence[str]) -> str:
        """The whole filled text, which may lack white space before an answer that the text with blanks has."""
        parts, place = [], 0
        for before, answer in zip(self.around, answers, strict=False):
            kept = before if text.startswith(before + answer, place) else before.rstrip()
            if not text.startswith(kept + answer, place):
                return _view(_escaped(text))
            parts.append(f'{_escaped(kept)}<mark class="answer">{_escaped(answer)}</mark>')
            place += len(kept + answer)
        return _view("".join(parts) + _escaped(text[place:]))


def continued(text: str, answer: str, *, over: bool) -> str:
    """A text and what the model wrote after it."""
    return _view(f'{_escaped(text)}<mark class="{"answer" if over else "answer writing"}">{_escaped(answer)}</mark>')


def _escaped(text: str) -> str:
    # HTML has no NUL: browsers would leave it out.
    return escape(text).replace("\0", "\ufffd")


def _view(html: str) -> str:
    return f'<div class="result" dir="auto">{html}</div>'
