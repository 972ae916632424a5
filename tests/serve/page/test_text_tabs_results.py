"""Answers in their text, as HTML that runs nothing."""

from html.parser import HTMLParser

import pytest

from glmkit.serve.page.text_tabs import BlankedText, continued

MASKS = ("[MASK]", "[sMASK]", "[gMASK]")


class _Reader(HTMLParser):
    """The text of a piece of HTML, what is marked in it, and every tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.marked, self.tags = "", [], []  # type: ignore[var-annotated]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag == "mark":
            self.marked.append("")

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags[-1] == "mark":
            self.marked[-1] += data


def test_blanks_wait_are_written_and_are_done() -> None:
    text = BlankedText("a [MASK] b [gMASK] c[sMASK]", MASKS)
    read = _Reader(text.html(["x", "y", ""], [True, False, False]))
    assert read.text == "a x b y c[sMASK]"
    assert read.marked == ["x", "y", "[sMASK]"]


@pytest.mark.parametrize(
    ("text", "answers", "final"),
    [
        ("a [MASK] b", ["x"], "a x b"),
        ("a [MASK] b", [", x"], "a, x b"),
        ("[MASK][MASK]", ["x", ""], "x"),
        ("a[MASK]a[MASK]a", ["a", "aa"], "aaaaaa"),
        ("a  [MASK]", ["<b>"], "a<b>"),
    ],
)
def test_the_final_text_is_the_servers(text: str, answers: list[str], final: str) -> None:
    read = _Reader(BlankedText(text, MASKS).final(final, answers))
    assert read.text == final
    assert read.marked == answers


def test_a_text_that_does_not_match_is_shown_without_marks() -> None:
    read = _Reader(BlankedText("a [MASK] b", MASKS).final("something else", ["x"]))
    assert (read.text, read.marked) == ("something else", [])


def test_everything_is_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>&amp;\"'"
    blanked = BlankedText(f"{evil}[MASK]{evil}", MASKS)
    for html in (
        blanked.html([evil], [True]),
        blanked.final(evil * 3, [evil]),
        blanked.final("no" + evil, [evil]),
        continued(evil, evil, over=True),
    ):
        read = _Reader(html)
        assert set(read.tags) <= {"div", "/div", "mark", "/mark"}
        assert evil in read.text
