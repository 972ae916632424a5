"""`completions.create` of the official client, for base and chat models, streamed and not."""

import math
from typing import Any

import openai
import pytest

from support.live import Live, counts

pytestmark = pytest.mark.sampled(4)

PROMPT = "The quick"
SAMPLED = {"temperature": 1.3, "seed": 9}


def joined(received: list[Any], number: int = 0) -> str:
    return "".join(choice.text for chunk in received for choice in chunk.choices if choice.index == number)


def test_an_answer_is_the_models_own(text: Live) -> None:
    completion = text.complete(PROMPT)
    (choice,) = completion.choices
    (answer,) = text.answers(PROMPT)
    assert choice.text == answer.text != ""
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, answer.finish, None)
    assert (completion.object, completion.model) == ("text_completion", text.model)
    assert completion.id.startswith("cmpl-")
    assert choice.text == text.direct.generate(PROMPT, max_new_tokens=12)


def test_a_list_of_prompts(text: Live) -> None:
    prompts = [PROMPT, "凯旋门", "a b c"]
    completion = text.complete(prompts)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert [choice.text for choice in completion.choices] == [text.complete(one).choices[0].text for one in prompts]
    counts = [text.complete(one).usage for one in prompts]
    assert completion.usage.prompt_tokens == sum(count.prompt_tokens for count in counts)
    assert completion.usage.completion_tokens == sum(count.completion_tokens for count in counts)
    assert completion.usage.total_tokens == sum(count.total_tokens for count in counts)


def test_prompts_as_ids(text: Live) -> None:
    ids = [text.direct.tokenizer.encode(prompt) for prompt in (PROMPT, "a b c")]
    whole = text.complete([PROMPT, "a b c"])
    assert text.complete(ids[0]).choices[0].text == whole.choices[0].text
    assert [choice.text for choice in text.complete(ids).choices] == [choice.text for choice in whole.choices]
    assert counts(text.complete(ids).usage) == counts(whole.usage)


def test_several_answers_to_several_prompts(text: Live) -> None:
    completion = text.complete([PROMPT, "a b c"], n=2, **SAMPLED)
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    for number, prompt in enumerate((PROMPT, "a b c")):
        alone = [answer.text for answer in text.answers(prompt, n=2, **SAMPLED)]
        assert [choice.text for choice in completion.choices[2 * number : 2 * number + 2]] == alone


def test_the_length(text: Live) -> None:
    completion = text.complete(PROMPT, max_tokens=3)
    assert (completion.choices[0].finish_reason, completion.usage.completion_tokens) == ("length", 3)
    usual = text.complete(PROMPT, max_tokens=openai.omit)
    assert usual.usage.completion_tokens <= 16
    assert usual.choices[0].text == text.answers(PROMPT, max_new_tokens=16)[0].text


def test_stop_texts(text: Live) -> None:
    whole = text.complete(PROMPT, max_tokens=20).choices[0].text
    tried = 0
    for length in (1, 3):
        for start in range(1, len(whole) - length, 3):
            stop = whole[start : start + length]
            if "\ufffd" not in stop:
                choice = text.complete(PROMPT, max_tokens=20, stop=["@", stop]).choices[0]
                assert (choice.text, choice.finish_reason) == (whole[: whole.index(stop)], "stop")
                tried += 1
    assert tried


def test_seeds(text: Live) -> None:
    sampled = {"temperature": 1.3}
    texts = [text.complete(PROMPT, seed=seed, **sampled).choices[0].text for seed in (5, 5, 6)]
    assert texts[0] == texts[1] == text.answers(PROMPT, seed=5, **sampled)[0].text
    assert texts[2] != texts[0]


def test_logprobs(text: Live) -> None:
    completion = text.complete(PROMPT, logprobs=3)
    (choice,) = completion.choices
    logprobs, (answer,) = choice.logprobs, text.answers(PROMPT, logprobs=3)
    assert len(logprobs.tokens) == completion.usage.completion_tokens == len(answer.ids)
    assert logprobs.token_logprobs == pytest.approx([one.logprob for one in answer.logprobs], abs=1e-4)
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    assert logprobs.text_offset[-1] <= len(choice.text)
    for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert 1 <= len(top) <= 4  # two tokens may read the same, and the chosen one is among them
        assert sum(map(math.exp, top.values())) <= 1 + 1e-5
        assert max(top.values()) == pytest.approx(value, abs=1e-5)  # greedy
        assert token in top
    if "\ufffd" not in choice.text:
        assert "".join(logprobs.tokens) == choice.text
    assert len(text.complete(PROMPT, logprobs=0).choices[0].logprobs.tokens) == len(answer.ids)


@pytest.mark.parametrize("params", [{}, SAMPLED, {"max_tokens": 40}], ids=["greedy", "sampled", "long"])
def test_a_stream_joined_is_the_whole_answer(params: dict[str, Any], text: Live) -> None:
    whole = text.complete(PROMPT, **params).choices[0]
    received = list(text.complete(PROMPT, stream=True, **params))
    assert joined(received) == whole.text
    finished = [choice.finish_reason for chunk in received for choice in chunk.choices]
    assert finished[-1] == whole.finish_reason
    assert set(finished[:-1]) == {None}
    assert len({chunk.id for chunk in received}) == 1
    assert {chunk.object for chunk in received} == {"text_completion"}
    assert len([chunk for chunk in received if chunk.choices[0].text]) > 2


def test_a_stream_of_several_prompts(text: Live) -> None:
    prompts = [PROMPT, "凯旋门", "a b c"]
    options: dict[str, Any] = {"n": 2, **SAMPLED, "stream_options": {"include_usage": True}}
    received = list(text.complete(prompts, stream=True, **options))
    del options["stream_options"]
    whole = text.complete(prompts, **options)
    for choice in whole.choices:
        assert joined(received, choice.index) == choice.text
    assert received[-1].choices == []
    assert counts(received[-1].usage) == counts(whole.usage)
    assert all(chunk.usage is None for chunk in received[:-1])


def test_logprobs_of_a_stream(text: Live) -> None:
    whole = text.complete(PROMPT, logprobs=2).choices[0].logprobs
    received = list(text.complete(PROMPT, logprobs=2, stream=True))
    parts = [choice.logprobs for chunk in received for choice in chunk.choices if choice.logprobs is not None]
    assert [token for part in parts for token in part.tokens] == whole.tokens
    assert [offset for part in parts for offset in part.text_offset] == whole.text_offset
    values = [value for part in parts for value in part.token_logprobs]
    assert values == pytest.approx(whole.token_logprobs, abs=1e-4)


def test_a_mask_in_a_prompt_is_ordinary_text(text: Live) -> None:
    completion = text.complete("a [MASK] b", max_tokens=4)
    assert completion.choices[0].text == text.answers("a [MASK] b", max_new_tokens=4)[0].text


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"best_of": 21}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logit_bias": {"5": 10}}, "logit_bias"),
        ({"logprobs": 6}, "logprobs"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 1000}, "stop"),
        ({"extra_body": {"max_token": 4}}, "max_token"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_done_is_refused(params: dict[str, Any], param: str, base: Live) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        base.complete(PROMPT, **params)
    assert caught.value.param == param
    assert param in caught.value.message


def test_best_of(text: Live) -> None:
    """Of so many answers the likeliest per token comes back."""
    sampled: dict[str, Any] = {"temperature": 1.3, "seed": 9}
    answers = text.answers(PROMPT, n=5, logprobs=0, **sampled)
    means = [sum(one.logprob for one in answer.logprobs or ()) / max(len(answer.ids), 1) for answer in answers]
    best = answers[max(range(5), key=lambda number: means[number])]
    completion = text.complete(PROMPT, best_of=5, **sampled)
    assert [choice.text for choice in completion.choices] == [best.text]
    assert completion.usage.completion_tokens == sum(len(answer.ids) for answer in answers)


def test_echo(text: Live) -> None:
    completion = text.complete(["The quick", "a"], echo=True)
    plain = text.complete(["The quick", "a"])
    assert [choice.text for choice in completion.choices] == [
        prompt + choice.text for prompt, choice in zip(("The quick", "a"), plain.choices, strict=True)
    ]


def test_a_suffix_is_a_blank_before_it(filler: Live) -> None:
    completion = filler.complete("The quick", suffix=" dog.", max_tokens=9)
    kinds = filler.direct.special.mask_ids()
    assert kinds
    text = completion.choices[0].text
    filled = [
        filler.direct.fill(f"The quick{mask} dog.", max_tokens=9).blanks[0]
        for mask in ("[MASK]", "[gMASK]", "[sMASK]")
        if filler.direct.tokenizer.encode(mask, specials=True)[0] in kinds
    ]
    assert text in filled


def test_a_suffix_where_no_blanks_are_filled(one: Live) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        one.complete(PROMPT, suffix=" dog.")
    assert caught.value.param == "suffix"


@pytest.mark.parametrize("prompt", [[], [[]], [-1], [10**9], ["a", 5], [["a"]], [[1], "a"]], ids=str)
def test_prompts_that_are_none(prompt: Any, base: Live) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        base.complete(prompt)
    assert caught.value.param is not None
    assert caught.value.param.startswith("prompt")


def test_a_prompt_that_is_too_long(base: Live) -> None:
    for options in ({}, {"stream": True}):
        with pytest.raises(openai.BadRequestError) as caught:
            base.complete("word " * 5000, **options)
        assert caught.value.param == "prompt"
        assert caught.value.code == "context_length_exceeded"


def test_a_base_model_does_not_chat(base: Live) -> None:
    with pytest.raises(openai.BadRequestError, match="was not taught to chat"):
        base.chat("hello")
