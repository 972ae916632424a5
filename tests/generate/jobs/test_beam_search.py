"""Beam search: transformers' own, token for token and score for score; stopping rules; what is dropped."""

import itertools
from typing import Any

import pytest
import torch

from glmkit.generate.jobs.beam_search import Beams
from glmkit.generate.outputs import Answer
from glmkit.generate.params import GenerationParams
from glmkit.generate.penalties import ids_tensor, process

pytestmark = pytest.mark.sampled(4)

transformers = pytest.importorskip("transformers", reason="the reference is an extra")

NONE = torch.tensor([], dtype=torch.long)
OPTIONS: list[dict[str, Any]] = [
    {"num_beams": beams, "length_penalty": penalty, "early_stopping": early}
    for beams, penalty, early in itertools.product((2, 3, 5), (-1.0, 0.0, 0.7, 2.0), (False, True, "never"))
] + [
    {"num_beams": 4, "no_repeat_ngram_size": 2},
    {"num_beams": 4, "repetition_penalty": 1.7, "no_repeat_ngram_size": 3},
    {"num_beams": 4, "repetition_penalty": 0.6},
    {"num_beams": 4, "min_new_tokens": 5},
    {"num_beams": 3, "min_new_tokens": 8, "length_penalty": 0.6, "no_repeat_ngram_size": 2},
]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.6, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@torch.inference_mode()
def search(model: Any, prompt: list[int], params: GenerationParams) -> Beams:
    """Whole forward passes, no cache."""
    beams, prompt_L = Beams(params, len(prompt), params.stop_ids), torch.tensor(prompt)
    stops = ids_tensor(params.stop_ids, 40, torch.device("cpu"))
    while not beams.done:
        tokens_KL = torch.cat([prompt_L.expand(params.num_beams, -1), beams.answer_KN], 1)
        log_p_KV = model(tokens_KL).logits[:, -1].log_softmax(-1)
        beams.advance(process(log_p_KV, params, tokens_KL, len(prompt), stops=stops, forbidden=NONE))
    return beams


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_transformers(model: Any, options: dict[str, Any]) -> None:
    for seed, stops in itertools.product(range(3), ((11,), (5, 11, 23))):
        prompt = torch.randint(0, 40, (4 + seed,), generator=torch.Generator().manual_seed(seed)).tolist()
        count = options["num_beams"]
        expected = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=9, do_sample=False,
            num_return_sequences=count, eos_token_id=list(stops), pad_token_id=39, return_dict_in_generate=True,
            output_scores=True, **options,
        )  # fmt: skip
        params = GenerationParams(
            max_new_tokens=9, stop_ids=stops, num_return_sequences=count, beam_length="answer", **options
        )
        answers = search(model, prompt, params).answers()
        assert len(answers) == count
        for answer, row, score in zip(answers, expected.sequences, expected.sequences_scores, strict=True):
            ids = answer.ids if answer.stop_id is None else [*answer.ids, answer.stop_id]
            assert row[len(prompt) :].tolist() == ids + [39] * (len(row) - len(prompt) - len(ids))
            assert answer.score == pytest.approx(score.item(), rel=1e-5, abs=1e-5)
            assert (answer.finish, answer.stop_id) == (("stop", ids[-1]) if ids[-1] in stops else ("length", None))


def row(**log_p: float) -> list[float]:
    return [log_p.get(name, -torch.inf) for name in "abcd"]


def test_row_scores_by_hand() -> None:
    """Two beams, prompt of 3; d ends. The length is that of prompt and answer without the end."""
    params = GenerationParams(num_beams=2, num_return_sequences=2, length_penalty=1.0, max_new_tokens=2)
    beams = Beams(params, 3, {3})
    beams.advance(torch.tensor([row(a=-0.5, b=-1.5, d=-1.0)] * 2))
    assert beams.newest() == [0, 1]
    beams.advance(torch.tensor([row(c=-0.25, d=-4.0), row(c=-0.1, d=-0.2)]))
    assert beams.done
    answers = beams.answers()
    assert [answer.ids for answer in answers] == [[0, 2], [1, 2]], "the one ended at once has -1 / 3"
    assert [answer.score for answer in answers] == pytest.approx([-0.75 / 5, -1.6 / 5])


def test_fewer_continuations_than_beams() -> None:
    """Beams that cannot exist are neither continued nor returned."""
    params = GenerationParams(num_beams=6, num_return_sequences=6, max_new_tokens=2, length_penalty=0.0)
    beams = Beams(params, 1, {3})
    beams.advance(torch.tensor([row(a=-1.0, d=-2.0)] * 6))
    assert beams.scores_K.tolist() == [-1.0] + [-torch.inf] * 5
    beams.advance(torch.tensor([row(a=-1.0, b=-0.5)] * 6))
    assert [(answer.ids, answer.score) for answer in beams.answers()] == [([0, 1], -1.5), ([], -2.0), ([0, 0], -2.0)]


def test_nothing_may_come() -> None:
    params = GenerationParams(num_beams=2, max_new_tokens=5)
    beams = Beams(params, 1, {3})
    beams.advance(torch.full((2, 4), -torch.inf))
    assert beams.done
    assert beams.answers() == [Answer([], "length", score=0.0)]


@pytest.mark.parametrize(("beam_length", "divisor"), [("row", 4 + 2), ("answer", 2)])
def test_where_nothing_may_come_any_more_beams_end_as_they_are(beam_length: Any, divisor: int) -> None:
    """As an answer without beams does; finished ones are worth more."""
    options: dict[str, Any] = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 9}
    for stopped in (False, True):
        beams = Beams(GenerationParams(**options, beam_length=beam_length), 4, {3})
        beams.advance(torch.tensor([row(a=-0.5, b=-1.5)] * 2))
        beams.advance(torch.tensor([row(c=-0.25, d=-0.3 if stopped else -torch.inf), row(c=-0.1)]))
        assert not beams.done
        beams.advance(torch.full((2, 4), -torch.inf))
        assert beams.done
        if stopped:
            assert [answer.ids for answer in beams.answers()] == [[0]]
            continue
        assert [(answer.ids, answer.finish) for answer in beams.answers()] == [([0, 2], "length"), ([1, 2], "length")]
        assert [answer.score for answer in beams.answers()] == pytest.approx([-0.75 / divisor, -1.6 / divisor])
