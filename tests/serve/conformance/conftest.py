"""One server for each kind of model, kept for the whole run."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from support.live import Live, serving
from support.served_models import CHAT_FAMILIES, small_base, small_chat

TOOL_FAMILIES = ("chatglm3", "glm-4")


class Servers:
    """Servers by kind of model, started when first asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self._live = stack, dict[str, Live]()

    def __getitem__(self, kind: str) -> Live:
        if kind not in self._live:
            build = small_base if kind == "base" else partial(small_chat, kind)
            self._live[kind] = self._stack.enter_context(serving(build))
        return self._live[kind]


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)


@pytest.fixture(params=CHAT_FAMILIES)
def chat(request: pytest.FixtureRequest, servers: Servers) -> Live:
    """Every family that chats."""
    return servers[request.param]


@pytest.fixture(params=("base", *CHAT_FAMILIES))
def text(request: pytest.FixtureRequest, servers: Servers) -> Live:
    """Every kind of model: all continue texts."""
    return servers[request.param]


@pytest.fixture(params=TOOL_FAMILIES)
def tools(request: pytest.FixtureRequest, servers: Servers) -> Live:
    """The families that were taught to call tools and to read a system message."""
    return servers[request.param]


@pytest.fixture(params=("base", "chatglm"))
def filler(request: pytest.FixtureRequest, servers: Servers) -> Live:
    """The families that fill blanks."""
    return servers[request.param]


@pytest.fixture
def base(servers: Servers) -> Live:
    """A base model, which was not taught to chat."""
    return servers["base"]


@pytest.fixture
def one(servers: Servers) -> Live:
    """One family that chats, for what does not depend on the family."""
    return servers["chatglm3"]
