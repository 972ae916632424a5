"""Rows of ChatGLM3-6B and GLM-4-9B: a conversation as the chat writes it, its assistant's messages counted.

Sources: `THUDM/ChatGLM3:finetune_demo/finetune_hf.py`, `THUDM/GLM-4:finetune/finetune.py`.
"""

import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from glmkit.tokenizer.chat_template import Message, token_id, turns_of
from glmkit.tokenizer.dialogue import NO_QUIRKS, Dialogue, EncodedRow, Limits, Lost, TuningFormat
from glmkit.tokenizer.inputs import InputTokenizer, RowLayout, Side
from glmkit.tokenizer.protocol import Tokenizer

from .role_chat import RoleTemplate
from .tuning import CHOICES, OPEN, answering, asked, check_rooms, cut, no_room, own

RIGHT, COMBINED = "right_cut", "combined"
_SEVERAL = "a conversation that does not fit one row became several, each answer counted in one"
_LEAST = (6, 2)  # the opening, two heads; a token and the end
_QUIRKS = {**CHOICES, RIGHT: "rows and prompts are cut on the right, whatever stands there"}
_COMBINED = {
    COMBINED: "what stands behind the last assistant's tag counts, but for the first token (combine: true)",
}


@dataclass(frozen=True, slots=True)
class _Part:
    """A message as ids. index: in the conversation, None for one that the template adds. shortened: lost its end."""

    index: int | None
    role: str
    head: list[int]
    content: list[int]
    shortened: bool = False

    def __len__(self) -> int:
        return len(self.head) + len(self.content)


@dataclass(frozen=True, kw_only=True)
class RoleTuning(TuningFormat):
    """Rows of a `RoleTemplate`: a label counts where the token before it belongs to a counted message.

    So the tag that opens an answer does not count, and what follows the answer does: the next role or the row's end.
    A conversation that does not fit `source + target + 1` tokens, the published length of a row, becomes several rows:
    each answer counts in one, behind as many of the rounds before it as fit `source`.
    end: the token behind the last message, None for the end of text. last_tag: the token of the quirk "combined".
    """

    template: RoleTemplate
    limits: Limits
    end: str | None = None
    last_tag: str | None = None
    quirks: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "quirks", {**_QUIRKS, **(_COMBINED if self.last_tag else {})})

    def rows(
        self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: AbstractSet[str] = NO_QUIRKS
    ) -> list[EncodedRow]:
        if RIGHT not in quirks:
            check_rooms(limits.source, limits.target, _LEAST)
        counts = answering(tokenizer, dialogue)
        if True not in counts:
            return []
        messages = self._messages(dialogue)
        parts = self._parts(own(tokenizer), messages)
        most = limits.source + limits.target + 1
        whole = self._row(own(tokenizer), parts, counts, quirks, Lost())
        if RIGHT in quirks:
            return [_cut_row(whole, most)]
        if len(whole.ids) <= most:
            return [whole]
        return self._windows(own(tokenizer), messages, parts, counts, dialogue.cut, limits, quirks)

    def prompt(
        self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: AbstractSet[str] = NO_QUIRKS
    ) -> list[int]:
        check_rooms(limits.source, limits.target, _LEAST)
        counts = answering(tokenizer, dialogue)
        end = len(counts) - 1 - counts[::-1].index(True) if True in counts else len(counts)
        messages = self._messages(dialogue)
        messages = asked(messages[:end])
        parts, chat = self._parts(own(tokenizer), messages), own(tokenizer)
        opening, tag = chat.build_inputs([]), token_id(chat, "<|assistant|>")
        if RIGHT in quirks:
            return [*_joined(opening, parts)[: limits.source], tag]
        turns = turns_of(messages)
        turn_of = {index: number for number, turn in enumerate(turns) for index in turn}
        sizes, start = _sizes(parts, turn_of, len(turns)), len(turns) - 1
        fixed = len(_joined(opening, parts)) - sum(sizes) + 1
        room = limits.source - fixed - sizes[-1]
        while start > 0 and sum(sizes[start - 1 : -1]) <= room:
            start -= 1
        kept = [part for part in parts if _stays(part, turn_of, start, len(turns))]
        excess = sum(map(len, kept)) + len(opening) + 1 - limits.source
        if excess > 0:
            kept = _shortened(kept, [False] * len(messages), excess, dialogue.cut, limits.source)
        return [*_joined(opening, kept), tag]

    def answer(
        self, tokenizer: Tokenizer, dialogue: Dialogue, limits: Limits, quirks: AbstractSet[str] = NO_QUIRKS
    ) -> list[int]:
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

    def _parts(self, tokenizer: InputTokenizer, messages: Sequence[Message]) -> list[_Part]:
        self.template.check_roles(messages)
        written = self.template.expand(messages)
        contents = tokenizer.encode_batch([message.content for message, _ in written])
        return [
            _Part(index, message.role, self.template.head_ids(tokenizer, message), content)
            for (message, index), content in zip(written, contents, strict=True)
        ]

    def _row(
        self,
        tokenizer: InputTokenizer,
        parts: Sequence[_Part],
        counts: Sequence[bool],
        quirks: AbstractSet[str],
        lost: Lost,
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
        ids.append(tokenizer.special.eos if self.end is None else token_id(tokenizer, self.end))
        counted.append(before)
        if COMBINED in quirks and self.last_tag is not None:
            last = len(ids) - 1 - ids[::-1].index(token_id(tokenizer, self.last_tag))
            counted, answers = [index > last + 1 for index in range(len(ids))], 1
        return EncodedRow(ids, counted, RowLayout(range(len(ids)), [0] * len(ids), 0), lost, answers)

    def _windows(
        self,
        tokenizer: InputTokenizer,
        messages: Sequence[Message],
        parts: Sequence[_Part],
        counts: Sequence[bool],
        side: Side,
        limits: Limits,
        quirks: AbstractSet[str],
    ) -> list[EncodedRow]:
        """Rows that together count every answer once; see the class."""
        turns = turns_of(messages)
        turn_of = {index: number for number, turn in enumerate(turns) for index in turn}
        sizes = _sizes(parts, turn_of, len(turns))
        fixed = sum(map(len, parts)) - sum(sizes) + len(tokenizer.build_inputs([]))
        most = limits.source + limits.target + 1
        counting = [any(counts[index] for index in turn) for turn in turns]
        rows: list[EncodedRow] = []
        first = 0
        while True in counting[first:]:
            first = counting.index(True, first)
            asked_size = _asked(parts, turns[first], counts)
            start, end = first, first + 1
            while start > 0 and fixed + sum(sizes[start - 1 : first]) + asked_size <= limits.source:
                start -= 1
            while start < first and fixed + sum(sizes[start:end]) + 1 > most:
                start += 1
            while end < len(turns) and fixed + sum(sizes[start : end + 1]) + 1 <= most:
                end += 1
            new = [flag and first <= turn_of[index] < end for index, flag in enumerate(counts)]
            kept = [part for part in parts if _stays(part, turn_of, start, end)]
            lost = Lost(rounds=start)
            excess = sum(map(len, kept)) + len(tokenizer.build_inputs([])) + 1 - most
            if excess > 0:
                whole = kept
                kept = _shortened(whole, new, excess, side, limits.source)
                gone = [(len(a) - len(b), b.shortened) for a, b in zip(whole, kept, strict=True)]
                answer = sum(count for count, shortened in gone if shortened)
                lost = Lost(sum(count for count, _ in gone) - answer, answer, start)
            rows.append(self._row(tokenizer, kept, new, quirks, lost))
            first = end
        return rows if len(rows) == 1 else [replace(row, notes=(_SEVERAL,)) for row in rows]


def _joined(opening: Sequence[int], parts: Sequence[_Part]) -> list[int]:
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


def _sizes(parts: Sequence[_Part], turn_of: dict[int, int], num_turns: int) -> list[int]:
    """Tokens of each turn without the system's, which always stay."""
    sizes = [0] * num_turns
    for part in parts:
        if part.index is not None and part.role != "system":
            sizes[turn_of[part.index]] += len(part)
    return sizes


def _stays(part: _Part, turn_of: dict[int, int], start: int, end: int) -> bool:
    return part.index is None or part.role == "system" or start <= turn_of[part.index] < end


def _asked(parts: Sequence[_Part], turn: range, counts: Sequence[bool]) -> int:
    """Tokens of a turn in front of its first counted content."""
    first = next(index for index in turn if counts[index])
    before = [part for part in parts if part.index is not None and part.role != "system" and part.index in turn]
    return sum(len(part) if part.index != first else len(part.head) for part in before if (part.index or 0) <= first)


def _shortened(parts: Sequence[_Part], counts: Sequence[bool], excess: int, side: Side, source: int) -> list[_Part]:
    """The parts with `excess` tokens less: questions and outcomes first, as long as more than `source` is asked.

    The longest of them is cut first, a question on its side, an outcome of a tool on the right; then answers on the
    right, the last one first. Raises RequestError where nothing of a question would be left.
    """
    kept = list(parts)
    answering_ = [part.index is not None and counts[part.index] for part in parts]
    asked_size = sum(len(p.head) + (0 if a else len(p.content)) for p, a in zip(parts, answering_, strict=True))
    answers = any(answering_)
    spare = min(excess, max(asked_size + 2 - source, 0)) if answers else excess
    order = [i for i, part in enumerate(parts) if not answering_[i] and part.role in ("user", "observation")]
    for i in sorted(order, key=lambda i: -len(kept[i].content)):
        content = kept[i].content
        taken = min(spare, max(len(content) - 1, 0))
        if taken:
            shorter = cut(content, len(content) - taken, side if kept[i].role == "user" else "right")
            kept[i] = replace(kept[i], content=shorter)
        spare, excess = spare - taken, excess - taken
    if spare > 0:
        raise no_room(
            sum(map(len, kept)) - sum(len(p.content) for p, a in zip(kept, answering_, strict=True) if a), source
        )
    for i in reversed(range(len(kept))):
        if answering_[i] and excess > 0:
            content = kept[i].content
            taken = min(excess, max(len(content) - 1, 0))
            kept[i] = replace(kept[i], content=content[: len(content) - taken], shortened=taken > 0)
            excess -= taken
    if excess > 0:
        raise no_room(sum(map(len, kept)), source)
    return kept
