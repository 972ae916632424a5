"""Blanks filled and texts continued on the page, in Chromium, with a real server behind it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from support.browser import DESK, PHONE, Chromium, until
from support.live import Live, serving
from support.scripted import Script
from support.served_models import small_base

if TYPE_CHECKING:
    from playwright.sync_api import Page

    Open = Callable[..., Page]
Write = Callable[..., Script]

EVIL = "<img src=x onerror='window.bad = 1'> ${window.bad = 2} {{x}} <script>window.bad = 3</script> "


def run(page: "Page", tab: str, text: str) -> None:
    """Write a text, press the button, wait until it can be pressed again."""
    page.fill(f"#{tab}-input textarea", text)
    page.click(f"#{tab}-run")
    page.wait_for_selector(f"#{tab} .result:not(.empty)")
    page.wait_for_selector(f"#{tab}-run")


def result(page: "Page", tab: str) -> str | None:
    return page.text_content(f"#{tab} .result")


@pytest.mark.parametrize(
    ("size", "scheme"), [(DESK, "dark"), pytest.param(PHONE, "light", marks=pytest.mark.exhaustive)]
)
def test_blanks_are_filled_and_highlighted(base: Live, open_base: "Open", size: tuple[int, int], scheme: str) -> None:
    page = open_base(size=size, color_scheme=scheme)
    text = "The quick [MASK] fox.\n凯旋门位于[gMASK]"
    run(page, "fill", text)
    filled = base.direct.fill(text, max_tokens=64)
    assert result(page, "fill") == filled.text.replace("\0", "\ufffd")
    assert page.locator("#fill mark.answer").all_text_contents() == [
        answer.replace("\0", "\ufffd") for answer in filled.blanks
    ]
    assert page.locator("#fill mark.writing, #fill mark.waiting").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for control in ("#fill-input textarea", "#fill-run", "#fill-copy", "#fill"):
        box = page.locator(control).bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= size[0] - box["width"], control


@pytest.mark.exhaustive
def test_what_was_written_is_not_executed(base: Live, open_base: "Open") -> None:
    page = open_base()
    run(page, "fill", EVIL + "[MASK]")
    assert page.evaluate("window.bad") is None
    shown = result(page, "fill")
    assert shown is not None
    assert shown.startswith(EVIL.rstrip())
    assert page.locator("#fill .result img, #fill .result script").count() == 0


@pytest.mark.exhaustive
def test_an_example_is_filled_and_copied_and_a_text_without_blanks_is_not(base: Live, open_base: "Open") -> None:
    page = open_base(permissions=["clipboard-read", "clipboard-write"])
    page.click("button >> text=床前明月光")
    until(page, "() => document.querySelector('#fill-input textarea').value.includes('[MASK]')")
    text = page.input_value("#fill-input textarea")
    run(page, "fill", text)
    page.click("#fill-copy")
    page.wait_for_selector("#fill-copy.copied")
    filled = base.direct.fill(text, max_tokens=64).text
    assert page.evaluate("navigator.clipboard.readText()") == filled.replace("\0", "\ufffd")
    page.fill("#fill-input textarea", "nothing is missing")
    page.click("#fill-run")
    page.wait_for_selector(".toast-body >> text=has no blank")
    page.wait_for_selector("#fill-run")


@pytest.mark.exhaustive
def test_a_text_is_continued_and_stopped(base: Live, open_base: "Open", write: Write) -> None:
    page = open_base()
    page.wait_for_selector("#fill-run")
    assert page.locator("button[role=tab]").all_inner_texts() == ["Fill in the blanks", "Continue"]
    page.click("button[role=tab] >> text=Continue")
    page.wait_for_selector("text=This model was not taught to chat")
    script = write(base.lm, " jumps over the lazy dog" * 9)
    page.fill("#continue-input textarea", "The quick brown fox")
    page.click("#continue-run")
    for beginning in ("jumps", "jumps over"):
        script.let_until(beginning)
        until(page, "(text) => document.querySelector('#continue mark.answer')?.textContent.trim() === text", beginning)
    page.click("#continue-stop")
    page.wait_for_selector("#continue-run")
    script.let(1)
    base.settled(lambda: base.state.queue.snapshot.rows == 0)
    assert result(page, "continue") == "The quick brown fox jumps over"
    assert page.locator("#continue mark.writing").count() == 0


@pytest.mark.exhaustive
def test_below_the_path_of_a_proxy(browser: Chromium) -> None:
    """A proxy that shows the server at /glm and takes that off: the page finds all its parts, and the API."""
    text = "The quick [MASK] fox."
    with (
        serving(small_base, page=True, root_path="/glm") as live,
        browser.looking_at(f"{live.url}/glm/", proxied="/glm") as page,
    ):
        run(page, "fill", text)
        assert result(page, "fill") == live.direct.fill(text, max_tokens=64).text.replace("\0", "\ufffd")
