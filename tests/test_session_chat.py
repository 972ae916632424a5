"""Conversations through `LM`: what the published `chat` and `stream_chat` gave, streams, limits, mistakes."""

import warnings
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from families.recorded import recorded
from glmkit.config import GenerationSettings
from glmkit.errors import RequestError, TokenizerError, TrimmedHistoryWarning
from glmkit.families.chatglm2_text import ROLE_TOKENS
from glmkit.families.common.command_tokenizer import COMMANDS, CommandTokenizer
from glmkit.families.family import family_named
from glmkit.generate.engine.ticket import MAX_UNREAD
from glmkit.session import LM
from glmkit.tokenizer.chat_template import Message, to_messages
from glmkit.tokenizer.sentencepiece import SentencePieceModel
from support.chat import chat_model, real_chat_model, say
from support.fed import Fed
from support.served_models import small_chat
from support.watching import wait_for
from tokenizer.small_vocabularies import sentencepiece_bytes

pytestmark = pytest.mark.sampled(4)

FOLDERS = {"chatglm": "chatglm-6b", "chatglm2": "chatglm2-6b", "chatglm3": "chatglm3-6b", "glm-4": "glm-4-9b"}
real = cache(real_chat_model)


def recorded_chats(folder: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(arguments of `chat`, what was recorded) for every form of the files."""
    found = []
    for case in recorded(folder)["chat"]:
        if "query" in case:
            role = {"role": case["role"]} if "role" in case else {}
            found.append(({"query": case["query"], "history": case["history"], **role}, case))
        elif "chat" in case:
            *history, last = case["conversation"]
            if set(last) == {"role", "content"}:
                found.append(({"query": last["content"], "history": history, "role": last["role"]}, case["chat"]))
    return found


def as_lists(history: list[Any]) -> list[Any]:
    return [list(item) if isinstance(item, tuple) else item for item in history]


# --- recorded ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FOLDERS)
def test_recorded_chats(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, seen = real(family), 0
    for arguments, case in recorded_chats(FOLDERS[family]):
        lm.engine.reset()
        fed = Fed(monkeypatch)
        say(monkeypatch, case["reply_ids"])
        before = repr(arguments)
        response, history = lm.chat(**arguments)
        (expected,) = case["input_ids"]
        assert fed.row[: len(expected)] == expected
        said = case["response"]
        if isinstance(said, dict) and f"'name': {said['name']!r}" not in before:
            # The published code takes any first line for a tool's name; what was not offered is text here.
            assert response == f"{said['name']}\n{said['content']}"
            continue
        assert response == said
        assert as_lists(history)[-1] == case["history_out"][-1]
        assert len(history) == len(case["history_out"])
        assert repr(arguments) == before
        say(monkeypatch, case["reply_ids"])
        shown = list(lm.stream_chat(**arguments))
        assert shown[-1] == (response, history)
        if "stream_responses" in case:
            seen += 1
            assert [text for text, _ in shown] == case["stream_responses"]
    assert seen >= 3


@pytest.mark.parametrize("family", FOLDERS)
def test_published_defaults(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = real(family)
    asked: list[Any] = []

    def record(logits: Any, sampling: Any, positions: Any) -> Any:
        asked.append(sampling)
        return logits.argmax(-1)

    monkeypatch.setattr("glmkit.generate.jobs.decoding.next_tokens", record)
    lm.chat("你好", max_new_tokens=1)
    case = recorded_chats(FOLDERS[family])[0][1]["gen_kwargs"]
    assert (asked[0].temperature, asked[0].top_p) == (case["temperature"], case["top_p"])


SLOWER = [pytest.param(family, marks=pytest.mark.exhaustive) for family in FOLDERS if family != "glm-4"]


@pytest.mark.parametrize("family", ["glm-4", *SLOWER])
def test_streamed_is_whole(family: str) -> None:
    lm = real(family)
    history: list[Any] = []
    for query in ("你好", "晚上睡不着应该怎么办", "Write two lines"):
        options: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0.9, "top_p": 0.9, "seed": 5}
        whole = lm.chat(query, history, **options)
        pairs = list(lm.stream_chat(query, history, **options))
        assert pairs[-1] == whole
        steps = list(lm.chat_steps(query, history, **options))
        assert "".join(step.piece for step in steps) == whole[0]
        assert [step.finish for step in steps[:-1]] == [None] * (len(steps) - 1)
        assert steps[-1].finish in ("stop", "length")
        history = whole[1]
    again = lm.chat("你好", max_new_tokens=24, seed=1)
    assert again == lm.chat("你好", max_new_tokens=24, seed=1)
    assert again != lm.chat("你好", max_new_tokens=24, seed=2)
    assert again == lm.chat("你好", None, max_new_tokens=24, seed=1) == lm.chat("你好", [], max_new_tokens=24, seed=1)


@pytest.mark.parametrize("family", FOLDERS)
def test_turns_read_only_what_is_new(family: str) -> None:
    lm = real(family)
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0}
    queries = ("你好", "晚上睡不着应该怎么办", "Write two lines")

    def talk(*, fresh: bool) -> tuple[list[Any], list[int], list[int]]:
        """The history, what each prompt has, and how much of it was found in the cache."""
        history, sizes, reused = [], [], []
        lm.engine.reset()
        for query in queries:
            if fresh:
                lm.engine.reset()
            messages = [*to_messages(history), Message("user", query)]
            sizes.append(len(lm.chat_template.build(lm.tokenizer, messages)))  # type: ignore[arg-type]
            before = lm.engine.counters.reused_tokens
            history = lm.chat(query, history, **options)[1]
            reused.append(lm.engine.counters.reused_tokens - before)
        return history, sizes, reused

    history, sizes, reused = talk(fresh=False)
    assert talk(fresh=True) == (history, sizes, [0, 0, 0])
    block = lm.engine.limits.block
    if lm.config.mask == "causal":
        # All that was read before, in whole blocks: a cleaned reply may be spelled with other tokens.
        assert [have // block * block for have in sizes[:2]] <= reused[1:]
        assert all(count % block == 0 for count in reused)
    else:
        # A prefix-LM reads every new prompt as a whole: its tokens see each other in both directions.
        assert reused == [0, 0, 0]


# --- without published vocabularies -----------------------------------------------------------------------------------


@cache
def small(family: str = "chatglm3", **changes: Any) -> LM:
    model = SentencePieceModel(sentencepiece_bytes(rule="identity"))
    names = (*COMMANDS, *ROLE_TOKENS) if family == "chatglm3" else COMMANDS
    return chat_model(family, CommandTokenizer(model, names, named=family == "chatglm3"), **changes)


def prompt_of(lm: LM, monkeypatch: pytest.MonkeyPatch, *args: Any, **options: Any) -> list[int]:
    lm.engine.reset()
    fed = Fed(monkeypatch)
    lm.chat(*args, **{"max_new_tokens": 1, **options})
    return fed.ids[0]


def test_system_and_tools_stand_first(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = small()
    tools = [{"name": "track", "parameters": {}}]
    plain = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    asked = prompt_of(lm, monkeypatch, "w", plain)
    assert prompt_of(lm, monkeypatch, "w", plain[1:], system="s") == asked
    assert prompt_of(lm, monkeypatch, "w", [{"role": "system", "content": "x"}, *plain[1:]], system="s") == asked
    with_tools = prompt_of(lm, monkeypatch, "w", [{**plain[0], "tools": tools}, *plain[1:]])
    assert prompt_of(lm, monkeypatch, "w", plain, tools=tools) == with_tools != asked
    intro = lm.chat_template.tools_intro
    assert intro
    given = [{"role": "system", "content": intro, "tools": tools}]
    assert prompt_of(lm, monkeypatch, "w", tools=tools) == prompt_of(lm, monkeypatch, "w", given)
    _, history = lm.chat("w", tools=tools, max_new_tokens=1)
    assert history[0] == given[0]


def test_a_call_of_a_tool_comes_back_as_a_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = small()
    encode, user = lm.tokenizer.encode, lm.chat_template.stop_ids(lm.tokenizer)[1]  # type: ignore[arg-type]
    text = "track\n ```python\ntool_call(symbol='1')\n```"
    say(monkeypatch, [*encode(text), user])
    tools = [{"name": "track"}]
    call = {"name": "track", "parameters": {"symbol": "1"}}
    response, history = lm.chat("q", tools=tools)
    assert response == call
    assert history[-1]["metadata"] == "track"
    say(monkeypatch, [*encode(text), user])
    pairs = list(lm.stream_chat("q", tools=tools))
    assert pairs[-1] == (call, history)
    assert all(isinstance(shown, str) for shown, _ in pairs[:-1])
    answered = [{"role": "observation", "content": "5"}]
    say(monkeypatch, [*encode("five"), user])
    assert lm.chat("5", history, role="observation")[1][-2:-1] == answered
    say(monkeypatch, [*encode("track\n ```python\nimport os\n```"), user])
    with pytest.raises(RequestError, match="the model's call of 'track' cannot be read"):
        lm.chat("q", tools=tools)


THOUGHT = "Thought: 查询\n\nAction: x\nObservation: 12"


@pytest.mark.parametrize("family", ["chatglm3", "glm-4"])
def test_what_was_not_offered_is_text(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole or streamed, with a stop text or without, in the history and in the answers, to the letter."""
    lm = small_chat(family)
    encode, user = lm.tokenizer.encode, lm.chat_template.stop_ids(lm.tokenizer)[1]  # type: ignore[arg-type]
    ids = [*encode(THOUGHT), user]
    for tools in (None, [{"type": "function", "function": {"name": "track"}}]):
        say(monkeypatch, ids)
        response, history = lm.chat("q", tools=tools)
        assert response == history[-1]["content"] == THOUGHT  # type: ignore[call-overload]
        say(monkeypatch, ids)
        steps = list(lm.chat_steps("q", tools=tools))
        assert "".join(step.piece for step in steps) == THOUGHT
        assert sum(bool(step.piece) for step in steps) > 10
        say(monkeypatch, ids)
        assert list(lm.stream_chat("q", tools=tools))[-1] == (response, history)
        say(monkeypatch, ids)
        stopped, history = lm.chat("q", tools=tools, stop="Observation:")
        assert stopped == history[-1]["content"] == THOUGHT.partition("Observation:")[0]  # type: ignore[call-overload]
        say(monkeypatch, ids)
        job = lm.chat_job([{"role": "user", "content": "q"}], {"stop": "Observation:", "max_new_tokens": 99})
        lm.engine.run_all([job])
        assert (job.answers[0].text, job.answers[0].finish) == (stopped, "stop")


@pytest.mark.parametrize("family", ["chatglm3", "glm-4"])
def test_a_call_that_is_cut_is_what_the_model_wrote(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = small_chat(family)
    text = "track\n```python\ntool_call(a='x" if family == "chatglm3" else 'track\n{"a": "x'
    ids, tools = lm.tokenizer.encode(text), [{"type": "function", "function": {"name": "track"}}]
    say(monkeypatch, ids)
    response, history = lm.chat("q", tools=tools, max_new_tokens=len(ids))
    assert response == text
    assert history[-1] == {"role": "assistant", "content": text.partition("\n")[2], "metadata": "track"}
    say(monkeypatch, ids)
    assert list(lm.stream_chat("q", tools=tools, max_new_tokens=len(ids)))[-1] == (response, history)


def test_the_oldest_turns_are_left_out_with_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = small("chatglm2", max_positions=160)
    turns = [(f"question {number}", "an answer") for number in range(9)]
    with pytest.warns(TrimmedHistoryWarning, match=r"exceed 160 tokens; not read: the oldest \d of 10 turns") as caught:
        _, history = lm.chat("last", turns, max_new_tokens=50)
    assert caught[0].filename == __file__
    dropped = int(str(caught[0].message).split("oldest ")[1].split()[0])
    assert history[:9] == turns
    assert len(history) == 10
    template, tokenizer = lm.chat_template, lm.tokenizer
    rows = [template.build(tokenizer, lm_messages(turns[number:])) for number in (dropped, dropped - 1)]  # type: ignore[arg-type]
    assert len(rows[0]) + 50 <= 160 < len(rows[1]) + 50
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.chat("last", turns[dropped:], max_new_tokens=50)
    with pytest.warns(TrimmedHistoryWarning):
        assert prompt_of(lm, monkeypatch, "last", turns, max_new_tokens=50) == rows[0]


def lm_messages(turns: list[tuple[str, str]]) -> list[Any]:
    return [*to_messages(turns), Message("user", "last")]


def test_the_system_message_and_calls_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = small(max_positions=160)
    old = [{"role": "user", "content": "many words " * 14}, {"role": "assistant", "content": "a"}]
    called = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "c", "metadata": "track"}]
    system = [{"role": "system", "content": "s"}]
    short = prompt_of(lm, monkeypatch, "5", [*system, *called], role="observation")
    with pytest.warns(TrimmedHistoryWarning, match="the oldest 2 of 3 turns"):
        assert prompt_of(lm, monkeypatch, "5", [*system, *old, *old, *called], role="observation") == short


def test_never_past_the_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, fed = small("chatglm2", max_positions=96), Fed(monkeypatch)
    lm.engine.reset()
    say(monkeypatch, [20] * 500)
    (*_, last) = lm.chat_steps("hello")
    prompt = len(fed.ids[0])
    assert last.finish == "length"
    assert last.tokens == 96 - prompt
    assert max(place[0][-1] for place in fed.places) < 96
    say(monkeypatch, [20] * 500)
    (*_, last) = lm.chat_steps("hello", max_length=prompt + 3)
    assert last.tokens == 3
    with pytest.raises(
        RequestError,
        match=rf"prompt of {prompt} tokens and 90 for the reply exceed 96; .* at most {96 - prompt} tokens$",
    ):
        lm.chat("hello", max_new_tokens=90)
    with pytest.raises(RequestError, match="exceed 96; shorten the message$"):
        lm.chat("many words " * 30)


def test_stop_ids_of_the_files_end_a_reply_too(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = small("chatglm2")
    word = lm.tokenizer.encode("fox")
    lm = LM(replace(lm.parts, generation=GenerationSettings(stop_ids=(7,))))
    say(monkeypatch, [*word, 7, *word])
    assert lm.chat("q")[0] == "fox"


def test_cancelling_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, options = small(), {"max_new_tokens": 240, "temperature": 0}
    lm.engine.reset()
    fed = Fed(monkeypatch)
    stream: Any = lm.chat_steps("q", **options)
    next(stream), next(stream)
    unread = next(iter(lm.engine._open_tickets))
    wait_for(lambda: unread.full)
    assert (lm.engine.rows, lm.engine.running) == (1, 1)
    assert len(fed.ids) <= 2 * MAX_UNREAD + 1, "it runs ahead so far and no further"
    del stream
    wait_for(lambda: (lm.engine.rows, lm.engine.running, lm.engine.waiting) == (0, 0, 0))
    stream = lm.stream_chat("q", **options)
    next(stream)
    assert lm.engine.rows == 1
    del stream
    wait_for(lambda: lm.engine.rows == 0)
    stream = lm.chat_steps("q", **options)
    next(stream)
    stream.close()
    wait_for(lambda: lm.engine.rows == 0)
    lm.chat_steps("q", **options)  # never begun
    assert (lm.engine.rows, lm.engine.waiting) == (0, 0)


def test_streams_of_generate() -> None:
    for lm in (small(), small("chatglm2")):
        chosen: list[dict[str, Any]] = [{}, {"temperature": 0.9, "seed": 4}]
        for options in chosen:
            whole = lm.generate("the fox", max_new_tokens=20, **options)
            pieces = list(lm.stream("the fox", max_new_tokens=20, **options))
            assert "".join(pieces) == whole
            assert len(pieces) > 3
            assert all(pieces)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"query": 5}, "query is 5; give a text"),
        ({"query": "q", "history": "x"}, "a history is a list of turns"),
        ({"query": "q", "role": "tool"}, "knows no role 'tool'"),
        ({"query": "q", "system": 3}, "system is 3; give a text"),
        ({"query": "q", "tools": "f"}, "tools of a message must be a list of objects"),
        ({"query": "q", "max_new_tokens": 0}, "max_new_tokens is 0; give at least 1"),
        ({"query": "q", "max_new_tokens": True}, "max_new_tokens is True; give a whole number"),
        ({"query": "q", "max_length": 1.5}, "max_length is 1.5; give a whole number"),
        ({"query": "q", "max_length": 9, "max_new_tokens": 9}, "both max_new_tokens and max_length"),
        ({"query": "q", "temperature": -1}, "temperature is -1; give at least 0"),
        ({"query": "q", "top_p": 0}, "top_p is 0; give more than 0"),
    ],
)
def test_mistakes_are_told_before_anything_runs(arguments: dict[str, Any], reason: str) -> None:
    for method in (small().chat, small().stream_chat, small().chat_steps):
        with pytest.raises(RequestError, match=reason):
            method(**arguments)


def test_an_unknown_option_is_named() -> None:
    for name, closest in (
        ("max_tokens", "max_new_tokens"),
        ("tool", "tools"),
        ("repeat_penalty", "repetition_penalty"),
    ):
        with pytest.raises(RequestError, match=f"unknown option '{name}'; did you mean '{closest}'"):
            small().chat("q", **{name: 5})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="unknown option 'qqqq'; known are beam_length, "):
        small().chat("q", qqqq=5)  # type: ignore[call-arg]


def test_families_that_do_not_chat() -> None:
    lm = small()
    for family in (None, family_named("glm"), family_named("glm-130b")):
        other = LM(replace(lm.parts, family=family))
        with pytest.raises(RequestError, match="was not taught to chat; use fill or generate"):
            other.chat("q")
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        LM(replace(lm.parts, tokenizer=None)).chat("q")


def test_a_model_without_a_form_for_tools() -> None:
    for options in ({"tools": [{"name": "f"}]}, {"role": "observation"}):
        with pytest.raises(RequestError, match="ChatGLM2-6B was not taught to use tools; .* one of ChatGLM3-6B, GLM-4"):
            small("chatglm2").chat("q", **options)  # type: ignore[arg-type]


def test_a_system_message_where_a_family_has_no_role_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands before the first question, once, however often it is given again."""
    lm = small("chatglm2")
    alone = prompt_of(lm, monkeypatch, "be brief.who?")
    assert prompt_of(lm, monkeypatch, "who?", system="be brief.") == alone
    options: dict[str, Any] = {"max_new_tokens": 4, "temperature": 0}
    first, history = lm.chat("who?", system="be brief.", **options)
    assert history[0] == {"role": "system", "content": "be brief."}
    expected = prompt_of(lm, monkeypatch, "and?", [("be brief.who?", first)])
    assert prompt_of(lm, monkeypatch, "and?", history, system="be brief.") == expected
    assert prompt_of(lm, monkeypatch, "and?", history) == expected
