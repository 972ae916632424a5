"""Penalties and forbidden tokens, number for number against transformers' processors and against plain loops."""

import pytest
import torch
from torch import Tensor

from glmkit.errors import RequestError
from glmkit.generate import penalties as processors
from glmkit.generate.params import GenerationParams
from glmkit.generate.sampling import keep_min_p, keep_top_k, keep_top_p

theirs = pytest.importorskip("transformers.generation.logits_process", reason="the reference is an extra")

VOCABULARY = 13
NONE = torch.tensor([], dtype=torch.long)


def random_case(seed: int) -> tuple[Tensor, Tensor]:
    """Scores of both signs with ties and -inf among them, and tokens that repeat."""
    generator = torch.Generator().manual_seed(seed)
    rows, length = 1 + seed % 4, 1 + seed % 17
    scores = torch.randn(rows, VOCABULARY, generator=generator) * 3
    scores[0, seed % VOCABULARY] = -torch.inf
    scores[-1, :2] = 0.0
    return scores, torch.randint(0, 1 + seed % VOCABULARY, (rows, length), generator=generator)


@pytest.mark.parametrize("seed", range(40))
def test_repetition_penalty(seed: int) -> None:
    scores, tokens = random_case(seed)
    for penalty in (0.5, 1.0, 1.2, 2.0):
        expected = theirs.RepetitionPenaltyLogitsProcessor(penalty)(tokens, scores.clone())
        assert torch.equal(processors.penalise_repetition(scores, tokens, penalty), expected)


@pytest.mark.parametrize("seed", range(40))
def test_no_repeat_ngram(seed: int) -> None:
    scores, tokens = random_case(seed)
    for size in (1, 2, 3, 5):
        expected = theirs.NoRepeatNGramLogitsProcessor(size)(tokens, scores.clone())
        assert torch.equal(processors.forbid_repeated_ngrams(scores, tokens, size), expected), size
    assert torch.equal(processors.forbid_repeated_ngrams(scores, tokens, 0), scores)


@pytest.mark.parametrize("seed", range(20))
def test_presence_and_frequency(seed: int) -> None:
    scores, answer = random_case(seed)
    got = processors.penalise_presence(scores, answer, 0.75, -0.5)
    for row in range(len(scores)):
        for token in range(VOCABULARY):
            count = answer[row].tolist().count(token)
            expected = scores[row, token].item() + 0.5 * count - 0.75 * (count > 0)
            assert got[row, token].item() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(processors.penalise_presence(scores, answer[:, :0], 1, 1), scores)


@pytest.mark.parametrize("seed", range(20))
def test_min_new_tokens_and_forbidden(seed: int) -> None:
    scores, tokens = random_case(seed)
    num_prompt, stops = max(1, tokens.shape[1] - 3), [2, 5]
    params = GenerationParams(min_new_tokens=2)
    expected = theirs.MinNewTokensLengthLogitsProcessor(num_prompt, 2, stops)(tokens, scores.clone())
    expected = theirs.SuppressTokensLogitsProcessor([0, 7])(tokens, expected)
    got = processors.process(
        scores, params, tokens, num_prompt, stops=torch.tensor(stops), forbidden=torch.tensor([0, 7])
    )
    assert torch.equal(got, expected)


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_all(seed: int) -> None:
    """repetition, n-grams, minimum, suppressed: transformers' order; presence penalties come behind repetition."""
    scores, tokens = random_case(seed)
    num_prompt = max(1, tokens.shape[1] - 3)
    chain = theirs.LogitsProcessorList(
        [
            theirs.RepetitionPenaltyLogitsProcessor(1.3),
            theirs.NoRepeatNGramLogitsProcessor(2),
            theirs.MinNewTokensLengthLogitsProcessor(num_prompt, 2, [3]),
            theirs.SuppressTokensLogitsProcessor([1]),
        ]
    )
    params = GenerationParams(repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=2)
    before = scores.clone()
    got = processors.process(scores, params, tokens, num_prompt, stops=torch.tensor([3]), forbidden=torch.tensor([1]))
    assert torch.equal(got, chain(tokens, scores.clone()))
    assert torch.equal(scores, before), "the argument stays as it was"


@pytest.mark.parametrize("seed", range(20))
def test_cuts(seed: int) -> None:
    scores, tokens = random_case(seed)
    log_p = scores.log_softmax(-1)
    for p in (0.05, 0.3, 1.0):
        assert torch.equal(keep_min_p(log_p, p), theirs.MinPLogitsWarper(p)(tokens, log_p.clone())), p
    assert torch.equal(keep_min_p(log_p, 0), log_p)
    for k in (1, 4):
        assert torch.equal(keep_top_k(log_p, k), theirs.TopKLogitsWarper(k)(tokens, log_p.clone())), k
    distinct = log_p + torch.arange(VOCABULARY) * 1e-3  # which of two equals stays is not defined
    for p in (0.2, 0.7, 0.95):
        assert torch.equal(keep_top_p(distinct, p), theirs.TopPLogitsWarper(p)(tokens, distinct.clone())), p


def test_nan_is_an_error_and_half_precision_is_not() -> None:
    params, tokens = GenerationParams(repetition_penalty=1.5), torch.tensor([[1, 2]])
    half = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.bfloat16)
    got = processors.process(half, params, tokens, 1, stops=NONE, forbidden=NONE)
    assert torch.allclose(got, torch.tensor([[0.5, -1.5, 2.0 / 1.5]]))
    with pytest.raises(RequestError, match=r"NaN after 2 tokens; load it with dtype='float32'"):
        processors.process(half * torch.nan, params, tokens, 1, stops=NONE, forbidden=NONE)


def test_ids_beyond_the_vocabulary_are_left_out() -> None:
    assert processors.ids_tensor([7, 3, 99, 3], 10, torch.device("cpu")).tolist() == [3, 7]
