"""Conversations in rounds: prompts, replies and streams as the published `chat` gave them."""

from itertools import pairwise
from typing import Any

import pytest

from families.recorded import recorded
from glmkit.errors import RequestError
from glmkit.families import chatglm2_text, chatglm_text
from glmkit.families.common import round_chat as chatglm_chat
from glmkit.families.common.round_chat import RoundTemplate, to_rounds
from glmkit.tokenizer.chat_template import Message, ReplyStream, to_messages
from glmkit.tokenizer.inputs import InputTokenizer
from support.shared import shared_dir

pytestmark = pytest.mark.sampled(4)

FOLDERS = {
    "chatglm-6b": (chatglm_chat.CHAT, "chatglm-6b", chatglm_text.load_tokenizer),
    "chatglm2-6b": (chatglm2_text.CHAT_2, "chatglm2-chatglm3", chatglm2_text.load_tokenizer_2),
}
first, second = chatglm_chat.CHAT, chatglm2_text.CHAT_2


class Recorded:
    """A template, its tokenizer and its folder of recorded answers."""

    def __init__(self, folder: str) -> None:
        template, vocabulary, load = FOLDERS[folder]
        self.template: RoundTemplate = template
        self.data: dict[str, Any] = recorded(folder)
        tokenizer = load(shared_dir("tokenizers", vocabulary), None)
        assert isinstance(tokenizer, InputTokenizer)
        self.tokenizer: InputTokenizer = tokenizer


@pytest.fixture(scope="module", params=list(FOLDERS))
def model(request: pytest.FixtureRequest) -> Recorded:
    return Recorded(request.param)


def conversation(case: dict[str, Any]) -> list[Message]:
    return [*to_messages(case["history"]), Message("user", case["query"])]


def test_prompts(model: Recorded) -> None:
    for case in [*model.data["chat"], *model.data.get("build_prompt", [])]:
        messages = conversation(case)
        assert model.template.text(messages) == case["prompt"]
        if "input_ids" in case:
            assert [model.template.build(model.tokenizer, messages, specials=True)] == case["input_ids"]


def test_defaults_and_stops(model: Recorded) -> None:
    for case in model.data["chat"]:
        defaults = model.template.defaults
        assert case["gen_kwargs"] == {
            "max_length": defaults.max_length,
            "num_beams": 1,
            "do_sample": True,
            "top_p": defaults.top_p,
            "temperature": defaults.temperature,
        }
        assert model.template.stop_ids(model.tokenizer) == (case["reply_ids"][-1],)


def test_replies(model: Recorded) -> None:
    for case in model.data["chat"]:
        text = model.template.reply_text(model.tokenizer, case["reply_ids"])
        response, history = model.template.process_response(text, conversation(case))
        assert response == case["response"]
        assert model.template.history(history) == [tuple(pair) for pair in case["history_out"]]


def test_streams(model: Recorded) -> None:
    seen = 0
    for case in model.data["chat"]:
        stream = ReplyStream(model.template, model.tokenizer)
        shown, sent = [], ""
        for index in case["reply_ids"]:
            shown.append(stream.push(index))
            sent += stream.fresh()
            assert case["response"].startswith(sent)
        assert sent + stream.fresh(final=True) == case["response"]
        assert stream.finish(conversation(case))[0] == case["response"]
        if "stream_responses" in case:
            seen += 1
            assert [text for text in shown if text is not None] == case["stream_responses"]
    assert seen >= 3


def test_clean_up(model: Recorded) -> None:
    for case in model.data["process_response"]:
        assert model.template.process_response(case["input"])[0] == case["output"]
        settled = [model.template.settled(case["input"][:end]) for end in range(len(case["input"]) + 1)]
        assert all(later.startswith(earlier) for earlier, later in pairwise(settled))
        assert case["output"].startswith(settled[-1])
        assert model.template.settled(case["input"], final=True) == case["output"]


def test_a_kept_cache_takes_only_the_new_round() -> None:
    model = Recorded("chatglm2-6b")
    for case in model.data["chat_incremental"]:
        assert [model.template.build_turn(model.tokenizer, conversation(case))] == case["input_ids"]
    other = Recorded("chatglm-6b")
    assert other.template.build_turn(other.tokenizer, [Message("user", "你好")]) is None


@pytest.mark.parametrize("text", ["<sop>", "<eop>", "[MASK]", "[gMASK]", "<pad>", "a [MASK] <eop>\n<sop> b", "[sMASK]"])
def test_special_strings_of_a_message_are_text(model: Recorded, text: str) -> None:
    """Nobody places a blank or an end; the published way is asked for."""
    tokenizer, special = model.tokenizer, model.tokenizer.special
    ids = {index for index in vars(special).values() if index is not None}
    for talk in ([Message("user", text)], [*to_messages([(text, text)]), Message("user", text)]):
        plain = model.template.build(tokenizer, talk)
        ordinary = model.template.build(
            tokenizer, [*to_messages([("q", "a")] * (len(talk) // 2)), Message("user", "q")]
        )
        assert [index for index in plain if index in ids] == [index for index in ordinary if index in ids]
        assert tokenizer.decode(plain, skip_specials=False).count(text.split()[0]) >= len(talk)


def test_the_published_way_is_an_option() -> None:
    model = Recorded("chatglm-6b")
    special = model.tokenizer.special
    asked = [Message("user", "a [MASK] <eop> b")]
    published = model.template.build(model.tokenizer, asked, specials=True)
    assert {special.mask, special.eop} <= set(published[:-2])
    assert not {special.mask, special.eop} & set(model.template.build(model.tokenizer, asked))


# --- without recorded data --------------------------------------------------------------------------------------------

TALK = to_messages([("q1", "a1"), ("q2", "a2")])


def test_rounds_count_from_zero_or_one() -> None:
    asked = [*TALK, Message("user", "q3")]
    assert first.text(asked) == "[Round 0]\n问：q1\n答：a1\n[Round 1]\n问：q2\n答：a2\n[Round 2]\n问：q3\n答："
    assert second.text(asked) == (
        "[Round 1]\n\n问：q1\n\n答：a1\n\n[Round 2]\n\n问：q2\n\n答：a2\n\n[Round 3]\n\n问：q3\n\n答："
    )
    assert first.text([Message("user", " q ")]) == " q "
    assert second.text([Message("user", "q")]) == "[Round 1]\n\n问：q\n\n答："
    assert first.text(TALK, add_generation_prompt=False) == "[Round 0]\n问：q1\n答：a1\n[Round 1]\n问：q2\n答：a2\n"


def said(*turns: str) -> list[Message]:
    """Messages of one letter for the role and the text behind it."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [Message(roles[turn[0]], turn[1:]) for turn in turns]


@pytest.mark.parametrize(
    ("turns", "rounds"),
    [
        (["sBe brief.", "uq"], ["Be brief.q"]),
        (["sone", "stwo", "uq1", "aa", "uq2"], ["one\ntwoq1", "a", "q2"]),
        (["uq1", "aa", "slater", "uq2"], ["q1", "a", "laterq2"]),
        (["uq", "slast"], ["q\nlast"]),
        (["salone"], ["alone"]),
        (["s", "uq"], ["q"]),
        (["aHello!", "uq"], ["", "Hello!", "q"]),
        (["ss", "aHello!", "uq"], ["s", "Hello!", "q"]),
        (["uone", "utwo", "uthree"], ["one\ntwo\nthree"]),
        (["uq1", "aone", "atwo", "uq2"], ["q1", "one\ntwo", "q2"]),
        (["u", "aa", "u"], ["", "a", ""]),
        (["uq", "aSo far"], ["q", "So far"]),
    ],
    ids=str,
)
def test_messages_that_are_not_in_turn_are_merged(turns: list[str], rounds: list[str]) -> None:
    """Every text is read, where it was said."""
    messages = said(*turns)
    assert to_rounds(messages) == rounds
    pairs = [Message(("user", "assistant")[number % 2], text) for number, text in enumerate(rounds)]
    for template in (first, second):
        assert template.text(messages) == template.text(pairs)
        assert all(turn[1:] in template.text(messages) for turn in turns)


def test_an_answer_that_goes_on() -> None:
    assert second.text(said("uq", "aSo far")) == "[Round 1]\n\n问：q\n\n答：So far"
    assert first.text(said("uq1", "aa1", "uq2", "aSo\n")) == "[Round 0]\n问：q1\n答：a1\n[Round 1]\n问：q2\n答：So\n"
    assert second.text(said("uq", "aSo far"), add_generation_prompt=False).endswith("So far\n\n")


def test_a_history_that_pairs_cannot_hold_is_dictionaries() -> None:
    for turns in (["ss", "uq", "aa"], ["aHello!", "uq", "aa"], ["uone", "utwo", "aa"], ["uq", "aone", "atwo"]):
        history = second.history(said(*turns))
        assert history == [message.to_dict() for message in said(*turns)]
        assert to_messages(history) == said(*turns)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no message"),
        ([Message("observation", "s"), Message("user", "q")], "no role 'observation'; its roles are system, user"),
        ([Message("user", "q", metadata="m")], "message 1 has metadata or tools"),
    ],
)
def test_conversations_without_a_form(messages: list[Message], reason: str) -> None:
    for template in (first, second):
        with pytest.raises(RequestError, match=reason):
            template.text(messages)


def test_a_history_is_finished() -> None:
    assert first.history(TALK) == [("q1", "a1"), ("q2", "a2")]
    with pytest.raises(RequestError, match="ends with the user's message"):
        first.history(TALK[:1])


def test_punctuation_beside_chinese() -> None:
    assert first.shown("好,a ,b,中!x? 中 ?[[训练时间]],") == "好，a ,b，中！x? 中 ?2023年，"
    assert second.shown(" 好,[[训练时间]] ") == "好,2023年"


def test_what_may_still_change_is_not_settled() -> None:
    assert first.settled("a,") == "a"
    assert first.settled("a, ") == "a,"
    assert first.settled("a,中") == "a，中"
    assert first.settled("今[[训练时") == "今"
    assert first.settled("今[[训练时", final=True) == "今[[训练时"
    assert second.settled("a,") == "a,"
