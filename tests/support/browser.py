"""A headless Chromium that looks at pages on loopback, and nothing else: every other request fails the test."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

PATIENCE = 30_000  # milliseconds for anything that must come
PHONE, DESK = (390, 844), (1280, 800)
_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Chromium:
    """A running browser. Pages of the same kind share its cache, and nothing else."""

    def __init__(self, browser: "Browser") -> None:
        self._browser = browser
        self._contexts: dict[str, BrowserContext] = {}

    @contextmanager
    def looking_at(
        self, url: str, *, size: tuple[int, int] = DESK, proxied: str = "", alone: bool = True, **kind: Any
    ) -> "Iterator[Page]":
        """An open page. Fails at the end when it asked another host for anything, or when a script of it failed.

        alone: other hosts may not be asked.

        proxied: a path that is taken off every request, as by a proxy that shows a server below it.
        """
        options = {"locale": "en-US", "viewport": {"width": size[0], "height": size[1]}, **kind}
        if repr(options) not in self._contexts:
            self._contexts[repr(options)] = self._browser.new_context(**options)
        page = self._contexts[repr(options)].new_page()
        page.set_default_timeout(PATIENCE)
        asked: list[str] = []
        failed: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        if proxied:
            page.route(f"**{proxied}/**", lambda route: route.continue_(url=route.request.url.replace(proxied, "", 1)))
        try:
            page.goto(url)
            yield page
            foreign = [other for other in asked if urlsplit(other).scheme not in ("data", "blob")]
            foreign = [other for other in foreign if urlsplit(other).netloc != urlsplit(url).netloc]
            assert not alone or foreign == [], "the page asked other hosts"
            assert failed == [], "scripts of the page failed"
        finally:
            page.close()


@contextmanager
def chromium(*arguments: str) -> Iterator[Chromium]:
    """The browser that is installed, with further arguments; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed (none of chromium, chromium-browser, google-chrome is on the PATH)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=[*_ARGUMENTS, *arguments])
        try:
            yield Chromium(browser)
        finally:
            browser.close()


def until(page: "Page", script: str, *values: Any) -> None:
    """Wait until a JavaScript function of `values` says true."""
    page.wait_for_function(f"(values) => ({script})(...values)", arg=list(values))
