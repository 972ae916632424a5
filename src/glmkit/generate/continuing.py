"""Continuing one prepared prompt on a cache: what chat families do, and blanks of which only one is open.

Legend: T tokens of the prompt.
"""

from collections.abc import Collection, Iterable, Sequence

import torch

from glmkit.errors import RequestError
from glmkit.model import GLM, KVCache
from glmkit.model.positions import infer_positions, infer_prefix

from .sampling import Sampling, next_tokens


@torch.inference_mode()
def continue_row(
    model: GLM,
    row: Sequence[int],
    *,
    stops: Collection[int] = (),
    max_tokens: int = 128,
    sampling: Sampling | None = None,
    forbidden: Iterable[int] = (),
) -> list[int]:
    """The tokens that follow a prompt, at most `max_tokens`; a token of `stops` ends them and is not among them.

    row: the whole prompt, added tokens included ("... [gMASK] <sop>"). Positions are the model's own for such ids.
    Raises RequestError for an empty prompt or one longer than the model's positions, and for max_tokens below 1 or more
    than memory holds.
    """
    if not row or max_tokens < 1:
        raise RequestError(f"{len(row)} tokens to continue by max_tokens {max_tokens}; give at least 1 of each")
    sampling = sampling or Sampling()
    config, device = model.config, model.device
    if len(row) > config.max_positions:
        raise RequestError(f"the text has {len(row)} tokens, the model takes {config.max_positions}; shorten it")
    ids_1T = torch.tensor([list(row)], device=device)
    prefix_1 = infer_prefix(ids_1T, config.special) if config.mask == "prefix" else torch.zeros(1, dtype=torch.long)
    capacity = len(row) + max_tokens
    try:
        cache = KVCache(config, 1, capacity, dtype=model.dtype, device=device)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise RequestError(f"no memory for {capacity} tokens; lower max_tokens ({max_tokens})") from error
    # The places of the prompt and of everything that may follow, worked out once.
    filler = torch.full((1, max_tokens), row[-1] if config.special is None else config.special.pad, device=device)
    positions_12T = infer_positions(torch.cat([ids_1T, filler], 1), prefix_1, config)
    banned = torch.tensor(sorted(index for index in forbidden if index < config.vocab_size), dtype=torch.long)
    answer: list[int] = []
    fed_1T, start = ids_1T, 0
    while True:
        end = start + fed_1T.shape[1]
        logits_1V = model(
            fed_1T,
            position_ids=positions_12T[:, :, start:end],
            prefix_length=prefix_1 if start == 0 else None,
            cache=cache,
            logits_at="last",
        ).float()
        logits_1V[:, banned.to(device)] = -torch.inf
        token = int(next_tokens(logits_1V, sampling, [len(answer)])[0])
        if token in stops:
            return answer
        answer.append(token)
        if len(answer) == max_tokens:
            return answer
        fed_1T, start = torch.tensor([[token]], device=device), end
