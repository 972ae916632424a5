"""Models with adapters, `MODEL:ADAPTER`, asked through the official client: each answers as that adapter alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from glmkit.adapters.attach import merge_adapter
from glmkit.adapters.directory import apply_adapter
from glmkit.checkpoint.taught import Taught
from glmkit.errors import RequestError
from glmkit.serve.app import create_app
from glmkit.serve.settings import ServeSettings
from glmkit.session import LM
from support.live import Live, serving
from support.saved_adapters import record_taught, save_lora, save_prefix, save_with_norm
from support.served_models import small_base, small_chat

pytestmark = pytest.mark.sampled(4)

QUESTION = "the fox"
NAMES = ("ads", "tuned")


def with_adapters(folder: Path, build: Any) -> LM:
    lm: LM = build()
    directories = {
        "ads": partial(save_lora, rank=3, targets="v_proj o_proj down_proj"),
        "tuned": partial(save_prefix, length=20),
        "whole": save_with_norm,
    }
    for name, save in directories.items():
        if not (folder / name).exists():
            save(lm.model, folder / name)
        lm.add_adapter(name, folder / name)
    return lm


@pytest.fixture(scope="module", params=["chatglm", pytest.param("glm-4", marks=pytest.mark.exhaustive)])
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp(request.param)
    with serving(partial(with_adapters, folder, partial(small_chat, request.param))) as served:
        yield served


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("base")
    with serving(partial(with_adapters, folder, small_base)) as served:
        yield served


def ask(live: Live, model: str, question: str = QUESTION, **params: Any) -> Any:
    messages: Any = [{"role": "user", "content": question}]
    params = {"temperature": 0, "max_tokens": 10, **params}
    return live.client.chat.completions.create(model=model, messages=messages, **params)


def test_models_are_listed(live: Live) -> None:
    listed = [model.id for model in live.client.models.list()]
    assert listed == [live.model, *(f"{live.model}:{name}" for name in ("ads", "tuned", "whole"))]
    for name in (f"{live.model}:ads", "ads"):
        assert live.client.models.retrieve(name).id == f"{live.model}:ads"
    schema = httpx.get(f"{live.url}/openapi.json").json()["components"]["schemas"]["ChatRequest"]
    (field,) = [option for option in schema["properties"]["model"]["anyOf"] if option["type"] == "string"]
    assert field["enum"] == [*listed, "ads", "tuned", "whole"]


@pytest.mark.parametrize("name", NAMES)
def test_chats(live: Live, name: str) -> None:
    full, expected = f"{live.model}:{name}", live.reply(QUESTION, max_new_tokens=10)
    job = live.direct.chat_job(
        [{"role": "user", "content": QUESTION}], {"temperature": 0, "max_new_tokens": 10}, adapter=name
    )
    live.direct.engine.submit(job).wait()
    right = job.answers[0].text or ""
    for model in (full, name):
        answer = ask(live, model)
        assert (answer.model, answer.choices[0].message.content) == (full, right)
    chunks = [*ask(live, full, stream=True)]
    assert {chunk.model for chunk in chunks} == {full}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == right
    plain = ask(live, live.model)
    assert (plain.model, plain.choices[0].message.content) == (live.model, expected)
    assert expected != right
    fingerprints = {ask(live, model, max_tokens=1).system_fingerprint for model in (live.model, full, name, "whole")}
    assert len(fingerprints) == 3


def test_texts_and_blanks(base: Live) -> None:
    for name in ("ads", "tuned", "whole"):
        full = f"{base.model}:{name}"
        right = base.direct.generate(QUESTION, adapter=name, max_new_tokens=8)
        answer = base.client.completions.create(model=full, prompt=QUESTION, max_tokens=8, temperature=0)
        assert (answer.model, answer.choices[0].text) == (full, right)
        chunks = base.client.completions.create(model=name, prompt=QUESTION, max_tokens=8, temperature=0, stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == right
        suffix = base.client.completions.create(model=full, prompt="the", suffix=" fox", max_tokens=4, temperature=0)
        filled = base.direct.fill("the[MASK] fox", adapter=name, max_tokens=4)
        assert suffix.choices[0].text == filled.blanks[0]
        body = {"model": full, "text": "the [MASK] fox", "max_tokens": 4, "temperature": 0}
        found = httpx.post(f"{base.url}/v1/infill", json=body).json()
        assert (found["model"], found["text"]) == (
            full,
            base.direct.fill("the [MASK] fox", adapter=name, max_tokens=4).text,
        )


@pytest.mark.exhaustive
def test_merged_is_what_the_request_gets(base: Live) -> None:
    """Log-probabilities of base:ads over HTTP, and those of a model into which the adapter was merged."""
    model = f"{base.model}:ads"
    answer = base.client.completions.create(model=model, prompt=QUESTION, max_tokens=6, temperature=0, logprobs=2)
    merged = small_base()
    directory = base.lm.adapters["ads"].path
    assert directory is not None
    apply_adapter(merged.model, directory, family=merged.parts.family)
    merge_adapter(merged.model)
    ((right,),) = merged.answers([QUESTION], max_new_tokens=6, logprobs=2)
    assert answer.choices[0].logprobs is not None
    expected = [token.logprob for token in right.logprobs or ()]
    assert answer.choices[0].logprobs.token_logprobs == pytest.approx(expected, abs=1e-5)


@pytest.mark.exhaustive
def test_many_at_once(base: Live) -> None:
    names = [None, "ads", "tuned", "whole"] * 6

    def complete(name: str | None) -> str:
        model = base.model if name is None else f"{base.model}:{name}"
        prompt = "the quick brown fox jumps over the lazy dog"
        text: str = (
            base.client.completions.create(model=model, prompt=prompt, max_tokens=9, temperature=0).choices[0].text
        )
        return text

    with ThreadPoolExecutor(len(names)) as pool:
        texts = [*pool.map(complete, names)]
    right = {name: complete(name) for name in dict.fromkeys(names)}
    assert texts == [right[name] for name in names]


@pytest.mark.parametrize("name", ["other", ":ads", "{}:", "{}:none", "{}:ads:ads", "other:ads"])
def test_unknown_names(base: Live, name: str) -> None:
    calls = (
        lambda: base.client.completions.create(model=name.format(base.model), prompt=QUESTION),
        lambda: base.client.models.retrieve(name.format(base.model)),
    )
    listed = f"{base.model!r}, '{base.model}:ads', '{base.model}:tuned', '{base.model}:whole'"
    for call in calls:
        with pytest.raises(openai.NotFoundError, match=f"this server has {listed}") as caught:
            call()
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_each_adapter_has_the_wording_of_its_training(tmp_path: Path) -> None:
    """Texts and the user's messages, by the model that a request names; ids are read as they are."""

    def build() -> LM:
        lm = small_chat("chatglm")
        if not (tmp_path / "a").exists():
            record_taught(save_lora(lm.model, tmp_path / "a"), Taught("chatglm_tuning"))
        lm.add_adapter("a", tmp_path / "a")
        return lm

    with serving(build) as live:
        worded, model = f"Instruction: {QUESTION}\nAnswer: ", f"{live.model}:a"
        plain, asked = ask(live, live.model), ask(live, model)
        right = live.direct.chat(worded, adapter="a", temperature=0, max_new_tokens=10)[0]
        assert (plain.choices[0].message.content, asked.choices[0].message.content) == (
            live.reply(QUESTION, max_new_tokens=10),
            right,
        )
        tokens = [len(live.direct.prompts.continuation(text).ids) for text in (QUESTION, worded)]
        assert [one.usage.prompt_tokens for one in (plain, asked, ask(live, model, worded))] == [*tokens, tokens[1]]
        complete = partial(live.client.completions.create, max_tokens=10, temperature=0)
        texts = {name: complete(model=name, prompt=QUESTION) for name in (live.model, model)}
        assert [one.usage.prompt_tokens for one in texts.values()] == tokens
        assert texts[model].choices[0].text == live.direct.generate(worded, adapter="a", max_new_tokens=10)
        assert complete(model=model, prompt=QUESTION, echo=True).choices[0].text.startswith(QUESTION)
        ids = live.direct.tokenizer.encode(QUESTION)
        assert complete(model=model, prompt=ids).usage.prompt_tokens == tokens[0]


@pytest.mark.exhaustive
def test_adapters_come_and_go_at_run_time(tmp_path: Path) -> None:
    with serving(partial(with_adapters, tmp_path, small_base)) as live:
        client, model = live.client, f"{live.model}:more"
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model=model, prompt=QUESTION)
        live.lm.add_adapter("more", save_lora(live.lm.model, tmp_path / "more", seed=7, targets="o_proj up_proj"))
        right = live.lm.generate(QUESTION, adapter="more", max_new_tokens=5)
        answer = client.completions.create(model=model, prompt=QUESTION, max_tokens=5, temperature=0)
        assert answer.choices[0].text == right
        assert model in httpx.get(f"{live.url}/openapi.json").text
        live.lm.remove_adapter("more")
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model=model, prompt=QUESTION)


def test_an_adapter_called_like_the_model(tmp_path: Path) -> None:
    lm = with_adapters(tmp_path, small_base)
    with pytest.raises(
        RequestError, match="the model and an adapter of it are both called 'ads'; give the adapter another"
    ):
        create_app(lm, ServeSettings(page=False, model_id="ads"))
