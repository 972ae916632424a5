"""Stop texts: every way to cut a text into pieces shows the same."""

import itertools
import random

import pytest

from glmkit.generate.detokenize import StopText


def shown(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    reader = StopText(stops)
    text = "".join(reader.feed(piece) for piece in pieces)
    return text + reader.finish(), reader.found


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["END"], "one END two END", ("one ", "END")),
        (["END"], "one EN", ("one EN", None)),
        (["b", "abc"], "xabc", ("xa", "b")),
        (["bc", "abc"], "xabc", ("x", "abc")),
        (["aab"], "aaab", ("a", "aab")),
        (["你好", "。"], "说你好。", ("说", "你好")),
        (["\n\n"], "a\n\n\n", ("a", "\n\n")),
        (["x"], "", ("", None)),
        ([], "all of it", ("all of it", None)),
        (["abab", "ba"], "aabab", ("aa", "ba")),
    ],
)
def test_however_it_is_cut(stops: list[str], text: str, expected: tuple[str, str | None]) -> None:
    for size in range(min(len(text), 7)):
        for cuts in itertools.combinations(range(1, len(text)), size):
            pieces = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
            assert shown(stops, pieces) == expected, pieces


def test_random_texts_against_growing_prefixes() -> None:
    """The stop that is complete first, looked for in every prefix of the text."""
    draw = random.Random(4)
    for _ in range(2000):
        text = "".join(draw.choices("ab", k=draw.randrange(12)))
        stops = ["".join(draw.choices("ab", k=draw.randrange(1, 5))) for _ in range(draw.randrange(4))]
        ended = next((text[:n] for n in range(len(text) + 1) if text[:n].endswith(tuple(stops))), None)
        expected: tuple[str, str | None] = (text, None)
        if ended is not None:
            found = max((stop for stop in stops if ended.endswith(stop)), key=len)
            expected = (ended.removesuffix(found), found)
        pieces, rest = [], text
        while rest:
            size = draw.randrange(1, 4)
            pieces, rest = [*pieces, rest[:size]], rest[size:]
        assert shown(stops, pieces) == expected, (text, stops, pieces)


def test_text_without_a_stop_is_not_kept_waiting() -> None:
    reader = StopText(["\n问："])
    assert [reader.feed(piece) for piece in ("你好", "\n", "再见\n问", "题")] == ["你好", "", "\n再见", "\n问题"]
