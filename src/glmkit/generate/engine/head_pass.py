"""The head over the hidden states of a pass: logits where a job chooses from them, scores where tokens are given.

Legend: W tokens that are asked about, M those of one sequence, S those of a slice, H hidden width, V vocabulary rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from glmkit.model import GLM
from glmkit.model.routing import Route, on_route

# Memory of the fp32 logits that scores are taken from, at once.
_SLICE_BYTES = 32 << 20


class Asked(NamedTuple):
    """The use of the next `wanted` hidden states, read by `adapter`: logits, or the scores of as many targets."""

    wanted: int
    targets: Sequence[int] = ()
    adapter: str | None = None


def head_pass(model: GLM, hidden_WH: Tensor, asked: Sequence[Asked]) -> list[Tensor | None]:
    """Logits (M,V), or with targets their scores (M,2), of each stretch of hidden states; None for an empty one."""
    if not any(each.targets for each in asked):
        return _logits(model, hidden_WH, asked)
    own = torch.split(hidden_WH, [each.wanted for each in asked])
    chosen = [number for number, each in enumerate(asked) if each.wanted and not each.targets]
    scored = [number for number, each in enumerate(asked) if each.targets]
    outputs: list[Tensor | None] = [None] * len(asked)
    if chosen:
        logits = _logits(model, torch.cat([own[number] for number in chosen]), [asked[number] for number in chosen])
        for number, logits_MV in zip(chosen, logits, strict=True):
            outputs[number] = logits_MV
    scores = _scores(model, torch.cat([own[number] for number in scored]), [asked[number] for number in scored])
    for number, scores_M2 in zip(scored, scores, strict=True):
        outputs[number] = scores_M2
    return outputs


def target_scores(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """(M,2) fp32: the natural log-probability of each target; 1 where no other token is likelier, nor as likely and of
    a lower id, else 0, so that greedy decoding would choose it.

    The distribution is the model's own over all rows of the vocabulary, as in `outputs.token_logprobs`.
    """
    logits_MV = logits_MV.float()
    log_p_M = logits_MV.gather(1, targets_M[:, None])[:, 0] - logits_MV.logsumexp(1)
    return torch.stack([log_p_M, (logits_MV.max(1).indices == targets_M).float()], 1)


def _logits(model: GLM, hidden_WH: Tensor, asked: Sequence[Asked]) -> list[Tensor | None]:
    counts = [each.wanted for each in asked]
    with on_route(_route(model, [each.adapter for each in asked], counts, hidden_WH.device)):
        own = torch.split(model.head(hidden_WH), counts)
    return [logits if count else None for logits, count in zip(own, counts, strict=True)]


def _scores(model: GLM, hidden_WH: Tensor, asked: Sequence[Asked]) -> list[Tensor]:
    """Slice by slice: never more than a few logits are there at once."""
    targets = [token for each in asked for token in each.targets]
    owners = [each.adapter for each in asked for _ in each.targets]
    targets_W = torch.tensor(targets, device=hidden_WH.device)
    size = max(1, _SLICE_BYTES // (4 * model.config.vocab_size))
    parts = []
    for start in range(0, len(targets), size):
        stop = min(start + size, len(targets))
        with on_route(_route(model, owners[start:stop], [1] * (stop - start), hidden_WH.device)):
            logits_SV = model.head(hidden_WH[start:stop])
        parts.append(target_scores(logits_SV, targets_W[start:stop]))
    return list(torch.split(torch.cat(parts), [each.wanted for each in asked]))


def _route(model: GLM, owners: Sequence[str | None], counts: Sequence[int], device: torch.device) -> Route | None:
    return Route.of(owners, counts, device) if model.variants else None
