"""Texts with blanks: their ids, and the text with an answer in the place of every blank."""

import re
from collections.abc import Sequence

from glmkit.config import SpecialIds
from glmkit.errors import RequestError
from glmkit.tokenizer.incremental import whole_text
from glmkit.tokenizer.protocol import Tokenizer

from .params import check_type

_USUAL = ("[MASK]", "[sMASK]", "[gMASK]")


class BlankText:
    """One text with at least one blank.

    Every mask of the model is a blank, also one that its tokenizer takes for ordinary text (as that of ChatGLM-6B does
    with "[gMASK]"). ids: the text as the model reads it, a mask id for each blank.
    """

    def __init__(self, text: str, tokenizer: Tokenizer, special: SpecialIds, *, called: str = "the text") -> None:
        """called: how errors call the text. Raises RequestError for no text, no blank, or a mask the model lacks."""
        check_type("text", text, str, "a text (str)")
        names = {tokenizer.id_to_token(index): index for index in tokenizer.special.mask_ids()}
        theirs, ours = sorted(names.values()), sorted(special.mask_ids())
        if theirs != ours:
            raise RequestError(
                f"the tokenizer's masks have the ids {theirs}, the model's {ours}; take both from one model"
            )
        known = " or ".join(names)
        foreign = [name for name in _USUAL if name not in names and name in text]
        if foreign:
            raise RequestError(f"{called} has {foreign[0]}, which this model does not know; its blanks are {known}")
        self._tokenizer, self._text = tokenizer, text
        self._pattern = re.compile("|".join(map(re.escape, names)))
        if not self._pattern.search(text):
            raise RequestError(f"{called} has no blank; put {known} where something is missing, or use generate")
        unread = [name for name, index in names.items() if tokenizer.encode(name, specials=True) != [index]]
        self.ids: list[int] = []
        pieces = re.split(f"({'|'.join(map(re.escape, unread))})", text) if unread else [text]
        for piece in pieces:
            self.ids += [names[piece]] if piece in unread else tokenizer.encode(piece, specials=True)

    def filled(self, spans: Sequence[Sequence[int]]) -> tuple[str, list[str], list[str]]:
        """The text with the answers, the answers alone, and the texts around them.

        Everything around the blanks stays as it was written. White space that the tokenizer gives to a blank stands
        where the answer begins a word, and is left out where the answer goes on without a space.
        """
        written = self._pattern.split(self._text)
        read = self._pattern.split(self._tokenizer.without_blank_space(self._text))
        answers = [whole_text(self._tokenizer, span) for span in spans]
        assert len(written) == len(read) == len(answers) + 1, "the text and the tokenizer disagree about the blanks"
        around: list[str] = []
        for piece, kept, span in zip(written, read, spans, strict=False):
            end = len(piece) - (_trailing(piece) - _trailing(kept))
            around.append(piece[:end] + (piece[end:] if self._begins_word(span) else ""))
        around.append(written[-1])
        text = "".join(part for pair in zip(around, [*answers, ""], strict=True) for part in pair)
        return text, answers, around

    def _begins_word(self, span: Sequence[int]) -> bool:
        """True when an answer that is decoded without a space in front has one inside a text."""
        answer = self._tokenizer.decode(span)
        if not span or answer[:1].isspace():
            return False
        return self._tokenizer.decode([*span, *span])[len(answer) :][:1].isspace()


def _trailing(text: str) -> int:
    """Number of white-space characters at the end of a text."""
    return len(text) - len(text.rstrip())
