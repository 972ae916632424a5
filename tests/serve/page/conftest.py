"""The browser, the pages of two servers, and models that write what a test tells them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from support.browser import Chromium, chromium
from support.live import Live, serving
from support.scripted import Script, scripts
from support.served_models import small_base, small_chat

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest.importorskip("gradio", reason="the package gradio is not installed")

KEY = "a-key-of-the-test"


# Not for the session: while Playwright runs, its event loop counts as running in this thread, and no other test may
# start one.
@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def chat() -> Iterator[Live]:
    """A chat model that reads system prompts, behind a key."""
    with serving(lambda: small_chat("chatglm3"), page=True, api_keys=(KEY,)) as live:
        yield live


@pytest.fixture(scope="session")
def base() -> Iterator[Live]:
    """A base model that fills blanks, for everybody."""
    with serving(small_base, page=True) as live:
        yield live


@pytest.fixture
def open_chat(browser: Chromium, chat: Live) -> "Iterator[Callable[..., Page]]":
    """Opens the page of `chat` and enters a key."""
    with ExitStack() as stack:

        def opened(key: str = KEY, **context: Any) -> "Page":
            page = stack.enter_context(browser.looking_at(f"{chat.url}/", **context))
            page.fill("#key input", key)
            return page

        yield opened


@pytest.fixture
def open_base(browser: Chromium, base: Live) -> "Iterator[Callable[..., Page]]":
    """Opens the page of `base`."""
    with ExitStack() as stack:
        yield lambda **context: stack.enter_context(browser.looking_at(f"{base.url}/", **context))


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Script]]:
    """`write(lm, *texts)`: what the model answers."""
    with scripts(monkeypatch) as found:
        yield found
