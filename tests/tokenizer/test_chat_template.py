"""Messages and histories, and reading a reply while it is generated."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import pytest

from glmkit.errors import RequestError, TokenizerError
from glmkit.tokenizer.chat_template import (
    NO_TOOLS,
    ChatDefaults,
    ChatTemplate,
    Message,
    ReplyStream,
    offered_tools,
    to_messages,
    token_id,
    without_part_of,
)
from glmkit.tokenizer.inputs import InputTokenizer
from support.chat import WholeReply
from tokenizer.tiny_ranks import tiny_tokenizer


class Plain(ChatTemplate):
    """Contents one after the other; replies in capitals, a last small letter may still change."""

    name = "plain"
    roles = ("user", "assistant")
    defaults = ChatDefaults(max_length=10, temperature=1.0, top_p=1.0)

    def build(
        self, tokenizer: InputTokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]:
        self.check_roles(messages)
        return tokenizer.encode(self.text(messages))

    def build_turn(self, tokenizer: InputTokenizer, messages: Sequence[Message]) -> list[int] | None:
        return None

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        return "".join(message.content for message in messages)

    def history(self, messages: Sequence[Message]) -> list[Any]:
        return list(messages)

    def process_response(
        self, text: str, messages: Sequence[Message] = ()
    ) -> tuple[str | dict[str, Any], list[Message]]:
        return text.upper(), [*messages, Message("assistant", text.upper())]

    def shown(self, text: str, offered: AbstractSet[str] = NO_TOOLS) -> str:
        return text.upper()

    def settled(self, text: str, offered: AbstractSet[str] = NO_TOOLS, *, final: bool = False) -> str:
        return text.upper() if final else text.upper()[:-1]

    def cleaner(self, offered: AbstractSet[str] = NO_TOOLS) -> WholeReply:
        return WholeReply(self)

    def stop_ids(self, tokenizer: InputTokenizer) -> tuple[int, ...]:
        return (tokenizer.special.eos,)


TOKENIZER = tiny_tokenizer()
TEMPLATE = Plain()
TALK = [Message("user", "q"), Message("assistant", "a")]


def test_every_form_of_a_history() -> None:
    assert to_messages([("q", "a")]) == to_messages([["q", "a"]]) == TALK
    assert (
        to_messages([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "metadata": ""}]) == TALK
    )
    assert to_messages([TALK[0], ("x", "y"), {"role": "user", "content": None}]) == [
        TALK[0],
        Message("user", "x"),
        Message("assistant", "y"),
        Message("user", ""),
    ]
    assert to_messages([]) == []
    assert to_messages([{"role": "user", "content": "q", "name": "x"}]) == TALK[:1]
    assert to_messages([(None, "hello"), ("q", "a")]) == [Message("assistant", "hello"), *TALK]


def test_dictionaries_and_back() -> None:
    message = Message("system", "s", metadata="m", tools=[{"name": "f"}])
    assert message.to_dict() == {"role": "system", "content": "s", "metadata": "m", "tools": [{"name": "f"}]}
    assert Message.from_dict(message.to_dict()) == message
    assert TALK[0].to_dict() == {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ("hello", "a list of turns, not one str"),
        ({"role": "user", "content": "q"}, "a list of turns, not one dict"),
        ([("q", "a", "x")], "is no turn"),
        (["qa"], "is no turn"),
        ([("q", None)], "is no turn"),
        ([1, 2], "is no turn"),
        ([None], "is no turn"),
        (5, "a list of turns, not one int"),
        ([{"role": "user", "content": "q", "names": "x"}], "has the field 'names'; known are role, content"),
        ([{"content": "q"}], "has the role None"),
        ([{"role": "user", "content": 5}], "must be texts"),
        ([{"role": "user", "content": "q", "tools": "f"}], "must be a list of objects"),
    ],
)
def test_what_is_no_history(history: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        to_messages(history)


def test_the_tools_of_a_conversation() -> None:
    tools = [{"name": " f "}, {"type": "function", "function": {"name": "g"}}, {"type": "python"}, {"x": 1}]
    tools += [{"type": "function", "function": {"name": 5}}, {"name": " "}]
    talk = [Message("system", "s", tools=tools), *TALK, Message("user", "q", tools=[{"name": "查"}])]
    assert offered_tools(talk) == {"f": True, "g": True, "python": False, "查": True}
    assert offered_tools(TALK) == {}


def test_a_reply_step_by_step() -> None:
    stream = ReplyStream(TEMPLATE, TOKENIZER)
    ids = [ord("a"), *"é".encode(), ord("b"), TOKENIZER.special.eos]
    assert [stream.push(index) for index in ids] == ["A", None, "AÉ", "AÉB", "AÉB"]
    assert stream.fresh() == "AÉ"
    assert stream.fresh() == ""
    assert stream.fresh(final=True) == "B"
    assert stream.finish(TALK) == ("AÉB", [*TALK, Message("assistant", "AÉB")])


def test_half_a_character_is_shown_where_another_one_follows() -> None:
    stream = ReplyStream(TEMPLATE, TOKENIZER)
    assert [stream.push(index) for index in (0xF0, 0x9F)] == [None, None]
    assert stream.push(ord("x")) == "\ufffdX"
    stream.push(0xE4)
    assert stream.fresh() == "\ufffd"
    assert stream.fresh(final=True) == "X"
    assert stream.finish()[0] == "\ufffdX"


def test_the_text_of_a_reply() -> None:
    end = TOKENIZER.special.eos
    assert TEMPLATE.reply_text(TOKENIZER, [97, end]) == "a"
    assert TEMPLATE.reply_text(TOKENIZER, [97, 98]) == "ab"
    assert TEMPLATE.reply_text(TOKENIZER, []) == ""


def test_roles_are_checked() -> None:
    with pytest.raises(RequestError, match="plain knows no role 'system'; its roles are user, assistant"):
        TEMPLATE.build(TOKENIZER, [Message("system", "s")])
    with pytest.raises(RequestError, match="no message"):
        TEMPLATE.build(TOKENIZER, [])


def test_tokens_by_name() -> None:
    assert token_id(TOKENIZER, "<|user|>") == TOKENIZER.token_to_id("<|user|>")
    with pytest.raises(TokenizerError, match="no token '<|who|>', which the chat template needs"):
        token_id(TOKENIZER, "<|who|>")


def test_the_beginning_of_a_mark_is_held_back() -> None:
    assert without_part_of("ab[[", "[[x]]") == "ab"
    assert without_part_of("ab[", "[[x]]") == "ab"
    assert without_part_of("ab[[x]]", "[[x]]") == "ab[[x]]"
    assert without_part_of("[[[x", "[[x]]") == "["
    assert without_part_of("", "[[x]]") == ""
