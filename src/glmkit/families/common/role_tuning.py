"""Rows of ChatGLM3-6B and GLM-4-9B: a conversation as the chat writes it, its assistant's messages counted.

Sources: `THUDM/ChatGLM3:finetune_demo/finetune_hf.py`, `THUDM/GLM-4:finetune/finetune.py`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from glmkit.tokenizer.chat_template import Message, token_id
from glmkit.tokenizer.dialogue import NO_QUIRKS, Dialogue, EncodedRow, Limits, Lost, Quirks, TuningFormat
from glmkit.tokenizer.inputs import InputTokenizer, RowLayout, Side
from glmkit.tokenizer.protocol import Tokenizer

from .role_chat import RoleTemplate
from .role_windows import Part, Windows, shortened
from .tuning import CHOICES, OPEN, answering, check_rooms, own

RIGHT, COMBINED = "right_cut", "combined"
_SEVERAL = "a conversation that does not fit one row became several, each answer counted in one"
_LEAST = (6, 2)  # the opening, two heads; a token and the end
_QUIRKS = {**CHOICES, RIGHT: "rows and prompts are cut on the right, whatever stands there"}
_COMBINED = {
    COMBINED: "what stands behind the last assistant's tag counts, but for the first token (combine: true)",
}


@dataclass(frozen=True, kw_only=True)
class RoleTuning(TuningFormat):
    """Rows of a `RoleTemplate`: a label counts where the token before it belongs to a counted message.

    So the tag that opens an answer does not count, and what follows the answer does: the next role or the row's end.
    A conversation that does not fit `source + target + 1` tokens, the published length of a row, becomes several rows:
    each answer counts in one, behind as many of the rounds before it as fit `source`.
    end: the token behind the last message, None for the end of text; a row that ends inside a turn has the tag of the
    message behind it there. last_tag: the token of the quirk "combined".
    """

    template: RoleTemplate
    limits: Limits
    end: str | None = None
    last_tag: str | None = None

    @property
    def quirks(self) -> dict[str, str]:
        return _QUIRKS | _COMBINED if self.last_tag else _QUIRKS

    def rows(
        self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: Quirks = NO_QUIRKS
    ) -> list[EncodedRow]:
        if RIGHT not in quirks:
            check_rooms(limits.source, limits.target, _LEAST)
        counts = answering(tokenizer, dialogue)
        if True not in counts:
            return []
        messages = self._messages(dialogue)
        parts = self._parts(own(tokenizer), messages)
        most = limits.source + limits.target + 1
        whole = self._row(own(tokenizer), parts, counts, quirks, Lost(), self.end)
        if RIGHT in quirks:
            return [_cut_row(whole, most)]
        if len(whole.ids) <= most:
            return [whole]
        return self._windows(own(tokenizer), messages, parts, counts, dialogue.cut, limits, quirks)

    def prompt(self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: Quirks = NO_QUIRKS) -> list[int]:
        check_rooms(limits.source, limits.target, _LEAST)
        counts = answering(tokenizer, dialogue)
        end = len(counts) - 1 - counts[::-1].index(True) if True in counts else len(counts)
        messages, chat = self._messages(dialogue)[:end], own(tokenizer)
        opening, tag = chat.build_inputs([]), token_id(chat, "<|assistant|>")
        if not messages:  # a greeting
            return [*opening, tag]
        parts = self._parts(chat, messages)
        if RIGHT in quirks:
            return [*_joined(opening, parts)[: limits.source], tag]
        kept = Windows(messages, parts, len(opening)).prompt(limits.source).parts(parts)
        excess = sum(map(len, kept)) + len(opening) + 1 - limits.source
        if excess > 0:
            kept = shortened(kept, [False] * len(messages), excess, dialogue.cut, limits.source)
        return [*_joined(opening, kept), tag]

    def answer(self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: Quirks = NO_QUIRKS) -> list[int]:
        counts = answering(tokenizer, dialogue)
        if True not in counts:
            return []
        messages = self._messages(dialogue)
        last = messages[len(counts) - 1 - counts[::-1].index(True)]
        return self.template.message_ids(own(tokenizer), last)[1:][: limits.target]

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return self.template.stop_ids(own(tokenizer))

    def _messages(self, dialogue: Dialogue) -> list[Message]:
        """The messages with calls in the model's own form."""
        return [
            replace(message, content=self._call(message.content))
            if message.role == "assistant" and message.metadata
            else message
            for message in dialogue.messages
        ]

    def _call(self, content: str) -> str:
        """Arguments as the model writes them; what is no JSON object, as code for an interpreter, stays."""
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            return content
        return (self.template.write_call(values) or content) if isinstance(values, dict) else content

    def _parts(self, tokenizer: InputTokenizer, messages: Sequence[Message]) -> list[Part]:
        self.template.check_roles(messages)
        written = self.template.expand(messages)
        contents = tokenizer.encode_batch([message.content for message, _ in written])
        return [
            Part(index, message.role, self.template.head_ids(tokenizer, message), content)
            for (message, index), content in zip(written, contents, strict=True)
        ]

    def _row(
        self,
        tokenizer: InputTokenizer,
        parts: Sequence[Part],
        counts: Sequence[bool],
        quirks: Quirks,
        lost: Lost,
        end: str | None,
    ) -> EncodedRow:
        ids = tokenizer.build_inputs([])
        counted, before, answers = [False] * len(ids), False, 0
        for part in parts:
            own_flag = part.index is not None and counts[part.index]
            ids += part.head
            ids += part.content
            counted.append(before)
            counted += [own_flag] * (len(part) - 1)
            before = own_flag and not (part.shortened and OPEN in quirks)
            answers += own_flag
        ids.append(tokenizer.special.eos if end is None else token_id(tokenizer, end))
        counted.append(before)
        if COMBINED in quirks and self.last_tag is not None:
            last = len(ids) - 1 - ids[::-1].index(token_id(tokenizer, self.last_tag))
            counted, answers = [index > last + 1 for index in range(len(ids))], 1
        return EncodedRow(ids, counted, RowLayout(range(len(ids)), [0] * len(ids), 0), lost, answers)

    def _windows(
        self,
        tokenizer: InputTokenizer,
        messages: Sequence[Message],
        parts: Sequence[Part],
        counts: Sequence[bool],
        side: Side,
        limits: Limits,
        quirks: Quirks,
    ) -> list[EncodedRow]:
        """Rows that together count every answer once; see the class."""
        opening, most = len(tokenizer.build_inputs([])), limits.source + limits.target + 1
        rows: list[EncodedRow] = []
        for window in Windows(messages, parts, opening).rows(counts, limits.source, most):
            new = [flag and index in window.new for index, flag in enumerate(counts)]
            whole = kept = window.parts(parts)
            excess = sum(map(len, kept)) + opening + 1 - most
            if excess > 0:
                kept = shortened(whole, new, excess, side, limits.source)
            gone = [(len(a) - len(b), b.shortened) for a, b in zip(whole, kept, strict=True)]
            answer = sum(count for count, of_answer in gone if of_answer)
            lost = Lost(sum(count for count, _ in gone) - answer, answer, window.dropped)
            following = messages[window.new.stop].role if window.new.stop < len(messages) else ""
            # No turn ends behind a call of a tool, nor where the assistant says more.
            end = f"<|{following}|>" if following in ("observation", "assistant") else self.end
            rows.append(self._row(tokenizer, kept, new, quirks, lost, end))
        return rows if len(rows) == 1 else [replace(row, notes=(_SEVERAL,)) for row in rows]


def _joined(opening: Sequence[int], parts: Sequence[Part]) -> list[int]:
    ids = [*opening]
    for part in parts:
        ids += part.head
        ids += part.content
    return ids


def _cut_row(row: EncodedRow, most: int) -> EncodedRow:
    """The row without what lies behind so many tokens."""
    ids, counted = row.ids[:most], row.counted[:most]
    gone = sum(row.counted) - sum(counted)
    lost = Lost(len(row.ids) - len(ids) - gone, gone, 0)
    return replace(row, ids=ids, counted=counted, layout=RowLayout(range(len(ids)), [0] * len(ids), 0), lost=lost)
