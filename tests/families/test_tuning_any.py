"""Any conversation in every family: limits are kept, each answer counts once, training and prediction agree."""

import random

import pytest

from families.tuned import WIDE, Tuned, dialogue, of_family
from glmkit.errors import RequestError
from glmkit.tokenizer.dialogue import Dialogue, Limits

FAMILIES = ("chatglm", "chatglm2", "chatglm3", "glm-4", "glm-4-0414", "glm", "glm-130b")
WORDS = ["你好", "天气", " the fox", "2024年", "，", "。\n", "\t", "😀", "<|user|>", "[gMASK]", "<eop>"]
WORDS += ["  ", "\r\n", "问题"]


def drawn(seed: int) -> Dialogue:
    """Turns in odd orders, some without loss, some blank."""
    rng = random.Random(seed)
    turns = []
    for _ in range(rng.randint(1, 9)):
        role = rng.choice("uuuaaaas")
        text = "".join(rng.choice(WORDS) for _ in range(rng.randint(0, rng.choice((3, 12, 60)))))
        turns.append(f"{role} {text}")
    uncounted = [i for i in range(len(turns)) if rng.random() < 0.2]
    return dialogue(*turns, uncounted=uncounted, cut=rng.choice(("left", "right")))


@pytest.fixture(scope="module", params=FAMILIES)
def tuned(request: pytest.FixtureRequest) -> Tuned:
    return of_family(request.param)


@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(20, 300), marks=pytest.mark.exhaustive)])
def test_rows(tuned: Tuned, seeds: range) -> None:
    special, refused = tuned.tokenizer.special, list[str | None]()
    in_front = tuned.name == "glm-4-0414"  # its template puts system texts first
    for seed in seeds:
        asked, limits = drawn(seed), random.Random(seed).choice([Limits(40, 12), Limits(64, 64), Limits(24, 100)])
        whole, kinds = tuned.rows(asked, WIDE), "".join(message.role[0] for message in asked.messages)
        try:
            rows, prompt = tuned.rows(asked, limits), tuned.prompt(asked, limits)
        except RequestError as error:
            refused.append(error.param)  # a system text alone may be longer than the limit
            continue
        assert sum(row.num_answers for row in rows) == sum(row.num_answers for row in whole)
        counted = sum(sum(row.counted) for row in rows)
        assert counted + sum(row.lost.answer for row in rows) == sum(sum(row.counted) for row in whole)
        for row in rows:
            assert len(row.ids) == len(row.counted) == len(row.layout.positions) == len(row.layout.blocks)
            assert len(row.ids) <= limits.source + limits.target + 1
            assert True in row.counted[1:]
            assert row.ids.count(special.sop) == 1
            assert special.pad not in [i for i, flag in zip(row.ids, row.counted, strict=True) if flag]
        if rows:
            assert tuned.answer(asked, limits) != []
            assert len(prompt) <= limits.source + 1
            prompt = tuned.prompt(asked)
            if not in_front or "s" not in kinds[1:]:
                assert whole[-1].ids[: len(prompt)] == prompt
    assert set(refused) <= {"data.source_length"}
    assert len(refused) < len(seeds) / 4
