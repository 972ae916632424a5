"""Errors as the official client sees them: its exception classes, the parameter that is wrong, retries."""

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import openai
import pytest

from support.live import Live, serving
from support.served_models import small_chat

pytestmark = pytest.mark.sampled(4)

QUESTION = "the fox"
NOT_DONE: dict[str, Any] = {
    "response_format": {"type": "json_object"},
    "logit_bias": {"5": 10},
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "mp3"},
    "web_search_options": {},
}


@pytest.mark.parametrize("name", NOT_DONE)
def test_what_is_not_done_is_refused(name: str, one: Live) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        one.chat(QUESTION, **{name: NOT_DONE[name]})
    assert caught.value.param is not None
    assert caught.value.param.startswith(name)
    assert name in caught.value.message
    assert caught.value.type == "invalid_request_error"


def test_a_schema_for_the_answer_is_refused(one: Live) -> None:
    """What the client's `parse` sends."""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        one.chat(QUESTION, response_format=schema)
    assert caught.value.param is not None
    assert caught.value.param.startswith("response_format")


@pytest.mark.parametrize("name", ["max_token", "top-p", "Temperature", "xyzzy"])
def test_an_unknown_parameter_is_named(name: str, one: Live) -> None:
    with pytest.raises(openai.BadRequestError, match=name) as caught:
        one.chat(QUESTION, extra_body={name: 1})
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.5),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("n", 0),
        ("n", 129),
        ("max_tokens", 0),
        ("max_tokens", -5),
        ("max_completion_tokens", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("top_logprobs", 21),
        ("stop", ["a"] * 1000),
        ("stop", [""]),
        ("seed", 1.5),
        ("messages", "hello"),
        ("stream", "yes"),
    ],
)
def test_values_out_of_range(name: str, value: Any, one: Live) -> None:
    params = {"logprobs": True} if name == "top_logprobs" else {}
    if name == "max_completion_tokens":
        params["max_tokens"] = openai.omit
    messages = value if name == "messages" else [{"role": "user", "content": QUESTION}]
    params |= {} if name == "messages" else {name: value}
    with pytest.raises(openai.BadRequestError) as caught:
        one.client.chat.completions.create(model=one.model, messages=messages, **params)
    assert caught.value.param is not None
    assert caught.value.param.split("[")[0].split(".")[0] == name
    assert caught.value.type == "invalid_request_error"


def test_alternatives_without_logprobs(one: Live) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        one.chat(QUESTION, top_logprobs=2)
    assert caught.value.param == "top_logprobs"


def test_both_lengths(one: Live) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        one.chat(QUESTION, max_tokens=4, max_completion_tokens=5)
    assert caught.value.param in ("max_tokens", "max_completion_tokens")


def test_more_than_the_model_can_hold(one: Live) -> None:
    messages: Any = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(openai.BadRequestError) as caught:
        one.client.chat.completions.create(model=one.model, messages=messages)
    assert caught.value.code == "context_length_exceeded"


def test_an_unknown_model(one: Live) -> None:
    for call in (
        lambda: one.client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": QUESTION}]),
        lambda: one.client.completions.create(model="gpt-4", prompt=QUESTION),
        lambda: one.client.models.retrieve("gpt-4"),
    ):
        with pytest.raises(openai.NotFoundError, match="gpt-4") as caught:
            call()
        assert (caught.value.code, caught.value.type) == ("model_not_found", "invalid_request_error")


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.embeddings.create(model="m", input="x"),
        lambda client: client.moderations.create(input="x"),
        lambda client: client.responses.create(model="m", input="x"),
        lambda client: client.files.list(),
    ],
)
def test_other_endpoints(call: Any, one: Live) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        call(one.client)
    assert caught.value.type == "invalid_request_error"


def test_a_wrong_method(one: Live) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        one.client.get("/chat/completions", cast_to=object)
    assert caught.value.status_code == 405
    assert caught.value.type == "invalid_request_error"


def test_models(one: Live) -> None:
    (listed,) = one.client.models.list()
    assert listed == one.client.models.retrieve(one.model)
    assert (listed.id, listed.object) == (one.model, "model")
    assert listed.owned_by
    assert listed.created == one.state.created


def test_keys() -> None:
    with serving(partial(small_chat, "chatglm2"), api_keys=("right-key", "other-key")) as live:
        for key in ("wrong-key", "right-ke", ""):
            with pytest.raises(openai.AuthenticationError) as caught:
                live.new_client(api_key=key or "x", default_headers={} if key else {"Authorization": ""}).models.list()
            assert caught.value.code == "invalid_api_key"
        assert [model.id for model in live.new_client(api_key="right-key").models.list()] == [live.model]
        messages: Any = [{"role": "user", "content": QUESTION}]
        with pytest.raises(openai.AuthenticationError):
            live.client.chat.completions.create(model=live.model, messages=messages, stream=True)
        answer = live.new_client(api_key="other-key").chat.completions.create(
            model=live.model, messages=messages, max_tokens=12, temperature=0
        )
        assert answer.choices[0].message.content == live.reply(QUESTION)


# --- a full queue -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow() -> Iterator[Live]:
    """One request runs, one waits."""
    with serving(partial(small_chat, "chatglm2"), rows=1, max_waiting=1) as live:
        yield live


def test_a_full_queue(narrow: Live) -> None:
    with narrow.chat(QUESTION, stream=True, max_tokens=4000) as running:
        next(iter(running))
        waiting = threading.Thread(target=lambda: narrow.chat(QUESTION))
        waiting.start()
        narrow.settled(lambda: narrow.lm.engine.waiting == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            narrow.chat(QUESTION)
        assert caught.value.type in ("rate_limit_error", "requests", "server_error")
        assert float(caught.value.response.headers["retry-after"]) > 0
    waiting.join(60)
    assert not waiting.is_alive()
    assert narrow.chat(QUESTION).choices[0].message.content == narrow.reply(QUESTION)


def test_the_client_tries_again(narrow: Live) -> None:
    retried = threading.Event()
    patient = narrow.new_client(max_retries=5)
    answers: list[Any] = []

    def ask() -> None:
        messages: Any = [{"role": "user", "content": QUESTION}]
        raw = patient.chat.completions.with_raw_response.create(
            model=narrow.model, messages=messages, max_tokens=12, temperature=0
        )
        answers.append(raw)

    patient._client.event_hooks["response"] = [lambda response: retried.set() if response.status_code == 429 else None]
    with narrow.chat(QUESTION, stream=True, max_tokens=4000) as running:
        next(iter(running))
        waiting = threading.Thread(target=lambda: narrow.chat(QUESTION))
        waiting.start()
        narrow.settled(lambda: narrow.lm.engine.waiting == 1)
        trying = threading.Thread(target=ask)
        trying.start()
        assert retried.wait(60)
    for thread in (waiting, trying):
        thread.join(60)
        assert not thread.is_alive()
    assert answers[0].retries_taken >= 1
    assert answers[0].parse().choices[0].message.content == narrow.reply(QUESTION)
