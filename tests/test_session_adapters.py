"""Several adapters on one model, chosen request by request: each as if it were the only one."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import pytest
import torch

import glmkit
from glmkit.adapters.adapter_files import RECORD
from glmkit.adapters.attach import detach_adapter, merge_adapter
from glmkit.adapters.directory import apply_adapter
from glmkit.errors import CheckpointError, RequestError, UnreadWarning
from glmkit.generate.engine import EngineLimits, Ticket
from glmkit.merging import merge
from glmkit.session import LM
from support.saved_adapters import save_base, save_lora, save_prefix, save_with_norm
from support.served_models import small_base, small_chat
from support.watching import wait_for

TEXT = "the quick brown fox jumps over the lazy dog and "
NAMES = ("ads", "qa", "tuned", "long", "whole")


@dataclass(frozen=True)
class Saved:
    base: Path
    adapters: dict[str, Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("adapters")
    lm = small_base()
    model = lm.model
    adapters = {
        "ads": save_lora(model, folder / "ads", targets="v_proj o_proj down_proj"),
        "qa": save_lora(model, folder / "qa", rank=5, seed=9, targets="q_proj o_proj up_proj"),
        "tuned": save_prefix(model, folder / "tuned"),
        "long": save_prefix(model, folder / "long", length=19, seed=8),
        "whole": save_with_norm(model, folder / "whole"),
    }
    return Saved(save_base(lm, folder / "base"), adapters)


@pytest.fixture(scope="module")
def lm(saved: Saved) -> LM:
    """For tests that leave it as it is."""
    return glmkit.load(saved.base, adapters=saved.adapters)


@pytest.fixture
def own(saved: Saved) -> LM:
    return glmkit.load(saved.base, adapters=saved.adapters)


def numbers(lm: LM, adapter: str | None = None, text: str = TEXT) -> list[float]:
    """Tokens of an answer, and what the model thinks of them and of the next likeliest."""
    ((answer,),) = lm.answers([text], adapter=adapter, max_new_tokens=6, logprobs=2)
    assert answer.logprobs is not None
    found = [value for token in answer.logprobs for value in (token.logprob, *(value for _, value in token.top))]
    return [*map(float, answer.ids), *found]


def test_as_the_only_adapter_and_as_merged(lm: LM, saved: Saved, tmp_path: Path) -> None:
    assert [*lm.adapters] == [*NAMES]
    assert lm.adapters["qa"].size == 5
    seen = {name: numbers(lm, name) for name in NAMES}
    assert len({str(found) for found in (*seen.values(), numbers(lm))}) == len(NAMES) + 1
    assert numbers(lm) == pytest.approx(numbers(glmkit.load(saved.base)), abs=1e-5)
    for name, directory in saved.adapters.items():
        alone = glmkit.load(saved.base, adapter=directory)
        assert seen[name] == pytest.approx(numbers(alone), abs=1e-5), name
        if name in ("ads", "qa", "whole"):
            merge(saved.base, directory, tmp_path / name)
            assert seen[name] == pytest.approx(numbers(glmkit.load(tmp_path / name)), abs=1e-5), name
            merge_adapter(alone.model)
            assert seen[name] == pytest.approx(numbers(alone), abs=1e-5), name


@pytest.mark.filterwarnings("error")
def test_ends_of_answers_that_an_adapter_was_taught(saved: Saved, tmp_path: Path) -> None:
    """They end answers by that adapter, and no others."""
    lm = glmkit.load(saved.base, adapters={"ads": saved.adapters["ads"]})
    ids = lm.answers([TEXT], adapter="ads", max_new_tokens=8)[0][0].ids
    shutil.copytree(saved.adapters["ads"], tmp_path / "taught")
    record = tmp_path / "taught" / RECORD
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "taught": {"stop_ids": [ids[3]]}}))
    lm.add_adapter("taught", tmp_path / "taught")
    cut = ids[: ids.index(ids[3])]
    for name, right in (("taught", cut), ("ads", ids)):
        assert lm.answers([TEXT], adapter=name, max_new_tokens=8)[0][0].ids == right
    alone = glmkit.load(saved.base, adapter=tmp_path / "taught")
    assert alone.answers([TEXT], max_new_tokens=8)[0][0].ids == cut
    record.write_text(json.dumps({**values, "taught": {"stop_ids": [9999]}}))
    with pytest.warns(UnreadWarning, match="rows do not have: .9999."):
        lm.add_adapter("beyond", tmp_path / "taught")


@pytest.mark.exhaustive
def test_load_order_changes_nothing(lm: LM, saved: Saved) -> None:
    seen = {name: numbers(lm, name) for name in NAMES}
    for names in [*permutations(NAMES)][:: len(NAMES) * 5]:
        other = glmkit.load(saved.base, adapters={name: saved.adapters[name] for name in names})
        for name in names:
            assert numbers(other, name) == pytest.approx(seen[name], abs=1e-5), (names, name)


@pytest.mark.parametrize("tokens", [None, pytest.param(300, marks=pytest.mark.exhaustive)], ids=["", "little room"])
def test_the_same_long_prompt_under_base_a_b_a_base(lm: LM, tokens: int | None) -> None:
    lm.start_engine(EngineLimits(tokens=tokens, block=4))
    text = TEXT * 3
    right: dict[str | None, list[float]] = {}
    for name in (None, "ads", "tuned", "ads", None, "tuned"):
        before = lm.engine.counters.reused_tokens
        found = numbers(lm, name, text)
        assert tokens or (lm.engine.counters.reused_tokens > before) == (name in right)
        assert found == pytest.approx(right.setdefault(name, found), abs=1e-5)
    lm.engine.reset()
    for name, found in right.items():
        assert numbers(lm, name, text) == pytest.approx(found, abs=1e-5)
    assert len({str(found) for found in right.values()}) == 3
    jobs = [
        lm.continue_job(text, {"max_new_tokens": 30, "min_new_tokens": 30}, adapter=name)
        for name in (None, "ads", "tuned", "ads", None)
    ]
    lm.engine.run_all(jobs)
    assert (lm.engine.counters.preemptions > 0) == (tokens is not None)
    for job, name in zip(jobs, (None, "ads", "tuned", "ads", None), strict=True):
        alone = lm.answers([text], adapter=name, max_new_tokens=30, min_new_tokens=30)
        assert job.answers[0].ids == alone[0][0].ids


def test_every_method_takes_an_adapter(lm: LM) -> None:
    for name in ("ads", "tuned"):
        whole = lm.generate("the fox", adapter=name, max_new_tokens=8)
        assert "".join(lm.stream("the fox", adapter=name, max_new_tokens=8)) == whole
        job = lm.continue_job("the fox", {"max_new_tokens": 8}, adapter=name)
        lm.engine.submit(job).wait()
        assert job.answers[0].text == whole != lm.generate("the fox", max_new_tokens=8)
        blank = "the [MASK] fox"
        filled = lm.fill(blank, adapter=name, max_tokens=5)
        assert lm.fill_many([blank, blank], adapter=name, max_tokens=5) == [filled, filled]
        fill_job = lm.fill_job(blank, {"max_new_tokens": 5}, adapter=name)
        lm.engine.submit(fill_job).wait()
        assert fill_job.filled() == filled != lm.fill(blank, max_tokens=5)
    beams = [lm.answers(["the fox"], adapter=name, num_beams=3, max_new_tokens=5)[0][0].ids for name in (None, "ads")]
    assert beams[0] != beams[1]


def test_conversations(tmp_path: Path) -> None:
    lm = small_chat("chatglm3")
    lm.add_adapter("ads", save_lora(lm.model, tmp_path / "ads", rank=4))
    alone = LM(lm.parts)
    apply_adapter(alone.model, tmp_path / "ads", family=alone.parts.family)
    options = {"temperature": 0, "max_new_tokens": 8}
    expected = alone.chat("the fox", **options)
    detach_adapter(alone.model)
    assert lm.chat("the fox", adapter="ads", **options) == expected != lm.chat("the fox", **options)
    assert [*lm.stream_chat("the fox", adapter="ads", **options)][-1] == expected
    assert [*lm.chat_steps("the fox", adapter="ads", **options)][-1].history == expected[1]
    job = lm.chat_job([{"role": "user", "content": "the fox"}], options, adapter="ads")
    lm.engine.submit(job).wait()
    assert job.reply()[0] == expected[0]


@pytest.fixture
def stream(own: LM) -> Iterator[Ticket]:
    """A request by `ads` that waits for its reader."""
    job = own.continue_job(TEXT, {"max_new_tokens": 20, "min_new_tokens": 20}, adapter="ads")
    ticket = own.engine.submit(job, Ticket(events=True, max_unread=4))
    wait_for(lambda: ticket.full)
    yield ticket
    ticket.cancel()


def test_adapters_come_and_go_while_requests_run(own: LM, saved: Saved, stream: Ticket) -> None:
    right, tuned = numbers(own), numbers(own, "tuned")
    whole = own.answers([TEXT], adapter="ads", max_new_tokens=20, min_new_tokens=20)[0][0].text
    own.remove_adapter("tuned")
    with pytest.raises(
        RequestError, match=r"^the model has no adapter 'tuned'; known are ads, qa, long, whole$"
    ) as caught:
        own.generate(TEXT, adapter="tuned")
    assert (caught.value.param, caught.value.code) == ("adapter", "adapter_not_found")
    with pytest.raises(RequestError, match="1 requests run by the adapter ads; let them end, or cancel them"):
        own.remove_adapter("ads")
    info = own.add_adapter("again", saved.adapters["tuned"])
    assert own.adapters["again"] == info
    assert numbers(own, "again") == pytest.approx(tuned, abs=1e-5)
    assert numbers(own) == pytest.approx(right, abs=1e-5)
    assert "".join(event.text for event in stream.stream() if hasattr(event, "text")) == whole
    own.remove_adapter("ads")
    assert numbers(own) == pytest.approx(right, abs=1e-5)


def test_a_request_that_comes_too_late(own: LM) -> None:
    job = own.continue_job(TEXT, {"max_new_tokens": 2}, adapter="ads")
    own.remove_adapter("ads")
    with pytest.raises(RequestError, match="has no adapter 'ads'; known are"):
        own.engine.submit(job)


def test_names_and_bases_that_do_not_do(lm: LM, saved: Saved, tmp_path: Path) -> None:
    directory = saved.adapters["ads"]
    with pytest.raises(RequestError, match="the model has no adapter 'add'; did you mean 'ads'?"):
        lm.answers([TEXT], adapter="add")
    for name in ("", "a:b", "a b", "x" * 101, "a/b", "é", None):
        with pytest.raises(RequestError, match="cannot be the name of an adapter; use letters"):
            lm.add_adapter(name, directory)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=f"adapter 'ads' is there already .{directory}.; remove it first"):
        lm.add_adapter("ads", directory)
    with pytest.raises(RequestError, match="has no adapter 'none'"):
        lm.remove_adapter("none")
    with pytest.raises(RequestError, match="both adapter and adapters are given"):
        glmkit.load(saved.base, adapter=directory, adapters={"ads": directory})
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no adapter"):
        lm.add_adapter("empty", tmp_path / "empty")
    assert [*lm.adapters] == [*NAMES]
    one = glmkit.load(saved.base, adapter=directory)
    with pytest.raises(RequestError, match="carries an adapter already .*; merge or detach it"):
        one.add_adapter("qa", saved.adapters["qa"])
    merge_adapter(one.model)
    one.add_adapter("qa", saved.adapters["qa"])
    assert numbers(one, "qa") != pytest.approx(numbers(lm, "qa"), abs=1e-3), "on top of what was merged"


def test_changed_and_replaced_tensors(own: LM, saved: Saved) -> None:
    before = numbers(own, "qa")
    with torch.no_grad():
        for weight in own.model.parameters():
            weight *= 0.8
    after = numbers(own, "qa")
    assert after != pytest.approx(before, abs=1e-3)
    other = LM(own.parts)
    other.add_adapter("other", saved.adapters["qa"])
    assert after == pytest.approx(numbers(other, "other"), abs=1e-5)
    own.model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(RequestError, match="since its adapters were added; take it off, or remove"):
        own.generate(TEXT)


def test_an_adapter_beneath_the_others(own: LM, saved: Saved) -> None:
    before = numbers(own, "qa")
    apply_adapter(own.model, saved.adapters["ads"])
    with pytest.raises(RequestError, match="an adapter was put on the model, or .* since its adapters were added"):
        own.generate(TEXT, adapter="qa")
    detach_adapter(own.model)
    assert numbers(own, "qa") == pytest.approx(before, abs=1e-5)
