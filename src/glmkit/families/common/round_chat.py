"""Conversations as numbered rounds of question and answer: ChatGLM-6B and ChatGLM2-6B.

Sources: `chat`, `stream_chat` and `process_response` of `THUDM/chatglm-6b:modeling_chatglm.py` and
`THUDM/chatglm2-6b:modeling_chatglm.py`, `build_prompt` of the latter's `tokenization_chatglm.py`; system texts as in
`THUDM/ChatGLM2-6B:openai_api.py`.
"""

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import groupby, pairwise

from glmkit.errors import RequestError
from glmkit.tokenizer.chat_template import (
    DATE,
    DATE_MARK,
    NO_TOOLS,
    Call,
    ChatDefaults,
    ChatTemplate,
    Message,
    Turns,
    without_part_of,
)
from glmkit.tokenizer.incremental import Replace, TextFilter
from glmkit.tokenizer.inputs import InputTokenizer
from glmkit.tokenizer.reply_cleaning import StrippedReply

_WIDE_MARKS = dict(zip(",!:;?", "，！：；？", strict=True))
_REFUSAL = "{{{{ raise_exception('{}') }}}}"  # a function that every renderer of such templates gives them
_NARROW_BESIDE_CHINESE = re.compile("(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")


@dataclass(frozen=True, kw_only=True)
class RoundTemplate(ChatTemplate):
    """`[Round 1]`, question, answer, and so on, as one text.

    The published form has the user's and the assistant's messages in turn. `to_rounds` brings others into it; a
    conversation that ends with the assistant's message is one whose last answer goes on.
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
    roles: tuple[str, ...] = ("system", "user", "assistant")

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
        if not self.opened or query is None or query != messages[-1].content:
            return None
        return tokenizer.encode(self.gap + self._round(len(pairs), query))[1:]

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, tagged: bool = False) -> str:
        """Text as in `ChatTemplate`. tagged: the round is written in front of a single question, too."""
        pairs, query = self._turns(messages)
        if self.bare_start and not pairs and not tagged:
            return query or ""
        rounds = [self._round(number, question) + answer + self.gap for number, (question, answer) in enumerate(pairs)]
        if query is not None:
            rounds.append(self._round(len(pairs), query, ask=add_generation_prompt))
        text = "".join(rounds)
        return text.removesuffix(self.gap) if query is None and add_generation_prompt else text

    @property
    def jinja(self) -> str:
        gap = self.gap.replace("\n", "\\n")
        refusal = _REFUSAL.format(f"{self.name} writes questions and answers in turn, without tools")
        number = f"loop.index0 // 2 + {self.first}"
        asked = "('' if loop.last and not add_generation_prompt else '答：')"
        question = f"{{{{ '[Round ' ~ ({number}) ~ ']{gap}问：' ~ message['content'] ~ '{gap}' ~ {asked} }}}}"
        answer = f"{{{{ message['content'] ~ ('' if loop.last and add_generation_prompt else '{gap}') }}}}"
        if self.bare_start:
            question = (
                f"{{% if messages | length == 1 %}}{{{{ message['content'] }}}}{{% else %}}{question}{{% endif %}}"
            )
        answer = f"{{% generation %}}{answer}{{% endgeneration %}}"
        expected = "('user' if loop.index0 % 2 == 0 else 'assistant')"
        odd = f"{{% if tools or message['role'] != {expected} %}}{refusal}{{% endif %}}"
        turn = f"{{% if message['role'] == 'user' %}}{question}{{% else %}}{answer}{{% endif %}}"
        return f"{{% for message in messages %}}{odd}{turn}{{% endfor %}}"

    def history(self, messages: Sequence[Message]) -> Turns:
        """(query, response) pairs; dictionaries where these would not hold who said what.

        Raises RequestError when the last query waits for its response.
        """
        if messages and messages[-1].role != "assistant":
            raise RequestError("the conversation ends with the user's message; a history is made of finished rounds")
        roles = [message.role for message in messages]
        if roles == ["user", "assistant"] * (len(roles) // 2):
            return self._turns(messages)[0] if messages else []
        return [message.to_dict() for message in messages]

    def process_response(self, text: str, messages: Sequence[Message] = ()) -> tuple[str | Call, list[Message]]:
        response = self.shown(text)
        return response, [*messages, Message("assistant", response)]

    def shown(self, text: str, offered: AbstractSet[str] = NO_TOOLS) -> str:
        text = text.strip().replace(DATE_MARK, DATE)
        return _NARROW_BESIDE_CHINESE.sub(_widen, text) if self.wide_marks else text

    def settled(self, text: str, offered: AbstractSet[str] = NO_TOOLS, *, final: bool = False) -> str:
        if not final:
            text = without_part_of(text, DATE_MARK)
            if self.wide_marks and text.endswith(tuple(_WIDE_MARKS)):
                text = text[:-1]
        return self.shown(text)

    def cleaner(self, offered: AbstractSet[str] = NO_TOOLS) -> StrippedReply:
        filters: list[TextFilter] = [Replace(DATE_MARK, DATE)]
        return StrippedReply([*filters, _WideMarks()] if self.wide_marks else filters)

    def stop_ids(self, tokenizer: InputTokenizer) -> tuple[int, ...]:
        return (tokenizer.special.require(self.end),)

    def _turns(self, messages: Sequence[Message]) -> tuple[list[tuple[str, str]], str | None]:
        """(question, answer) of each round, and the question that waits for its answer, if any. Raises RequestError."""
        self.check_roles(messages)
        for number, message in enumerate(messages, 1):
            if message.metadata or message.tools is not None:
                raise RequestError(f"message {number} has metadata or tools, which {self.name} has no form for")
        texts = to_rounds(messages)
        return list(zip(texts[0::2], texts[1::2], strict=False)), texts[-1] if len(texts) % 2 else None

    def _round(self, number: int, question: str, *, ask: bool = True) -> str:
        gap = self.gap
        return f"[Round {self.first + number}]{gap}问：{question}{gap}" + ("答：" if ask else "")


def to_rounds(messages: Iterable[Message]) -> list[str]:
    """Questions and answers in turn, a question first, with every text of the messages in them.

    A system text stands directly before the question behind it. Other messages of one side that follow each other are
    lines of one text. The assistant's greeting answers an empty question, or the system text before it.
    """
    texts: list[str] = []
    for answers, group in groupby(messages, lambda message: message.role == "assistant"):
        said = [message for message in group if message.content]
        if answers and not texts:
            texts.append("")
        ends = ["" if (one.role, two.role) == ("system", "user") else "\n" for one, two in pairwise(said)]
        texts.append("".join(message.content + end for message, end in zip(said, [*ends, ""], strict=False)))
    return texts


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
