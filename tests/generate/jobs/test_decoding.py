"""The text of answers as it is written: pieces, stop texts, events."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from glmkit.generate.detokenize import ChatDetokenizer, Detokenizer, StopText
from glmkit.generate.jobs.answers import AnswersJob
from glmkit.generate.outputs import Ended, Piece
from glmkit.generate.params import GenerationParams
from glmkit.generate.prompt import Prompt
from glmkit.tokenizer.incremental import IncrementalDecoder
from glmkit.tokenizer.protocol import Tokenizer
from glmkit.tokenizer.training import train_tokenizer
from support.kinds import KINDS
from support.tiny import tiny_config
from tokenizer.test_chat_template import TEMPLATE, TOKENIZER

Told = list[Piece | Ended]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["The quick brown fox.\n", "凯旋门是为纪念胜利而建的，位于巴黎。"] * 20, vocab_size=290)


def say(ids: list[int], detokenizer: Callable[[], Detokenizer] | None, **options: Any) -> tuple[AnswersJob, Told]:
    """An answer of these tokens, whatever a model would say, or of fewer; 999 ends it."""
    config, told = tiny_config(**KINDS["causal"], vocab_size=1000), []
    params = GenerationParams(**{"max_new_tokens": len(ids), **options})
    job = AnswersJob(
        Prompt.of([20], config, stops=[999]), params, config, detokenizer=detokenizer, listener=told.append
    )
    branches = job.start()
    for token in ids:
        logits = torch.zeros(1, 1000)
        logits[0, token] = 9.0
        branches = job.advance([logits] * len(branches))
        if not branches:
            break
    assert not branches
    return job, told


def pieces(told: Told) -> str:
    return "".join(event.text for event in told if isinstance(event, Piece))


def test_pieces_joined_are_the_text(tokenizer: Tokenizer) -> None:
    """Also where characters are torn apart: nothing of one is shown before it is whole."""
    draw = random.Random(1)
    for _ in range(60):
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(1, 30))]
        if draw.random() < 0.5:
            ids = tokenizer.encode("凯旋门 The 🦊 纪念")[: draw.randrange(1, 30)]
        job, told = say(ids, lambda: IncrementalDecoder(tokenizer))
        (answer,) = job.answers
        assert answer.text == tokenizer.decode(ids) == pieces(told)
        *told, ended = told
        assert ended == Ended(0, answer)
        assert [token for piece in told if isinstance(piece, Piece) for token in piece.tokens] == ids == answer.ids
        assert all(len(piece.tokens) == 1 for piece in told[: len(ids)] if isinstance(piece, Piece))


def test_stop_texts_end_an_answer_wherever_tokens_are_cut(tokenizer: Tokenizer) -> None:
    """The text ends before the first stop that is complete; the token that completed it is the last one."""
    draw, whole = random.Random(2), "凯旋门是为纪念胜利。The quick brown fox.\nThe end"
    possible = ["quick", "旋门", "fox.\nThe", "念胜", "x", "zzz", "end", "en", "d", "The quick b", "利。T"]
    stopped = 0
    for _ in range(100):
        ids = tokenizer.encode(whole)
        stops = [draw.choice(possible) for _ in range(draw.randrange(1, 4))]
        job, told = say(ids, lambda: IncrementalDecoder(tokenizer), stop=tuple(stops))
        (answer,) = job.answers
        expected = StopText(stops)
        text = "".join(map(expected.feed, whole)) + expected.finish()
        assert (answer.text, answer.stop) == (text, expected.found)
        assert pieces(told) == text
        assert answer.finish == ("length" if expected.found is None else "stop")
        if expected.found is not None:
            stopped += 1
            full = text + expected.found
            assert tokenizer.decode(answer.ids).startswith(full)
            assert full not in tokenizer.decode(answer.ids[:-1])
    assert stopped > 50


class Late:
    """A reader that gives everything at the end."""

    def __init__(self) -> None:
        self.text = ""

    def push(self, token: int) -> str:
        self.text += chr(token)
        return ""

    def flush(self) -> str:
        return self.text


def test_a_stop_that_is_found_at_the_end() -> None:
    job, told = say([ord(letter) for letter in "to be or"], Late, stop=("be",))
    (answer,) = job.answers
    assert (answer.text, answer.finish, answer.stop, len(answer.ids)) == ("to ", "stop", "be", 8)
    assert told[-2:] == [Piece(0, "to "), Ended(0, answer)]


def test_what_was_held_back_comes_at_the_end() -> None:
    job, told = say([ord(letter) for letter in "oneEN"], Letters, stop=("END",))
    assert (job.answers[0].text, job.answers[0].finish, job.answers[0].stop) == ("oneEN", "length", None)
    assert [event.text for event in told if isinstance(event, Piece)] == ["o", "n", "e", "", "", "EN"]
    job, _ = say([*map(ord, "oneEN"), 999], Letters, stop=("END",))
    assert (job.answers[0].text, job.answers[0].finish, job.answers[0].stop_id) == ("oneEN", "stop", 999)


class Letters:
    """A reader of characters."""

    def push(self, token: int) -> str:
        return chr(token)

    def flush(self) -> str:
        return ""


def test_a_stop_text_and_the_last_token_at_once() -> None:
    job, told = say([ord(letter) for letter in "abc"], Letters, stop=("bc",))
    (answer,) = job.answers
    assert (answer.text, answer.finish, answer.stop) == ("a", "stop", "bc")
    assert told[-1] == Ended(0, answer)


def test_tokens_come_with_their_logprobs() -> None:
    job, told = say([70, 71, 72], Letters, logprobs=1)
    (answer,) = job.answers
    assert [entry for event in told if isinstance(event, Piece) for entry in event.logprobs] == answer.logprobs
    silent, events = say([70, 71], None)
    assert [answer.text for answer in silent.answers] == [None]
    assert events == [Piece(0, "", (70,)), Piece(0, "", (71,)), Ended(0, silent.answers[0])]


def test_every_answer_has_its_own_detokenizer() -> None:
    made: list[Letters] = []

    def make() -> Letters:
        made.append(Letters())
        return made[-1]

    job, told = say([70, 71, 72], make, n=3, stop=("H",))
    assert len(made) == 3
    assert [answer.text for answer in job.answers] == ["FG"] * 3
    for number in range(3):
        assert pieces([event for event in told if event.number == number]) == "FG"


def test_a_reply_is_read_as_its_template_says() -> None:
    """The pieces joined are what `process_response` shows; a stop text is looked for in that."""
    ids = TOKENIZER.encode("hello world")
    reader = ChatDetokenizer(TEMPLATE, TOKENIZER)
    job, told = say(ids, lambda: reader)
    assert job.answers[0].text == pieces(told) == "HELLO WORLD"
    assert reader.stream.finish()[0] == "HELLO WORLD"
    assert reader.shown == "HELLO WORLD"
    assert say(ids, lambda: ChatDetokenizer(TEMPLATE, TOKENIZER), stop=("O W",))[0].answers[0].text == "HELL"
