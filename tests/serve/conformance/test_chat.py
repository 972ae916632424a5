"""`chat.completions.create` of the official client, not streamed, against the model asked directly."""

import math
import re
import time
from typing import Any

import openai
import pytest

from support.live import Live, counts, script

pytestmark = pytest.mark.sampled(4)

QUESTION = "the fox"
TURNS = [
    {"role": "user", "content": "the fox"},
    {"role": "assistant", "content": "jumps over"},
    {"role": "user", "content": "你好, what?"},
]


def content(completion: Any, number: int = 0) -> str:
    text = completion.choices[number].message.content
    assert isinstance(text, str)
    return text


def one_mark(text: str) -> str:
    """How many marks stand for broken bytes differs from decoder to decoder."""
    return re.sub("\ufffd+", "\ufffd", text)


def test_an_answer_is_the_models_own(chat: Live) -> None:
    before = int(time.time())
    completion = chat.chat(QUESTION)
    (choice,) = completion.choices
    assert choice.message.content == chat.reply(QUESTION) != ""
    assert choice.message.content == chat.direct.chat(QUESTION, temperature=0, max_new_tokens=12)[0]
    assert (choice.index, choice.message.role, choice.logprobs) == (0, "assistant", None)
    assert choice.message.tool_calls is None
    assert (completion.object, completion.model) == ("chat.completion", chat.model)
    assert completion.id.startswith("chatcmpl-")
    assert before <= completion.created <= time.time()
    assert chat.chat(QUESTION).id != completion.id


def test_turns(chat: Live) -> None:
    assert content(chat.chat(TURNS)) == chat.reply(TURNS) != chat.reply(TURNS[-1:])


def test_usage_counts_the_templates_tokens(chat: Live) -> None:
    for messages in (TURNS, TURNS[:1]):
        usage = chat.chat(messages, max_tokens=7).usage
        assert usage.prompt_tokens == chat.prompt_tokens(messages)
        assert usage.completion_tokens <= 7
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_both_names_of_the_length(chat: Live) -> None:
    short = chat.chat(QUESTION, max_tokens=3)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
    same = chat.chat(QUESTION, max_tokens=openai.omit, max_completion_tokens=3)
    assert content(same) == content(short)
    assert counts(same.usage) == counts(short.usage)


def test_a_text_in_parts(chat: Live) -> None:
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "fox"}]
    assert content(chat.chat([{"role": "user", "content": parts}])) == content(chat.chat("the fox"))


@pytest.mark.parametrize("role", ["system", "developer"])
def test_system(role: str, chat: Live) -> None:
    messages = [{"role": "system", "content": "quick"}, *TURNS]
    said = chat.chat([{**messages[0], "role": role}, *TURNS])
    assert content(said) == chat.reply(messages) != chat.reply(TURNS)
    assert said.usage.prompt_tokens == chat.prompt_tokens(messages) > chat.prompt_tokens(TURNS)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "hello"}, {"role": "user", "content": QUESTION}],
        [{"role": "user", "content": "the"}, {"role": "user", "content": "fox"}],
        [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "quick"}],
        [{"role": "system", "content": ""}, {"role": "system", "content": "s"}, {"role": "user", "content": QUESTION}],
    ],
    ids=str,
)
def test_turns_in_any_order(messages: Any, chat: Live) -> None:
    named = [{**message, "name": "someone"} for message in messages]
    said = chat.chat(named)
    assert content(said) == chat.reply(messages)
    assert said.usage.prompt_tokens == chat.prompt_tokens(messages)


def test_temperature_zero_needs_no_seed(chat: Live) -> None:
    assert len({content(chat.chat(QUESTION, seed=seed)) for seed in (1, 2, None)}) == 1


def test_seeds(chat: Live) -> None:
    sampled = {"temperature": 1.2, "top_p": 0.95}
    texts = [content(chat.chat(QUESTION, seed=seed, **sampled)) for seed in (5, 5, 6, 7)]
    assert texts[0] == texts[1] == chat.reply(QUESTION, seed=5, **sampled)
    assert len(set(texts)) == 3


def test_without_a_seed_answers_differ(chat: Live) -> None:
    assert len({content(chat.chat(QUESTION, temperature=1.5)) for _ in range(4)}) > 1


def test_several_answers(chat: Live) -> None:
    sampled: dict[str, Any] = {"temperature": 1.3, "seed": 9}
    completion = chat.chat(QUESTION, n=3, **sampled)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in completion.choices]
    assert len(set(texts)) == 3
    assert texts[0] == content(chat.chat(QUESTION, **sampled))
    again = chat.chat(QUESTION, n=2, **sampled)
    assert [choice.message.content for choice in again.choices] == texts[:2]
    assert completion.usage.prompt_tokens == chat.prompt_tokens(TURNS[:1])
    assert 3 <= completion.usage.completion_tokens <= 36


def test_a_stop_text_inside_and_across_tokens(chat: Live) -> None:
    whole = content(chat.chat(QUESTION, max_tokens=20))
    for length in (1, 3, 5):
        for start in range(1, len(whole) - length, 4):
            stop = whole[start : start + length]
            if "\ufffd" in stop:  # half a character: its bytes are no text that a client can send
                continue
            choice = chat.chat(QUESTION, max_tokens=20, stop=stop).choices[0]
            head = whole[: whole.index(stop)]
            assert choice.message.content in (head, head.rstrip())
            assert choice.finish_reason == "stop"


def test_four_stop_texts(chat: Live) -> None:
    whole = content(chat.chat(QUESTION, max_tokens=20))
    place = next(place for place in range(4, len(whole)) if "\ufffd" not in whole[place : place + 2])
    stops = ["@never@", whole[place : place + 2], "@not this@", "@nor this@"]
    choice = chat.chat(QUESTION, max_tokens=20, stop=stops).choices[0]
    assert whole[: whole.index(stops[1])].startswith(choice.message.content)
    assert choice.finish_reason == "stop"
    assert content(chat.chat(QUESTION, max_tokens=20, stop=["@never@"])) == whole


def test_logprobs(chat: Live) -> None:
    completion = chat.chat(QUESTION, logprobs=True, top_logprobs=4)
    (choice,) = completion.choices
    tokens = choice.logprobs.content
    assert len(tokens) == completion.usage.completion_tokens
    for token in tokens:
        assert len(token.top_logprobs) == 4
        values = [other.logprob for other in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert token.logprob == values[0] <= 0  # greedy
        assert sum(map(math.exp, values)) <= 1 + 1e-5
        assert bytes(token.bytes).decode(errors="replace") == token.token or "\ufffd" in token.token
    written = b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace")
    assert one_mark(written.strip()) == one_mark(choice.message.content.strip())
    direct = chat.direct.chat_job(
        [{"role": "user", "content": QUESTION}], {"temperature": 0, "max_new_tokens": 12, "logprobs": 4}
    )
    chat.direct.engine.run(chat.direct.engine.submit(direct))
    expected = direct.answers[0].logprobs
    assert [token.logprob for token in tokens] == pytest.approx([one.logprob for one in expected], abs=1e-4)


def test_logprobs_without_alternatives(chat: Live) -> None:
    tokens = chat.chat(QUESTION, logprobs=True).choices[0].logprobs.content
    assert all(token.top_logprobs == [] for token in tokens)
    assert chat.chat(QUESTION, logprobs=False).choices[0].logprobs is None


def test_penalties(chat: Live) -> None:
    penalties = {"presence_penalty": 1.5, "frequency_penalty": 1.2}
    assert content(chat.chat(QUESTION, max_tokens=30, **penalties)) == chat.reply(
        QUESTION, max_new_tokens=30, **penalties
    )


@pytest.mark.parametrize(
    "option", [{"top_k": 3}, {"min_p": 0.2}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}]
)
def test_what_this_server_adds(option: dict[str, Any], chat: Live) -> None:
    params: dict[str, Any] = {"temperature": 1.1, "seed": 4}
    if "repetition_penalty" in option or "no_repeat_ngram_size" in option:
        params = {"temperature": 0}
    expected = chat.reply(QUESTION, max_new_tokens=24, **params, **option)
    assert content(chat.chat(QUESTION, max_tokens=24, extra_body=option, **params)) == expected


def test_plain_text_may_be_asked_for(chat: Live) -> None:
    assert content(chat.chat(QUESTION, response_format={"type": "text"})) == content(chat.chat(QUESTION))


def test_the_usual_length_reaches_the_end(servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without max_tokens a reply may be as long as the family's published length allows."""
    live = servers["chatglm2"]
    script(monkeypatch, [*live.lm.tokenizer.encode("the fox " * 40), live.lm.special.eos])
    completion = live.chat(QUESTION, max_tokens=openai.omit)
    assert content(completion) == ("the fox " * 40).strip()
    assert completion.choices[0].finish_reason == "stop"
