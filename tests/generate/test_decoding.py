"""Decoding on the cache: whole forward passes, recorded numbers, brute force, batches, seeds, every kind of network."""

import itertools
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glmkit.errors import RequestError
from glmkit.generate.answer import Answer
from glmkit.generate.continuing import continue_row
from glmkit.generate.decoding import decode_rows
from glmkit.generate.filling import fill_rows
from glmkit.generate.params import GenerationParams
from glmkit.generate.sampling import Sampling
from glmkit.loading import load_parts
from glmkit.model import GLM
from support.shared import shared_dir
from support.tiny import SPECIAL, random_ids, tiny_model

DEEPNORM: dict[str, Any] = {"residual": "deepnorm", "tie_embeddings": False}
CAUSAL: dict[str, Any] = {"mask": "causal", "positions": "rope", "norm": "rms", "mlp": "swiglu", "num_kv_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "each": {},
    "mask_first": {**DEEPNORM, "positions": "rope", "mlp": "geglu", "blank_order": "mask_first"},
    "gmask_first": {**DEEPNORM, "positions": "rope_2d", "blank_order": "gmask_first"},
    "causal": {**CAUSAL, "rope_fraction": 0.5, "rope_pairs": "interleaved", "bias": "qkv"},
    "sandwich": {**CAUSAL, "rope_fraction": 0.5, "residual": "sandwich", "bias": "none"},
}
SMALL = range(20, 25)  # the only tokens that may come in the exhaustive tests; the last one ends


class Prefix(nn.Module):
    """Random keys and values in front of every layer."""

    def __init__(self, model: GLM, size: int = 3) -> None:
        super().__init__()
        config, generator = model.config, torch.Generator().manual_seed(5)
        shape = (config.num_layers, size, config.kv_heads, config.head_dim)
        self.keys, self.values = (torch.randn(shape, generator=generator) for _ in range(2))

    def forward(self) -> tuple[list[Tensor], list[Tensor]]:
        return list(self.keys), list(self.values)


def make(kind: str, seed: int = 1, *, prefix: bool = False) -> GLM:
    model = tiny_model(seed, **KINDS[kind])
    if prefix:
        model.prefix = Prefix(model)
    return model


def prompt_of(kind: str, length: int, seed: int) -> list[int]:
    text = random_ids(length, seed=seed).tolist()
    if "mask" in KINDS[kind]:
        return [SPECIAL.gmask, SPECIAL.sop, *text]
    if kind == "gmask_first":
        return [*text, SPECIAL.gmask, SPECIAL.sop]
    return [*text[: length // 2], SPECIAL.mask, *text[length // 2 :], SPECIAL.sop]


def others(model: GLM, keep: range = SMALL) -> list[int]:
    return [index for index in range(model.config.vocab_size) if index not in keep]


def same(ours: list[list[Answer]], theirs: list[list[Answer]]) -> bool:
    assert [len(answers) for answers in ours] == [len(answers) for answers in theirs]
    for one, other in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
        if (one.ids, one.finish, one.stop_id) != (other.ids, other.finish, other.stop_id):
            return False
        assert one.score == pytest.approx(other.score, abs=1e-4)
    return True


RECORDED = ("max_new_tokens", "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "num_beams")
RECORDED += ("length_penalty", "early_stopping")


@pytest.mark.parametrize("alone", [False, True], ids=["batch", "alone"])
def test_recorded_generation(alone: bool) -> None:
    """What the published code of ChatGLM-6B gave with transformers 4.33; also each row by itself."""
    folder = shared_dir("fixtures", "chatglm-6b")
    model = load_parts(folder).model.float().eval()
    for case in json.loads((folder / "generation.json").read_text()):
        options, rows = case["options"], case["input_ids"]
        params = GenerationParams(**{name: options[name] for name in RECORDED if name in options})
        pad = options["pad_token_id"]
        padding = [next(at for at, token in enumerate(row) if token != pad) for row in rows]
        answers: list[list[Answer]] = []
        for some in [[index] for index in range(len(rows))] if alone else [range(len(rows))]:
            answers += decode_rows(
                model,
                [rows[index] for index in some],
                params,
                stops=[options["eos_token_id"]],
                padding=[padding[index] for index in some],
            )
        for index, (answer,) in enumerate(answers):
            ids = [*rows[index], *answer.ids, *([] if answer.stop_id is None else [answer.stop_id])]
            expected = case["sequences"][index]
            assert ids + [pad] * (len(expected) - len(ids)) == expected, case["name"]
            if "sequences_scores" in case:
                assert answer.score == pytest.approx(case["sequences_scores"][index], abs=1e-5)


@torch.inference_mode()
def every_answer(model: GLM, prompt: list[int], length: int, end: int) -> dict[tuple[int, ...], float]:
    """The log-probability of every answer of SMALL tokens that ends in `end` or has `length` tokens; no cache."""
    totals: dict[tuple[int, ...], float] = {}
    open_answers: dict[tuple[int, ...], float] = {(): 0.0}
    for _ in range(length):
        ids = torch.tensor([[*prompt, *answer] for answer in open_answers])
        log_p = model(ids)[:, -1].double().log_softmax(-1)
        longer = {
            (*answer, token): total + log_p[number, token].item()
            for number, (answer, total) in enumerate(open_answers.items())
            for token in SMALL
        }
        totals |= {answer: total for answer, total in longer.items() if answer[-1] == end}
        open_answers = {answer: total for answer, total in longer.items() if answer[-1] != end}
    return totals | open_answers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [False, True], ids=["", "tuned"])
def test_wide_beams_are_exhaustive(kind: str, prefix: bool) -> None:
    model, prompt, end = make(kind, prefix=prefix), prompt_of(kind, 6, 3), SMALL[-1]
    totals = every_answer(model, prompt, 4, end)
    assert len(totals) == 1 + 4 + 16 + 64 + 256
    for beam_length, penalty in (("row", 1.0), ("answer", 0.7), ("row", -0.5), ("answer", 0.0)):

        def score(answer: tuple[int, ...], kind: str = beam_length, power: float = penalty) -> float:
            counted = len(prompt) + len(answer) - (answer[-1] == end) if kind == "row" else len(answer)
            return totals[answer] / counted**power

        params = GenerationParams(
            max_new_tokens=4, num_beams=350, num_return_sequences=350, stop_ids=[end],
            forbidden=tuple(others(model)), length_penalty=penalty, beam_length=beam_length,
        )  # fmt: skip
        (answers,) = decode_rows(model, [prompt], params)
        found = {(*one.ids, *([] if one.stop_id is None else [end])): one.score for one in answers}
        assert found.keys() == totals.keys()
        for answer, value in found.items():
            assert value == pytest.approx(score(answer), rel=1e-5, abs=1e-5)
        best = max(totals, key=score)
        assert (*answers[0].ids, *([] if answers[0].stop_id is None else [end])) == best
        assert [one.score for one in answers] == sorted((one.score for one in answers), reverse=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [False, True], ids=["", "tuned"])
def test_greedy_equals_whole_passes(kind: str, prefix: bool) -> None:
    model, prompt = make(kind, prefix=prefix), prompt_of(kind, 7, 2)
    answer: list[int] = []
    for _ in range(8):
        logits = model(torch.tensor([[*prompt, *answer]]))[0, -1]
        logits[: SPECIAL.unk] = -torch.inf  # a second [sop] would open another span
        answer.append(int(logits.argmax()))
    params = GenerationParams(max_new_tokens=8)
    ((got,),) = decode_rows(model, [prompt], params, forbidden=range(10))
    assert got == Answer(answer, "length")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [False, True], ids=["", "tuned"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.3, "top_p": 0.9, "seed": 4, "n": 3},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "frequency_penalty": 0.5},
        {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.8, "no_repeat_ngram_size": 3},
        {"num_beams": 2, "min_new_tokens": 4, "early_stopping": True},
    ],
    ids=str,
)
def test_batch_equals_alone(kind: str, prefix: bool, options: dict[str, Any]) -> None:
    model = make(kind, 2, prefix=prefix)
    rows = [prompt_of(kind, length, seed) for seed, length in enumerate((3, 11, 6, 1))]
    params = GenerationParams(max_new_tokens=9, **options)
    together = decode_rows(model, rows, params, stops=range(30, 40), forbidden=range(11))
    assert same(
        together, [decode_rows(model, [row], params, stops=range(30, 40), forbidden=range(11))[0] for row in rows]
    )
    assert len({tuple(one.ids) for one in itertools.chain(*together)}) > 2, "the answers differ"


def test_equals_the_ways_that_were_there_before() -> None:
    """Filling one blank of GLM and continuing a prompt give the same, sampled too."""
    hot = Sampling(temperature=1.2, seed=9)
    params = GenerationParams(max_new_tokens=12, temperature=1.2, seed=9)
    model, prompt = make("gmask_first"), prompt_of("gmask_first", 6, 1)
    expected = continue_row(model, prompt, stops=[SPECIAL.eop], max_tokens=12, sampling=hot)
    assert decode_rows(model, [prompt], params, stops=[SPECIAL.eop])[0][0].ids == expected
    model, prompt = make("each"), prompt_of("each", 6, 1)
    for places in ({}, {"running": True}, {"block_positions": False}):
        (spans,) = fill_rows(model, [prompt[:-1]], SPECIAL, max_tokens=12, sampling=hot, drawn=-1, **places)
        never = [SPECIAL.pad, SPECIAL.sop, SPECIAL.cls, SPECIAL.dblock, SPECIAL.sep, *SPECIAL.mask_ids()]
        answers = decode_rows(model, [prompt], params, stops=[SPECIAL.eop, SPECIAL.eos], forbidden=never, **places)
        assert answers[0][0].ids == spans[0], places


def test_a_long_answer_stays_on_the_last_learned_place() -> None:
    model, prompt = tiny_model(1, max_positions=24), prompt_of("each", 20, 1)
    ((answer,),) = decode_rows(model, [prompt], GenerationParams(max_new_tokens=40), running=True)
    assert len(answer.ids) == 40


def test_choices_and_seeds() -> None:
    """The noise is that of (seed, choice, position): n = 3 begins with what n = 1 gives."""
    model, prompt = make("causal"), prompt_of("causal", 5, 1)

    def ids(**options: Any) -> list[list[int]]:
        (answers,) = decode_rows(model, [prompt], GenerationParams(max_new_tokens=10, temperature=1.5, **options))
        return [answer.ids for answer in answers]

    three = ids(n=3, seed=7)
    assert ids(n=1, seed=7) == three[:1]
    assert len({tuple(row) for row in three}) == 3
    assert ids(n=3, seed=8) != three
    assert (
        ids(n=2, seed=7, top_k=1) == [decode_rows(model, [prompt], GenerationParams(max_new_tokens=10))[0][0].ids] * 2
    )


def test_logprobs_are_the_models_own() -> None:
    """Before temperature, penalties and cuts: those of a forward pass over the answer."""
    model, prompt = make("causal"), prompt_of("causal", 5, 1)
    params = GenerationParams(
        max_new_tokens=6, temperature=1.5, top_k=9, repetition_penalty=1.3, logprobs=3, forbidden=(50,)
    )
    ((answer,),) = decode_rows(model, [prompt], params)
    log_p = model(torch.tensor([[*prompt, *answer.ids]]))[0].log_softmax(-1)[len(prompt) - 1 : -1]
    assert answer.logprobs is not None
    for row, token, entry in zip(log_p, answer.ids, answer.logprobs, strict=True):
        assert (entry.token, entry.logprob) == (token, pytest.approx(row[token].item(), abs=1e-5))
        values, indices = row.index_fill(0, torch.tensor([50]), -torch.inf).topk(3)
        assert [index for index, _ in entry.top] == indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-5)
    bare = decode_rows(model, [prompt], GenerationParams(max_new_tokens=2, logprobs=0))[0][0].logprobs
    assert bare is not None
    assert [entry.top for entry in bare] == [(), ()]


def test_stops_minimum_and_forbidden() -> None:
    model, prompt = make("causal"), prompt_of("causal", 5, 1)
    ((free,),) = decode_rows(model, [prompt], GenerationParams(max_new_tokens=8))
    end = free.ids[3]
    first = free.ids.index(end)
    ((cut,),) = decode_rows(model, [prompt], GenerationParams(max_new_tokens=8, stop_ids=(end,)))
    assert cut == Answer(free.ids[:first], "stop", end)
    for beams in (1, 3):
        params = GenerationParams(max_new_tokens=8, min_new_tokens=7, stop_ids=(end,), num_beams=beams)
        ((late,),) = decode_rows(model, [prompt], params)
        assert len(late.ids) >= 7
        assert end not in late.ids
        hot = {"temperature": 9.0} if beams == 1 else {"num_beams": beams}
        params = GenerationParams(max_new_tokens=30, forbidden=tuple(range(40)), stop_ids=(3,), **hot)
        ((high,),) = decode_rows(model, [prompt], params, stops=[4, 5], forbidden=[4, 60, 1000])
        assert set(high.ids) <= set(range(40, 64)) - {60}
        assert high.stop_id in (None, 4, 5), "what the request forbids does not come, stop or not"


def test_nothing_left_ends_the_answer() -> None:
    """Every token once, then none may come: a forbidden one does not."""
    model, prompt = make("causal"), prompt_of("causal", 5, 1)
    params = GenerationParams(max_new_tokens=9, no_repeat_ngram_size=1, forbidden=tuple(others(model, range(3))))
    ((answer,),) = decode_rows(model, [prompt], params)
    assert (sorted(answer.ids), answer.finish) == ([0, 1, 2], "length")


def test_watch_ends_an_answer_behind_a_token() -> None:
    model, rows = make("causal"), [prompt_of("causal", 5, 1), prompt_of("causal", 3, 2)]
    plain = decode_rows(model, rows, GenerationParams(max_new_tokens=8))
    seen: list[tuple[int, int, int]] = []

    def watch(prompt: int, answer: int, token: int) -> bool:
        seen.append((prompt, answer, token))
        return prompt == 1 and sum(1 for entry in seen if entry[0] == 1) == 3

    got = decode_rows(model, rows, GenerationParams(max_new_tokens=8, stop=("x",)), watch=watch)
    assert got == [plain[0], [Answer(plain[1][0].ids[:3], "stop")]]
    assert [token for prompt, _, token in seen if prompt == 0] == plain[0][0].ids


def test_mistakes() -> None:
    model = make("causal")
    for rows, params, words in (
        ([[11], []], GenerationParams(), "prompt 1 has no tokens; give at least 1"),
        ([[11] * 97], GenerationParams(), "prompt 0 has 97 tokens, the model takes 96; shorten it"),
        ([[11]], GenerationParams(max_new_tokens=1 << 50), "lower max_new_tokens"),
        ([[11]], GenerationParams(stop=("x",)), "stop texts need a reader of the text"),
    ):
        with pytest.raises(RequestError, match=words):
            decode_rows(model, rows, params)
    assert decode_rows(model, [], GenerationParams()) == []
