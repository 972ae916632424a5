"""Rows of ChatGLM3-6B and GLM-4-9B against worked values."""

import json

import pytest

from families.tuned import IGNORED, WEATHER_CALL, WIDE, Tuned, dialogue, labels, of_family
from glmkit.errors import RequestError
from glmkit.families.family import family_named
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import Dialogue, Limits, Lost

JIA, YI, BING, DING = [64795, 30910, 13, 30910, 55647], [64796, 30910, 13, 30910, 56398], 57322, 55905
ARGUMENTS = '{"city": "北京"}'


@pytest.fixture(scope="module")
def third() -> Tuned:
    return of_family("chatglm3")


@pytest.fixture(scope="module")
def fourth() -> Tuned:
    return of_family("glm-4")


def ignored(count: int) -> list[int]:
    return [IGNORED] * count


def counted(tuned: Tuned, asked: Dialogue, *quirks: str) -> list[int]:
    """The ids that count, in order."""
    row = tuned.row(asked, WIDE, *quirks)
    return [index for index, flag in zip(row.ids, row.counted, strict=True) if flag]


def test_orders_of_roles(third: Tuned) -> None:
    row = third.row(dialogue("u 甲", "u 乙", "a 丙"))
    assert row.ids == [64790, 64792, *JIA, 64795, 30910, 13, 30910, 56398, 64796, 30910, 13, 30910, BING, 2]
    assert labels(row) == [*ignored(13), 30910, 13, 30910, BING, 2]
    row = third.row(dialogue("u 甲", "a 乙", "a 丙"))
    assert labels(row) == [*ignored(8), 30910, 13, 30910, 56398, 64796, 30910, 13, 30910, BING, 2]
    assert row.num_answers == 2
    row = third.row(dialogue("a 早", "u 甲", "a 乙"))
    expected = [*ignored(3), 30910, 13, 30910, 55120, 64795, *ignored(5), 30910, 13, 30910, 56398, 2]
    assert labels(row) == expected
    assert (list(row.layout.positions), row.layout.prefix) == (list(range(len(row.ids))), 0)


def test_a_question_behind_the_last_answer(third: Tuned, fourth: Tuned) -> None:
    asked, answered = dialogue("u 甲", "a 乙", "u 丙"), dialogue("u 甲", "a 乙")
    assert counted(fourth, asked) == counted(fourth, answered) == [198, 101085, 151336]
    assert counted(third, asked) == [30910, 13, 30910, 56398, 64795]
    assert counted(third, answered) == [30910, 13, 30910, 56398, 2]


def test_system_text_in_the_middle(third: Tuned) -> None:
    row = third.row(dialogue("u 甲", "a 乙", "s 短", "u 丙", "a 丁"))
    place = row.ids.index(64794)
    assert labels(row)[place] == 64794
    assert labels(row)[place + 1 : place + 5] == ignored(4)
    assert "短" in third.tokenizer.decode(row.ids)


def test_a_message_without_loss(third: Tuned) -> None:
    row = third.row(dialogue("u 甲", "a 乙", "u 丙", "a 丁", uncounted=[1]))
    assert labels(row) == [*ignored(18), 30910, 13, 30910, DING, 2]
    assert row.num_answers == 1


def test_all_answers_or_the_last(fourth: Tuned) -> None:
    asked = dialogue("u 甲", "a 乙", "u 丙", "a 丁")
    assert counted(fourth, asked) == [198, 101085, 151336, 198, 100376, 151336]
    last = dialogue("u 甲", "a 乙", "u 丙", "a 丁", uncounted=[1])
    assert counted(fourth, last) == [198, 100376, 151336]
    assert counted(fourth, asked, "combined") == [100376, 151336]


def test_role_words_are_text(third: Tuned, fourth: Tuned) -> None:
    assert third.row(dialogue("u <|user|>", "a 好")).ids[5:11] == [906, 31007, 4865, 31007, 30994, 64796]
    assert fourth.row(dialogue("u <|user|>", "a 好")).ids[4:9] == [27, 91, 872, 91, 29]
    assert third.row(dialogue("u a\r\nb", "a 好")).ids[5:9] == [260, 31025, 13, 30931]


@pytest.mark.parametrize("arguments", [ARGUMENTS, '{"city":"北京"}', json.dumps({"city": "北京"})])
def test_calls_of_tools(third: Tuned, fourth: Tuned, arguments: str) -> None:
    """Every spelling of the same arguments; the token behind a call counts, what the tool says does not."""
    call = Message("assistant", arguments, "weather")
    asked = dialogue("u 天气", call, "o 晴", "a 好")
    row, first = third.row(asked), 2 + 3 + len(third.tokenizer.encode("天气"))
    assert row.ids[first : first + 18] == [*WEATHER_CALL, 64797]
    assert labels(row)[first : first + 18] == [IGNORED, *WEATHER_CALL[1:], 64797]
    assert labels(row)[first + 18 : first + 18 + 4] == ignored(4)
    row = fourth.row(asked)
    first = row.ids.index(151337)
    assert row.ids[first : first + 9] == [151337, 15194, 198, 4913, 8923, 788, 330, 99334, 9204]
    assert labels(row)[first : first + 10] == [IGNORED, *row.ids[first + 1 : first + 9], 151338]


def test_code_for_an_interpreter_stays(fourth: Tuned) -> None:
    row = fourth.row(dialogue("u 算", Message("assistant", "print(1)", "python"), "o 1", "a 一"))
    assert "python\nprint(1)" in fourth.tokenizer.decode(row.ids, skip_specials=False)


def test_training_reads_what_the_chat_builds(third: Tuned, fourth: Tuned) -> None:
    """A row without its end is the chat's own prompt and what the model answers."""
    tools = ({"type": "function", "function": {"name": "track", "description": "跟踪", "parameters": {}}},)
    asked = dialogue(Message("system", "你是客服", tools=tools), "u 甲", "a 乙", "u 丙", "a 丁")
    for name, tuned in (("chatglm3", third), ("glm-4", fourth), ("glm-4-0414", of_family("glm-4-0414"))):
        chat = family_named(name).chat
        assert chat is not None
        row = tuned.row(asked)
        assert row.ids[:-1] == chat.build(tuned.tokenizer, asked.messages, add_generation_prompt=False)
        prompt = chat.build(tuned.tokenizer, asked.messages[:-1])
        assert tuned.prompt(asked) == prompt == row.ids[: len(prompt)]
        assert row.ids[-1] in tuned.format.stop_ids(tuned.tokenizer)


def test_published_cut(third: Tuned) -> None:
    """A row whose answer is cut away has no label left, which the caller must see."""
    asked = dialogue("u 甲甲甲", "a 乙乙")
    row = third.row(asked, Limits(4, 3), "right_cut")
    assert labels(row) == ignored(8)
    assert row.lost.answer == 6
    assert sum(third.row(asked, Limits(10, 3)).counted) == 6  # the question gave way


def test_long_conversations_become_several_rows(third: Tuned, fourth: Tuned) -> None:
    """Each answer counts in exactly one row, behind as many rounds as fit; nothing of a text is lost."""
    turns = [f"{'ua'[i % 2]} 第{i}句，说得不长也不短。" for i in range(24)]
    for tuned in (third, fourth):
        asked, limits = dialogue("s 规则", *turns), Limits(70, 50)
        rows = tuned.rows(asked, limits)
        assert len(rows) > 1
        assert rows[0].notes == rows[1].notes != ()
        assert sum(row.num_answers for row in rows) == 12
        whole = tuned.row(asked)
        assert sum(sum(row.counted) for row in rows) == sum(whole.counted)
        for row in rows:
            assert len(row.ids) <= limits.source + limits.target + 1
            assert "规则" in tuned.tokenizer.decode(row.ids)
            assert (row.lost.prompt, row.lost.answer) == (0, 0)
        assert rows[0].lost.rounds == 0
        assert rows[-1].lost.rounds > 0
        assert len(tuned.prompt(asked, limits)) <= limits.source


def test_one_long_round(third: Tuned) -> None:
    """The question is cut down to the limit of prompts, then the answer, which keeps its end."""
    asked = dialogue("s 短", "u " + "甲" * 80, "a " + "乙" * 80)
    row = third.row(asked, Limits(32, 16))
    assert len(row.ids) == 49
    assert row.lost.prompt + row.lost.answer == len(third.row(asked).ids) - 49
    assert row.ids[-1] == 2
    assert row.counted[-1]
    assert sum(not flag for flag in row.counted) <= 32
    assert not third.row(asked, Limits(32, 16), "open_cut").counted[-1]
    short = dialogue("u " + "甲" * 80, "a 乙")
    row = third.row(short, Limits(32, 16))
    assert row.lost.answer == 0
    assert len(row.ids) == 49
    assert len(third.prompt(short, Limits(32, 16))) == 32


def test_no_room_for_a_question(third: Tuned) -> None:
    asked = dialogue("s " + "规则" * 100, "u 甲", "a 乙")
    with pytest.raises(RequestError, match="raise data.source_length"):
        third.rows(asked, Limits(32, 16))
    with pytest.raises(RequestError, match="raise data.source_length"):
        third.prompt(asked, Limits(32, 16))


def test_answers_to_compare_with(third: Tuned) -> None:
    asked = dialogue("u 甲", "a 乙", "u 丙", "a 丁")
    assert third.answer(asked) == [30910, 13, 30910, DING]
    assert third.answer(asked, Limits(256, 2)) == [30910, 13]
    assert third.row(asked).lost == Lost()


def test_a_long_turn_with_tools(third: Tuned, fourth: Tuned) -> None:
    """Calls of one turn that do not fit a row are spread over rows, each behind the question and the newest calls."""
    calls = [Message("assistant", json.dumps({"n": n}), "look") for n in range(8)]
    turns = [part for call in calls for part in (call, "o 看到了许多东西")]
    asked = dialogue("u 找出答案", *turns, "a 答案是四十二")
    for tuned in (third, fourth):
        rows, whole = tuned.rows(asked, Limits(80, 40)), tuned.row(asked)
        assert len(rows) > 1
        assert sum(row.num_answers for row in rows) == 9
        assert sum(sum(row.counted) for row in rows) == sum(whole.counted)
        for row in rows:
            assert "找出答案" in tuned.tokenizer.decode(row.ids)
        assert rows[-1].ids[-8:] == whole.ids[-8:]
        observation = whole.ids[whole.ids.index(rows[0].ids[-1])]
        assert tuned.tokenizer.id_to_token(observation) == "<|observation|>", "no turn ends behind a call"
        assert {row.ids[-1] for row in rows[:-1]} == {observation}
        assert len(tuned.prompt(asked, Limits(80, 40))) <= 80
