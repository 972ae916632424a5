"""The snippets of docs/serving.md, in order, against servers of small models."""

import contextlib
import json
import random
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor

from glmkit.generate.engine.job import Branch
from glmkit.generate.jobs.answers import AnswersJob
from glmkit.session import LM
from support.live import Live, serving
from support.saved_adapters import save_lora
from support.served_models import small_base, small_chat
from support.shared import ROOT

GUIDE = (ROOT / "docs" / "serving.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
KEY = "a-long-secret"
CALL = "get_weather\n```python\ntool_call(city='北京')\n```"


def say(monkeypatch: pytest.MonkeyPatch, live: Live, *texts: str) -> None:
    """The next replies of the model, one for each request."""
    stop = live.lm.chat_template.stop_ids(live.lm.tokenizer)[0]  # type: ignore[arg-type]
    replies = iter([[*live.lm.tokenizer.encode(text), stop] for text in texts])
    advance, said = AnswersJob.advance, WeakKeyDictionary[AnswersJob, Any]()

    def scripted(job: AnswersJob, logits_MV: Sequence[Tensor]) -> Sequence[Branch]:
        if job not in said:
            said[job] = iter(next(replies))
        wanted_MV = torch.full_like(logits_MV[0], -30.0)
        wanted_MV[:, next(said[job])] = 30.0
        return advance(job, [wanted_MV])

    monkeypatch.setattr(AnswersJob, "advance", scripted)


def chat_with_adapter(folder: Path) -> LM:
    """ChatGLM3, and an adapter of it where the guide's are."""
    lm = small_chat("chatglm3")
    if not (folder / "my-lora").exists():
        save_lora(lm.model, folder / "my-lora")
    lm.add_adapter("ads", folder / "my-lora")
    return lm


def test_the_snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"api_keys": (KEY,)}
    random.seed(1)  # requests without a seed draw theirs here; some would have a random model answer white space alone
    with (
        serving(partial(chat_with_adapter, tmp_path), model_id="chatglm3-6b", **keys) as chat,
        serving(small_base, model_id="glm-10b", **keys) as base,
        contextlib.chdir(tmp_path),
    ):
        names: dict[str, Any] = {"lm": chat.lm}
        printed = []
        for snippet in SNIPPETS:
            live = base if "infill" in snippet or "glm-10b" in snippet or '"POST", url' in snippet else chat
            if "tool_calls" in snippet:
                say(monkeypatch, live, CALL, "\n 12 degrees, a clear sky")
            if "glm-10b" in snippet:
                names["client"] = names["client"].with_options(base_url=f"{live.url}/v1")
            exec(compile(snippet.replace("http://127.0.0.1:8000", live.url), "docs/serving.md", "exec"), names)
            monkeypatch.undo()
            printed.append(capsys.readouterr().out)
        outcome = names["messages"][-1]
        assert outcome["role"] == "tool"
        assert json.loads(outcome["content"])["city"] == "北京"
        assert any("12 degrees, a clear sky" in text for text in printed)
        assert all(text.strip() for text in printed)
        filled = names["filled"]
        assert filled["text"] == base.direct.fill(names["request"]["text"], max_tokens=16).text
        streamed = next(text for text in printed if text.rstrip("\n").endswith(filled["text"].rstrip("\n")))
        assert streamed


def test_every_field_that_is_added_is_named() -> None:
    for field in ("top_k", "min_p", "repetition_penalty", "no_repeat_ngram_size", "min_tokens", "prompt_lookup"):
        assert f"`{field}`" in GUIDE
