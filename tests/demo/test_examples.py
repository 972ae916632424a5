"""Examples: the lines around a blank."""

from dataclasses import asdict

from glmkit.demo.blanks import Blank
from glmkit.demo.counts import Tuning
from glmkit.demo.examples import CONTEXT_CHARACTERS, examples
from glmkit.demo.measure import Measured

SPELLED = [b"", b"one", b" two", b"\xe5\x8a", b"\xa0"]


def blank(document: str, text: str, truth: str, *, kind="single_token") -> Blank:
    start = text.index(truth)
    line = text[:start].count("\n") + 1
    return Blank(kind, document, (1, 2), 1, 2, (2,), 1, 0, line, (start, start + len(truth)))


def measured(predictions, rivals) -> Measured:
    return Measured({}, {}, {}, {}, {}, {}, Tuning(), predictions, rivals)


def test_two_lines_on_each_side_and_what_was_said():
    text = "a\nb\nc\nd one two e\nf\ng\nh\n"
    found = examples(
        {"single_token": [blank("m.py", text, " two")]},
        measured({"single_token": [[3, 4]]}, {"left": [1], "left_right": [2]}),
        {"m.py": text},
        SPELLED,
    )
    assert [asdict(made) for made in found] == [
        {
            "kind": "single_token",
            "document": "m.py",
            "line": 4,
            "before": "b\nc\nd one",
            "truth": " two",
            "after": " e\nf\ng",
            "prediction": "加",
            "correct": False,
            "rivals": {"left": "one", "left_right": " two"},
        }
    ]


def test_ends_of_the_text_and_long_lines():
    short, wide = "x two", "a" * 1000 + " two" + "b" * 1000
    texts = {"short": short, "wide": wide}
    blanks = {"identifier": [blank(name, text, " two", kind="identifier") for name, text in texts.items()]}
    made = examples(blanks, measured({"identifier": [[2], [1]]}, {"left": [1, 1]}), texts, SPELLED)
    assert (made[0].before, made[0].truth, made[0].after, made[0].correct) == ("x", " two", "", True)
    assert (len(made[1].before), len(made[1].after)) == (CONTEXT_CHARACTERS, CONTEXT_CHARACTERS)
    assert made[1].rivals == {}


def test_the_first_drawn_of_different_documents():
    text = "one two"
    drawn = [blank(name, text, " two") for name in ("a", "a", "b", "c", "d")]
    found = examples(
        {"single_token": drawn},
        measured({"single_token": [[1], [2], [2], [2], [2]]}, {}),
        dict.fromkeys("abcd", text),
        SPELLED,
        per_kind=3,
    )
    assert [(made.document, made.correct) for made in found] == [("a", False), ("b", True), ("c", True)]
