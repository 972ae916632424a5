"""Conversations as numbered rounds of question and answer: ChatGLM-6B and ChatGLM2-6B.

Sources: `chat`, `stream_chat` and `process_response` of `THUDM/chatglm-6b:modeling_chatglm.py` and
`THUDM/chatglm2-6b:modeling_chatglm.py`, `build_prompt` of the latter's `tokenization_chatglm.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from glmkit.errors import RequestError
from glmkit.tokenizer.chat_template import (
    DATE,
    DATE_MARK,
    Call,
    ChatDefaults,
    ChatTemplate,
    Message,
    to_pairs,
    without_part_of,
)
from glmkit.tokenizer.incremental import Replace, TextFilter
from glmkit.tokenizer.inputs import InputTokenizer
from glmkit.tokenizer.reply_cleaning import StrippedReply

_WIDE_MARKS = dict(zip(",!:;?", "，！：；？", strict=True))
_NARROW_BESIDE_CHINESE = re.compile("(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")


@dataclass(frozen=True, kw_only=True)
class RoundTemplate(ChatTemplate):
    """`[Round 1]`, question, answer, and so on, as one text.

    first: number of the first round. gap: line breaks between the parts. bare_start: a conversation of one question is
    that question alone. opened: the tokenizer's special ids stand before the text (else behind a prompt). wide_marks:
    half-width punctuation beside Chinese characters becomes full-width in replies. end: role of the id that ends one.
    """

    name: str
    defaults: ChatDefaults
    end: str
    first: int
    gap: str
    bare_start: bool = False
    opened: bool = True
    wide_marks: bool = False
    shows_empty: bool = False
    roles: tuple[str, ...] = ("user", "assistant")

    def build(
        self,
        tokenizer: InputTokenizer,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        specials: bool = False,
    ) -> list[int]:
        text = self.text(messages, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt or self.opened:
            return tokenizer.encode_inputs(text, specials=specials)
        return tokenizer.encode(text, specials=specials)

    def build_turn(self, tokenizer: InputTokenizer, messages: Sequence[Message]) -> list[int] | None:
        """Ids as in `ChatTemplate`. The dummy space in front is dropped, for the text goes on from the reply before."""
        pairs, query = self._turns(messages)
        if query is None:
            raise RequestError("the conversation ends with the assistant's message", step="add one of the user's")
        if not self.opened:
            return None
        return tokenizer.encode(self.gap + self._round(len(pairs), query))[1:]

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        pairs, query = self._turns(messages)
        if add_generation_prompt and query is None:
            raise RequestError("the conversation ends with the assistant's message", step="add one of the user's")
        if self.bare_start and not pairs:
            return query or ""
        rounds = [self._round(number, question) + answer + self.gap for number, (question, answer) in enumerate(pairs)]
        if query is not None:
            rounds.append(self._round(len(pairs), query, ask=add_generation_prompt))
        return "".join(rounds)

    def history(self, messages: Sequence[Message]) -> list[tuple[str, str]]:
        """(query, response) pairs. Raises RequestError when the last query waits for its response."""
        pairs, query = to_pairs(messages)
        if query is not None:
            raise RequestError("the conversation ends with the user's message; a history is made of finished rounds")
        return pairs

    def process_response(self, text: str, messages: Sequence[Message] = ()) -> tuple[str | Call, list[Message]]:
        response = self.shown(text)
        return response, [*messages, Message("assistant", response)]

    def shown(self, text: str) -> str:
        text = text.strip().replace(DATE_MARK, DATE)
        return _NARROW_BESIDE_CHINESE.sub(_widen, text) if self.wide_marks else text

    def settled(self, text: str, *, final: bool = False) -> str:
        if not final:
            text = without_part_of(text, DATE_MARK)
            if self.wide_marks and text.endswith(tuple(_WIDE_MARKS)):
                text = text[:-1]
        return self.shown(text)

    def cleaner(self) -> StrippedReply:
        filters: list[TextFilter] = [Replace(DATE_MARK, DATE)]
        return StrippedReply([*filters, _WideMarks()] if self.wide_marks else filters)

    def stop_ids(self, tokenizer: InputTokenizer) -> tuple[int, ...]:
        return (tokenizer.special.require(self.end),)

    def _turns(self, messages: Sequence[Message]) -> tuple[list[tuple[str, str]], str | None]:
        self.check_roles(messages)
        return to_pairs(messages)

    def _round(self, number: int, question: str, *, ask: bool = True) -> str:
        gap = self.gap
        return f"[Round {self.first + number}]{gap}问：{question}{gap}" + ("答：" if ask else "")


class _WideMarks:
    """Half-width punctuation beside Chinese characters made full-width, in steps. A mark at the end is held back."""

    def __init__(self) -> None:
        self._before, self._held = "", ""  # the character before the held one, and that mark, if there are any

    def feed(self, text: str) -> str:
        if not text:
            return ""
        start, text = len(self._before), self._before + self._held + text
        end = len(text) - text.endswith(tuple(_WIDE_MARKS))
        self._before, self._held = text[:end][-1:], text[end:]
        return _NARROW_BESIDE_CHINESE.sub(_widen, text)[start:end]

    def finish(self) -> str:
        text = _NARROW_BESIDE_CHINESE.sub(_widen, self._before + self._held)[len(self._before) :]
        self._before, self._held = "", ""
        return text


def _widen(match: re.Match[str]) -> str:
    return _WIDE_MARKS[match[0]]


CHAT = RoundTemplate(
    name="ChatGLM-6B",
    defaults=ChatDefaults(max_length=2048, temperature=0.95, top_p=0.7),
    end="eop",
    first=0,
    gap="\n",
    bare_start=True,
    opened=False,
    wide_marks=True,
    shows_empty=True,
)
