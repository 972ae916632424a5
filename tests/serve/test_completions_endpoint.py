"""`/v1/completions` on the wire: several prompts in one request, suffixes, echo, the best of many, refusals."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from glmkit.serve.request_jobs import AT_ONCE
from support.live import PATIENCE, Live, serving
from support.served_models import small_base, small_chat

pytestmark = pytest.mark.sampled(4)

PROMPTS = [f"the fox {number}" for number in range(3 * AT_ONCE)]


def live_server(kind: str) -> Any:
    build = small_base if kind == "base" else partial(small_chat, kind)
    return serving(build, model_id="m", max_waiting=4, rows=16)


@pytest.fixture(scope="module", params=["base", "chatglm3"])
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    with live_server(request.param) as server:
        yield server
        server.settled(lambda: server.lm.engine.rows == 0)


@pytest.fixture(scope="module", params=["base", "chatglm"])
def filler(request: pytest.FixtureRequest) -> Iterator[Live]:
    with live_server(request.param) as server:
        yield server


def post(live: Live, prompt: Any, **fields: Any) -> httpx.Response:
    body = {"model": "m", "prompt": prompt, "max_tokens": 6, "temperature": 0, **fields}
    return httpx.post(f"{live.url}/v1/completions", json=body, timeout=PATIENCE)


def answer(live: Live, prompt: Any, **fields: Any) -> dict[str, Any]:
    response = post(live, prompt, **fields)
    assert response.status_code == 200, response.text
    return dict(response.json())


def events(live: Live, prompt: Any, **fields: Any) -> list[dict[str, Any]]:
    response = post(live, prompt, stream=True, **fields)
    assert response.status_code == 200, response.text
    *found, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in found]


def error(live: Live, prompt: Any, **fields: Any) -> dict[str, Any]:
    response = post(live, prompt, **fields)
    assert response.status_code == 400, response.text
    return dict(response.json()["error"])


def texts(parts: list[dict[str, Any]], count: int) -> list[str]:
    choices = [choice for part in parts for choice in part["choices"]]
    return ["".join(choice["text"] for choice in choices if choice["index"] == index) for index in range(count)]


def direct(live: Live, prompt: str, **options: Any) -> list[str]:
    options = {"temperature": 0, "max_new_tokens": 6, **options}
    return [answer.text or "" for answer in live.direct.answers([prompt], **options)[0]]


# --- several prompts --------------------------------------------------------------------------------------------------


def test_more_prompts_than_the_queue_takes(live: Live) -> None:
    """One request with 24 prompts does not fill a queue of 4, and every answer is that of its prompt alone."""
    expected = [direct(live, prompt)[0] for prompt in PROMPTS]
    said = answer(live, PROMPTS)
    assert [choice["text"] for choice in said["choices"]] == expected
    assert [choice["index"] for choice in said["choices"]] == list(range(len(PROMPTS)))
    assert said["usage"]["completion_tokens"] == sum(
        len(one.ids) for one in (live.answers(prompt, max_new_tokens=6)[0] for prompt in PROMPTS)
    )
    parts = events(live, PROMPTS)
    assert texts(parts, len(PROMPTS)) == expected
    ended = [choice["index"] for part in parts for choice in part["choices"] if choice["finish_reason"]]
    assert sorted(ended) == list(range(len(PROMPTS)))


def test_several_answers_to_several_prompts_streamed(live: Live) -> None:
    sampled: dict[str, Any] = {"temperature": 1.2, "seed": 4, "n": 2}
    expected = [text for prompt in PROMPTS[:3] for text in direct(live, prompt, **sampled)]
    assert texts(events(live, PROMPTS[:3], **sampled), 6) == expected
    assert all(expected[place] != expected[place + 1] for place in (0, 2, 4))


def test_one_wrong_prompt_among_many_is_told_before_anything_is_sent(live: Live) -> None:
    prompts = [*PROMPTS[:12], "fox " * 20_000]
    for stream in (False, True):
        said = error(live, prompts, stream=stream)
        assert (said["param"], said["code"]) == ("prompt", "context_length_exceeded")
    live.settled(lambda: live.lm.engine.rows == 0)


# --- token ids --------------------------------------------------------------------------------------------------------


def test_ids_are_those_of_a_text(live: Live) -> None:
    ids = live.direct.tokenizer.encode("the fox")
    by_ids, by_text = answer(live, [ids, ids[:1]]), answer(live, "the fox")
    assert by_ids["choices"][0]["text"] == by_text["choices"][0]["text"]
    assert answer(live, ids)["usage"]["prompt_tokens"] == by_text["usage"]["prompt_tokens"]
    assert answer(live, ids, echo=True)["choices"][0]["text"].startswith("the fox")


def test_ids_are_read_as_they_are(live: Live) -> None:
    """Ids that no text becomes, as they stand: characters one by one, halves of characters."""
    tokenizer = live.direct.tokenizer
    one_by_one = [index for letter in "the fox" for index in tokenizer.encode(letter)]
    assert one_by_one != tokenizer.encode("the fox")
    halves = tokenizer.encode("☃é")[:-1]
    assert tokenizer.encode(tokenizer.decode(halves)) != halves
    text = live.direct.prompts.continuation("the fox").ids
    around = len(text) - len(tokenizer.encode("the fox"))
    for ids in (one_by_one, halves):
        said = answer(live, ids, logprobs=1, seed=4, temperature=0.8)
        start = next(at for at in range(len(text)) if text[at] == tokenizer.encode("the fox")[0])
        whole = [*text[:start], *ids, *text[start + len(text) - around :]]
        options = {"temperature": 0.8, "seed": 4, "max_new_tokens": 6}
        forbidden = live.direct.prompts.continuation("the fox").forbidden
        (expected,) = live.direct.answers([whole], forbidden=forbidden, **options)[0]
        assert said["choices"][0]["text"] == expected.text
        assert said["usage"]["prompt_tokens"] == len(ids) + around
        assert said["usage"]["completion_tokens"] == len(expected.ids)
        assert answer(live, ids, echo=True)["choices"][0]["text"].startswith(tokenizer.decode(ids))


def test_ids_that_no_text_has(live: Live) -> None:
    special, tokenizer = live.direct.special, live.direct.tokenizer
    text = tokenizer.encode("the fox")
    for ids in ([special.mask], [10**9], [tokenizer.vocab_size], [*text, special.eos], [[*text], [special.sop]]):
        said = error(live, ids)
        assert said["param"] == "prompt"
        assert "id" in said["message"]
    assert tokenizer.id_to_token(special.gmask) in error(live, [special.gmask])["message"]
    live.settled(lambda: live.lm.engine.rows == 0)


def test_the_shortest_answer_without_a_longest(live: Live) -> None:
    body = {"model": "m", "prompt": "the fox", "min_tokens": 40, "temperature": 0}
    said = httpx.post(f"{live.url}/v1/completions", json=body, timeout=PATIENCE).json()
    assert said["usage"]["completion_tokens"] == 40
    assert error(live, "the fox", min_tokens=7)["param"] == "min_tokens"


def test_another_answer_each_time_unless_there_is_a_seed(live: Live) -> None:
    options = {"temperature": 1.5, "max_tokens": 24}
    first, second = (answer(live, "the fox", **options) for _ in range(2))
    assert first["choices"][0]["text"] != second["choices"][0]["text"]
    again = [answer(live, "the fox", seed=7, **options) for _ in range(2)]
    assert again[0]["choices"][0]["text"] == again[1]["choices"][0]["text"]
    assert len({each["system_fingerprint"] for each in (first, second, *again)}) == 1
    assert len({each["id"] for each in (first, second, *again)}) == 4


# --- more and fewer answers -------------------------------------------------------------------------------------------


def test_the_best_of_many_in_order(live: Live) -> None:
    sampled: dict[str, Any] = {"temperature": 1.4, "seed": 9}
    answers = live.answers("the fox", n=6, logprobs=0, max_new_tokens=6, **sampled)
    means = [sum(one.logprob for one in each.logprobs or ()) / max(len(each.ids), 1) for each in answers]
    order = sorted(range(6), key=lambda number: -means[number])
    said = answer(live, "the fox", best_of=6, n=3, **sampled)
    assert [choice["text"] for choice in said["choices"]] == [answers[number].text for number in order[:3]]
    assert [choice["index"] for choice in said["choices"]] == [0, 1, 2]
    assert all(choice["logprobs"] is None for choice in said["choices"])
    assert said["usage"]["completion_tokens"] == sum(len(each.ids) for each in answers)


def test_beams_are_those_of_the_library(live: Live) -> None:
    expected = direct(live, "the fox", num_beams=4, num_return_sequences=2, length_penalty=0.0)
    said = answer(live, "the fox", num_beams=4, n=2, length_penalty=0)
    assert [choice["text"] for choice in said["choices"]] == expected


def test_the_usual_settings_are_openais(live: Live) -> None:
    """16 tokens at temperature 1."""
    body = {"model": "m", "prompt": "the fox", "seed": 3}
    said = httpx.post(f"{live.url}/v1/completions", json=body, timeout=PATIENCE).json()
    assert [choice["text"] for choice in said["choices"]] == direct(
        live, "the fox", temperature=1.0, seed=3, max_new_tokens=16
    )


def test_echo_in_a_stream(live: Live) -> None:
    prompts = ["the fox", "中"]
    whole = [choice["text"] for choice in answer(live, prompts, echo=True, n=2)["choices"]]
    assert texts(events(live, prompts, echo=True, n=2), 4) == whole
    assert all(text.startswith(prompt) for text, prompt in zip(whole, ["the fox", "the fox", "中", "中"], strict=True))


def test_more_tokens_than_there_is_room_for(live: Live) -> None:
    """An answer is never longer than the model's positions."""
    longest = live.lm.config.max_positions
    if longest > 1024:  # minutes of one answer; the rule is the same for every family
        return
    said = answer(live, "the fox", max_tokens=2**31 - 1, stream_options={}, metadata={"a": "b"}, store=False)
    usage, reason = said["usage"], said["choices"][0]["finish_reason"]
    assert usage["completion_tokens"] == longest if reason == "length" else usage["completion_tokens"] < longest


# --- suffix -----------------------------------------------------------------------------------------------------------


def test_a_suffix(filler: Live) -> None:
    filled = filler.direct.fill("The quick[MASK] dog.", max_tokens=6)
    said = answer(filler, "The quick", suffix=" dog.")
    assert said["choices"][0]["text"] == filled.blanks[0]
    assert said["usage"]["completion_tokens"] == len(filled.ids[0])
    assert texts(events(filler, "The quick", suffix=" dog."), 1) == filled.blanks
    assert answer(filler, "The quick", suffix="")["choices"][0]["text"] == direct(filler, "The quick")[0]


def test_several_answers_before_a_suffix(filler: Live) -> None:
    """Each is a job of its own; the first is that of n = 1, and the prompts count once."""
    sampled: dict[str, Any] = {"suffix": " dog.", "temperature": 1.3, "seed": 5}
    one, three = (answer(filler, ["The quick", "a"], n=n, **sampled) for n in (1, 3))
    found = [choice["text"] for choice in three["choices"]]
    assert [found[0], found[3]] == [choice["text"] for choice in one["choices"]]
    assert len(set(found[:3])) == 3
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert texts(events(filler, ["The quick", "a"], n=3, **sampled), 6) == found


def test_logprobs_before_a_suffix(filler: Live) -> None:
    (choice,) = answer(filler, "The quick", suffix=" dog.", logprobs=2)["choices"]
    assert len(choice["logprobs"]["tokens"]) == len(filler.direct.fill("The quick[MASK] dog.", max_tokens=6).ids[0])


def test_a_blank_in_the_text_around_a_suffix(filler: Live) -> None:
    for prompt, suffix in (("a [MASK] b", "c"), ("a", "[gMASK]")):
        said = error(filler, prompt, suffix=suffix)
        assert said["param"] == "suffix"
        assert "/v1/infill" in said["message"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 2, "num_beams": 2}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"echo": True, "suffix": "x"}, "echo"),
        ({"num_beams": 2, "n": 3}, "n"),
        ({"num_beams": 2, "logprobs": 1}, "logprobs"),
        ({"num_beams": 64}, "num_beams"),
        ({"n": 17}, "n"),
        ({"min_tokens": 7}, "min_tokens"),
        ({"early_stopping": True}, "early_stopping"),
    ],
    ids=str,
)
def test_fields_that_do_not_go_together(live: Live, fields: dict[str, Any], param: str) -> None:
    said = error(live, "the fox", **fields)
    assert said["param"] == param, said
    assert "new_tokens" not in said["message"]


def test_more_answers_than_a_request_may_have(live: Live) -> None:
    for fields, param in (({"n": 5}, "n"), ({"best_of": 5}, "best_of")):
        said = error(live, ["a"] * 128, **fields)
        assert said["param"] == param
        assert "640 answers" in said["message"]


@pytest.mark.parametrize("fields", [{"stop": "x"}, {"num_beams": 2}], ids=str)
def test_what_does_not_go_with_a_suffix(filler: Live, fields: dict[str, Any]) -> None:
    assert error(filler, "a", suffix="b", **fields)["param"] == next(iter(fields))


def test_a_suffix_where_the_model_reads_left_to_right(live: Live) -> None:
    if live.lm.config.mask == "causal":
        said = error(live, "a", suffix="b")
        assert said["param"] == "suffix"
        assert "left to right" in said["message"]
