"""The report of a fine-tuning run: numbers of its curves and its effect, answers before and after, one page."""

import json
import re
from pathlib import Path

import pytest

from glmkit.adapters.attach import adapter_off, new_adapter
from glmkit.adapters.lora.lora_adapter import LoraOptions
from glmkit.data.tuning_rows import RowMaker
from glmkit.eval.effect import Effect, prove_effect
from glmkit.eval.generation_scores import answer_texts
from glmkit.eval.probes import GENERAL, Probes, tuning_probes
from glmkit.eval.questions import Question, question_of
from glmkit.eval.tuning_report import Side, TuningReport, read_lines
from glmkit.families.family import family_named
from glmkit.generate.params import GenerationParams
from glmkit.session import LM
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import Dialogue, Limits
from support.browser import DESK, PHONE, chromium
from support.chat import real_chat_model
from support.saved_adapters import draw

LINES = [
    *({"kind": "train", "step": step, "loss": 5 / step} for step in range(1, 41)),
    *({"kind": "validation", "step": step, "loss": 3 / step + 0.5} for step in (10, 20, 30, 40)),
    *({"kind": "scores", "step": step, "rouge-l": float(step), "bleu-4": 12.5, "rows": 3} for step in (20, 40)),
]
PARAMS = GenerationParams(max_new_tokens=4)


def dialogue(question: str, answer: str) -> Dialogue:
    return Dialogue((Message("user", question), Message("assistant", answer)), (False, True), "dev.json: line 1")


@pytest.fixture(scope="module")
def tuned() -> tuple[LM, Probes, list[Question]]:
    """A model with a LoRA that does something, rows to measure, and a question."""
    lm, tuning = real_chat_model("chatglm2"), family_named("chatglm2").tuning
    assert tuning is not None
    rows = [dialogue("类型#裤", "宽松的<裤子>"), dialogue("你好", "在")]
    maker = RowMaker(lm.tokenizer, tuning, Limits(24, 12))
    probes = tuning_probes(maker, {"held_out": rows})
    new_adapter(lm.model, LoraOptions(["query_key_value"], rank=2, alpha=8))
    draw(lm.model, 1, 1.0)
    return lm, probes, [question_of(row, maker) for row in rows]


@pytest.fixture(scope="module")
def examined(tuned: tuple[LM, Probes, list[Question]]) -> tuple[Effect, list[Side]]:
    lm, probes, questions = tuned
    with adapter_off(lm.model):
        base = answer_texts(lm, questions, PARAMS)
    answers = zip(questions, base, answer_texts(lm, questions, PARAMS), strict=True)
    sides = [Side(q.id, lm.tokenizer.decode(q.ids), q.reference, one, two) for q, one, two in answers]
    return prove_effect(lm.model, probes), sides


def report(effect: Effect, sides: list[Side], **changes: object) -> TuningReport:
    values: dict[str, object] = {
        "title": "adgen-lora",
        "command": ["glm", "finetune", "lora", "--data", "my rows.json"],
        "settings": {"method": "lora", "trained parameters": 1234},
        "data": ["training, rows.json: 100 rows, 99 used"],
        "definitions": {"rouge-l": "F1 of words", "bleu-4": "BLEU of characters"},
        "replay": {},
        "lines": LINES,
    }
    return TuningReport(effect=effect, sides=sides, **{**values, **changes})  # type: ignore[arg-type]


def test_general_texts_are_measured_beside_held_out_rows(tuned: tuple[LM, Probes, list[Question]]) -> None:
    _, probes, _ = tuned
    assert {name: len(rows) for name, rows in probes.rows.items()} == {"held_out": 2, GENERAL: 28}


def test_base_and_tuned_answer_side_by_side(
    tuned: tuple[LM, Probes, list[Question]], examined: tuple[Effect, list[Side]]
) -> None:
    (lm, _, questions), (effect, sides) = tuned, examined
    assert effect.changes["held_out"].kl > 0
    assert [side.reference for side in sides] == ["宽松的<裤子>", "在"]
    assert "类型#裤" in sides[0].question
    assert any(side.base != side.tuned for side in sides)
    expected = lm.answers([questions[0].ids], max_new_tokens=4)[0][0].text
    assert sides[0].tuned == (expected or "").strip()


def test_both_files_hold_the_whole_story(examined: tuple[Effect, list[Side]], tmp_path: Path) -> None:
    effect, sides = examined
    data, html = report(effect, sides).write(tmp_path)
    values = json.loads(data.read_text())
    assert values["command"] == "glm finetune lora --data 'my rows.json'"
    assert values["validation_losses"][-1] == [40, 0.575]
    assert values["effect"]["changes"][GENERAL]["kl"] == effect.changes[GENERAL].kl
    assert values["answers"][0]["reference"] == "宽松的<裤子>"
    assert values["machine"]["glmkit"]
    page = html.read_text()
    assert "宽松的&lt;裤子&gt;" in page
    assert "<裤子>" not in page
    assert not re.search(r"https?://|<script|@import|url\(", page)
    assert "BLEU of characters" in page
    assert "nothing was replayed" in page


def test_replay_is_told_with_what_was_forgotten(examined: tuple[Effect, list[Side]], tmp_path: Path) -> None:
    effect, _ = examined
    values = report(effect, [], replay={"general.jsonl": 0.2}, lines=[]).to_dict()
    assert values["forgetting"].endswith("; with replay of 20.0 % general.jsonl")
    assert "No losses were recorded" in report(effect, [], lines=[]).write(tmp_path)[1].read_text()


def test_a_run_without_a_log_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "dark"), (DESK, "light")])
def test_the_page_fits_a_phone_and_asks_for_nothing(
    examined: tuple[Effect, list[Side]], tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    effect, sides = examined
    _, html = report(effect, sides, command=["glm", "finetune", "x" * 300]).write(tmp_path)
    with chromium() as browser, browser.looking_at(html.as_uri(), size=size, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert page.locator("svg.curve").count() == 1
        light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert light is (scheme == "light")
