"""One row of any form as a dialogue: recognised, worded by a template, answers checked, every loss of text counted."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from glmkit.data.rows import describe
from glmkit.errors import DataError
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import Dialogue, Example, Tokenized
from glmkit.tokenizer.inputs import Side

from .conversations import Conversation, conversation_field, read_conversation, read_history, with_tools
from .report import SetReport
from .row_forms import Columns, Single, check_columns, check_preference, is_single, missing, recognised, unused
from .templates import TEMPLATES, TextTemplate, check_fields, choose
from .texts import PLACEHOLDER, Reader, filled, without_end_words, written

Answers = Literal["all", "last"]
_ROUND = re.compile(r"(?:\A|\n)(Human|Assistant)[:：]")


@dataclass
class RowReader:
    """Rows as dialogues. report: counts everything that is left out, cut or not used.

    templates: wordings of rows with one question, none for that of their form. answers: which answers of a conversation
    are trained; None: all of a conversation, the last one behind a history. fill: texts for `{{name}}`.
    unanswered: rows to predict: those whose last answer is blank or missing stay, with nothing counted.
    """

    reader: Reader
    report: SetReport
    columns: Columns = field(default_factory=Columns)
    templates: Sequence[TextTemplate] = ()
    answers: Answers | None = None
    fill: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    source: str = ""
    unanswered: bool = False
    unseen: set[str] = field(init=False)  # given columns that no row had so far
    seen: set[str] = field(default_factory=set)  # names of fields that templates may use
    used: set[str] = field(default_factory=set)  # templates of the rows, "" for rows that have none

    def __post_init__(self) -> None:
        self.unseen = set(self.columns.given().values())

    def read(self, row: Mapping[str, object], where: str, file: str, index: int) -> Example | None:
        """The dialogue of a row; None for one without anything to train. index: of the row in its set.

        Raises DataError, without the place, for a row that cannot be used.
        """
        self.unseen.difference_update(row)
        if row.get("input_ids") is not None:
            return self._tokenized(row, where, file)
        if not any(value not in (None, "") for value in row.values()):
            raise DataError("the row has no field with a value", code="empty_row")
        check_preference(row)
        name = self.columns.messages or conversation_field(row)
        if name is not None and self.columns.messages is None and not row[name] and is_single(row):
            name = None  # a table's field of other rows
        if name is not None and self.columns.prompt is None:
            return self._conversation(row, name, where, file)
        names = frozenset(name for template in self.templates for name in template.fields)
        single = recognised(row, self.columns, names)
        return self._single(row, single, where, file, index)

    def _conversation(self, row: Mapping[str, object], name: str, where: str, file: str) -> Example | None:
        check_columns(row, self.columns, ("messages",))
        self.used.add("")
        conversation = read_conversation(row[name], name, self.reader)
        kind = "conversations" if name == "conversations" else f"conversations ({name})"
        system = self.columns.system or next((key for key in ("system", "system_prompt") if row.get(key)), None)
        tools = self.columns.tools or ("tools" if row.get("tools") is not None else "functions")
        if system is not None and (text := self._system(row, system)):
            if conversation.messages and conversation.messages[0].role == "system":
                raise DataError(f"field {system!r} stands beside a system message; keep one of them", param=system)
            conversation.messages.insert(0, Message("system", text))
            conversation.counted.insert(0, False)
        if tools in row:
            with_tools(conversation, row[tools], tools, self.reader)
        self.report.read_as(file, kind)
        for key in conversation.unused:
            self.report.not_used(f"{name}[].{key}", where)
        for key in unused(row, (name, tools, *([system] if system else []))):
            self.report.not_used(key, where)
        for _ in range(conversation.calls_as_text):
            self.report.remark("call_as_text", where)
        return self._dialogue(conversation, where, self.answers or "all", "left")

    def _single(self, row: Mapping[str, object], single: Single, where: str, file: str, index: int) -> Example | None:
        template = choose(self.templates, self.seed, index) if self.templates else TEMPLATES[single.template]
        check_fields(template, single.names)
        self.seen.update(single.names)
        self.used.add(template.name)
        texts = {part: single.names[part] for part in template.fields if part in single.names}
        values = {part: written(row.get(name), name) for part, name in texts.items()}
        prompt, answer, system = template.render(values)
        for part, value in values.items():
            if not any(value in text for text in (prompt, answer, system)):
                self.report.not_used(texts[part], where)
        conversation = Conversation()
        if single.system is not None and (text := self._system(row, single.system)):
            conversation.add(Message("system", text))
        if system:
            conversation.add(Message("system", system))
        rounds = list(read_history(row.get(single.history), single.history)) if single.history else []
        if not rounds and (rounds := rounds_in(prompt)):
            self.report.remark("rounds_in_text", where)
            prompt = rounds.pop()[1]
        for role, text in rounds:
            conversation.add(Message(role, text))
        self.report.read_as(file, single.kind)
        if single.kind.startswith("context/answer/question") and not self.templates:
            self.report.remark("question_generation", where)
        for key in unused(row, {*single.used(template.fields), self.columns.tools or "tools"}):
            self.report.not_used(key, where)
        if self.reader.blank(prompt):
            self.report.remark("empty_prompt", where)
            return None
        conversation.add(Message("user", prompt))
        conversation.add(Message("assistant", answer))
        tools = self.columns.tools or ("tools" if "tools" in row and "tools" not in template.fields else None)
        if tools is not None:
            with_tools(conversation, row.get(tools), tools, self.reader)
        before = sum(conversation.counted) - 1
        if before and self.answers is None:
            for _ in range(before):
                self.report.remark("last_only", where)
        cut: Side = "left" if rounds else template.cut
        return self._dialogue(conversation, where, self.answers or "last", cut)

    def _system(self, row: Mapping[str, object], name: str) -> str:
        """The text of a field that says how to answer; "" for a blank one."""
        text = written(row.get(name), name)
        return "" if self.reader.blank(text) else text

    def _dialogue(self, conversation: Conversation, where: str, answers: Answers, cut: Side) -> Example | None:
        """The dialogue of checked messages; None if no answer is left that is trained."""
        messages, counted = conversation.messages, conversation.counted
        if not messages:
            raise DataError("the conversation has no message", code="empty_conversation")
        if self.unanswered and self._is_open(messages[-1]):
            asked = messages[:-1] if messages[-1].role == "assistant" else messages
            if asked:
                return Dialogue(tuple(asked), (False,) * len(asked), where, cut, self.source)
        last = max((place for place, message in enumerate(messages) if message.role == "assistant"), default=-1)
        end = last + 1
        if last >= 0 and messages[last].metadata:  # what follows a call is its outcome, which the call's end foretells
            end = next((i for i in range(end, len(messages)) if messages[i].role != "observation"), len(messages))
        if end < len(messages):
            if last >= 0:
                self.report.remark("trailing", where)
            messages, counted = messages[:end], counted[:end]
        self.report.turns += sum(message.role == "assistant" for message in messages)
        checked, flags = [], []
        for place, (message, flag) in enumerate(zip(messages, counted, strict=True)):
            if message.role == "assistant" and not message.metadata:
                message = self._answer(message, where)
                if self.reader.blank(message.content):
                    self.report.remark("empty_answer", where)
                    flag = False
            elif message.role == "user" and self.reader.blank(message.content):
                self.report.remark("empty_turn", where)
            checked.append(message)
            flags.append(flag and (answers == "all" or place == last))
        if not any(flags):
            if not any(counted):  # else its blank answers are counted
                self.report.remark("nothing_to_train", where)
            return None
        self.report.counted += sum(flags)
        return Dialogue(tuple(checked), tuple(flags), where, cut, self.source)

    def _is_open(self, last: Message) -> bool:
        """True when a conversation ends with what is to be answered."""
        return last.role != "assistant" or (not last.metadata and self.reader.blank(last.content))

    def _answer(self, message: Message, where: str) -> Message:
        """An answer without foreign end words, placeholders filled; what is odd in it is counted."""
        text, had_end = without_end_words(filled(message.content, self.fill))
        if had_end:
            self.report.remark("end_word", where)
        if "{{" in text and PLACEHOLDER.search(text):
            self.report.remark("placeholders", where)
        if "\ufffd" in text:
            self.report.remark("lost_text", where)
        if any(word in text for word in self.reader.reserved):
            self.report.remark("reserved", where)
        return message if text == message.content else Message("assistant", text)

    def _tokenized(self, row: Mapping[str, object], where: str, file: str) -> Tokenized:
        """A row that `tokenize_dataset_rows.py` of ChatGLM-Tuning has written: input_ids, seq_len of the prompt."""
        ids, size = row["input_ids"], row.get("seq_len")
        if not isinstance(ids, list) or not ids or not all(type(one) is int and one >= 0 for one in ids):
            raise DataError(
                f"field 'input_ids' is {describe(ids)}, not a list of ids", param="input_ids", code="wrong_type"
            )
        if "seq_len" not in row:
            raise missing(row, "seq_len", "no field 'seq_len', the number of ids of the prompt")
        if type(size) is not int or not 1 <= size < len(ids):
            what = f"field 'seq_len' is {size!r}; the {len(ids)} ids of the row need 1 to {len(ids) - 1}"
            raise DataError(what, param="seq_len", code="wrong_value")
        self.report.read_as(file, "input_ids/seq_len (tokenized)")
        self.used.add("")
        for key in unused(row, ("input_ids", "seq_len", "attention_mask", "labels")):
            self.report.not_used(key, where)
        self.report.turns += 1
        self.report.counted += 1
        return Tokenized(tuple(ids), size, where, self.source)


def check_seen(readers: Sequence[RowReader]) -> None:
    """Raise DataError for a given column, and a field of a template of the user's, that no row of a set had.

    One that only some rows lack is empty in those.
    """
    for part, name in readers[0].columns.given().items():
        if all(name in one.unseen for one in readers):
            what = f"{readers[0].source}: no row has a field {name!r}, the {part} column"
            raise DataError(what, param=name, code="missing_field")
    seen = frozenset[str]().union(*(one.seen for one in readers))
    for template in readers[0].templates if seen else ():
        for name in sorted(template.fields - seen) if template.name not in TEMPLATES else ():
            what = f"{readers[0].source}: no row has a field {name!r}, which template {template.name!r} names"
            raise DataError(what, param="data.template", code="missing_field")


def rounds_in(text: str) -> list[tuple[str, str]]:
    """(role, text) of a text of BELLE's multi-turn sets, "Human:...\\nAssistant:...\\nHuman:...\\nAssistant:".

    The question is the last one. [] for any other text.
    """
    if not text.startswith("Human"):
        return []
    pieces = _ROUND.split(text)[1:]
    rounds = list(zip(pieces[::2], pieces[1::2], strict=True))
    names = [name for name, _ in rounds]
    alternate = names == ["Human" if place % 2 == 0 else "Assistant" for place in range(len(names))]
    if len(rounds) < 2 or not alternate or names[-1] != "Assistant" or rounds[-1][1].strip():
        return []
    roles = {"Human": "user", "Assistant": "assistant"}
    return [(roles[name], said.strip()) for name, said in rounds[:-1]]
