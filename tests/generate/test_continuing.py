"""Continuing a prompt on a cache gives what whole forward passes give; stops, limits, mistakes."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from glmkit.errors import RequestError
from glmkit.generate.continuing import continue_row
from support.tiny import SPECIAL, random_ids, tiny_model

GMASK_FIRST = {"positions": "rope_2d", "residual": "deepnorm", "blank_order": "gmask_first"}
CAUSAL: dict[str, Any] = {"mask": "causal", "positions": "rope", "rope_fraction": 0.5, "norm": "rms", "mlp": "swiglu"}
CAUSAL |= {"num_kv_heads": 2}
OPENED = [SPECIAL.gmask, SPECIAL.sop]


def prompt(axes: dict[str, Any]) -> list[int]:
    text = random_ids(7, seed=3).tolist()
    return [*text, *OPENED] if "blank_order" in axes else [*OPENED, *text]


@pytest.mark.parametrize("axes", [GMASK_FIRST, CAUSAL], ids=["gmask_first", "causal"])
@pytest.mark.parametrize("seed", [1, 2])
def test_cached_equals_uncached(axes: dict[str, Any], seed: int) -> None:
    """`model(ids)` works prefix and positions out from all ids at every step."""
    model, row = tiny_model(seed, **axes), prompt(axes)
    answer: list[int] = []
    for _ in range(9):
        logits = model(torch.tensor([[*row, *answer]]), logits_at="last")[0]
        first, second = logits.topk(2).values.tolist()
        assert first - second > 1e-4
        answer.append(int(logits.argmax()))
    assert continue_row(model, row, max_tokens=9) == answer
    assert continue_row(model, row, max_tokens=9, stops=[answer[4]]) == answer[: answer.index(answer[4])]
    assert len(set(answer)) > 1
    assert continue_row(model, row, max_tokens=1, forbidden=[answer[0]]) != answer[:1]


def test_positions_of_an_answer_behind_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model, row = tiny_model(0, **GMASK_FIRST), prompt(GMASK_FIRST)
    places: list[list[list[int]]] = []
    hidden = type(model).hidden

    def record(self: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
        places.append(options["position_ids"][0].tolist())
        return hidden(self, ids, **options)

    monkeypatch.setattr(type(model), "hidden", record)
    assert len(continue_row(model, row, max_tokens=3)) == 3
    assert places == [[[0, 1, 2, 3, 4, 5, 6, 7, 7], [0, 0, 0, 0, 0, 0, 0, 0, 1]], [[7], [2]], [[7], [3]]]


def test_a_model_without_special_ids_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(0, **CAUSAL)
    same = continue_row(model, prompt(CAUSAL), max_tokens=5)
    model.config = replace(model.config, special=None)
    assert continue_row(model, prompt(CAUSAL), max_tokens=5) == same


@pytest.mark.parametrize(("row", "max_tokens"), [([], 3), ([20], 0)])
def test_nothing_to_do_is_a_mistake(row: list[int], max_tokens: int) -> None:
    with pytest.raises(RequestError, match=f"^{len(row)} tokens to continue by max_tokens {max_tokens}; give at least"):
        continue_row(tiny_model(0, **CAUSAL), row, max_tokens=max_tokens)


def test_too_much_is_a_mistake() -> None:
    model = tiny_model(0, **CAUSAL)
    with pytest.raises(RequestError, match="the text has 97 tokens, the model takes 96; shorten it"):
        continue_row(model, [20] * 97)
    for many in (10**13, 10**25):
        with pytest.raises(RequestError, match=rf"no memory for \d+ tokens; lower max_tokens \({many}\)"):
            continue_row(model, [20], max_tokens=many)
