"""Conversations on the page, in Chromium, with a real server behind it."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from glmkit.serve.app import create_app
from glmkit.serve.error_responses import ApiError, Draining, Overloaded
from glmkit.serve.settings import ServeSettings
from glmkit.session import LM
from support.browser import DESK, PHONE, Chromium, until
from support.live import Live
from support.scripted import Script
from support.served_models import small_chat
from support.server import thread_server
from support.watching import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Page

    Open = Callable[..., Page]
Write = Callable[..., Script]

INPUT = "#chat-input textarea"
SEND, STOP = "[data-testid=submit-button]", "[data-testid=stop-button]"
MARKDOWN = "A **bold** word, 中文 and $x^2$.\n\n```python\nprint(1)\n```\n"


def say(page: "Page", text: str) -> None:
    page.fill(INPUT, text)
    page.press(INPUT, "Enter")


def shows(page: "Page", who: str, *texts: str) -> None:
    """Wait until the messages of one side are these, and nothing more is written."""
    until(
        page,
        "(who, texts) => JSON.stringify([...document.querySelectorAll(`#chat [data-testid=${who}]`)]"
        ".map((each) => each.innerText.trim())) === texts",
        who,
        json.dumps(texts, ensure_ascii=False, separators=(",", ":")),
    )
    page.wait_for_selector(SEND)


def reads(page: "Page", text: str) -> None:
    """Wait until the first reply reads so far like this."""
    until(page, "(text) => document.querySelector('#chat [data-testid=bot]')?.innerText.trim() === text", text)


@pytest.fixture
def asked(chat: Live, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Mapping[str, Any]], Mapping[str, Any]]]:
    """The conversations and options that reach the model."""
    calls: list[tuple[list[Mapping[str, Any]], Mapping[str, Any]]] = []
    chat_job = LM.chat_job

    def spying(lm: LM, messages: Sequence[Any], options: Mapping[str, Any], **rest: Any) -> Any:
        calls.append(([{"role": each.role, "content": each.content} for each in messages], options))
        return chat_job(lm, messages, options, **rest)

    monkeypatch.setattr(LM, "chat_job", spying)
    return calls


def test_a_turn_streams(chat: Live, open_chat: "Open", write: Write) -> None:
    page = open_chat()
    script = write(chat.lm, "\none two three four five six")
    say(page, "count")
    for beginning in ("one", "one two", "one two three"):
        script.let_until(beginning)
        reads(page, beginning)
    assert page.locator(STOP).is_visible()
    script.let()
    shows(page, "bot", "one two three four five six")
    shows(page, "user", "count")
    assert page.input_value(INPUT) == ""


@pytest.mark.exhaustive
def test_markdown_code_and_formulas_are_shown(chat: Live, open_chat: "Open", write: Write) -> None:
    page = open_chat()
    write(chat.lm, MARKDOWN).let()
    say(page, "show me")
    page.wait_for_selector(SEND)
    page.wait_for_selector("#chat .bot strong >> text=bold")
    page.wait_for_selector("#chat .bot .katex")
    page.wait_for_selector("#chat .bot pre code >> text=print(1)")
    assert page.locator("#chat .bot pre .token").count() > 0, "the code is not coloured"


def test_stop_frees_the_engine_and_keeps_the_text(chat: Live, open_chat: "Open", write: Write) -> None:
    page = open_chat()
    script = write(chat.lm, "\n" + "this goes on and on" * 50, "next")
    say(page, "talk")
    script.let_until("this goes")
    reads(page, "this goes")
    page.click(STOP)
    shows(page, "bot", "this goes")
    # The engine is in the middle of a step: that step ends, and no other one is made for this answer.
    script.let(1)
    chat.settled(lambda: chat.state.queue.snapshot.rows == 0)
    assert chat.state.queue.open_requests == 0
    script.let()
    say(page, "and?")
    shows(page, "bot", "this goes", "next")


@pytest.mark.exhaustive
def test_the_engine_is_freed_when_the_page_is_closed(chat: Live, open_chat: "Open", write: Write) -> None:
    page = open_chat()
    script = write(chat.lm, "\n" + "nobody hears this" * 50)
    say(page, "talk")
    script.let_until("nobody")
    reads(page, "nobody")
    page.close()
    chat.settled(lambda: chat.state.queue.open_requests == 0)
    script.let(1)
    chat.settled(lambda: chat.state.queue.snapshot.rows == 0)


@pytest.mark.exhaustive
def test_nobody_waits_for_another_page(chat: Live, open_chat: "Open", write: Write) -> None:
    one, other = open_chat(), open_chat()
    script = write(chat.lm, "\nto one", "\nto the other")
    say(one, "first")
    script.let_until("to")
    reads(one, "to")
    say(other, "second")
    chat.settled(lambda: chat.state.queue.open_requests == 2)
    script.let()
    shows(one, "bot", "to one")
    shows(other, "bot", "to the other")


@pytest.mark.exhaustive
def test_retry_and_edit(chat: Live, open_chat: "Open", write: Write, asked: list[Any]) -> None:
    page = open_chat()
    write(chat.lm, "a1", "a2", "a3", "a4").let()
    say(page, "first")
    shows(page, "bot", "a1")
    say(page, "second")
    shows(page, "bot", "a1", "a2")
    page.locator("#chat button[title=Retry]").last.click()
    shows(page, "bot", "a1", "a3")
    page.locator("#chat button[title=Edit]").first.click()
    page.fill("#chat .message textarea", "changed")
    page.click("#chat button[title=Submit]")
    shows(page, "bot", "a4")
    shows(page, "user", "changed")
    turns = [[message["content"] for message in messages] for messages, _ in asked]
    assert turns == [["first"], ["first", "a1", "second"], ["first", "a1", "second"], ["changed"]]
    page.click("#chat button[title=Clear]")
    shows(page, "bot")


@pytest.mark.exhaustive
def test_without_an_answer_everything_is_as_before(
    chat: Live, open_chat: "Open", write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, stopped before the first word, or answered with nothing: no message is left without an answer."""
    page = open_chat()
    write(chat.lm, "a1", "").let()
    say(page, "first")
    shows(page, "bot", "a1")
    say(page, "second")
    page.wait_for_selector(".toast-body >> text=The model answered nothing")
    shows(page, "user", "first")
    assert page.input_value(INPUT) == "second"
    script = write(chat.lm, "unheard")
    page.press(INPUT, "Enter")
    page.click(STOP)
    shows(page, "user", "first")
    assert page.input_value(INPUT) == "second"
    script.let()
    monkeypatch.setattr(chat.state.queue, "draining", True)
    page.locator("#chat button[title=Retry]").last.click()
    page.wait_for_selector(".toast-body >> text=The server is shutting down")
    shows(page, "bot", "a1")
    assert page.input_value(INPUT) == "second"


@pytest.mark.exhaustive
def test_parameters_and_system_prompt_reach_the_model(
    chat: Live, open_chat: "Open", write: Write, asked: list[Any]
) -> None:
    page = open_chat()
    write(chat.lm, "yes", "no").let()
    say(page, "defaults")
    shows(page, "bot", "yes")
    page.click(".parameters > button")
    page.fill("#system textarea", "Be brief.")
    page.fill(".seed input, .seed textarea", "7")
    for label, value in {"Temperature": "0.5", "Top p": "0.9", "Top k": "3", "Most new tokens": "5"}.items():
        field = page.get_by_label(f"number input for {label}")
        field.fill(value)
        field.press("Tab")
    say(page, "mine")
    shows(page, "bot", "yes", "no")
    (first, defaults), (second, mine) = asked
    assert [message["role"] for message in first] == ["user"]
    assert second[0] == {"role": "system", "content": "Be brief."}
    assert (defaults["temperature"], defaults["top_p"], defaults.get("top_k", 0)) == (0.8, 0.8, 0)
    assert "max_new_tokens" not in defaults
    assert [mine[name] for name in ("temperature", "top_p", "top_k", "max_new_tokens", "seed")] == [0.5, 0.9, 3, 5, 7]


@pytest.mark.exhaustive
def test_without_a_valid_key_nothing_is_asked(chat: Live, open_chat: "Open", asked: list[Any]) -> None:
    page = open_chat(key="wrong")
    say(page, "let me in")
    page.wait_for_selector(".toast-body >> text=The API key was not accepted")
    until(page, "() => document.querySelector('#chat-input textarea').value === 'let me in'")
    assert asked == []
    assert page.locator("#chat .message").count() == 0


@pytest.mark.exhaustive
def test_refusals_are_notices(chat: Live, open_chat: "Open", monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = {
        "Try again in 7 s.": Overloaded(64, 7),
        "The server is shutting down": Draining(),
        "is too long": ApiError(400, "messages has 9 tokens; <img src=x onerror='window.bad = 1'> is too long"),
    }
    page = open_chat()
    for notice, error in refusals.items():

        def refuse(*_: Any, error: ApiError = error) -> None:
            raise error

        monkeypatch.setattr(chat.state.queue, "admit", refuse)
        say(page, f"hello {error.status}")
        page.wait_for_selector(f".toast-body >> text={notice}")
        page.wait_for_selector(SEND)
        assert page.input_value(INPUT) == f"hello {error.status}"
    assert page.evaluate("window.bad") is None


def test_what_a_model_writes_is_not_executed_and_loads_nothing(chat: Live, open_chat: "Open", write: Write) -> None:
    page = open_chat()
    evil = "<script>window.bad = 1</script><img src=x onerror='window.bad = 2'> ![p](http://other.invalid/p.png) end"
    write(chat.lm, evil).let()
    say(page, evil)
    page.wait_for_selector("#chat .bot >> text=end")
    page.wait_for_selector(SEND)
    assert page.evaluate("window.bad") is None
    # That no other host was asked is checked when the page is closed.


COVER = "position:fixed;inset:0;z-index:99999;background:red"


def test_what_a_model_writes_stays_in_its_message(chat: Live, open_chat: "Open", write: Write) -> None:
    """Styles and forms are dropped; formulas, which are drawn with styles, stay."""
    page = open_chat()
    evil = (
        f"<style>body{{display:none}}</style><div style='{COVER}'>over</div>"
        f"<span class='katex'><b style='{COVER}'>x</b></span>"
        f"<form action='/v1/infill' method='post' style='{COVER}'><input name='a'><button>Log in</button></form>"
        f"<table style='{COVER}'><tr><td>t</td></tr></table> $x^2$ <p id='chat-input' class='fixed inset-0'>last</p>"
    )
    write(chat.lm, evil).let()
    say(page, "show me")
    page.wait_for_selector("#chat .bot >> text=last")
    page.wait_for_selector(SEND)
    page.wait_for_selector("#chat .bot .katex .mord")
    found = "[...document.querySelectorAll('#chat .bot .md :is(form, input, style, textarea), #chat .bot .md [style]')]"
    assert page.evaluate(f"{found}.filter((part) => !part.closest('.katex')).map((part) => part.outerHTML)") == []
    for control in (INPUT, SEND, "#key input", "button[role=tab]"):  # nothing lies above the page's own controls
        on_top = "(name) => { const part = document.querySelector(name), box = part.getBoundingClientRect();"
        on_top += "const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);"
        on_top += "return top !== null && (part.contains(top) || top.contains(part)) && !top.closest('.bot'); }"
        assert page.evaluate(on_top, control), control


@pytest.mark.exhaustive
@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")])
def test_widths(chat: Live, open_chat: "Open", write: Write, size: tuple[int, int], scheme: str) -> None:
    page = open_chat(size=size, color_scheme=scheme)
    wide = f"{'w' * 140}\n\n```\n{'x' * 140}\n```\n\n|a|b|\n|-|-|\n|{'c' * 60}|{'d' * 60}|\n\nend"
    write(chat.lm, wide).let()
    say(page, "wide " + "y" * 140)
    page.wait_for_selector("#chat .bot >> text=end")
    page.wait_for_selector(SEND)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for control in (INPUT, SEND, "#key input", "#chat button[title=Clear]"):
        box = page.locator(control).bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= size[0] - box["width"], control
        assert 0 <= box["y"] <= size[1] - box["height"], control


@pytest.mark.exhaustive
def test_chinese(open_chat: "Open") -> None:
    page = open_chat(key="wrong", locale="zh-CN")
    page.wait_for_selector("button[role=tab] >> text=对话")
    assert page.get_attribute(INPUT, "placeholder") == "输入消息"
    assert page.get_attribute("html", "lang") == "zh-CN"
    say(page, "你好")
    page.wait_for_selector(".toast-body >> text=API 密钥无效")


@pytest.mark.exhaustive
def test_a_server_that_stops_completes_the_answer_and_does_not_wait_for_the_page(
    browser: Chromium, write: Write
) -> None:
    app = create_app(small_chat("chatglm3"), ServeSettings(log_level="warning"))
    with thread_server(app) as server, browser.looking_at(f"{server.url}/") as page:
        script = write(server.state.lm, "\nlast words")
        say(page, "well?")
        script.let_until("last")
        reads(page, "last")
        server.signal()
        wait_for(lambda: server.state.queue.draining)
        script.let()
        reads(page, "last words")
        server.stopped()
