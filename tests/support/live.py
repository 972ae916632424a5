"""A server on loopback in a thread of this process, the official client, and the same model to ask directly."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import openai
import pytest
import torch
from torch import Tensor

from glmkit.generate.engine.job import Branch
from glmkit.generate.jobs.answers import AnswersJob
from glmkit.generate.outputs import Answer
from glmkit.serve.app import create_app
from glmkit.serve.settings import ServeSettings
from glmkit.serve.state import State
from glmkit.session import LM
from support.server import PATIENCE, ThreadServer, thread_server
from support.watching import wait_for

Messages = Sequence[Mapping[str, Any]]
_ADVANCE = AnswersJob.advance


def counts(usage: Any) -> tuple[int, int, int]:
    """What of the usage does not depend on who asked before."""
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


class Live:
    """lm: the served one. direct: of the same weights, for answers without a server."""

    def __init__(self, lm: LM, direct: LM, server: ThreadServer) -> None:
        self.lm, self.direct, self.app, self.port = lm, direct, server.app, server.port
        self.state: State = server.state
        self.loop = server.server.loop
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def model(self) -> str:
        """The id under which the model is served."""
        return self.state.model_id

    def new_client(self, **options: Any) -> openai.OpenAI:
        """A client that does not try again unless told."""
        return openai.OpenAI(**self._options(options))

    def new_async_client(self, **options: Any) -> openai.AsyncOpenAI:
        """The same, asynchronous."""
        return openai.AsyncOpenAI(**self._options(options))

    @cached_property
    def client(self) -> openai.OpenAI:
        """One that is kept."""
        return self.new_client()

    def chat(self, messages: str | Messages, **params: Any) -> Any:
        """A chat completion, greedy unless told."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        params = {"temperature": 0, "max_tokens": 12, **params}
        return self.client.chat.completions.create(model=self.model, messages=messages, **params)  # type: ignore[arg-type]

    def complete(self, prompt: Any, **params: Any) -> Any:
        """A completion, greedy unless told."""
        params = {"temperature": 0, "max_tokens": 12, **params}
        return self.client.completions.create(model=self.model, prompt=prompt, **params)

    def reply(self, messages: str | Messages, **options: Any) -> str:
        """What the model answers without a server; all of it, where it says several things."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        job = self.direct.chat_job(messages, {"temperature": 0, "max_new_tokens": 12, **options})
        self.direct.engine.run(self.direct.engine.submit(job))
        (answer,) = job.answers
        return answer.text or ""

    def answers(self, prompt: str, **options: Any) -> list[Answer]:
        """What the model writes after a text, without a server."""
        options = {"temperature": 0, "max_new_tokens": 12, **options}
        return self.direct.answers([prompt], **options)[0]

    def prompt_tokens(self, messages: Messages) -> int:
        """Tokens of a conversation as the family's template writes it."""
        return self.direct.chat_job(messages, {"max_new_tokens": 1}).prompt_tokens

    def settled(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds that other threads bring about."""
        wait_for(condition, PATIENCE)

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"base_url": f"{self.url}/v1", "api_key": "unused", "max_retries": 0, "timeout": PATIENCE, **given}


def script(monkeypatch: pytest.MonkeyPatch, ids: Sequence[int]) -> None:
    """Whatever a model computes, each answer of a job is made of these tokens; for jobs without drafts."""
    said = WeakKeyDictionary[AnswersJob, int]()

    def scripted(job: AnswersJob, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        token = ids[said.setdefault(job, 0)]
        said[job] += 1
        wanted_MV = [torch.full_like(own_MV, -30.0) for own_MV in logits_MV]
        for own_MV in wanted_MV:
            own_MV[:, token] = 30.0
        return _ADVANCE(job, wanted_MV)

    monkeypatch.setattr(AnswersJob, "advance", scripted)


@contextmanager
def serving(build: Callable[[], LM], **settings: Any) -> Iterator[Live]:
    """Serve what `build` makes; `settings` are those of `ServeSettings`."""
    lm, chosen = build(), ServeSettings(**{"page": False, "log_level": "warning", **settings})
    with thread_server(create_app(lm, chosen)) as server:
        yield Live(lm, build(), server)
