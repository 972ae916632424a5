"""Conversations by the published calls: the core's prompts, replies and histories; torch's own random numbers."""

import copy
import threading
from collections.abc import Iterator
from functools import cache
from itertools import zip_longest
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, LogitsProcessor, LogitsProcessorList, TextIteratorStreamer

import glmkit.hf  # noqa: F401
from glmkit.errors import RequestError
from glmkit.session import LM, load
from support.published_scripts import release

CHATS = ("chatglm-6b", "chatglm2-6b", "chatglm3-6b", "glm-4-9b-chat")
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}


@cache
def opened(name: str) -> tuple[Any, Any, LM]:
    """Tokenizer, model and the core's own session of a release, in float32."""
    folder = release(name)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).float().eval()
    return tokenizer, model, load(folder, dtype="float32")


@pytest.mark.parametrize("name", CHATS)
def test_two_turns_are_the_cores(name: str) -> None:
    tokenizer, model, lm = opened(name)
    query, again = "你好，[MASK] 世界!", "再说一遍"
    first, history = model.chat(tokenizer, query, history=[], **GREEDY)
    wanted, longer = lm.chat(query, [], temperature=0, max_new_tokens=12, specials=True)
    assert (first, history) == (wanted, longer)
    assert len(set(first)) > 5
    second = model.chat(tokenizer, again, history=copy.deepcopy(history), **GREEDY)
    assert second == lm.chat(again, longer, temperature=0, max_new_tokens=12, specials=True)
    *_, last = model.stream_chat(tokenizer, again, history=copy.deepcopy(history), **GREEDY)
    assert last == second


@pytest.mark.parametrize("name", CHATS)
def test_whose_history_grows(name: str) -> None:
    """Models with roles put the user's turn into the caller's list, as scripts that ignore the result rely on."""
    tokenizer, model, _ = opened(name)
    mine: list[Any] = []
    _, history = model.chat(tokenizer, "hi", history=mine, **GREEDY)
    has_roles = hasattr(tokenizer, "build_chat_input")
    assert mine == ([{"role": "user", "content": "hi"}] if has_roles else [])
    assert history is not mine
    assert len(history) == (2 if has_roles else 1)


def prompts_of(model: Any, call: Any) -> list[list[int]]:
    """The ids of every forward pass of a call."""
    seen: list[list[int]] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    try:
        list(call)
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", CHATS[1:])
def test_a_cache_goes_on_as_published(name: str) -> None:
    """The second turn's ids: the line breaks and the round (2), the opening again (3), the message alone (GLM-4)."""
    tokenizer, model, lm = opened(name)
    options = {**GREEDY, "return_past_key_values": True}
    *_, (_, history, past) = model.stream_chat(tokenizer, "hi", history=[], **options)
    length = past[0][0].shape[0 if name != "glm-4-9b-chat" else 2]
    seen = prompts_of(
        model, model.stream_chat(tokenizer, "more", history=list(history), past_key_values=past, **options)
    )
    template = lm.chat_template
    core = tokenizer.core
    if name == "chatglm2-6b":
        wanted = core.encode("\n\n[Round 2]\n\n问：more\n\n答：")[1:]
    else:
        wanted = [
            core.token_to_id("<|user|>"),
            *core.encode("\n"),
            *core.encode("more"),
            core.token_to_id("<|assistant|>"),
        ]
        wanted = [*core.build_inputs([]), *wanted] if name == "chatglm3-6b" else wanted
    assert template.stop_ids(core)
    assert seen[0] == wanted
    assert past[0][0].shape[0 if name != "glm-4-9b-chat" else 2] >= length + len(wanted)
    assert not model.new_cache()


@pytest.mark.parametrize("name", CHATS)
def test_seeded_sampling_is_one_by_every_way(name: str) -> None:
    tokenizer, model, _ = opened(name)
    options: dict[str, Any] = {"do_sample": True, "top_p": 0.8, "max_new_tokens": 9}
    prompt = tokenizer(["seeded"], return_tensors="pt")
    prompt = {"input_ids": prompt["input_ids"]}

    def seeded(call: Any) -> Any:
        torch.manual_seed(7)
        return call()

    whole = seeded(lambda: model.generate(**prompt, **options))
    *_, last = seeded(lambda: list(model.stream_generate(**prompt, **options)))
    assert torch.equal(whole, last)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    thread = threading.Thread(target=seeded, args=(lambda: model.generate(**prompt, **options, streamer=streamer),))
    thread.start()
    assert "".join(streamer) == tokenizer.decode(whole[0, prompt["input_ids"].shape[1] :])
    thread.join()


@pytest.mark.parametrize("name", CHATS)
def test_two_threads_answer_as_one_does(name: str) -> None:
    tokenizer, model, _ = opened(name)
    queries = ["一", "two words", "三个字符 and more", "4"]
    alone = [model.chat(tokenizer, query, **GREEDY)[0] for query in queries]
    found: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda q=query: found.update({q: model.chat(tokenizer, q, **GREEDY)[0]}))
        for query in queries
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[query] for query in queries] == alone
    assert len(set(alone)) == len(queries)
    streams = [model.stream_chat(tokenizer, query, **GREEDY) for query in queries[:2]]
    last: list[Any] = [None, None]
    for pair in zip_longest(*streams):  # one step of each in turn
        last = [new or old for new, old in zip(pair, last, strict=True)]
    assert [text for text, _ in last] == alone[:2]


class Broken(LogitsProcessor):  # type: ignore[misc]
    """Scores that are no numbers."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores * float("nan")


@pytest.mark.parametrize(("name", "index"), [("chatglm-6b", 5), ("chatglm3-6b", 5), ("glm-4-9b-chat", 198)])
def test_nan_scores_give_the_published_id(name: str, index: int) -> None:
    tokenizer, model, _ = opened(name)
    mine = LogitsProcessorList([Broken()])
    *_, rows = model.stream_generate(
        torch.tensor([tokenizer.encode("x")]), logits_processor=model._guarded(mine), max_new_tokens=3, do_sample=False
    )
    assert rows[0, -3:].tolist() == [index] * 3
    assert len(mine) == 1


def test_an_attribute_of_a_class_and_stop_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As chains hold them: nothing of a call is kept on the model."""
    tokenizer, model, _ = opened("chatglm2-6b")

    class Chain:
        tokenizer: Any = None
        model: Any = None

        def _call(self, prompt: str, stop: list[str] | None = None) -> str:
            text: str = self.model.chat(self.tokenizer, prompt, history=[], **GREEDY)[0]
            for mark in stop or []:
                text = text.split(mark)[0]
            return text

    monkeypatch.setattr(Chain, "tokenizer", tokenizer)
    monkeypatch.setattr(Chain, "model", model)
    whole = Chain()._call("hi")
    assert Chain()._call("hi", stop=[whole[3]]) == whole[:3].split(whole[3])[0]
    before = set(vars(model))
    Chain()._call("again")
    assert set(vars(model)) == before


def test_tools_are_offered_and_called() -> None:
    tokenizer, model, _ = opened("chatglm3-6b")
    tools = [{"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}}]
    history = [{"role": "system", "content": "Use tools.", "tools": tools}, {"role": "user", "content": "1+1"}]
    text = "add\n```python\ntool_call(a=1, b='x')\n```"
    result, longer = model.process_response(text, history)
    assert result == {"name": "add", "parameters": {"a": 1, "b": "x"}}
    assert longer[-1]["metadata"] == "add"
    _, asked = model.chat(tokenizer, "2", history=longer, role="observation", **GREEDY)
    assert asked[-2] == {"role": "observation", "content": "2"}


def test_what_cannot_chat_says_so() -> None:
    folder = release("glm-large-chinese")
    model = AutoModel.from_pretrained(folder)
    with pytest.raises(RequestError, match="not taught to chat") as caught:
        model.chat(None, "hi")
    assert caught.value.code == "no_chat"
    _, chat, _ = opened("chatglm-6b")
    with pytest.raises(RequestError, match="AutoTokenizer"):
        chat.chat(object(), "hi")


def steps(iterator: Iterator[Any]) -> list[str]:
    return [shown for shown, _ in iterator]


def test_the_stream_grows() -> None:
    tokenizer, model, _ = opened("glm-4-9b-chat")
    shown = steps(model.stream_chat(tokenizer, "你好", history=[], do_sample=False, max_new_tokens=30))
    assert all(not text.endswith("\ufffd") for text in shown)
    assert max(map(len, shown)) == len(shown[-1])
