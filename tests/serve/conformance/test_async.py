"""The asynchronous client: many requests at once, each answered as if it were alone."""

import asyncio
from typing import Any

import pytest

from support.live import Live

pytestmark = pytest.mark.sampled(4)

PROMPTS = [f"the {word} fox {number}" for number, word in enumerate(["quick", "lazy", "中文", "first"] * 4)]


def options(number: int) -> dict[str, Any]:
    """Every kind of request: greedy and sampled, with and without penalties, of different lengths."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1.2, "seed": 100 + number},
        {"temperature": 0, "frequency_penalty": 1.0},
        {"temperature": 0.7, "top_p": 0.9, "seed": number},
    ]
    return {"max_tokens": 8 + 3 * (number % 5), **kinds[number % 4]}


async def streamed_chat(client: Any, model: str, number: int) -> str:
    messages = [{"role": "user", "content": PROMPTS[number]}]
    stream = await client.chat.completions.create(model=model, messages=messages, stream=True, **options(number))
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def streamed_text(client: Any, model: str, number: int) -> str:
    stream = await client.completions.create(model=model, prompt=PROMPTS[number], stream=True, **options(number))
    return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])


async def whole_text(client: Any, model: str, number: int) -> str:
    completion = await client.completions.create(model=model, prompt=PROMPTS[number], **options(number))
    return str(completion.choices[0].text)


async def at_once(live: Live, calls: list[Any]) -> list[str]:
    async with live.new_async_client() as client:
        return await asyncio.gather(*(call(client, live.model, number) for number, call in enumerate(calls)))


def expected(live: Live, number: int) -> str:
    chosen = options(number)
    chosen["max_new_tokens"] = chosen.pop("max_tokens")
    text = live.answers(PROMPTS[number], **chosen)[0].text
    assert text is not None
    return text


def test_sixteen_streams_of_completions(text: Live) -> None:
    received = asyncio.run(at_once(text, [streamed_text] * 16))
    assert received == [expected(text, number) for number in range(16)]
    assert len(set(received)) > 12


def test_sixteen_streams_of_chat(chat: Live) -> None:
    received = asyncio.run(at_once(chat, [streamed_chat] * 16))
    for number, answer in enumerate(received):
        chosen = options(number)
        chosen["max_new_tokens"] = chosen.pop("max_tokens")
        whole = chat.reply(PROMPTS[number], **chosen)
        if isinstance(whole, str):  # what reads as a call of a tool is not text
            assert answer == whole


def test_streams_and_whole_answers_together(text: Live) -> None:
    received = asyncio.run(at_once(text, [streamed_text, whole_text] * 8))
    assert received == [expected(text, number) for number in range(16)]


def test_a_cancelled_task_frees_its_rows(chat: Live) -> None:
    free = chat.lm.engine.free_tokens

    async def cancel() -> str:
        async with chat.new_async_client() as client:
            first = asyncio.Event()

            async def long() -> None:
                messages: Any = [{"role": "user", "content": "a long story"}]
                stream = await client.chat.completions.create(
                    model=chat.model, messages=messages, stream=True, max_tokens=4000, temperature=1.0, seed=1
                )
                async for _ in stream:
                    first.set()

            tasks = [asyncio.create_task(long()) for _ in range(4)]
            await first.wait()
            kept = asyncio.create_task(streamed_text(client, chat.model, 3))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return await kept

    assert asyncio.run(cancel()) == expected(chat, 3)
    chat.settled(lambda: chat.lm.engine.rows == 0 and chat.lm.engine.free_tokens == free)


@pytest.mark.parametrize("count", [1, 5])
def test_whole_answers_with_several_choices(count: int, text: Live) -> None:
    async def ask() -> list[list[str]]:
        async with text.new_async_client() as client:
            completions = await asyncio.gather(
                *(
                    client.completions.create(
                        model=text.model, prompt=prompt, n=count, temperature=1.1, seed=3, max_tokens=9
                    )
                    for prompt in PROMPTS[:5]
                )
            )
        return [[choice.text for choice in completion.choices] for completion in completions]

    sampled: dict[str, Any] = {"n": count, "temperature": 1.1, "seed": 3, "max_new_tokens": 9}
    alone = [[answer.text for answer in text.answers(prompt, **sampled)] for prompt in PROMPTS[:5]]
    assert asyncio.run(ask()) == alone
