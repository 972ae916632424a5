"""Identifiers in Python source."""

from glmkit.demo.blanks import identifiers


def names(text: str) -> list[str] | None:
    spans = identifiers(text)
    return None if spans is None else [text[start:end] for start, end in spans]


def test_names_in_order_without_keywords_comments_and_strings():
    text = 'def add(first, *, größe=1):  # the sum\n    """Adds first."""\n    return first + größe if True else None\n'
    assert names(text) == ["add", "first", "größe", "first", "größe"]


def test_spans_hold_after_characters_that_end_lines_elsewhere():
    # Form feed and the Unicode separators end a line for str.splitlines, but not for Python.
    assert names("x = 1\n\x0c\ny = 'a\u2028b'\nzed = y\n") == ["x", "y", "zed", "y"]


def test_continued_lines_and_brackets():
    assert names("value = (one +\n         two) \\\n    + three\n") == ["value", "one", "two", "three"]


def test_what_is_not_python_has_none():
    assert identifiers("print (((\n") is None
    assert identifiers("if x:\n        y\n   z\n") is None
