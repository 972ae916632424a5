"""Beams behind prompts: brute force over every answer, what is fed, and what is heard of them."""

import itertools

import pytest
import torch

from glmkit.generate.jobs.answers import make_job
from glmkit.generate.jobs.beam_search import BeamsJob
from glmkit.generate.outputs import Ended, Piece
from glmkit.generate.params import GenerationParams
from glmkit.generate.prompt import Prompt
from glmkit.model import GLM
from support.jobs import WholePasses, decode, run_jobs
from support.kinds import KINDS, make, prompt_of

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


class Letters:
    """A reader that shows a token when the next one comes."""

    def __init__(self) -> None:
        self.held = ""

    def push(self, token: int) -> str:
        shown, self.held = self.held, f"<{token}>"
        return shown

    def flush(self) -> str:
        shown, self.held = self.held, ""
        return shown


def test_what_is_heard() -> None:
    """Nothing while beams may still change; then each answer as a whole, with its text."""
    model, prompt = make("causal"), prompt_of("causal", 6, 3)
    heard: list[Piece | Ended] = []
    params = GenerationParams(max_new_tokens=5, num_beams=4, num_return_sequences=2)
    job = make_job(Prompt.of(prompt, model.config), params, model.config, detokenizer=Letters, listener=heard.append)
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
