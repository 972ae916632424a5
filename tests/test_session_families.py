"""Filling and generating as each family's reference does: the ids and positions that are fed."""

from pathlib import Path
from typing import Any

import pytest

from glmkit.errors import RequestError
from glmkit.families.chatglm_text import load_tokenizer as load_chatglm
from glmkit.families.common.command_tokenizer import COMMANDS, CommandTokenizer
from glmkit.families.glm130b_text import load_tokenizer as load_130b
from glmkit.loading import Parts
from glmkit.model import GLM, init_weights
from glmkit.session import LM
from glmkit.tokenizer.inputs import InputTokenizer
from glmkit.tokenizer.sentencepiece import SentencePieceModel
from support.chat import say
from support.fed import Fed
from support.tiny import tiny_config
from tokenizer.small_vocabularies import sentencepiece_bytes

pytestmark = pytest.mark.sampled(4)

ROTARY = {"residual": "deepnorm", "init_std": 0.3}
LENGTH = 3


def made(tokenizer: InputTokenizer | None, **axes: Any) -> LM:
    assert tokenizer is not None
    config = tiny_config(vocab_size=tokenizer.vocab_size + 5, special=tokenizer.special, **axes)
    model = GLM(config)
    init_weights(model, config, 4)
    return LM(Parts(Path(), config, model.eval(), tokenizer))


@pytest.fixture(scope="module")
def ice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ice")
    (folder / "ice_text.model").write_bytes(sentencepiece_bytes(fallback=False))
    return folder


@pytest.fixture(scope="module")
def glm130b(ice: Path) -> LM:
    return made(load_130b(ice, None), positions="rope", mlp="geglu", blank_order="mask_first", **ROTARY)


@pytest.fixture(scope="module")
def chatglm(ice: Path) -> LM:
    return made(load_chatglm(ice, None), positions="rope_2d", blank_order="gmask_first", **ROTARY)


@pytest.fixture(scope="module")
def causal() -> LM:
    model = SentencePieceModel(sentencepiece_bytes(rule="identity"))
    tokenizer = CommandTokenizer(model, COMMANDS)
    return made(tokenizer, positions="rope", mask="causal", norm="rms", mlp="swiglu", init_std=0.3)


def asked(lm: LM, row: list[int], blank: int, answer: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """What is fed when part A `row` is asked for the blank at index `blank`: ids and places."""
    counting = lm.config.positions == "rope" and row[blank] == lm.special.gmask
    fed = [lm.special.sop, *answer][:LENGTH]
    places = [(len(row) + step if counting else blank, step + 1) for step in range(len(fed))]
    return [*row, *fed], [*((place, 0) for place in range(len(row))), *places]


def check(lm: LM, fed: Fed, questions: list[tuple[list[int], int, list[int]]]) -> None:
    expected = [asked(lm, *question) for question in questions]
    assert fed.row == [token for ids, _ in expected for token in ids]
    assert fed.row_places == [place for _, places in expected for place in places]


def test_glm130b_fills_one_kind_after_the_other(glm130b: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """`THUDM/GLM-130B:generate.py`: no [CLS]; [MASK], then [sMASK], then [gMASK], each answer put in before the next;
    no </s> behind a last mask; [gMASK] goes on counting.
    """
    special, encode, fed = glm130b.special, glm130b.tokenizer.encode, Fed(monkeypatch)
    filled = glm130b.fill("the [gMASK] fox [MASK] dog [MASK] was[sMASK]", max_tokens=LENGTH)
    last, first, second, third = filled.ids
    a, b, c, d = encode("the "), encode(" fox "), encode(" dog "), encode(" was")
    end = [*d, special.smask]
    rows = [
        [*a, special.gmask, *b, special.mask, *c, special.mask, *end],
        [*a, special.gmask, *b, *first, *c, special.mask, *end],
        [*a, special.gmask, *b, *first, *c, *second, *end],
        [*a, special.gmask, *b, *first, *c, *second, *d, *third],
    ]
    kinds = (special.mask, special.mask, special.smask, special.gmask)
    answers = (first, second, third, last)
    questions = zip(rows, kinds, answers, strict=True)
    check(glm130b, fed, [(row, row.index(kind), answer) for row, kind, answer in questions])
    assert all(answers)
    texts = [glm130b.tokenizer.decode(answer) for answer in filled.ids]
    assert filled.blanks == texts
    assert filled.text == f"the {texts[0]} fox {texts[1]} dog {texts[2]} was{texts[3]}"


def test_glm130b_closes_a_text_that_goes_on_behind_its_blank(glm130b: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    special, encode, fed = glm130b.special, glm130b.tokenizer.encode, Fed(monkeypatch)
    answer = glm130b.fill("the [MASK] fox", max_tokens=LENGTH).ids[0]
    row = [*encode("the "), special.mask, *encode(" fox"), special.eos]
    check(glm130b, fed, [(row, row.index(special.mask), answer)])


def test_glm130b_generates_behind_a_gmask(glm130b: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    special, fed = glm130b.special, Fed(monkeypatch)
    text = glm130b.generate("the [MASK] fox", max_new_tokens=LENGTH)
    row = [*glm130b.tokenizer.encode("the [MASK] fox"), special.gmask]
    start = len(row)
    assert fed.row[: start + 1] == [*row, special.sop]
    assert special.mask not in row
    answer = fed.row[start + 1 :]
    assert fed.row_places[start:] == [(start + step, step + 1) for step in range(len(answer) + 1)]
    assert text.startswith(glm130b.tokenizer.decode(answer))


def test_chatglm_fills_gmask_first(chatglm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model looks for [gMASK] before [MASK]; nothing stands around the text."""
    special, encode, fed = chatglm.special, chatglm.tokenizer.encode, Fed(monkeypatch)
    filled = chatglm.fill("the [MASK] fox [gMASK]", max_tokens=LENGTH)
    second, first = filled.ids
    row = [*encode("the"), special.mask, *encode("fox "), special.gmask]
    after = [*encode("the"), special.mask, *encode("fox "), *first]
    check(chatglm, fed, [(row, row.index(special.gmask), first), (after, after.index(special.mask), second)])


def test_chatglm_generates_behind_its_own_ending(chatglm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    special, encode, fed = chatglm.special, chatglm.tokenizer.encode, Fed(monkeypatch)
    chatglm.generate("the [MASK]", max_new_tokens=LENGTH)
    row = [*encode("the [MASK]"), special.gmask, special.sop]
    mask = len(row) - 2
    assert fed.row[: len(row)] == row
    steps = range(1, len(fed.row) - mask)
    assert len(steps) > 1
    assert fed.row_places == [*((place, 0) for place in range(mask + 1)), *((mask, step) for step in steps)]


def test_a_model_that_reads_left_to_right(causal: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="reads left to right and fills no blanks; use generate"):
        causal.fill("a [MASK]")
    special, fed = causal.special, Fed(monkeypatch)
    causal.generate("the fox", max_new_tokens=LENGTH)
    row = [special.gmask, special.sop, *causal.tokenizer.encode("the fox")]
    assert fed.row[: len(row)] == row
    assert [place for place, _ in fed.row_places] == [*range(len(fed.row))]


def test_the_end_of_text_ends_an_answer(causal: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a directory that says nothing of stop ids."""
    word = causal.tokenizer.encode("fox")[0]
    say(monkeypatch, [word, causal.special.eos])
    assert causal.generate("the", max_new_tokens=9) == causal.tokenizer.decode([word])
