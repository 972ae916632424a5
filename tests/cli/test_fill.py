"""`glm fill`: why each answer ended, what is empty or cut, and marks in a terminal."""

import json
import sys

import pytest

from glmkit.cli.fill import marked_text
from glmkit.cli.main import main
from glmkit.session import LM, Filled
from support.chat import say
from support.served_models import small_base

TEXT = "The quick brown [MASK] jumps over the [MASK] dog."


@pytest.fixture
def lm(monkeypatch: pytest.MonkeyPatch) -> LM:
    lm = small_base()
    monkeypatch.setattr("glmkit.cli.text_input.load", lambda *_, **__: lm)
    return lm


def ids(lm: LM, text: str, *, ends: bool = True) -> list[int]:
    return [*lm.tokenizer.encode(text), *([lm.special.eop] if ends else [])]


def test_every_blank_says_why_it_ended(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, [*ids(lm, "fox"), *ids(lm, "very lazy", ends=False)])
    filled = lm.fill(TEXT, max_tokens=len(lm.tokenizer.encode("very lazy")))
    assert filled.finish == ["stop", "length"]
    assert filled.blanks == ["fox", "very lazy"]
    assert "".join([filled.around[0], "fox", filled.around[1], "very lazy", filled.around[2]]) == filled.text


def test_empty_answers_are_told(lm: LM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    say(monkeypatch, [lm.special.eop, lm.special.eop])
    assert main(["fill", "M", TEXT]) == 0
    said = capsys.readouterr()
    assert said.out == "The quick brown jumps over the dog.\n"
    assert said.err == "glm fill: blanks 1, 2 are empty (the model has nothing to put there)\n"


def test_cut_and_empty_answers_in_json(
    lm: LM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = ids(lm, "fox fox", ends=False)
    say(monkeypatch, [lm.special.eop, *long])
    assert main(["fill", "M", TEXT, "--json", "--max_tokens", str(len(long))]) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert set(answer) == {"text", "blanks", "ids", "finish"}
    assert answer["finish"] == ["stop", "length"]
    assert answer["ids"] == [[], long]
    assert said.err == (
        "glm fill: blank 1 is empty (the model has nothing to put there), "
        f"blank 2 is cut at the longest length (--max_tokens {len(long)})\n"
    )


def test_whole_answers_need_no_words(
    lm: LM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say(monkeypatch, [*ids(lm, "fox"), *ids(lm, "dog")])
    assert main(["fill", "M", TEXT]) == 0
    assert capsys.readouterr().err == ""


FILLED = Filled("a b c", ["b", ""], [[1], []], ["length", "stop"], ["a ", " c", ""])


def test_marks_in_a_terminal(lm: LM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert marked_text(FILLED, colour=False) == "a [b…] c[]"
    assert marked_text(FILLED, colour=True) == "a \x1b[1;36m[b…]\x1b[0m c\x1b[1;36m[]\x1b[0m"
    monkeypatch.setattr(type(lm), "fill", lambda *_, **__: FILLED)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["fill", "M", TEXT]) == 0
    assert capsys.readouterr().out == "a [b…] c[]\n"
