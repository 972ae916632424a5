"""Continuing one prepared prompt on a cache: what chat families do, and blanks of which only one is open.

Legend: T tokens of the prompt.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import torch

from glmkit.errors import RequestError
from glmkit.model import GLM, KVCache
from glmkit.model.positions import infer_positions, infer_prefix

from .prompt_cache import PromptCache
from .sampling import Sampling, next_tokens


def continue_row(
    model: GLM,
    row: Sequence[int],
    *,
    stops: Collection[int] = (),
    max_tokens: int = 128,
    sampling: Sampling | None = None,
    forbidden: Iterable[int] = (),
    kept: PromptCache | None = None,
) -> list[int]:
    """The tokens that follow a prompt, at most `max_tokens`; a token of `stops` ends them and is not among them.

    Arguments and errors as in `stream_row`.
    """
    options = {"stops": stops, "max_tokens": max_tokens, "sampling": sampling, "forbidden": forbidden, "kept": kept}
    answer = list(stream_row(model, row, **options))  # type: ignore[arg-type]
    return answer[:-1] if answer[-1] in stops else answer


def stream_row(
    model: GLM,
    row: Sequence[int],
    *,
    stops: Collection[int] = (),
    max_tokens: int = 128,
    sampling: Sampling | None = None,
    forbidden: Iterable[int] = (),
    kept: PromptCache | None = None,
) -> Iterator[int]:
    """The tokens that follow a prompt as they are chosen, at most `max_tokens`; one of `stops` is the last.

    row: the whole prompt, added tokens included ("... [gMASK] <sop>"). Positions are the model's own for such ids.
    kept: feeds only what it does not hold already. Whoever stops asking has cancelled the rest; nothing runs ahead.
    Raises RequestError for an empty prompt or one longer than the model's positions, and for max_tokens below 1 or more
    than memory holds.
    """
    if not row or max_tokens < 1:
        raise RequestError(f"{len(row)} tokens to continue by max_tokens {max_tokens}; give at least 1 of each")
    if len(row) > model.config.max_positions:
        raise RequestError(f"the text has {len(row)} tokens, the model takes {model.config.max_positions}; shorten it")
    return _stream(model, row, stops, max_tokens, sampling or Sampling(), forbidden, kept)


@torch.inference_mode()
def _stream(
    model: GLM,
    row: Sequence[int],
    stops: Collection[int],
    max_tokens: int,
    sampling: Sampling,
    forbidden: Iterable[int],
    kept: PromptCache | None,
) -> Iterator[int]:
    config, device = model.config, model.device
    ids_1T = torch.tensor([list(row)], device=device)
    prefix_1 = infer_prefix(ids_1T, config.special) if config.mask == "prefix" else torch.zeros(1, dtype=torch.long)
    capacity = len(row) + max_tokens
    owner: object = None
    try:
        if kept is None:
            cache = KVCache(config, 1, capacity, dtype=model.dtype, device=device)
        else:
            cache, owner = kept.open(model, row, int(prefix_1), capacity)
        # The places of the prompt and of everything that may follow, worked out once.
        filler = torch.full((1, max_tokens), row[-1] if config.special is None else config.special.pad, device=device)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise RequestError(f"no memory for {capacity} tokens; lower max_tokens ({max_tokens})") from error
    positions_12T = infer_positions(torch.cat([ids_1T, filler], 1), prefix_1, config)
    banned = torch.tensor(sorted(index for index in forbidden if index < config.vocab_size), dtype=torch.long)
    start = cache.length
    fed_1T = ids_1T[:, start:]
    for count in range(max_tokens):
        if kept is not None:
            kept.fed(owner, fed_1T[0].tolist())
        end = start + fed_1T.shape[1]
        logits_1V = model(
            fed_1T,
            position_ids=positions_12T[:, :, start:end],
            prefix_length=prefix_1 if start == 0 else None,
            cache=cache,
            logits_at="last",
        ).float()
        logits_1V[:, banned.to(device)] = -torch.inf
        token = int(next_tokens(logits_1V, sampling, [count])[0])
        yield token
        if token in stops:
            return
        fed_1T, start = torch.tensor([[token]], device=device), end
