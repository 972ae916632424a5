"""Cutting text at its special strings."""

import pytest

from glmkit.tokenizer.composed import Marker, MarkerTable

TABLE = MarkerTable([Marker("[M]", 1, "left"), Marker("<s>", 2), Marker("<b>", 3, "both"), Marker("<b>>", 4)])


@pytest.mark.parametrize(
    ("text", "plain", "ids"),
    [
        ("", [""], []),
        (" no mark ", [" no mark "], []),
        ("a  [M]  b", ["a", "  b"], [1]),
        ("a <s> b", ["a ", " b"], [2]),
        ("a\n<b>\t b", ["a", "b"], [3]),
        ("<b>> x", ["", " x"], [4]),
        (" [M] [M] ", ["", "", " "], [1, 1]),
        ("<s> [M]<b> <s>", ["", "", "", "", ""], [2, 1, 3, 2]),
    ],
)
def test_parts(text: str, plain: list[str], ids: list[int]) -> None:
    assert TABLE.split(text) == (plain, ids)


def test_the_text_without_swallowed_space() -> None:
    assert TABLE.without_space(" a [M] b <b> c <s> d") == " a[M] b<b>c <s> d"
    assert MarkerTable([]).split(" x ") == ([" x "], [])
