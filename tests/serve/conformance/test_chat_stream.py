"""Streams of `chat.completions`: the official client's chunks, joined, are the answer that is not streamed."""

from typing import Any

import httpx
import openai
import pytest

from support.live import PATIENCE, Live, counts, script

pytestmark = pytest.mark.sampled(4)

QUESTION = "the fox"
SAMPLED = {"temperature": 1.3, "seed": 9}


def chunks(live: Live, messages: Any = QUESTION, **params: Any) -> list[Any]:
    return list(live.chat(messages, stream=True, **params))


def joined(received: list[Any], number: int = 0) -> str:
    deltas = [choice.delta for chunk in received for choice in chunk.choices if choice.index == number]
    return "".join(delta.content or "" for delta in deltas)


@pytest.mark.parametrize("params", [{}, SAMPLED, {"max_tokens": 40}], ids=["greedy", "sampled", "long"])
def test_joined_it_is_the_whole_answer(params: dict[str, Any], chat: Live) -> None:
    whole = chat.chat(QUESTION, **params).choices[0]
    received = chunks(chat, **params)
    assert joined(received) == whole.message.content
    finished = [choice.finish_reason for chunk in received for choice in chunk.choices]
    assert finished[-1] == whole.finish_reason
    assert set(finished[:-1]) == {None}


def test_it_comes_in_pieces(chat: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chat.lm.tokenizer
    script(monkeypatch, [*tokenizer.encode("\n the quick brown fox jumps"), chat.lm.special.eos])
    received = chunks(chat, max_tokens=40)
    texts = [choice.delta.content for chunk in received for choice in chunk.choices if choice.delta.content]
    assert len(texts) > 5
    assert joined(received) == "the quick brown fox jumps"


def test_the_shape_of_chunks(chat: Live) -> None:
    received = chunks(chat)
    assert len({chunk.id for chunk in received}) == 1
    assert len({chunk.created for chunk in received}) == 1
    assert {(chunk.object, chunk.model) for chunk in received} == {("chat.completion.chunk", chat.model)}
    assert received[0].id.startswith("chatcmpl-")
    roles = [choice.delta.role for chunk in received for choice in chunk.choices]
    assert roles[0] == "assistant"
    assert set(roles[1:]) <= {None}
    assert all(chunk.usage is None for chunk in received)
    assert all(len(chunk.choices) == 1 for chunk in received)


def test_usage_comes_last(chat: Live) -> None:
    received = chunks(chat, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in received[:-1])
    assert received[-1].choices == []
    assert counts(received[-1].usage) == counts(chat.chat(QUESTION).usage)
    without = chunks(chat, stream_options={"include_usage": False})
    assert all(chunk.usage is None and chunk.choices for chunk in without)


def test_several_answers(chat: Live) -> None:
    whole = chat.chat(QUESTION, n=3, **SAMPLED)
    received = chunks(chat, n=3, **SAMPLED)
    for choice in whole.choices:
        assert joined(received, choice.index) == choice.message.content
        last = [one.finish_reason for chunk in received for one in chunk.choices if one.index == choice.index]
        assert last[-1] == choice.finish_reason
        assert set(last[:-1]) == {None}
    firsts = {choice.index for chunk in received for choice in chunk.choices if choice.delta.role == "assistant"}
    assert firsts == {0, 1, 2}


def test_logprobs(chat: Live) -> None:
    whole = chat.chat(QUESTION, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    received = chunks(chat, logprobs=True, top_logprobs=2)
    parts = [choice.logprobs for chunk in received for choice in chunk.choices if choice.logprobs is not None]
    tokens = [token for part in parts for token in part.content or ()]
    assert [(token.token, token.bytes) for token in tokens] == [(token.token, token.bytes) for token in whole]
    assert [token.logprob for token in tokens] == pytest.approx([token.logprob for token in whole], abs=1e-4)
    assert all(len(token.top_logprobs) == 2 for token in tokens)


def test_stop_texts_are_held_back(chat: Live) -> None:
    whole = chat.chat(QUESTION, max_tokens=20).choices[0].message.content
    place = next(place for place in range(4, len(whole)) if "\ufffd" not in whole[place : place + 3])
    stop = whole[place : place + 3]
    received = chunks(chat, max_tokens=20, stop=[stop])
    choice = chat.chat(QUESTION, max_tokens=20, stop=[stop]).choices[0]
    assert joined(received) == choice.message.content
    assert whole.startswith(joined(received))
    assert received[-1].choices[0].finish_reason == "stop"


def test_the_clients_own_accumulation(chat: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, [*chat.lm.tokenizer.encode("\n the quick brown fox"), chat.lm.special.eos])
    messages: Any = [{"role": "user", "content": QUESTION}]
    params: dict[str, Any] = {"model": chat.model, "messages": messages, "max_tokens": 40}
    with chat.client.chat.completions.stream(**params, stream_options={"include_usage": True}) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    whole = chat.chat(QUESTION, max_tokens=40)
    assert "content.delta" in kinds
    assert kinds.count("content.done") == 1
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason
    assert counts(final.usage) == counts(whole.usage)


def test_the_wire(one: Live) -> None:
    """What the client reads past: the content type, the events' form, the closing mark."""
    body = {"model": one.model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 3, "stream": True}
    raw = httpx.post(f"{one.url}/v1/chat/completions", json=body, timeout=PATIENCE)
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert "no-cache" in raw.headers["cache-control"]
    events = raw.content.decode().split("\n\n")
    assert events[-1] == ""
    assert events[-2] == "data: [DONE]"
    assert all(event.startswith("data: {") for event in events[:-2])


def test_a_stream_that_the_client_leaves(chat: Live) -> None:
    free, rows = chat.lm.engine.free_tokens, chat.lm.engine.rows
    with chat.chat(QUESTION, stream=True, max_tokens=400) as stream:
        assert next(iter(stream)).choices
    chat.settled(lambda: (chat.lm.engine.free_tokens, chat.lm.engine.rows) == (free, rows))


def test_a_mistake_is_told_before_the_stream(one: Live) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chunks(one, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as caught:
        chunks(one, top_logprobs=2)
    assert caught.value.param == "top_logprobs"
