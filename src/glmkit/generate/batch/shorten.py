"""Prompts of a bounded number of tokens, cut as the published scripts cut them."""

from dataclasses import replace
from typing import Literal, get_args

from glmkit.errors import RequestError

from ..prompt import Prompt
from ..prompting import Prompts

Side = Literal["left", "right"]


class Shortener:
    """Cuts tokens of the text, never those that the model's family puts around it, so that `length` are left in all.

    side "left" drops the beginning, as PaddleNLP's `predict_generation.py` does, "right" the end, as the fine-tuning
    scripts of GLM and ChatGLM-6B do.
    """

    def __init__(self, prompts: Prompts, length: int, side: Side = "left") -> None:
        """Raises RequestError for a length that leaves no token of a text."""
        if side not in get_args(Side):
            raise RequestError(f"truncation_side is {side!r}; use left or right")
        self._prompts, self._side = prompts, side
        # What stands around every text is what stands around this one.
        self._example = prompts.continuation("a")
        own, whole = prompts.tokenizer.encode("a"), [*self._example.ids]
        places = range(len(whole) - len(own) + 1)
        start = next(place for place in places if whole[place : place + len(own)] == own)
        self._before, self._after = whole[:start], whole[start + len(own) :]
        self._most = length - len(self._before) - len(self._after)
        if self._most < 1:
            around = len(self._before) + len(self._after)
            raise RequestError(f"src_length is {length}, and {around} are not of the text; give at least {around + 1}")

    def cut(self, text: str) -> tuple[Prompt | None, int]:
        """(the prompt with what is left of the text, how many tokens are not), or (None, 0) for a text that fits."""
        ids = self._prompts.tokenizer.encode(text)
        over = len(ids) - self._most
        if over <= 0:
            return None, 0
        kept = ids[over:] if self._side == "left" else ids[:-over]
        prompt = self._prompts.continuation([*self._before, *kept, *self._after])
        # The same prompt as that of a text: some ids never follow a text, which a row of ids may allow.
        return replace(prompt, forbidden=self._example.forbidden), over
