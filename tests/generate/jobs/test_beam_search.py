"""Beam search: transformers' own, token for token and score for score; stopping rules; what is dropped."""

import itertools
from typing import Any

import pytest
import torch

from glmkit.generate.jobs.answers import make_job
from glmkit.generate.jobs.beam_search import Beams, BeamsJob
from glmkit.generate.outputs import Answer, Ended, Piece
from glmkit.generate.params import GenerationParams
from glmkit.generate.penalties import ids_tensor, process
from glmkit.generate.prompt import Prompt
from glmkit.generate.sampling import Sampling, draw_beams
from glmkit.model import GLM
from support.jobs import Late, WholePasses, decode, run_jobs
from support.kinds import KINDS, make, prompt_of

pytestmark = pytest.mark.sampled(4)

transformers = pytest.importorskip("transformers", reason="the reference is an extra")

NONE = torch.tensor([], dtype=torch.long)
OPTIONS: list[dict[str, Any]] = [
    {"num_beams": beams, "length_penalty": penalty, "early_stopping": early}
    for beams, penalty, early in itertools.product((2, 3, 5), (-1.0, 0.0, 0.7, 2.0), (False, True, "never"))
] + [
    {"num_beams": 4, "no_repeat_ngram_size": 2},
    {"num_beams": 4, "repetition_penalty": 1.7, "no_repeat_ngram_size": 3},
    {"num_beams": 4, "repetition_penalty": 0.6},
    {"num_beams": 4, "min_new_tokens": 5},
    {"num_beams": 3, "min_new_tokens": 8, "length_penalty": 0.6, "no_repeat_ngram_size": 2},
]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.6, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@torch.inference_mode()
def search(model: Any, prompt: list[int], params: GenerationParams) -> Beams:
    """Whole forward passes, no cache."""
    beams, prompt_L = Beams(params, len(prompt), params.stop_ids), torch.tensor(prompt)
    stops = ids_tensor(params.stop_ids, 40, torch.device("cpu"))
    while not beams.done:
        tokens_KL = torch.cat([prompt_L.expand(params.num_beams, -1), beams.answer_KN], 1)
        log_p_KV = model(tokens_KL).logits[:, -1].log_softmax(-1)
        beams.advance(process(log_p_KV, params, tokens_KL, len(prompt), stops=stops, forbidden=NONE))
    return beams


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_transformers(model: Any, options: dict[str, Any]) -> None:
    for seed, stops in itertools.product(range(3), ((11,), (5, 11, 23))):
        prompt = torch.randint(0, 40, (4 + seed,), generator=torch.Generator().manual_seed(seed)).tolist()
        count = options["num_beams"]
        expected = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=9, do_sample=False,
            num_return_sequences=count, eos_token_id=list(stops), pad_token_id=39, return_dict_in_generate=True,
            output_scores=True, **options,
        )  # fmt: skip
        params = GenerationParams(
            max_new_tokens=9, stop_ids=stops, num_return_sequences=count, beam_length="answer", **options
        )
        answers = search(model, prompt, params).answers()
        assert len(answers) == count
        for answer, row, score in zip(answers, expected.sequences, expected.sequences_scores, strict=True):
            ids = answer.ids if answer.stop_id is None else [*answer.ids, answer.stop_id]
            assert row[len(prompt) :].tolist() == ids + [39] * (len(row) - len(prompt) - len(ids))
            assert answer.score == pytest.approx(score.item(), rel=1e-5, abs=1e-5)
            assert (answer.finish, answer.stop_id) == (("stop", ids[-1]) if ids[-1] in stops else ("length", None))


def row(**log_p: float) -> list[float]:
    return [log_p.get(name, -torch.inf) for name in "abcd"]


def test_row_scores_by_hand() -> None:
    """Two beams, prompt of 3; d ends. The length is that of prompt and answer without the end."""
    params = GenerationParams(num_beams=2, num_return_sequences=2, length_penalty=1.0, max_new_tokens=2)
    beams = Beams(params, 3, {3})
    beams.advance(torch.tensor([row(a=-0.5, b=-1.5, d=-1.0)] * 2))
    assert beams.newest() == [0, 1]
    beams.advance(torch.tensor([row(c=-0.25, d=-4.0), row(c=-0.1, d=-0.2)]))
    assert beams.done
    answers = beams.answers()
    assert [answer.ids for answer in answers] == [[0, 2], [1, 2]], "the one ended at once has -1 / 3"
    assert [answer.score for answer in answers] == pytest.approx([-0.75 / 5, -1.6 / 5])


def test_fewer_continuations_than_beams() -> None:
    """Beams that cannot exist are neither continued nor returned."""
    params = GenerationParams(num_beams=6, num_return_sequences=6, max_new_tokens=2, length_penalty=0.0)
    beams = Beams(params, 1, {3})
    beams.advance(torch.tensor([row(a=-1.0, d=-2.0)] * 6))
    assert beams.scores_K.tolist() == [-1.0] + [-torch.inf] * 5
    beams.advance(torch.tensor([row(a=-1.0, b=-0.5)] * 6))
    assert [(answer.ids, answer.score) for answer in beams.answers()] == [([0, 1], -1.5), ([], -2.0), ([0, 0], -2.0)]


def test_nothing_may_come() -> None:
    params = GenerationParams(num_beams=2, max_new_tokens=5)
    beams = Beams(params, 1, {3})
    beams.advance(torch.full((2, 4), -torch.inf))
    assert beams.done
    assert beams.answers() == [Answer([], "length", score=0.0)]


@pytest.mark.parametrize(("beam_length", "divisor"), [("row", 4 + 2), ("answer", 2)])
def test_where_nothing_may_come_any_more_beams_end_as_they_are(beam_length: Any, divisor: int) -> None:
    """As an answer without beams does; finished ones are worth more."""
    options: dict[str, Any] = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 9}
    for stopped in (False, True):
        beams = Beams(GenerationParams(**options, beam_length=beam_length), 4, {3})
        beams.advance(torch.tensor([row(a=-0.5, b=-1.5)] * 2))
        beams.advance(torch.tensor([row(c=-0.25, d=-0.3 if stopped else -torch.inf), row(c=-0.1)]))
        assert not beams.done
        beams.advance(torch.full((2, 4), -torch.inf))
        assert beams.done
        if stopped:
            assert [answer.ids for answer in beams.answers()] == [[0]]
            continue
        assert [(answer.ids, answer.finish) for answer in beams.answers()] == [([0, 2], "length"), ([1, 2], "length")]
        assert [answer.score for answer in beams.answers()] == pytest.approx([-0.75 / divisor, -1.6 / divisor])


# --- Beam search as transformers 4.33.3 did it ------------------------------------------------------------------------


Case = tuple[list[int], tuple[int, ...], dict[str, Any], list[list[int]], list[float]]
CASES: list[Case] = [
    ([3, 3], (5,), {"num_beams": 3},
     [[7, 8, 1, 1, 1, 1, 1], [7, 8, 7, 1, 1, 1, 1], [7, 8, 8, 8, 8, 8, 8]],
     [-0.532552, -0.59166, -0.664991]),
    ([3, 7, 1], (5,), {"num_beams": 3, "length_penalty": 2.0},
     [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 2], [1, 1, 1, 1, 1, 2, 2]],
     [-0.043718, -0.059509, -0.064022]),
    ([3, 7, 1], (5,), {"num_beams": 3, "length_penalty": -1.0},
     [[1, 5], [1, 1, 5], [1, 1, 1, 5]],
     [-9.703368, -15.219364, -21.97142]),
    ([3, 7, 1], (5, 2), {"num_beams": 4, "length_penalty": 0.0},
     [[5], [1, 5], [1, 5], [1, 1, 5]],
     [-1.681278, -2.425842, -2.860705, -3.043873]),
    ([9, 9, 0, 4], (5, 2), {"num_beams": 3, "early_stopping": True},
     [[3, 7, 8, 1, 1, 1, 1], [3, 7, 8, 8, 1, 1, 1], [5]],
     [-0.394918, -0.416167, -0.47376]),
    ([9, 9, 0, 4], (5, 2), {"num_beams": 3, "early_stopping": "never", "length_penalty": 3.0},
     [[3, 7, 8, 1, 1, 1, 1], [3, 7, 8, 8, 1, 1, 1], [3, 7, 8, 8, 8, 8, 8]],
     [-0.003264, -0.003439, -0.003943]),
    ([9, 9, 0, 4], (5, 2), {"num_beams": 3, "early_stopping": False, "length_penalty": 3.0},
     [[3, 7, 8, 1, 1, 1, 1], [3, 7, 8, 8, 1, 1, 1], [3, 7, 8, 8, 8, 8, 8]],
     [-0.003264, -0.003439, -0.003943]),
    ([6, 2], (8,), {"num_beams": 4, "no_repeat_ngram_size": 2, "length_penalty": 0.7},
     [[7, 8], [7, 3, 7, 8], [7, 6, 3, 7, 8], [4, 3, 7, 8]],
     [-0.873697, -0.992024, -1.023996, -1.075793]),
    ([6, 2], (8, 5), {"num_beams": 3, "min_new_tokens": 4, "repetition_penalty": 1.3},
     [[7, 6, 3, 7, 8], [7, 3, 7, 1, 1, 1, 1], [7, 6, 3, 7, 1, 1, 1]],
     [-0.673777, -0.760896, -0.766953]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case[2]))
def test_recorded(case: Case) -> None:
    prompt, stops, options, expected, scores = case
    size = options["num_beams"]
    table_VV = torch.randn(12, 12, generator=torch.Generator().manual_seed(8)) * 1.5
    table_VV[:, 11] = -9
    stops_S, none = ids_tensor(stops, 12, torch.device("cpu")), torch.tensor([], dtype=torch.long)
    params = GenerationParams(max_new_tokens=7, num_return_sequences=size, **options)
    beams = Beams(params, len(prompt), stops)
    while not beams.done:
        tokens_KL = torch.cat([torch.tensor(prompt).expand(size, -1), beams.answer_KN], 1)
        logits_KV = table_VV[tokens_KL[:, -1]] + 0.7 * table_VV[tokens_KL[:, -2]].roll(1, -1)
        log_p_KV = logits_KV.log_softmax(-1)
        beams.advance(process(log_p_KV, params, tokens_KL, len(prompt), stops=stops_S, forbidden=none))
    answers = beams.answers()
    assert [one.ids if one.stop_id is None else [*one.ids, stops[0]] for one in answers] == expected
    assert [one.score for one in answers] == pytest.approx(scores, abs=2e-6)


# --- Beams behind prompts ---------------------------------------------------------------------------------------------


SMALL = range(20, 25)  # the only tokens that may come; the last one ends


def others(model: GLM) -> tuple[int, ...]:
    return tuple(index for index in range(model.config.vocab_size) if index not in SMALL)


@torch.inference_mode()
def every_answer(model: GLM, prompt: list[int], length: int, end: int) -> dict[tuple[int, ...], float]:
    """The log-probability of every answer of SMALL tokens that ends in `end` or has `length` tokens; no cache."""
    totals: dict[tuple[int, ...], float] = {}
    open_answers: dict[tuple[int, ...], float] = {(): 0.0}
    for _ in range(length):
        ids = torch.tensor([[*prompt, *answer] for answer in open_answers])
        log_p = model(ids)[:, -1].double().log_softmax(-1)
        longer = {
            (*answer, token): total + log_p[number, token].item()
            for number, (answer, total) in enumerate(open_answers.items())
            for token in SMALL
        }
        totals |= {answer: total for answer, total in longer.items() if answer[-1] == end}
        open_answers = {answer: total for answer, total in longer.items() if answer[-1] != end}
    return totals | open_answers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [False, True], ids=["", "tuned"])
def test_wide_beams_are_exhaustive(kind: str, prefix: bool) -> None:
    model, prompt, end = make(kind, prefix=prefix), prompt_of(kind, 6, 3), SMALL[-1]
    totals = every_answer(model, prompt, 4, end)
    assert len(totals) == 1 + 4 + 16 + 64 + 256
    for beam_length, penalty in (("row", 1.0), ("answer", 0.7), ("row", -0.5), ("answer", 0.0)):

        def score(answer: tuple[int, ...], kind: str = beam_length, power: float = penalty) -> float:
            counted = len(prompt) + len(answer) - (answer[-1] == end) if kind == "row" else len(answer)
            return totals[answer] / counted**power

        params = GenerationParams(
            max_new_tokens=4, num_beams=350, num_return_sequences=350, stop_ids=[end],
            forbidden=others(model), length_penalty=penalty, beam_length=beam_length,
        )  # fmt: skip
        (answers,) = decode(model, [prompt], params)
        found = {(*one.ids, *([] if one.stop_id is None else [end])): one.score for one in answers}
        assert found.keys() == totals.keys()
        for answer, value in found.items():
            assert value == pytest.approx(score(answer), rel=1e-5, abs=1e-5)
        best = max(totals, key=score)
        assert (*answers[0].ids, *([] if answers[0].stop_id is None else [end])) == best
        assert [one.score for one in answers] == sorted((one.score for one in answers), reverse=True)


def test_only_beams_that_exist_are_fed() -> None:
    """4 tokens may follow: 4 beams, then 16, then all 20."""
    model, prompt = make("each"), prompt_of("each", 6, 3)
    params = GenerationParams(max_new_tokens=4, num_beams=20, stop_ids=[SMALL[-1]], forbidden=others(model))
    runner = WholePasses(model)
    decode(runner, [prompt], params)
    assert [len(step) for step in runner.steps] == [1, 4, 16, 20]
    assert all(len(branch.tokens) == 1 for step in runner.steps[1:] for branch in step)


def test_padding_counts_where_the_published_code_counts_it() -> None:
    """The scores are divided by the row's length, and penalties see the padding's id; the model reads none of it."""
    model, prompt = make("gmask_first"), prompt_of("gmask_first", 6, 3)
    params = GenerationParams(max_new_tokens=5, num_beams=3, num_return_sequences=3, length_penalty=1.0)
    (plain,) = decode(model, [prompt], params)
    (padded,) = decode(model, [[1] * 4 + prompt], params, padding=[4])
    for one, other in zip(plain, padded, strict=True):
        assert one.ids == other.ids
        length = len(prompt) + len(one.ids)
        assert other.score == pytest.approx(one.score * length / (length + 4), rel=1e-6)
    for beams in (1, 3):
        near = GenerationParams(max_new_tokens=5, num_beams=beams, repetition_penalty=1e9)
        ((first,),) = decode(model, [prompt], near)
        ((again,),) = decode(model, [[first.ids[0]] * 2 + prompt], near, padding=[2])
        assert first.ids[0] not in again.ids


def test_what_is_heard() -> None:
    """Nothing while beams may still change; then each answer as a whole, with its text."""
    model, prompt = make("causal"), prompt_of("causal", 6, 3)
    heard: list[Piece | Ended] = []
    params = GenerationParams(max_new_tokens=5, num_beams=4, num_return_sequences=2)
    job = make_job(Prompt.of(prompt, model.config), params, model.config, detokenizer=Late, listener=heard.append)
    assert isinstance(job, BeamsJob)
    run_jobs(model, [job])
    assert len(job.answers) == 2
    assert [answer.ids for answer in job.answers] == [answer.ids for answer in decode(model, [prompt], params)[0]]
    for number, own in itertools.groupby(heard, key=lambda event: event.number):
        *pieces, ended = own
        answer = job.answers[number]
        assert ended == Ended(number, answer)
        assert answer.text == "".join(f"<{token}>" for token in answer.ids)
        assert all(isinstance(piece, Piece) for piece in pieces)
        assert "".join(piece.text for piece in pieces if isinstance(piece, Piece)) == answer.text
        assert [token for piece in pieces if isinstance(piece, Piece) for token in piece.tokens] == answer.ids


# --- beams that are drawn ---------------------------------------------------------------------------------------------


def drawn(model: Any, seed: int, **options: Any) -> Beams:
    params = GenerationParams(num_beams=3, max_new_tokens=6, stop_ids=(11,), seed=seed, **options)
    return search(model, [3, 7, 5], params)


def test_drawn_beams_depend_on_the_seed_alone(model: Any) -> None:
    found = [drawn(model, seed, temperature=1.5).answers()[0].ids for seed in range(8)]
    assert found == [drawn(model, seed, temperature=1.5).answers()[0].ids for seed in range(8)]
    assert len({tuple(ids) for ids in found}) > 1


def test_a_low_temperature_takes_the_likeliest(model: Any) -> None:
    greedy, cold = drawn(model, 0).answers()[0], drawn(model, 0, temperature=1e-6).answers()[0]
    assert (cold.ids, cold.score) == (greedy.ids, pytest.approx(greedy.score))


def test_one_beam_more_than_what_the_filter_leaves(model: Any) -> None:
    """top_k 1 leaves each beam one continuation, so that the only beam of the start goes on alone."""
    assert drawn(model, 5, temperature=1.0, top_k=1).answers()[0].ids == decode_greedy(model, [3, 7, 5], 6, stop=11)


@torch.inference_mode()
def decode_greedy(model: Any, prompt: list[int], count: int, *, stop: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < count:
        token = int(model(torch.tensor([prompt + ids])).logits[0, -1].argmax())
        if token == stop:
            break
        ids.append(token)
    return ids


def test_continuations_are_drawn_without_replacement_by_their_probability() -> None:
    """Two of four: the first with its own probability, the pair as `torch.multinomial` draws it."""
    p = torch.tensor([0.5, 0.25, 0.15, 0.1])
    counts = torch.zeros(4)
    for seed in range(1500):
        _, places = draw_beams(p.log()[None], torch.zeros(1), Sampling(temperature=1.0, seed=seed), 0, 2)
        counts[places] += 1
        assert len(set(places.tolist())) == 2
    pairs = [(i, j) for i, j in itertools.permutations(range(4), 2)]
    want = torch.zeros(4)
    for i, j in pairs:
        chance = p[i] * p[j] / (1 - p[i])
        want[[i, j]] += chance
    torch.testing.assert_close(counts / 1500, want, atol=0.04, rtol=0)
