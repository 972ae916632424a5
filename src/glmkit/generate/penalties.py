"""Changes of logits before a token is chosen: forbidden ids, penalties, lengths. Pure functions.

Legend: B rows of one request (its answers or beams), V vocabulary rows, L tokens seen so far (prompt and answer), N
tokens of the answer so far. None changes its argument.
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor

from glmkit.errors import RequestError

from .params import GenerationParams


def process(
    logits_BV: Tensor,
    params: GenerationParams,
    tokens_BL: Tensor,
    num_prompt: int,
    *,
    stops: Tensor,
    forbidden: Tensor,
) -> Tensor:
    """fp32 scores (B,V) of the rows of one request; -inf marks tokens that must not come next.

    tokens_BL: the prompt, `num_prompt` tokens, and the answers so far. stops, forbidden: ids, int64.
    Order: repetition_penalty over prompt and answer, presence and frequency penalty over the answer,
    no_repeat_ngram_size over both, min_new_tokens, forbidden ids; then `sampling.next_tokens` or a beam search.
    As in transformers, greedy and sampled answers give logits, beams log-probabilities: repetition_penalty differs.
    Raises RequestError when the model gave NaN.
    """
    scores_BV = logits_BV.float()
    check_numbers(float(scores_BV.amax()), tokens_BL.shape[1])
    scores_BV = penalise(scores_BV, params, tokens_BL, num_prompt)
    if tokens_BL.shape[1] - num_prompt < params.min_new_tokens:
        scores_BV = forbid(scores_BV, stops)
    return forbid(scores_BV, forbidden)


def penalise(scores_BV: Tensor, params: GenerationParams, tokens_BL: Tensor, num_prompt: int) -> Tensor:
    """The part of `process` that looks at the tokens: repetition, presence, frequency, n-grams; in this order."""
    if not params.penalises:
        return scores_BV
    scores_BV = penalise_repetition(scores_BV, tokens_BL, params.repetition_penalty)
    answer_BN = tokens_BL[:, num_prompt:]
    scores_BV = penalise_presence(scores_BV, answer_BN, params.presence_penalty, params.frequency_penalty)
    return forbid_repeated_ngrams(scores_BV, tokens_BL, int(params.no_repeat_ngram_size))


def check_numbers(largest: float, length: int) -> None:
    """Raise RequestError when `largest`, of the logits behind `length` tokens, is NaN; it is where one of them is."""
    if math.isnan(largest):
        raise RequestError(f"the model gave NaN after {length} tokens; load it with dtype='float32'")


def ids_tensor(ids: Collection[int], vocab_size: int, device: torch.device) -> Tensor:
    """Sorted distinct ids, int64, without those that the vocabulary does not have."""
    return torch.tensor(sorted({int(i) for i in ids if i < vocab_size}), dtype=torch.long, device=device)


def forbid(scores_BV: Tensor, ids: Tensor) -> Tensor:
    """-inf at the ids."""
    return scores_BV.index_fill(1, ids, -torch.inf) if len(ids) else scores_BV


def penalise_repetition(scores_BV: Tensor, tokens_BL: Tensor, penalty: float) -> Tensor:
    """Scores of tokens that occur: positive ones divided by the penalty, negative ones multiplied, once per token.

    Source: Keskar et al. 2019, arXiv 1909.05858; `huggingface/transformers` counts the prompt as well.
    """
    if penalty == 1:
        return scores_BV
    seen_BL = scores_BV.gather(1, tokens_BL)
    return scores_BV.scatter(1, tokens_BL, torch.where(seen_BL < 0, seen_BL * penalty, seen_BL / penalty))


def penalise_presence(scores_BV: Tensor, answer_BN: Tensor, presence: float, frequency: float) -> Tensor:
    """score - frequency * count - presence * (count > 0), counts over the answer alone (OpenAI's definition)."""
    if not (presence or frequency) or answer_BN.shape[1] == 0:
        return scores_BV
    ones_BN = torch.ones_like(answer_BN, dtype=scores_BV.dtype)
    counts_BV = torch.zeros_like(scores_BV).scatter_add(1, answer_BN, ones_BN)
    return scores_BV - frequency * counts_BV - presence * (counts_BV > 0)


def forbid_repeated_ngrams(scores_BV: Tensor, tokens_BL: Tensor, size: int) -> Tensor:
    """-inf for tokens that would complete a run of `size` tokens that occurs already, the prompt included; 0 is off.

    Source: `facebookresearch/fairseq:sequence_generator.py`, as in `huggingface/transformers`.
    """
    length = tokens_BL.shape[1]
    if size == 0 or length < size:
        return scores_BV
    runs_BWS = tokens_BL.unfold(1, size, 1)
    last_B1S = tokens_BL[:, None, length - size + 1 :]
    repeats_BW = (runs_BWS[..., :-1] == last_B1S).all(-1)
    # One column more: where a run does not match, its token is marked there and cut off.
    marked_BW = torch.where(repeats_BW, runs_BWS[..., -1], scores_BV.shape[1])
    banned_BV = torch.zeros(scores_BV.shape[0], scores_BV.shape[1] + 1, dtype=torch.bool, device=scores_BV.device)
    return scores_BV.masked_fill(banned_BV.scatter(1, marked_BW, True)[:, :-1], -torch.inf)
