"""Blanks of a text: cached = uncached, batched = alone, and later blanks depend on earlier answers."""

from typing import Any

import pytest
import torch

from glmkit.errors import RequestError
from glmkit.generate.jobs.infill import FillJob
from glmkit.generate.outputs import Answer, Ended, Piece
from glmkit.generate.params import GenerationParams
from glmkit.generate.sampling import Sampling, next_tokens
from glmkit.model import GLM
from support.jobs import Late, WholePasses, decode, fill, run_jobs
from support.kinds import make, prompt_of
from support.tiny import SPECIAL, random_ids, tiny_model

pytestmark = pytest.mark.sampled(4)

NEVER = {SPECIAL.pad, SPECIAL.cls, SPECIAL.sop, *SPECIAL.mask_ids(), SPECIAL.dblock, SPECIAL.sep}
ENDS = (SPECIAL.eop, SPECIAL.eos)
MIXES: list[dict[str, Any]] = [
    {},
    {"positions": "rope"},
    {"positions": "rope_2d", "residual": "deepnorm", "mlp": "geglu"},
]
HOT = {"temperature": 1.5, "seed": 11}


def row_with_blanks(length: int, blanks: list[int], seed: int, mask: int = SPECIAL.mask) -> list[int]:
    row = random_ids(length, seed=seed).tolist()
    row[0], row[-1] = SPECIAL.cls, SPECIAL.eos
    for blank in blanks:
        row[blank] = mask
    return row


ROWS = [
    row_with_blanks(20, [3, 9, 15], 1),
    row_with_blanks(9, [4], 2),
    row_with_blanks(33, [1, 2], 3),
    row_with_blanks(12, [10], 4),
]


def fill_without_cache(
    model: GLM,
    row: list[int],
    max_tokens: int,
    sampling: Sampling | None = None,
    *,
    drawn: int = 0,
    only: int | None = None,
    running: bool = False,
    block_positions: bool = True,
) -> list[list[int]]:
    """The same decoding from scratch at every token: whole forward passes with explicit positions.

    drawn: noise used before. only: the number of the only blank to fill.
    """
    blanks = [i for i, token in enumerate(row) if token in SPECIAL.mask_ids()]
    tail: list[int] = []
    places: list[tuple[int, int]] = []
    spans: list[list[int]] = []
    counts = model.config.positions == "rope"
    for blank in blanks if only is None else [blanks[only]]:

        def place(count: int, blank: int = blank) -> tuple[int, int]:
            inside = count if block_positions else 1
            if counts and row[blank] == SPECIAL.gmask:
                return len(row) + len(places), inside
            return blank + (count if running else 0), inside

        span: list[int] = []
        places.append(place(1))
        tail.append(SPECIAL.sop)
        while True:
            ids = torch.tensor([row + tail])
            positions = torch.zeros(1, 2, ids.shape[1], dtype=torch.long)
            positions[0, 0, : len(row)] = torch.arange(len(row))
            positions[0, :, len(row) :] = torch.tensor(places).T
            logits = model(ids, position_ids=positions, prefix_length=torch.tensor([len(row)]), logits_at="last")
            logits[:, list(NEVER)] = -torch.inf
            noise = drawn + sum(len(one) + 1 for one in spans) + len(span) + 1
            token = int(next_tokens(logits, sampling or Sampling(), [noise])[0])
            if token in ENDS or len(span) == max_tokens:
                break
            span.append(token)
            places.append(place(len(span) + 1))
            tail.append(token)
        spans.append(span)
    return spans


def inserted_without_cache(model: GLM, row: list[int], max_tokens: int, sampling: Sampling) -> list[list[int]]:
    """Each answer takes the place of its blank before the next is asked."""
    kinds = [token for token in row if token in SPECIAL.mask_ids()]
    preferred: dict[str, tuple[int | None, ...]] = {
        "mask_first": (SPECIAL.mask, SPECIAL.smask, SPECIAL.gmask),
        "gmask_first": (SPECIAL.gmask, SPECIAL.mask, SPECIAL.smask),
    }
    waiting, spans, drawn = list(range(len(kinds))), {}, 0
    for kind in preferred.get(model.config.blank_order, (None,)):
        for number in [number for number in waiting if kind is None or kinds[number] == kind]:
            at = waiting.index(number)
            ((*_, answer),) = (fill_without_cache(model, row, max_tokens, sampling, drawn=drawn, only=at),)
            place = [i for i, token in enumerate(row) if token in SPECIAL.mask_ids()][at]
            row = [*row[:place], *answer, *row[place + 1 :]]
            spans[number], drawn = answer, drawn + len(answer) + 1
            waiting.remove(number)
    return [spans[number] for number in range(len(kinds))]


@pytest.mark.parametrize("mix", MIXES)
def test_cached_equals_uncached_and_batched_equals_alone(mix: dict[str, Any]) -> None:
    model = tiny_model(seed=3, **mix)
    batched = fill(model, ROWS, SPECIAL, max_tokens=5)
    alone = [fill(model, [row], SPECIAL, max_tokens=5)[0] for row in ROWS]
    uncached = [fill_without_cache(model, row, 5) for row in ROWS]
    assert batched == alone == uncached
    assert [len(spans) for spans in batched] == [3, 1, 2, 1]
    assert any(len(span) == 5 for spans in batched for span in spans)


@pytest.mark.parametrize("kind", ["each", "mask_first", "gmask_first"])
@pytest.mark.parametrize("options", [{}, {"running": True}, {"block_positions": False}], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_shared_spans_of_every_kind_of_blank(kind: str, options: dict[str, Any], temperature: float) -> None:
    sampling = Sampling(temperature=temperature, seed=5)
    full = 0
    for seed in range(3):
        model, row = make(kind, seed), row_with_blanks(17, [3, 12], seed)
        row[5], row[9] = SPECIAL.gmask, SPECIAL.smask
        expected = fill_without_cache(model, row, 4, sampling, **options)
        full += sum(len(span) == 4 for span in expected[:-1])
        for runner in (model, WholePasses(model)):
            got = fill(runner, [row, *ROWS], SPECIAL, max_tokens=4, temperature=temperature, seed=5, **options)
            assert got[0] == expected
    assert full > 0, "a span that is full is read before the next one begins"


@pytest.mark.parametrize("kind", ["each", "mask_first", "gmask_first"])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_inserted_answers_are_read_again(kind: str, temperature: float) -> None:
    """Those of the kind that the model prefers come first, and no noise is met twice."""
    for seed in range(3):
        model, row = make(kind, seed), row_with_blanks(17, [3, 12], seed)
        row[5], row[9] = SPECIAL.gmask, SPECIAL.smask
        expected = inserted_without_cache(model, row, 4, Sampling(temperature=temperature, seed=5))
        for runner in (model, WholePasses(model)):
            options: dict[str, Any] = {"max_tokens": 4, "temperature": temperature, "seed": 5}
            assert fill(runner, [row], SPECIAL, order="inserted", **options) == [expected]
        assert fill(model, [row], SPECIAL, **options) != [expected]


def test_the_second_blank_depends_on_the_answer_to_the_first() -> None:
    """Same text, same second blank; only what was written into the first blank differs (two seeds)."""
    model, row = tiny_model(seed=5), row_with_blanks(16, [4, 11], 7)
    hot = [fill(model, [row], SPECIAL, max_tokens=3, temperature=3.0, seed=s)[0] for s in (1, 2)]
    assert hot[0][0] != hot[1][0]
    second_logits = []
    for first, _ in hot:
        tail = [SPECIAL.sop, *first, SPECIAL.sop]
        places = [[4] * (len(first) + 1) + [11], [*range(1, len(first) + 2), 1]]
        positions = torch.tensor([[[*range(16), *places[0]], [*[0] * 16, *places[1]]]])
        second_logits.append(
            model(
                torch.tensor([row + tail]), position_ids=positions, prefix_length=torch.tensor([16]), logits_at="last"
            )
        )
    assert (second_logits[0] - second_logits[1]).abs().max() > 1e-3


def test_inference_of_positions_agrees_with_explicit_ones() -> None:
    model, row = tiny_model(seed=2), row_with_blanks(10, [2, 6], 1)
    ids = torch.tensor([[*row, SPECIAL.sop, 20, 21, SPECIAL.sop, 30]])
    positions = torch.tensor([[[*range(10), 2, 2, 2, 6, 6], [*[0] * 10, 1, 2, 3, 1, 2]]])
    explicit = model(ids, position_ids=positions, prefix_length=torch.tensor([10]))
    torch.testing.assert_close(model(ids), explicit, rtol=0, atol=0)


def test_sampling_noise_is_a_function_of_seed_and_position() -> None:
    model, rows = tiny_model(seed=1), [row_with_blanks(14, [3, 8], 1), row_with_blanks(22, [5], 2)]
    together = fill(model, rows, SPECIAL, max_tokens=6, **HOT)
    assert together == [fill(model, [row], SPECIAL, max_tokens=6, **HOT)[0] for row in rows]
    assert together != fill(model, rows, SPECIAL, max_tokens=6, temperature=1.5, seed=12)


def test_one_blank_is_one_answer() -> None:
    """The same tokens as behind the text as a prompt, one place of the noise later."""
    model, row = make("each"), prompt_of("each", 6, 1)
    for places in ({}, {"running": True}, {"block_positions": False}):
        ((span,),) = fill(model, [row[:-1]], SPECIAL, max_tokens=12, **places)
        fixed: dict[str, Any] = {"stops": ENDS, "forbidden": NEVER, **places}
        ((answer,),) = decode(model, [row], GenerationParams(max_new_tokens=12), **fixed)
        assert answer.ids == span


def test_forbidden_tokens_never_appear() -> None:
    model, rows = tiny_model(seed=9), [row_with_blanks(18, [2, 7, 12], seed) for seed in range(6)]
    for order in ("shared", "inserted"):
        spans = fill(model, rows, SPECIAL, max_tokens=8, temperature=5.0, forbidden=range(40, 64), order=order)
        produced = {token for row in spans for span in row for token in span}
        assert len(produced) > 10
        assert not produced & (NEVER | set(range(40, 64)))


def test_penalties_stops_and_logprobs_hold_in_every_blank() -> None:
    """Repetition counts all that stands before a span; minimum, stops and logprobs are those of one answer."""
    model, row = tiny_model(seed=3), row_with_blanks(20, [3, 9, 15], 1)
    (free,) = fill(model, [row], SPECIAL, max_tokens=6)
    seen = {*row, SPECIAL.sop}
    for span in fill(model, [row], SPECIAL, max_tokens=4, repetition_penalty=1e9)[0]:
        assert len({*span}) == len(span)
        assert not seen & {*span}
        seen |= {*span}
    end = next(span for span in free if span)[0]
    job = FillJob(row, GenerationParams(max_new_tokens=6, stop_ids=(end,), logprobs=2), model.config, SPECIAL)
    run_jobs(model, [job])
    assert any(answer.stop_id == end for answer in job.answers)
    assert all(end not in answer.ids for answer in job.answers)
    tail: list[int] = []
    for number, answer in enumerate(job.answers):
        tail += [SPECIAL.sop, *answer.ids]
        log_p = model(torch.tensor([row + tail]))[0].log_softmax(-1)[len(row) + len(tail) - len(answer.ids) - 1 : -1]
        assert answer.logprobs is not None
        for entry, token, own in zip(answer.logprobs, answer.ids, log_p, strict=True):
            assert (entry.token, entry.logprob) == (token, pytest.approx(own[token].item(), abs=1e-4)), number
    long = fill(model, [row], SPECIAL, max_tokens=6, min_new_tokens=5)
    assert all(len(span) >= 5 for span in long[0])


def test_spans_beyond_the_table_of_positions_stay_on_its_last_row() -> None:
    model, row = tiny_model(seed=3), row_with_blanks(96, [90], 1)
    for running in (False, True):
        span = fill(model, [row], SPECIAL, max_tokens=120, temperature=9.0, running=running)
        assert 0 < len(span[0][0]) <= 120


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_a_generation_mask_inside_a_text_counts_on_behind_the_text(seed: int) -> None:
    """With one rotary stream, as the model itself works positions out from the ids (`THUDM/GLM-130B:generation/`)."""
    model, row = make("mask_first", seed, init_std=0.5), row_with_blanks(10, [3], 3, SPECIAL.gmask)
    answer = fill(model, [row], SPECIAL, max_tokens=5)[0][0]
    assert answer
    for length in range(len(answer)):
        logits = model(torch.tensor([[*row, SPECIAL.sop, *answer[:length]]]), logits_at="last")[0]
        logits[list(NEVER)] = -torch.inf
        assert int(logits.argmax()) == answer[length]


@pytest.mark.parametrize("order", ["shared", "inserted"])
def test_what_is_heard_of_every_blank(order: Any) -> None:
    model, row = make("mask_first", 2), row_with_blanks(20, [9, 15], 1)
    row[3] = SPECIAL.gmask
    heard: list[Piece | Ended] = []
    params = GenerationParams(max_new_tokens=5)
    job = FillJob(row, params, model.config, SPECIAL, order=order, detokenizer=Late, listener=heard.append)
    run_jobs(model, [job])
    told: dict[int, list[Piece]] = {}
    ends: dict[int, Answer] = {}
    for event in heard:
        assert event.number not in ends, "nothing after the end"
        if isinstance(event, Ended):
            ends[event.number] = event.answer
        else:
            told.setdefault(event.number, []).append(event)
    assert list(ends) == ([0, 1, 2] if order == "shared" else [1, 2, 0]), "the order in which they are asked"
    assert [ends[number] for number in range(3)] == job.answers
    for number, answer in enumerate(job.answers):
        assert answer.text == "".join(f"<{token}>" for token in answer.ids)
        assert "".join(piece.text for piece in told.get(number, [])) == answer.text
        assert [token for piece in told.get(number, []) for token in piece.tokens] == answer.ids


def test_no_rows_and_too_many_tokens() -> None:
    assert fill(tiny_model(), [], SPECIAL) == []
    with pytest.raises(RequestError, match="ask for fewer tokens"):
        fill(tiny_model(), [row_with_blanks(20, [5], 1)], SPECIAL, max_tokens=10**15)


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        ([2, 20, 0], {}, r"text 0 has no blank; put \[MASK\], \[sMASK\] or \[gMASK\] where something is missing"),
        (row_with_blanks(200, [5], 1), {}, "text 0 has 200 tokens, the model takes 96; shorten it"),
        (ROWS[0], {"max_tokens": 0}, "max_new_tokens is 0; give at least 1"),
        (ROWS[0], {"order": "any"}, "order is 'any'; use 'shared' or 'inserted'"),
        (ROWS[0], {"n": 2}, "n does not go with blanks; ask again with another seed"),
        (ROWS[0], {"num_beams": 2}, "num_beams does not go with blanks; leave it at 1"),
        (ROWS[0], {"stop": "x"}, "stop does not go with blanks; use stop_ids"),
    ],
)
def test_mistakes_are_named(row: list[int], options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        fill(tiny_model(), [row], SPECIAL, **options)


def test_an_answer_that_makes_the_text_too_long() -> None:
    model, row = tiny_model(seed=3), row_with_blanks(95, [3, 50], 1)
    with pytest.raises(RequestError, match="text 0 has 101 tokens, the model takes 96; shorten it"):
        fill(model, [row], SPECIAL, max_tokens=7, order="inserted", min_new_tokens=7)
    assert fill(model, [row], SPECIAL, max_tokens=7, order="shared", min_new_tokens=7)
