"""Odd sizes of every network, in published names and configs, against forwards written from the descriptions alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from support import plain
from support.published import new_cache
from support.variants import (
    GMASK,
    MASK,
    SOP,
    Made,
    Sizes,
    make_chatglm,
    make_glm,
    make_glm130b,
    make_multiquery,
    make_native,
)

pytestmark = pytest.mark.sampled(4)

TOLERANCE = 1e-5
PLAIN_SIZES = (Sizes(1, 3, 8, 20), Sizes(5, 2, 24, 51))
SHARED_SIZES = (Sizes(2, 3, 8, 37, 3, 20), Sizes(1, 6, 24, 15, 1, 42), Sizes(5, 6, 8, 10, 3))
CASES = [
    *((make_glm, s, kind, {}) for s in PLAIN_SIZES for kind in ("bin", "ranks")),
    *((make_chatglm, s, "bin", {}) for s in PLAIN_SIZES),
    *((make_glm130b, s, "ranks", {}) for s in PLAIN_SIZES),
    *((make_multiquery, s, "bin", {}) for s in SHARED_SIZES),
    (make_multiquery, SHARED_SIZES[0], "safetensors", {"rope_ratio": 50, "layernorm_epsilon": 1.5625e-07}),
    *((make_native, s, "safetensors", {"sandwich": sandwich}) for s in SHARED_SIZES for sandwich in (False, True)),
    (make_native, SHARED_SIZES[0], "safetensors", {"old": True}),
]


@pytest.fixture(params=CASES, ids=lambda c: f"{c[0].__name__[5:]}-{c[1]}-{c[2]}{'-'.join(['', *c[3]])}")
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    function, sizes, kind, options = request.param
    return function(tmp_path / "model", sizes, kind, **options)


def _rows(made: Made) -> list[tuple[list[int], int, int]]:
    """(ids, tokens of part A, index of the blank or -1 to count on) of one row for each kind of blank."""
    text = [7, 30, 11, 64, 5, 22]
    if made.mask == "causal":
        return [([*text, 33, 41, 8, 19], 0, -1), ([*text, 2], 0, -1)]
    tail = [SOP, 17, 40, 41]
    at_mask = ([*text[:3], MASK, *text[3:], *tail], 7, 3)
    return [at_mask, ([*text[:4], GMASK, *tail], 5, 4)]


def _positions(made: Made, size: int, part_a: int, blank: int, ids: list[int]) -> Tensor:
    """(2,T) as each reference lays them out."""
    rows = torch.zeros(2, size, dtype=torch.long)
    rows[0] = torch.arange(size)
    if blank < 0 or (made.mask == "glm130b" and ids[blank] == GMASK):
        return rows
    rows[0, part_a:] = blank
    rows[1, part_a:] = 0 if made.mask == "glm130b" else torch.arange(1, size - part_a + 1)
    return rows


def _close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE * max(1.0, float(wanted.abs().max())))


def test_logits_batches_and_cached_decoding(made: Made) -> None:
    """Inferred positions and masks, rows padded on the left, and six greedy steps with a cache."""
    model, rows = made.parts.model, _rows(made)
    longest = max(len(ids) for ids, *_ in rows)
    padded, real, alone = [], [], []
    with torch.no_grad():
        for ids, part_a, blank in rows:
            positions = _positions(made, len(ids), part_a, blank, ids)
            tokens = torch.tensor([ids])
            wanted = made.plain(tokens, positions[None], plain.prefix_mask([part_a], len(ids)))
            _close(model(tokens), wanted)
            alone.append(wanted[0])
            padded.append([0] * (longest - len(ids)) + ids)
            real.append([False] * (longest - len(ids)) + [True] * len(ids))
        together = model(torch.tensor(padded), attention_mask=torch.tensor(real))
        for row, wanted in enumerate(alone):
            _close(together[row, -len(wanted) :], wanted)
        for ids, part_a, blank in rows:
            _greedy(made, ids, part_a, blank)


def _greedy(made: Made, ids: list[int], part_a: int, blank: int) -> None:
    model, now = made.parts.model, list(ids)
    cache = new_cache(model, 1, len(ids) + 6)
    logits = model(torch.tensor([ids]), cache=cache, logits_at="last")
    for _ in range(6):
        now.append(int(logits.argmax()))
        positions = _positions(made, len(now), part_a, blank, ids)[None]
        logits = model(torch.tensor([now[-1:]]), position_ids=positions[:, :, -1:], cache=cache, logits_at="last")
        wanted = made.plain(torch.tensor([now]), positions, plain.prefix_mask([part_a], len(now)))
        _close(logits, wanted[:, -1])


def test_gradients(made: Made) -> None:
    """Of every published tensor that is learned, through the plain forward, against those of our parameters."""
    ids, part_a, blank = _rows(made)[0]
    tokens, positions = torch.tensor([ids]), _positions(made, len(ids), part_a, blank, ids)[None]
    leaves = {n: t.clone().requires_grad_() for n, t in made.tensors.items() if not n.endswith("inv_freq")}
    if "lm_head.weight" in leaves and made.parts.config.tie_embeddings:
        del leaves["lm_head.weight"]
    wanted = made.forward(leaves, tokens, positions, plain.prefix_mask([part_a], len(ids)))
    functional.cross_entropy(wanted[0, :-1], tokens[0, 1:]).backward()
    model = made.parts.model
    functional.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:]).backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in ours.values())
    theirs = {name: leaf.grad for name, leaf in leaves.items()}
    squares = [sum(float((g.double() ** 2).sum()) for g in found.values()) for found in (ours, theirs)]
    assert squares[0] == pytest.approx(squares[1], rel=1e-4)
    for ending in ("word_embeddings.weight", "embed_tokens.weight", "layers.0.input_layernorm.weight"):
        for name in theirs:
            if name.endswith(ending):
                _close(ours["model.embed_tokens.weight" if "embed" in name else f"model.{ending}"], theirs[name])
