"""Requests side by side: batches, streams in one thread and in many, whoever leaves, what every option does."""

import tempfile
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from glmkit.errors import RequestError
from glmkit.families.glm130b_text import load_tokenizer as load_130b
from glmkit.generate.engine import EngineLimits
from glmkit.generate.outputs import Answer, Ended, Piece
from glmkit.generate.params import ChatOptions, GenerationOptions, GenerationParams
from glmkit.loading import Parts
from glmkit.model import GLM, init_weights
from glmkit.session import LM
from glmkit.tokenizer.chat_template import to_messages
from support.served_models import CHAT_FAMILIES, small_base, small_chat
from support.tiny import tiny_config
from support.watching import wait_for
from tokenizer.small_vocabularies import sentencepiece_bytes

pytestmark = pytest.mark.sampled(4)

TEXTS = ["the fox", "x", "the quick brown fox jumps over the lazy dog and was not seen again", "dog", "the fox was"]
# With seed 4 one draw falls within 1e-6 of the border between two tokens, where rounding decides.
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "seed": 5}


def glm130b() -> LM:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ice_text.model").write_bytes(sentencepiece_bytes(fallback=False))
        tokenizer = load_130b(Path(folder), None)
    assert tokenizer is not None
    axes: dict[str, Any] = {"positions": "rope", "mlp": "geglu", "blank_order": "mask_first", "residual": "deepnorm"}
    config = tiny_config(vocab_size=tokenizer.vocab_size + 5, special=tokenizer.special, init_std=0.3, **axes)
    model = GLM(config)
    init_weights(model, config, 4)
    return LM(Parts(Path("model"), config, model.eval(), tokenizer))


FAMILIES: dict[str, Callable[[], LM]] = {"glm": small_base, "glm-130b": glm130b}
FAMILIES |= {name: (lambda name=name: small_chat(name)) for name in CHAT_FAMILIES}  # type: ignore[misc]
opened = cache(lambda family: FAMILIES[family]())


def alike(ours: Answer, theirs: Answer) -> bool:
    """The same but for rounding in the numbers."""
    for one, other in zip(ours.logprobs or (), theirs.logprobs or (), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    if ours.score is not None:
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)
    return replace(ours, logprobs=None, score=None) == replace(theirs, logprobs=None, score=None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {"logprobs": 2},
        {**SAMPLED, "n": 3},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.8},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 4, **SAMPLED},
        {"prompt_lookup": 4, "stop": ["e", "fox"]},
    ],
    ids=["greedy", "sampled", "beams", "penalties", "lookup"],
)
def test_a_batch_gives_what_each_gives_alone(family: str, options: dict[str, Any]) -> None:
    lm = opened(family)
    together = lm.answers(TEXTS, max_new_tokens=12, **options)
    for text, answers in zip(TEXTS, together, strict=True):
        lm.engine.reset()
        (alone,) = lm.answers([text], max_new_tokens=12, **options)
        assert len(answers) == len(alone) == options.get("n", options.get("num_return_sequences", 1))
        assert all(map(alike, answers, alone))
    if options.get("n", 1) == 1 and "num_beams" not in options:
        plain = {name: value for name, value in options.items() if name != "logprobs"}
        texts = [answers[0].text for answers in together]
        assert [lm.generate(text, max_new_tokens=12, **plain) for text in TEXTS] == texts
        assert ["".join(lm.stream(text, max_new_tokens=12, **plain)) for text in TEXTS] == texts


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_padding_and_forbidden_ids_never_come(family: str) -> None:
    lm = opened(family)
    forbidden = lm.tokenizer.encode("the quick brown fox")
    wild: dict[str, Any] = {"temperature": 50.0, "max_new_tokens": 60, "forbidden": forbidden, "seed": 1}
    answers = [*lm.answers(TEXTS, n=2, **wild), *lm.answers(TEXTS, num_beams=3, max_new_tokens=8, forbidden=forbidden)]
    ids = [index for several in answers for answer in several for index in answer.ids]
    assert len(ids) > 100
    assert max(ids) < lm.tokenizer.vocab_size
    assert not {*ids} & {*forbidden}
    if lm.parts.family is not None and lm.parts.family.chat is not None:
        job = lm.chat_job([{"role": "user", "content": "the fox"}], wild)
        lm.engine.run(lm.engine.submit(job))
        assert max(job.answers[0].ids) < lm.tokenizer.vocab_size
        assert not {*job.answers[0].ids} & {*forbidden}


@pytest.mark.parametrize("family", FAMILIES)
def test_stop_texts_end_wherever_tokens_do(family: str) -> None:
    """Every short piece of the text as a stop: what comes before its first place, and not a letter of it, comes out."""
    lm = opened(family)
    whole = lm.generate("the fox", max_new_tokens=24)
    assert len(whole) > 12
    for start in range(0, len(whole) - 3, 5):
        stop = whole[start : start + 3]
        if "\ufffd" in stop:
            continue
        before = whole[: whole.index(stop)]
        ((answer,),) = lm.answers(["the fox"], max_new_tokens=24, stop=[stop, "never seen"])
        assert (answer.text, answer.finish, answer.stop, answer.stop_id) == (before, "stop", stop, None)
        assert "".join(lm.stream("the fox", max_new_tokens=24, stop=stop)) == before


def test_stop_ids_besides_the_models_own() -> None:
    lm = opened("chatglm2")
    ids = lm.answers(["the fox"], max_new_tokens=12)[0][0].ids
    place = ids.index(ids[6])
    ((answer,),) = lm.answers(["the fox"], max_new_tokens=12, stop_ids=[ids[6]])
    assert (answer.ids, answer.finish, answer.stop_id) == (ids[:place], "stop", ids[6])


def test_streams_take_turns_in_one_thread() -> None:
    for family in ("glm", "chatglm", "glm-4"):
        lm = opened(family)
        expected = [lm.generate(text, max_new_tokens=15, **SAMPLED) for text in TEXTS]
        streams = [lm.stream(text, max_new_tokens=15, **SAMPLED) for text in TEXTS]
        texts = ["" for _ in TEXTS]
        left = set(range(len(TEXTS)))
        while left:
            for number in sorted(left):
                piece = next(streams[number], None)
                if piece is None:
                    left.discard(number)
                else:
                    texts[number] += piece
        assert texts == expected
        assert (lm.engine.rows, lm.engine.running, lm.engine.waiting) == (0, 0, 0)


def test_streams_that_nobody_wants_any_more_leave() -> None:
    lm = opened("glm")
    expected = lm.generate(TEXTS[0], max_new_tokens=20)
    gone = [lm.stream(text, max_new_tokens=400) for text in TEXTS[1:]]
    kept = lm.stream(TEXTS[0], max_new_tokens=20)
    first = next(kept)
    for stream in gone:
        next(stream)
    wait_for(lambda: lm.engine.rows in (len(TEXTS), len(TEXTS) - 1))  # the short one may be done
    gone[0].close()
    wait_for(lambda: lm.engine.rows <= len(TEXTS) - 1)
    del gone, stream
    wait_for(lambda: lm.engine.rows <= 1)
    assert first + "".join(kept) == expected
    wait_for(lambda: lm.engine.rows == 0)


def test_threads_share_an_engine() -> None:
    lm = opened("chatglm2")
    texts = TEXTS * 2
    expected = [lm.generate(text, max_new_tokens=15, **SAMPLED) for text in texts]
    replies = [lm.chat(text, max_new_tokens=15, seed=3)[0] for text in texts]
    found: dict[int, tuple[str, str, Any]] = {}

    def ask(number: int) -> None:
        streamed = "".join(lm.stream(texts[number], max_new_tokens=15, **SAMPLED))
        whole = lm.generate(texts[number], max_new_tokens=15, **SAMPLED)
        found[number] = (streamed, whole, lm.chat(texts[number], max_new_tokens=15, seed=3)[0])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(texts))] == list(zip(expected, expected, replies, strict=True))


def test_token_ids_are_a_whole_prompt() -> None:
    for family in ("glm", "chatglm", "chatglm2"):
        lm = opened(family)
        prompt = lm.prompts.continuation("the fox")
        ((whole,),) = lm.answers(["the fox"], max_new_tokens=10, forbidden=sorted(lm.prompts.never_in_spans))
        options: dict[str, Any] = {"max_new_tokens": 10, "forbidden": sorted(lm.prompts.never_in_spans)}
        assert lm.answers([prompt.ids, [lm.special.pad, *prompt.ids]], **options) == [[whole], [whole]]
        bare = LM(replace(lm.parts, tokenizer=None))
        ((found,),) = bare.answers([prompt.ids], **{**options, "forbidden": [*options["forbidden"], *range(
            lm.tokenizer.vocab_size, lm.config.vocab_size)]})  # fmt: skip
        assert (found.ids, found.text) == (whole.ids, None)
    with pytest.raises(RequestError, match="stop texts need a tokenizer"):
        bare.answers([prompt.ids], stop=["x"])


def test_jobs_tell_what_they_do() -> None:
    lm = opened("chatglm3")
    heard: list[Piece | Ended] = []
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "the fox"}]
    job = lm.chat_job(messages, {"n": 2, "max_new_tokens": 9, "seed": 5, "logprobs": 1}, listener=heard.append)
    assert (job.dropped, job.max_sequences) == (0, 2)
    assert job.prompt_tokens == len(lm.chat_template.build(lm.tokenizer, to_messages(messages)))  # type: ignore[arg-type]
    lm.engine.run(lm.engine.submit(job))
    for number, answer in enumerate(job.answers):
        own = [event for event in heard if event.number == number]
        assert isinstance(own[-1], Ended)
        assert own[-1].answer == answer
        pieces = [event for event in own if isinstance(event, Piece)]
        assert "".join(piece.text for piece in pieces) == answer.text
        assert [token for piece in pieces for token in piece.tokens] == answer.ids
        assert [item for piece in pieces for item in piece.logprobs] == answer.logprobs
        response, longer = job.reply(number)
        assert [message.role for message in longer[:3]] == ["system", "user", "assistant"]
        if isinstance(response, str) and len(longer) == 3:
            assert response == answer.text
    assert job.answers[0].ids != job.answers[1].ids


def test_a_conversation_that_does_not_fit_is_trimmed_or_refused() -> None:
    lm = small_chat("chatglm2", max_positions=120)
    turns = [{"role": role, "content": "the fox"} for _ in range(9) for role in ("user", "assistant")]
    messages = [*turns, {"role": "user", "content": "dog"}]
    with pytest.raises(RequestError, match=r"the conversation's prompt of \d+ tokens and 20 for the reply exceed 120"):
        lm.chat_job(messages, {"max_new_tokens": 20})
    with pytest.raises(RequestError, match=r"the conversation's prompt of \d+ tokens and 1 for the reply exceed 120"):
        lm.chat_job(messages)
    job = lm.chat_job(messages, {"max_new_tokens": 20}, trim=True)
    assert job.dropped > 0
    assert job.prompt_tokens + 20 <= 120
    lm.engine.run(lm.engine.submit(job))
    assert len(job.reply()[1]) == len(messages) + 1


@pytest.mark.parametrize("family", ["chatglm", "chatglm2", "chatglm3", "glm-4"])
def test_chat_takes_the_options_of_decoding(family: str) -> None:
    lm = opened(family)
    plain: dict[str, Any] = {"temperature": 0, "max_new_tokens": 20}
    steps = list(lm.chat_steps("the fox", logprobs=1, **plain))
    ids = [item.token for step in steps for item in step.logprobs]
    assert len(ids) == steps[-1].tokens
    banned = [
        item.token
        for step in lm.chat_steps("the fox", forbidden=ids[:2], logprobs=0, **plain)
        for item in step.logprobs
    ]
    assert not {*banned} & {*ids[:2]}
    ended = list(lm.chat_steps("the fox", stop_ids=[ids[5]], **plain))
    assert (ended[-1].tokens, ended[-1].finish) == (ids.index(ids[5]), "stop")
    text = "".join(step.piece for step in steps)
    if len(text) > 8:
        stop = text[6:8]
        before = text[: text.index(stop)]
        short = list(lm.chat_steps("the fox", stop=stop, **plain))
        assert ("".join(step.piece for step in short), short[-1].finish) == (before, "stop")
        assert lm.chat("the fox", stop=stop, **plain)[0] == before
        assert list(lm.stream_chat("the fox", stop=stop, **plain))[-1][0] == before
    assert lm.chat("the fox", prompt_lookup=5, **plain) == lm.chat("the fox", **plain)
    beams = lm.chat("the fox", num_beams=3, max_new_tokens=6)
    assert beams == lm.chat("the fox", num_beams=3, max_new_tokens=6, seed=8)  # nothing is drawn
    assert lm.chat("the fox", repetition_penalty=None, top_k=None, **plain) == lm.chat("the fox", **plain)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda lm: lm.generate("a", n=2), "n is 2, but this gives one answer; use answers"),
        (lambda lm: lm.generate("a", num_beams=3, num_return_sequences=2), "num_return_sequences is 2, but .* answers"),
        (lambda lm: lm.stream("a", logprobs=1), "logprobs is 1, but this gives text alone; use answers"),
        (lambda lm: lm.fill("a [MASK]", n=2), "n is 2, but this gives one answer; use fill_job"),
        (lambda lm: lm.fill("a [MASK]", stop="x"), "stop does not go with blanks; use stop_ids"),
        (lambda lm: lm.fill("a [MASK]", max_new_tokens=2), "max_new_tokens is not an option of blanks; give"),
        (lambda lm: lm.fill("a [MASK]", max_token=2), "unknown option 'max_token'; did you mean 'max_tokens'"),
        (lambda lm: lm.generate("a", beams=2), "unknown option 'beams'; did you mean 'num_beams'"),
        (lambda lm: lm.generate("a", temperature=None), "temperature is None; give a number"),
        (lambda lm: lm.answers("a"), "texts is one str; give a list of texts, or use generate"),
        (lambda lm: lm.answers([1, 2]), "text is 1; give a text"),
        (lambda lm: lm.answers([[1, "x"]]), "an id of text 0 is 'x'; give a whole number"),
        (lambda lm: lm.answers([[]]), "text 0 has no tokens"),
        (lambda lm: lm.answers(["a", [10**6]]), "text 1 has the id 1000000; the model's ids are 0 to "),
        (lambda lm: lm.answers(["a", "the fox " * 400]), r"text 1 has \d+ tokens, the model takes 512"),
        (lambda lm: lm.continue_job("a", {"nn": 1}), "unknown option 'nn'; did you mean 'n'"),
        (lambda lm: lm.chat_job([]), "was not taught to chat"),
    ],
)  # fmt: skip
def test_mistakes(call: Callable[[LM], Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        call(opened("glm"))


def test_chat_gives_one_answer() -> None:
    lm = opened("chatglm2")
    for name, reason in (("n", "n is 2, but this gives one answer; use chat_job"), ("logprobs", "logprobs is 2, but")):
        for method in (lm.chat, lm.stream_chat):
            with pytest.raises(RequestError, match=reason):
                method("q", **{name: 2})  # type: ignore[arg-type]


def test_options_are_all_typed() -> None:
    names = {field.name for field in fields(GenerationParams)}
    assert set(get_type_hints(GenerationOptions)) == names
    assert set(get_type_hints(ChatOptions)) == names | {"system", "role", "tools", "max_length", "specials"}


def test_another_engine() -> None:
    lm = small_base()
    expected = lm.answers(TEXTS, max_new_tokens=9)
    engine = lm.start_engine(EngineLimits(tokens=256, rows=2), allocate=True)
    assert engine is lm.engine
    assert lm.answers(TEXTS, max_new_tokens=9) == expected
    with pytest.raises(RequestError, match="3 answers or beams at once are more than this engine's 2 rows"):
        lm.answers(TEXTS, n=3)
    assert (lm.engine.rows, lm.engine.waiting) == (0, 0)
    stream = lm.stream("the fox", max_new_tokens=200)
    next(stream)
    with pytest.raises(RequestError, match="1 requests run on the engine; replace it when they are done"):
        lm.start_engine()
    del stream
    lm.start_engine()
    assert lm.answers(TEXTS, max_new_tokens=9) == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"num_beams": 3}], ids=str)
def test_where_nothing_may_come_answers_are_empty(family: str, options: dict[str, Any]) -> None:
    lm = opened(family)
    options = {**options, "forbidden": range(lm.config.vocab_size), "stop_ids": ()}
    assert lm.generate("the fox", **options) == ""
    assert list(lm.stream("the fox", **options)) == []
    if family in CHAT_FAMILIES:
        assert lm.chat("the fox", **options)[0] == ""
