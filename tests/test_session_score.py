"""Scores of texts by every family: the prompt that is read, the tokens that are scored, and numbers of whole passes."""

import math
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import glmkit
from glmkit.errors import RequestError
from glmkit.families.glm130b_text import load_tokenizer as load_130b
from glmkit.generate.engine import EngineLimits
from glmkit.generate.outputs import Score
from glmkit.loading import Parts
from glmkit.model import GLM, init_weights
from glmkit.session import LM
from support.scores import CLOSE, check_score, plain_score
from support.served_models import CHAT_FAMILIES, small_base, small_chat
from support.shared import shared_dir
from support.tiny import random_ids, tiny_config
from tokenizer.small_vocabularies import sentencepiece_bytes

CONTEXT = "the quick brown fox"
CONTINUATIONS = [" jumps over", " the lazy dog and the fox", "es", "\nthe", "狐狸"]
SPANS = ("glm", "glm-130b", "chatglm")
FAMILIES = ("glm", "glm-130b", *CHAT_FAMILIES)


@cache
def model(family: str) -> LM:
    if family == "glm":
        return small_base()
    if family != "glm-130b":
        return small_chat(family)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ice_text.model").write_bytes(sentencepiece_bytes(fallback=False))
        tokenizer = load_130b(Path(folder), None)
    assert tokenizer is not None
    axes: dict[str, Any] = {"positions": "rope", "mlp": "geglu", "residual": "deepnorm", "blank_order": "mask_first"}
    size = tokenizer.vocab_size + 5
    config = tiny_config(vocab_size=size, special=tokenizer.special, init_std=0.3, max_positions=512, **axes)
    glm = GLM(config)
    init_weights(glm, config, 4)
    return LM(Parts(Path(), config, glm.eval(), tokenizer))


def prompt(lm: LM, family: str, before: list[int], mask: int | None = None) -> list[int]:
    """What stands in front of an answer, written out by family."""
    special = lm.special
    opening = [special.cls] if family == "glm" and special.cls is not None else []
    if family in SPANS:
        return [*opening, *before, special.gmask if mask is None else mask, special.sop]
    assert hasattr(lm.tokenizer, "build_inputs")
    return [*lm.tokenizer.build_inputs([]), *before]


def same(one: Score, other: Score) -> None:
    assert (one.ids, one.greedy) == (other.ids, other.greedy)
    close = {"atol": CLOSE, "rtol": CLOSE}
    torch.testing.assert_close(torch.tensor(one.token_logprobs), torch.tensor(other.token_logprobs), **close)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_is_that_of_generation(family: str) -> None:
    """Alone, together and in several threads; the greedy answer is known to be greedy."""
    lm = model(family)
    encode = lm.tokenizer.encode
    before = encode(CONTEXT)
    asked = prompt(lm, family, before)
    own = [encode(CONTEXT + text)[len(before) :] if family not in SPANS else encode(text) for text in CONTINUATIONS]
    together = lm.score(CONTEXT, CONTINUATIONS)
    for ids, score in zip(own, together, strict=True):
        check_score(lm.model, asked, ids, score)
    for text, score in zip(CONTINUATIONS, together, strict=True):
        same(lm.score(CONTEXT, [text])[0], score)
    pairs = [(CONTEXT, CONTINUATIONS), ("", CONTINUATIONS[:2]), (CONTEXT + " and", CONTINUATIONS)]
    many = lm.score_many(pairs)
    for one, other in zip(many[0], together, strict=True):
        same(one, other)
    check_score(lm.model, prompt(lm, family, []), encode(CONTINUATIONS[0]), many[1][0])
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda pair: lm.score(*pair), [pairs[0], pairs[2]] * 3):
            for one, other in zip(found, many[0 if found[0].ids == many[0][0].ids else 2], strict=True):
                assert one.ids == other.ids
    (answer,) = lm.answers([CONTEXT], max_new_tokens=5, own_stops=False, logprobs=0)[0]
    (score,) = lm.score(CONTEXT, [answer.ids])
    assert answer.logprobs is not None
    assert score.token_logprobs == pytest.approx([each.logprob for each in answer.logprobs], abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_an_answer(family: str) -> None:
    lm = model(family)
    end = lm.special.eop if family in SPANS else lm.special.eos
    (score,) = lm.score(CONTEXT, [" jumps"], end=True)
    (without,) = lm.score(CONTEXT, [" jumps"])
    assert score.ids == [*without.ids, end]
    assert score.token_logprobs[:-1] == pytest.approx(without.token_logprobs, abs=1e-5)


@pytest.mark.parametrize("family", SPANS)
def test_answers_to_a_blank(family: str) -> None:
    """At the positions at which `fill` writes them."""
    lm = model(family)
    special = lm.special
    text = "the quick [MASK] fox jumps"
    part_a = lm.prompts.blanks(text)[1]
    assert special.mask in part_a
    assert special.gmask == special.mask or special.gmask not in part_a
    for ids, score in zip(CONTINUATIONS, lm.score(text, CONTINUATIONS, end=True), strict=True):
        check_score(lm.model, [*part_a, special.sop], [*lm.tokenizer.encode(ids), special.eop], score)
    filled = lm.fill(text, max_tokens=4)
    (greedy,) = lm.score(text, filled.ids) if filled.ids[0] else [None]
    assert greedy is None or greedy.tokens == len(filled.ids[0])
    literal = lm.score(text, CONTINUATIONS, blank=False)
    check_score(
        lm.model,
        prompt(lm, family, lm.tokenizer.encode(text)),
        lm.tokenizer.encode(CONTINUATIONS[0]),
        literal[0],
    )


@pytest.mark.parametrize("family", SPANS)
def test_from_left_to_right(family: str) -> None:
    """Part A is a mask alone; text and answer are one span."""
    lm = model(family)
    before = lm.tokenizer.encode(CONTEXT)
    asked = [*prompt(lm, family, []), *before]
    for text, score in zip(CONTINUATIONS, lm.score(CONTEXT, CONTINUATIONS, unidirectional=True), strict=True):
        whole = lm.tokenizer.encode(CONTEXT + text)
        own = whole[len(before) :] if whole[: len(before)] == before else score.ids
        check_score(lm.model, asked, own, score)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unidirectional", [False, True], ids=["", "unidirectional"])
def test_a_whole_text_in_windows(family: str, unidirectional: bool) -> None:
    """Each token once; every window but the first is full, and only its new tokens count."""
    lm = model(family)
    text = "the quick brown fox jumps over the lazy dog. " * 3
    ids = lm.tokenizer.encode(text)
    window, stride = 20, 7
    score = lm.score_text(text, window=window, stride=stride, unidirectional=unidirectional)
    assert score.ids == ids
    expected = plain_score(lm.model, prompt(lm, family, []), ids[:window])[0]
    for start in range(window, len(ids), stride):
        stop = min(start + stride, len(ids))
        seen = ids[stop - window : start]
        spans = family in SPANS
        asked = [*prompt(lm, family, []), *seen] if spans and unidirectional else prompt(lm, family, seen)
        expected += plain_score(lm.model, asked, ids[start:stop])[0]
    torch.testing.assert_close(torch.tensor(score.token_logprobs), torch.tensor(expected), atol=CLOSE, rtol=CLOSE)
    short, again = lm.score_texts(["the quick", ids], window=window, stride=stride, unidirectional=unidirectional)
    same(again, score)
    check_score(lm.model, prompt(lm, family, []), lm.tokenizer.encode("the quick"), short)
    check_score(lm.model, prompt(lm, family, []), ids, lm.score_text(text))


RECORDED = (
    "chatglm-6b",
    "chatglm-6b-int4",
    "chatglm2-6b",
    "chatglm3-6b",
    "glm-4-9b-remote",
    "glm4-native",
    "glm-native",
)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "name", [*RECORDED, "glm-hf", "glm-megatron", "glm-paddle", "glm-130b-sat", "glm-130b-sat-int8"]
)
def test_recorded_checkpoints(name: str) -> None:
    """Prompts of ids as each reads them, long continuations, in small steps, against one pass of the model."""
    lm = glmkit.load(shared_dir("fixtures", name), device="cpu", dtype="float32")
    lm.start_engine(EngineLimits(step_tokens=16, block=4))
    special, size = lm.config.special, lm.config.vocab_size
    usual = random_ids(9, seed=3, low=20, high=size // 2).tolist()
    prompts = [usual]
    if special is not None and lm.config.mask == "prefix":
        prompts = [[*usual, special.gmask, special.sop], [*usual[:4], special.mask, *usual[4:], special.sop]]
    continuations = [random_ids(n, seed=n, low=20, high=size // 2).tolist() for n in (1, 3, 3, 24, 1)]
    for ids, scores in zip(prompts, lm.score_many([(ids, continuations) for ids in prompts]), strict=True):
        for continuation, score in zip(continuations, scores, strict=True):
            check_score(lm.model, ids, continuation, score)


def test_sums() -> None:
    score = Score([1, 2], [-0.5, -1.0], False)
    assert (score.logprob, score.tokens) == (-1.5, 2)
    assert math.exp(-score.logprob / score.tokens) == pytest.approx(2.117, abs=1e-3)


def test_what_is_refused() -> None:
    lm, causal = model("glm"), model("chatglm3")
    for call, words in (
        (lambda: lm.score(CONTEXT, []), "no continuations"),
        (lambda: lm.score(CONTEXT, "yes"), "give a list of texts"),
        (lambda: lm.score(CONTEXT, [" a", ""]), "continuation 1 has no tokens"),
        (lambda: lm.score(CONTEXT, [[lm.config.vocab_size]]), "has the id"),
        (lambda: lm.score(CONTEXT, [["a"]]), "whole number"),
        (lambda: lm.score("a [MASK] and [MASK]", [" a"]), "2 blanks"),
        (lambda: lm.score(CONTEXT, [" a"], blank=True), "has no blank"),
        (lambda: lm.score("a [MASK]", [" a"], unidirectional=True), "leave out unidirectional"),
        (lambda: causal.score(CONTEXT, [" a"], blank=True), "fills no blanks"),
        (lambda: lm.score([5, 6], [" a"], blank=True), "ids are a whole prompt"),
        (lambda: lm.score(CONTEXT * 300, [" a"]), "shorten"),
        (lambda: lm.score(CONTEXT, [" a" * 600]), "the model has 512"),
        (lambda: causal.score(CONTEXT, [" a"], adapter="x"), "adapter"),
        (lambda: lm.score_many([CONTEXT]), "give \\(context, continuations\\)"),
        (lambda: lm.score_text("a", window=0), "window is 0"),
        (lambda: lm.score_text("a", window=5, stride=6), "stride is 6"),
        (lambda: lm.score_text(""), "no tokens"),
    ):
        with pytest.raises(RequestError, match=words):
            call()


@pytest.mark.parametrize("family", ["chatglm2", "glm-4"])
def test_tokens_that_reach_over_the_place_where_texts_meet(family: str) -> None:
    """Wherever a text is cut, context and continuation are the whole of it, no space more or less."""
    lm = model(family)
    encode, decode = lm.tokenizer.encode, lm.tokenizer.decode
    text, reaching = "the quick brown fox", 0
    jobs = [(text[:cut], [text[cut:]]) for cut in range(1, len(text))]
    for (context, _), (score,) in zip(jobs, lm.score_many(jobs), strict=True):
        before = encode(context)
        reaching += encode(text)[: len(before)] != before
        assert decode([*before, *score.ids]) == text
        check_score(lm.model, prompt(lm, family, before), score.ids, score)
    assert reaching or family == "glm-4"  # whose small vocabulary has no such tokens
