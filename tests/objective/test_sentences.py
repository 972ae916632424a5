import numpy as np

from glmkit.objective.sentences import sentence_end_table


class Vocabulary:
    """Pieces as (spelling in the vocabulary, decoded text)."""

    def __init__(self, pieces: list[tuple[str, str]]) -> None:
        self.pieces = pieces
        self.vocab_size = len(pieces)

    def id_to_token(self, index: int) -> str:
        return self.pieces[index][0]

    def decode(self, ids: list[int], *, skip_specials: bool = True) -> str:
        return "".join(self.pieces[index][1] for index in ids)


PIECES = [
    ("word", "word", False),
    ("e.g.", "e.g.", True),  # a mark anywhere in the piece counts
    ("▁Why?", " Why?", True),
    ("Ċ", "\n", True),  # byte-level spelling of a newline
    ("ãĢĤ", "。", True),  # and of a Chinese full stop
    ("ãĢ", "\ufffd", False),  # a part of it alone
    ("<0x0A>", "\n", True),  # byte fallback
    ("<0x3B>", ";", True),
    ("：", "：", False),  # the full-width colon is none
    ("……", "……", True),
    (".", "", False),  # a special token that happens to be spelt like a mark decodes to nothing
    ("你好！", "你好！", True),
]


def test_marks_in_spelling_and_text() -> None:
    table = sentence_end_table(Vocabulary([piece[:2] for piece in PIECES]))
    assert table.dtype == np.bool_
    assert table.tolist() == [expected for _, _, expected in PIECES]


def test_without_the_chinese_marks() -> None:
    table = sentence_end_table(Vocabulary([piece[:2] for piece in PIECES]), chinese=False)
    found = {PIECES[index][1] for index in np.flatnonzero(table)}
    assert found == {"e.g.", " Why?", "\n", ";"}
