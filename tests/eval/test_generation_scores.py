"""Scores of generated answers during training: prompts as in training, ranks that share rows, costs told before."""

import json
from pathlib import Path

import pytest
import torch

from glmkit.data.tuning_rows import RowMaker
from glmkit.errors import ConfigError, DataError
from glmkit.eval.generation_scores import GenerationScores
from glmkit.eval.questions import question_of
from glmkit.families.family import family_named
from glmkit.generate.prompt_builder import Prompts
from glmkit.session import LM
from glmkit.tokenizer.chat_template import Message
from glmkit.tokenizer.dialogue import Dialogue, Limits
from support.chat import real_chat_model


def dialogue(question: str, answer: str, number: int = 1) -> Dialogue:
    return Dialogue(
        (Message("user", question), Message("assistant", answer)), (False, True), f"dev.json: line {number}"
    )


ROWS = [
    dialogue("你好", "在", 1),
    dialogue("天气", "", 2),
    dialogue("类型#裤", "宽松的裤子", 3),
    dialogue("再见", "好", 4),
]


@pytest.fixture(scope="module")
def lm() -> LM:
    return real_chat_model("chatglm")


def evaluator(lm: LM, dialogues: list[Dialogue], **options: object) -> GenerationScores:
    tuning = family_named("chatglm").tuning
    assert tuning is not None
    maker = RowMaker(lm.tokenizer, tuning, Limits(16, 6))
    return GenerationScores(dialogues, maker, ["chatglm", "em"], lm.parts, **options)  # type: ignore[arg-type]


def test_it_answers_the_prompts_of_training_and_writes_them_before_it_scores(lm: LM, tmp_path: Path) -> None:
    scores = evaluator(lm, ROWS, file=tmp_path / "answers.jsonl")
    assert scores.questions[0].ids == [5, 74874, 130001, 130004]
    assert scores.questions[0].reference == "在"
    found = scores(lm.model.train())
    assert lm.model.training
    lm.model.eval()
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row.where for row in ROWS]
    expected = lm.answers([scores.questions[2].ids], max_new_tokens=6, stop_ids=[*scores.params.stop_ids])[0][0].text
    assert lines[2]["predict"] == (expected or "").strip()
    assert found["rows"] == 3
    assert scores.last is not None
    assert scores.last.without_reference == ["dev.json: line 2"]
    assert set(found) == {"rouge-1", "rouge-2", "rouge-l", "bleu-4", "em", "rows", "empty_predictions"}
    assert scores.definitions()["bleu-4"].startswith("BLEU-4 of characters x100")


@pytest.mark.parametrize(("family", "vocabulary"), [("chatglm", "chatglm-6b"), ("chatglm2", "chatglm2-chatglm3")])
def test_a_question_is_asked_where_training_had_it(family: str, vocabulary: str) -> None:
    lm, tuning = real_chat_model(family), family_named(family).tuning
    assert tuning is not None
    maker = RowMaker(lm.tokenizer, tuning, Limits(32, 6))
    ids = question_of(ROWS[2], maker).ids
    (row,) = tuning.rows(lm.tokenizer, ROWS[2], Limits(32, 6))
    size = len(ids)
    assert row.ids[:size] == ids
    asked = Prompts(lm.parts).continuation(ids)
    assert [*map(list, asked.positions.at(0, size))] == [
        [*row.layout.positions[:size]],
        [*row.layout.blocks[:size]],
    ]


def test_a_model_that_learned_its_answers_scores_them(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = evaluator(lm, ROWS[:1])
    ids = lm.tokenizer.encode("在")
    said = iter([*ids, scores.params.stop_ids[-1]])

    def head(hidden_RH: torch.Tensor) -> torch.Tensor:
        logits_RV = torch.zeros(len(hidden_RH), lm.config.vocab_size)
        logits_RV[:, next(said)] = 1e4
        return logits_RV

    monkeypatch.setattr(lm.model, "head", head)
    found = scores(lm.model)
    assert (found["em"], found["rouge-l"]) == (100, 100)


def test_the_cost_is_bounded_and_told(lm: LM) -> None:
    scores = evaluator(lm, ROWS, rows=3, max_tokens=5)
    assert (len(scores.questions), scores.most_tokens) == (3, 15)
    assert scores.plan(lm.model).startswith("each scored evaluation answers 3 rows with at most 15 tokens, in ")
    assert scores.estimate(lm.model) < 60


def test_what_cannot_be_scored_is_refused_before_training(lm: LM) -> None:
    with pytest.raises(DataError, match="no validation row has a question and an answer to score"):
        evaluator(lm, [ROWS[1]])
    with pytest.raises(ConfigError, match="no score is called"):
        GenerationScores(ROWS, evaluator(lm, ROWS)._maker, ["nonsense"], lm.parts)
