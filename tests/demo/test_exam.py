"""The exam: its blanks are filled together as each would be alone, within what is known of them."""

from pathlib import Path

import pytest

from glmkit.demo.corpus import Module, Split
from glmkit.demo.exam import Exam
from glmkit.loading import Parts
from glmkit.model import GLM, init_weights
from glmkit.session import LM
from support.jobs import WholePasses, fill
from support.tiny import tiny_config

from .conftest import ADDER, MEANS


@pytest.fixture
def lm(tokenizer) -> LM:
    config = tiny_config(vocab_size=tokenizer.vocab_size, special=tokenizer.special, init_std=0.3, positions="rope_2d")
    model = GLM(config)
    init_weights(model, config, 2)
    return LM(Parts(Path("model"), config, model.eval(), tokenizer))


def test_together_equals_alone(lm, tokenizer):
    parts = Split((), (Module("means.py", MEANS),), (Module("adder.py", ADDER),), (), (), 0.0)
    exam = Exam(tokenizer, parts, count=40, window=30, seed=1)
    answer, special = exam.filler(lm), lm.special
    white = [index for index, allowed in enumerate(exam.allowed) if not allowed]
    longest = {"single_token": 1, "multi_token": 8, "identifier": 16}
    for kind, blanks in exam.blanks.items():
        assert len(blanks) > 5
        rows = [[special.cls, *one.window[: one.start], special.mask, *one.window[one.end :]] for one in blanks]
        expected = fill(
            WholePasses(lm.model),
            rows,
            special,
            max_tokens=longest[kind],
            forbidden=white if kind == "single_token" else (),
        )
        answers = answer(blanks)
        assert answers == [spans[0] for spans in expected]
        assert len({tuple(ids) for ids in answers}) > 2
        if kind == "single_token":
            assert not {token for ids in answers for token in ids} & {*white}
