"""Scores of given tokens by one whole pass without a cache, to compare with."""

from collections.abc import Sequence

import torch

from glmkit.generate.outputs import Score
from glmkit.model import GLM

CLOSE = 1e-5


@torch.inference_mode()
def plain_score(model: GLM, prompt: Sequence[int], continuation: Sequence[int]) -> tuple[list[float], bool]:
    """Log-probability of each token and whether all are the likeliest; mask and positions are the model's own."""
    row, count = [*prompt, *continuation], len(continuation)
    logits_TV = model(torch.tensor([row]))[0, -count - 1 : -1].float()
    targets = torch.tensor(continuation)
    log_p = logits_TV.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return log_p.tolist(), bool((logits_TV.argmax(-1) == targets).all())


def check_score(model: GLM, prompt: Sequence[int], continuation: Sequence[int], score: Score) -> None:
    log_p, greedy = plain_score(model, prompt, continuation)
    assert score.ids == list(continuation)
    assert score.tokens == len(continuation)
    torch.testing.assert_close(torch.tensor(score.token_logprobs), torch.tensor(log_p), atol=CLOSE, rtol=CLOSE)
    assert abs(score.logprob - sum(log_p)) <= CLOSE * (1 + abs(sum(log_p)))
    assert score.greedy == greedy
