"""A cache kept between prompts: the same tokens as without, and only what is new is fed."""

from typing import Any

import pytest
import torch

from glmkit.errors import RequestError
from glmkit.generate.continuing import continue_row, stream_row
from glmkit.generate.filling import fill_rows, stream_last_span
from glmkit.generate.prompt_cache import PromptCache
from glmkit.generate.sampling import Sampling
from support.fed import Fed
from support.tiny import SPECIAL, random_ids, tiny_model

CAUSAL: dict[str, Any] = {"mask": "causal", "positions": "rope", "rope_fraction": 0.5, "norm": "rms", "mlp": "swiglu"}
PREFIX: dict[str, Any] = {"positions": "rope_2d", "residual": "deepnorm", "blank_order": "gmask_first"}
TEXT = random_ids(30, seed=8).tolist()
ENDING = [SPECIAL.gmask, SPECIAL.sop]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_prompts_that_share_their_beginning(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, fed = tiny_model(seed, **CAUSAL), Fed(monkeypatch)
    kept = PromptCache(model)
    first = TEXT[:6]
    answer = continue_row(model, first, max_tokens=5)
    longer = [*first, *answer, *TEXT[6:12]]
    changed = [*longer[:8], *TEXT[20:28]]
    # The last chosen token was not fed yet; the last prompt asks for more room than the cache has.
    for row, reused, tokens in [(first, 0, 5), (longer, 10, 5), (changed, 8, 5), (changed, 15, 5), (TEXT, 6, 40)]:
        fresh = continue_row(model, row, max_tokens=tokens)
        fed.ids.clear()
        assert continue_row(model, row, max_tokens=tokens, kept=kept) == fresh
        assert kept.reused == reused
        assert fed.ids[0] == row[reused:]


def test_a_part_a_is_reused_whole_or_not_at_all() -> None:
    model = tiny_model(4, **PREFIX)
    kept = PromptCache(model)
    short, long = [*TEXT[:6], *ENDING], [*TEXT[:9], *ENDING]
    begun = [*long, *continue_row(model, long, max_tokens=2)]
    for row, reused in [(short, 0), (short, len(short) - 1), (long, 0), (begun, len(long) + 1), (short, 0)]:
        fresh = continue_row(model, row, max_tokens=4)
        assert continue_row(model, row, max_tokens=4, kept=kept) == fresh
        assert kept.reused == reused


class Tuned(torch.nn.Module):
    """Keys and values of a tuned prefix of three slots."""

    def __init__(self, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.randn(2, layers, 3, heads, width))

    def forward(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        keys, values = self.values
        return list(keys), list(values)


def test_with_a_tuned_prefix() -> None:
    model = tiny_model(2, **CAUSAL)
    torch.manual_seed(0)
    without = continue_row(model, TEXT[:6], max_tokens=5)
    model.prefix = Tuned(model.config.num_layers, model.config.kv_heads, model.config.head_dim)
    kept = PromptCache(model)
    for row, reused, tokens in [(TEXT[:6], 0, 5), (TEXT[:9], 6, 5), (TEXT[:12], 9, 30), ([50, *TEXT], 0, 5)]:
        fresh = continue_row(model, row, max_tokens=tokens)
        assert continue_row(model, row, max_tokens=tokens, kept=kept) == fresh
        assert kept.reused == reused
    assert continue_row(model, TEXT[:6], max_tokens=5) != without


def test_an_abandoned_stream_leaves_a_good_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(5, **CAUSAL)
    kept = PromptCache(model)
    stream = stream_row(model, TEXT, max_tokens=9, kept=kept)
    begun = [next(stream), next(stream)]
    del stream
    hidden, calls = type(model).hidden, iter([True, False])

    def interrupted(self: Any, *args: Any, **options: Any) -> Any:
        if not next(calls, True):
            raise KeyboardInterrupt
        return hidden(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "hidden", interrupted)
        with pytest.raises(KeyboardInterrupt):
            continue_row(model, [*TEXT, *begun, 33], max_tokens=9, kept=kept)
    fresh = continue_row(model, [*TEXT, *begun], max_tokens=9)
    assert continue_row(model, [*TEXT, *begun], max_tokens=9, kept=kept) == fresh
    assert kept.reused == len(TEXT) + 1
    kept.clear()
    assert continue_row(model, [*TEXT, *begun], max_tokens=9, kept=kept) == fresh
    assert kept.reused == 0


def test_two_streams_and_another_model_are_mistakes() -> None:
    model = tiny_model(5, **CAUSAL)
    kept = PromptCache(model)
    one = stream_row(model, TEXT, max_tokens=9, kept=kept)
    next(one)
    next(stream_row(model, TEXT[:4], max_tokens=9, kept=kept))
    with pytest.raises(RequestError, match="this cache went on to another prompt"):
        next(one)
    with pytest.raises(RequestError, match="made for another model"):
        continue_row(tiny_model(6, **CAUSAL), TEXT, kept=kept)


@pytest.mark.parametrize("options", [{}, {"running": True}, {"block_positions": False}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_last_span_as_it_is_chosen(options: dict[str, Any], temperature: float) -> None:
    model, sampling = tiny_model(1), Sampling(temperature=temperature, seed=3)
    row = [SPECIAL.cls, *TEXT[:3], SPECIAL.mask, *TEXT[3:5], SPECIAL.gmask]
    chosen: dict[str, Any] = {"max_tokens": 7, "sampling": sampling, **options}
    ((*_, last),) = fill_rows(model, [row], SPECIAL, **chosen)
    assert list(stream_last_span(model, row, SPECIAL, **chosen)) == last
