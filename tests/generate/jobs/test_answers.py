"""Answers to prompts: whole forward passes, batches, seeds, stops, logprobs, every kind of network."""

import itertools
import json
from typing import Any

import pytest
import torch

from glmkit.errors import RequestError
from glmkit.generate.jobs.answers import AnswersJob, make_job
from glmkit.generate.outputs import Answer
from glmkit.generate.params import GenerationParams
from glmkit.generate.prompt import Prompt
from glmkit.loading import load_parts
from support.jobs import WholePasses, decode
from support.kinds import KINDS, make, prompt_of
from support.shared import shared_dir
from support.tiny import SPECIAL, random_ids, tiny_model

pytestmark = pytest.mark.sampled(4)

RECORDED = ("max_new_tokens", "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "num_beams")
RECORDED += ("length_penalty", "early_stopping")


def same(ours: list[list[Answer]], theirs: list[list[Answer]]) -> bool:
    assert [len(answers) for answers in ours] == [len(answers) for answers in theirs]
    for one, other in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
        if (one.ids, one.finish, one.stop_id) != (other.ids, other.finish, other.stop_id):
            return False
        assert one.score == pytest.approx(other.score, abs=1e-4)
        for entry, again in zip(one.logprobs or [], other.logprobs or [], strict=True):
            assert (entry.token, [token for token, _ in entry.top]) == (again.token, [token for token, _ in again.top])
            assert entry.logprob == pytest.approx(again.logprob, abs=1e-4)
    return True


@pytest.mark.parametrize("alone", [False, True], ids=["batch", "alone"])
def test_recorded_generation(alone: bool) -> None:
    """What the published code of ChatGLM-6B gave with transformers 4.33; also each row by itself."""
    folder = shared_dir("fixtures", "chatglm-6b")
    model = load_parts(folder).model.float().eval()
    for case in json.loads((folder / "generation.json").read_text()):
        options, rows = case["options"], case["input_ids"]
        params = GenerationParams(**{name: options[name] for name in RECORDED if name in options})
        pad = options["pad_token_id"]
        padding = [next(at for at, token in enumerate(row) if token != pad) for row in rows]
        answers: list[list[Answer]] = []
        for some in [[index] for index in range(len(rows))] if alone else [range(len(rows))]:
            answers += decode(
                model,
                [rows[index] for index in some],
                params,
                stops=[options["eos_token_id"]],
                padding=[padding[index] for index in some],
            )
        for index, (answer,) in enumerate(answers):
            ids = [*rows[index], *answer.ids, *([] if answer.stop_id is None else [answer.stop_id])]
            expected = case["sequences"][index]
            assert ids + [pad] * (len(expected) - len(ids)) == expected, case["name"]
            if "sequences_scores" in case:
                assert answer.score == pytest.approx(case["sequences_scores"][index], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [False, True], ids=["", "tuned"])
@pytest.mark.parametrize("seed", [1, 2])
def test_greedy_equals_whole_passes(kind: str, prefix: bool, seed: int) -> None:
    """`model(ids)` works part A and positions out from all ids at every step."""
    model, prompt = make(kind, seed, prefix=prefix), prompt_of(kind, 7, 2)
    answer: list[int] = []
    for _ in range(8):
        logits = model(torch.tensor([[*prompt, *answer]]))[0, -1]
        logits[: SPECIAL.unk] = -torch.inf  # a second [sop] would open another span
        first, second = logits.topk(2).values.tolist()
        assert first - second > 1e-4
        answer.append(int(logits.argmax()))
    assert len(set(answer)) > 1 or kind == "sandwich"
    params = GenerationParams(max_new_tokens=8)
    assert decode(model, [prompt], params, forbidden=range(10)) == [[Answer(answer, "length")]]
    ((cut,),) = decode(model, [prompt], params, forbidden=range(10), stops=[answer[4]])
    assert cut == Answer(answer[: answer.index(answer[4])], "stop", answer[4])
    ((other,),) = decode(model, [prompt], GenerationParams(max_new_tokens=1), forbidden=[*range(10), answer[0]])
    assert other.ids != answer[:1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [False, True], ids=["", "tuned"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.3, "top_p": 0.9, "seed": 4, "n": 3, "logprobs": 2},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "frequency_penalty": 0.5},
        {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.8, "no_repeat_ngram_size": 3},
        {"num_beams": 2, "min_new_tokens": 4, "early_stopping": True},
    ],
    ids=str,
)
def test_batch_equals_alone_and_whole_passes(kind: str, prefix: bool, options: dict[str, Any]) -> None:
    model = make(kind, 2, prefix=prefix)
    rows = [prompt_of(kind, length, seed) for seed, length in enumerate((3, 11, 6, 1, 24))]
    params = GenerationParams(max_new_tokens=9, **options)
    fixed: dict[str, Any] = {"stops": range(30, 40), "forbidden": range(11)}
    together = decode(model, rows, params, **fixed)
    assert same(together, [decode(model, [row], params, **fixed)[0] for row in rows])
    assert same(together, decode(WholePasses(model), rows, params, **fixed))
    assert len({tuple(one.ids) for one in itertools.chain(*together)}) > 2, "the answers differ"


def test_a_long_answer_stays_on_the_last_learned_place() -> None:
    model, prompt = tiny_model(1, max_positions=24), prompt_of("each", 20, 1)
    ((answer,),) = decode(model, [prompt], GenerationParams(max_new_tokens=40), running=True)
    assert len(answer.ids) == 40


def test_where_positions_end_the_answer_ends() -> None:
    model, prompt = make("causal"), prompt_of("causal", 5, 1)
    ((free,),) = decode(model, [prompt], GenerationParams(max_new_tokens=9))
    for options in ({}, {"num_beams": 3, "beam_length": "answer"}):
        ((answer,),) = decode(model, [prompt], GenerationParams(max_new_tokens=9, **options), max_positions=11)
        ((short,),) = decode(model, [prompt], GenerationParams(max_new_tokens=4, **options))
        assert answer == short
        assert (len(answer.ids), answer.finish) == (4, "length")
    assert len(free.ids) == 9
    with pytest.raises(RequestError, match="the prompt has 7 tokens of 7 that it and the answer may have; shorten it"):
        decode(model, [prompt], GenerationParams(), max_positions=7)


def test_choices_and_seeds() -> None:
    """The noise is that of (seed, choice, position): n = 3 begins with what n = 1 gives."""
    model, prompt = make("causal"), prompt_of("causal", 5, 1)

    def ids(**options: Any) -> list[list[int]]:
        (answers,) = decode(model, [prompt], GenerationParams(max_new_tokens=10, temperature=1.5, **options))
        return [answer.ids for answer in answers]

    three = ids(n=3, seed=7)
    assert ids(n=1, seed=7) == three[:1]
    assert len({tuple(row) for row in three}) == 3
    assert ids(n=3, seed=8) != three
    assert ids(n=2, seed=7, top_k=1) == [decode(model, [prompt], GenerationParams(max_new_tokens=10))[0][0].ids] * 2


def test_answers_of_one_prompt_end_at_different_steps() -> None:
    """Each as it would be alone; rows that ended are fed no more."""
    model, prompt = make("causal"), prompt_of("causal", 5, 1)
    runner = WholePasses(model)
    params = GenerationParams(max_new_tokens=30, temperature=1.5, n=8, seed=3)
    (answers,) = decode(runner, [prompt], params, stops=range(20, 27))
    lengths = [len(answer.ids) for answer in answers]
    assert len(set(lengths)) > 3
    fed = [len(step) for step in runner.steps[1:]]
    assert fed == [sum(length > at for length in lengths) for at in range(len(fed))]
    assert same(decode(model, [prompt], params, stops=range(20, 27)), [answers])
    for number, answer in enumerate(answers):
        alone = GenerationParams(max_new_tokens=30, temperature=1.5, seed=params.choice(number).seed)
        assert decode(model, [prompt], alone, stops=range(20, 27)) == [[answer]]


def test_logprobs_are_the_models_own() -> None:
    """Before temperature, penalties and cuts: those of a forward pass over the answer."""
    model, prompt = make("causal"), prompt_of("causal", 5, 1)
    params = GenerationParams(
        max_new_tokens=6, temperature=1.5, top_k=9, repetition_penalty=1.3, logprobs=3, forbidden=(50,)
    )
    ((answer,),) = decode(model, [prompt], params)
    log_p = model(torch.tensor([[*prompt, *answer.ids]]))[0].log_softmax(-1)[len(prompt) - 1 : -1]
    assert answer.logprobs is not None
    for row, token, entry in zip(log_p, answer.ids, answer.logprobs, strict=True):
        assert (entry.token, entry.logprob) == (token, pytest.approx(row[token].item(), abs=1e-5))
        values, indices = row.index_fill(0, torch.tensor([50]), -torch.inf).topk(3)
        assert [index for index, _ in entry.top] == indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-5)
    bare = decode(model, [prompt], GenerationParams(max_new_tokens=2, logprobs=0))[0][0].logprobs
    assert bare is not None
    assert [entry.top for entry in bare] == [(), ()]


def test_stops_minimum_and_forbidden() -> None:
    model, prompt = make("causal"), prompt_of("causal", 5, 1)
    ((free,),) = decode(model, [prompt], GenerationParams(max_new_tokens=8))
    end = free.ids[3]
    first = free.ids.index(end)
    ((cut,),) = decode(model, [prompt], GenerationParams(max_new_tokens=8, stop_ids=(end,)))
    assert cut == Answer(free.ids[:first], "stop", end)
    for options in ({}, {"num_beams": 3}, {"repetition_penalty": 1.1}):
        params = GenerationParams(max_new_tokens=8, min_new_tokens=7, stop_ids=(end,), **options)
        ((late,),) = decode(model, [prompt], params)
        assert len(late.ids) >= 7
        assert end not in late.ids
    for hot in ({"num_beams": 3}, {"temperature": 9.0}, {}):
        params = GenerationParams(max_new_tokens=30, forbidden=tuple(range(40)), stop_ids=(3,), **hot)
        ((high,),) = decode(model, [prompt], params, stops=[4, 5], forbidden=[4, 60, 1000])
        assert set(high.ids) <= set(range(40, 64)) - {60}
        assert high.stop_id in (None, 4, 5), "what the request forbids does not come, stop or not"


def test_nothing_left_ends_the_answer() -> None:
    """Every token once, then none may come: a forbidden one does not."""
    model, prompt = make("causal"), prompt_of("causal", 5, 1)
    few = tuple(range(3, model.config.vocab_size))
    params = GenerationParams(max_new_tokens=9, no_repeat_ngram_size=1, forbidden=few)
    ((answer,),) = decode(model, [prompt], params)
    assert (sorted(answer.ids), answer.finish) == ([0, 1, 2], "length")
    ((nothing,),) = decode(model, [prompt], GenerationParams(forbidden=(*few, 0, 1, 2)))
    assert nothing == Answer([], "length")


def test_not_a_number_is_an_error() -> None:
    job = make_job(Prompt.of([20, 21], make("causal").config), GenerationParams(), make("causal").config)
    job.start()
    (branch,) = job.advance([torch.randn(1, 64)])
    assert branch.parent == 0
    bad = torch.randn(1, 64)
    bad[0, 7] = torch.nan
    with pytest.raises(RequestError, match="the model gave NaN after 3 tokens; load it with dtype='float32'"):
        job.advance([bad])


def test_half_precision_ties_and_forbidden_rows() -> None:
    """Among equals the first that may come, as with scores of fp32."""
    config, forbidden = make("causal").config, (3, 4)
    logits = torch.zeros(1, 64, dtype=torch.bfloat16)
    logits[0, [3, 7, 9]] = 2.0
    for options in ({}, {"repetition_penalty": 1.0001}):
        job = AnswersJob(Prompt.of([20], config), GenerationParams(max_new_tokens=1, forbidden=forbidden), config)
        job.start()
        assert not job.advance([logits])
        assert job.answers[0].ids == [7], options


def test_mistakes() -> None:
    model = make("causal")
    for rows, params, words in (
        ([[]], GenerationParams(), "the prompt has no tokens; give at least 1"),
        ([[11] * 97], GenerationParams(), "the prompt has 97 tokens, the model takes 96; shorten it"),
        ([[11]], GenerationParams(max_new_tokens=1 << 50), "ask for fewer tokens"),
        (
            [[11]],
            GenerationParams(stop=("x",)),
            "stop texts need a tokenizer; load .* use stop_ids",
        ),
    ):
        with pytest.raises(RequestError, match=words):
            decode(model, rows, params)
    with pytest.raises(RequestError, match="num_beams is 2; take one beam, or use make_job"):
        AnswersJob(Prompt.of([11], model.config), GenerationParams(num_beams=2), model.config)
    assert decode(model, [], GenerationParams()) == []


def test_a_model_without_special_ids_continues() -> None:
    model, prompt = make("causal"), random_ids(7, seed=3).tolist()
    bare = make("causal", special=None)
    bare.load_state_dict(model.state_dict())
    params = GenerationParams(max_new_tokens=5)
    assert decode(bare, [prompt], params) == decode(model, [prompt], params)
