"""Blanks: where they may be, what they hide, what they show."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest

from glmkit.demo.blanks import (
    KINDS,
    MULTI_LENGTHS,
    MULTI_MEAN,
    Blank,
    Tokenized,
    blankable,
    draw,
    identifiers,
    pieces,
    special_ids,
    tokenize_texts,
)
from glmkit.errors import DataError, TokenizerError

EOS = 0


@pytest.fixture
def ask(documents, allowed, spelled):
    def call(kind, count, **changes):
        options = {"allowed": allowed, "spelled": spelled, "eos": EOS, "window": 24, "seed": 0} | changes
        return draw(options.pop("documents", documents), kind, count, **options)

    return call


def place(blank: Blank, documents: list[Tokenized]) -> tuple[Tokenized, int]:
    """The document and the token number of a blank, from its characters."""
    document = next(document for document in documents if document.name == blank.document)
    tokens = np.flatnonzero((document.starts == blank.span[0]) & (document.ids == blank.truth[0]))
    return document, int(tokens[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_blank_is_consistent_with_its_document(kind, ask, documents, spelled):
    for blank in ask(kind, 30).blanks:
        document, token = place(blank, documents)
        ids = document.ids.tolist()
        size = blank.end - blank.start
        assert blank.kind == kind
        assert blank.window[blank.start : blank.end] == blank.truth == tuple(ids[token : token + size])
        assert list(blank.window) == ids[token - blank.start : token - blank.start + len(blank.window)]
        assert blank.left == (ids[token - 1] if token else EOS)
        assert blank.right == (ids[token + size] if token + size < len(ids) else EOS)
        truth = document.text[slice(*blank.span)]
        spelling = b"".join(spelled[index] for index in blank.truth)
        assert spelling == truth.encode() if truth.isascii() else spelling in truth.encode()
        assert document.text[: blank.span[0]].count("\n") + 1 == blank.line


@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_full_and_centred_within_the_document(kind, ask, documents):
    for blank in ask(kind, 30).blanks:
        document, token = place(blank, documents)
        assert len(blank.window) == 24 < len(document.ids)
        before, after = blank.start, len(blank.window) - blank.end
        first, last = token - before, token - before + len(blank.window)
        if first > 0 and last < len(document.ids):
            assert abs(before - after) <= 1


def test_a_short_document_is_its_own_window(ask, documents):
    blank = ask("single_token", 5, window=10_000).blanks[0]
    document = next(document for document in documents if document.name == blank.document)
    assert blank.window == tuple(document.ids.tolist())


def test_single_tokens_are_uniform_over_what_is_not_white_space(ask, documents, allowed):
    places = sum(int(allowed[document.ids].sum()) for document in documents)
    everything = ask("single_token", places)
    assert everything.places == places
    whole = {"window": 10_000}  # windows are whole documents, so `start` is the token's number
    assert len({(blank.document, blank.start) for blank in ask("single_token", places, **whole).blanks}) == places
    drawn = (blank for seed in range(300) for blank in ask("single_token", 20, seed=seed, **whole).blanks)
    seen = Counter((blank.document, blank.start) for blank in drawn)
    assert len(seen) == places  # 6000 draws over a few hundred places miss none
    mean = 6000 / places
    assert sum((count - mean) ** 2 / mean for count in seen.values()) < places + 5 * math.sqrt(2 * places)


def test_runs_have_the_stated_lengths_and_no_white_ends(ask, allowed):
    lengths = Counter()
    for seed in range(60):
        for blank in ask("multi_token", 50, seed=seed).blanks:
            assert allowed[blank.truth[0]]
            assert allowed[blank.truth[-1]]
            lengths[len(blank.truth)] += 1
    assert set(lengths) == set(MULTI_LENGTHS)
    weights = [MULTI_MEAN**length / math.factorial(length) for length in MULTI_LENGTHS]
    for length, weight in zip(MULTI_LENGTHS, weights, strict=True):
        # Not exact: places where a run would end in white space are drawn again.
        assert lengths[length] / 3000 == pytest.approx(weight / sum(weights), abs=0.05)


def test_identifiers_are_whole_names(ask, documents):
    names = {
        (document.name, start): document.text[start:end]
        for document in documents
        for start, end in identifiers(document.text)
    }
    found = ask("identifier", 40)
    assert found.places + sum(found.left_out.values()) == len(names)
    for blank in found.blanks:
        text = next(document.text for document in documents if document.name == blank.document)
        truth = text[slice(*blank.span)]
        start = blank.span[0] + truth.startswith(" ")
        assert names[blank.document, start] == truth.removeprefix(" ")


def test_names_crossed_by_tokens_and_unreadable_sources_are_counted():
    spelled = [b"", b"x.", b"value", b" = ", b"1", b"\n", b"(("]
    texts = [("a.py", "x.value = 1\n", [1, 2, 3, 4, 5]), ("b.py", "((value", [6, 2])]
    documents = []
    for name, text, ids in texts:
        bounds = np.cumsum([0, *(len(spelled[index]) for index in ids)])
        documents.append(Tokenized(name, text, np.array(ids), bounds[:-1], bounds[1:]))
    found = draw(documents, "identifier", 1, allowed=np.ones(7, bool), spelled=spelled, eos=0, window=18)
    assert found.left_out == {"not_python": 1, "token_crosses_name": 1, "too_long": 0}
    assert found.places == 1
    blank = found.blanks[0]
    assert (blank.truth, blank.left, blank.right, blank.span, blank.line) == ((2,), 1, 3, (2, 7), 1)


def test_the_seed_and_the_kind_decide(ask):
    assert ask("single_token", 20) == ask("single_token", 20)
    assert ask("single_token", 20).blanks != ask("single_token", 20, seed=1).blanks


def test_too_much_asked_is_named(ask, documents):
    with pytest.raises(DataError, match=r"5000 single_token blanks asked for, but the text has \d+ places"):
        ask("single_token", 5000)
    with pytest.raises(DataError, match="5000 multi_token blanks asked for, but only"):
        ask("multi_token", 5000)
    with pytest.raises(DataError, match="identifier blanks asked for"):
        ask("identifier", 5000)
    with pytest.raises(DataError, match="window of 8 tokens"):
        ask("single_token", 1, window=8)
    with pytest.raises(DataError, match="has 0 places"):
        ask("single_token", 1, documents=[])


# --- Identifiers in Python source -------------------------------------------------------------------------------------


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


# --- Tokens, their bytes, and where they are --------------------------------------------------------------------------


def test_pieces_spell_and_specials_do_not(tokenizer, spelled):
    assert len(spelled) == tokenizer.vocab_size
    ids = tokenizer.encode("def add(naïve, 加)")
    assert b"".join(spelled[index] for index in ids).decode() == "def add(naïve, 加)"
    assert {index for index, piece in enumerate(spelled) if not piece} == special_ids(tokenizer)
    assert len(special_ids(tokenizer)) == 11


def test_blanks_hold_neither_specials_nor_white_space():
    spelled = [b"", b" ", b"\n    ", b" x", b"\xe5", "\u3000".encode(), b".", b"\t"]
    assert blankable(spelled).tolist() == [False, False, False, True, True, False, True, False]


def test_tokens_are_where_they_say(documents, spelled):
    for document in documents:
        assert document.starts[0] == 0
        assert document.ends[-1] == len(document.text)
        for index, start, end in zip(document.ids, document.starts, document.ends, strict=True):
            assert spelled[index] in document.text[start:end].encode()
            if spelled[index].isascii():
                assert spelled[index] == document.text[start:end].encode()


def test_parts_of_a_character_are_all_where_it_is(tokenizer, spelled):
    found = tokenize_texts(tokenizer, [("t", "a力b")], spelled)[0]
    assert [spelled[index] for index in found.ids] == [b"a", b"\xe5", b"\x8a", b"\x9b", b"b"]
    assert found.starts.tolist() == [0, 1, 1, 1, 2]
    assert found.ends.tolist() == [1, 2, 2, 2, 3]


def test_text_that_does_not_come_back_is_refused(tokenizer, documents, spelled):
    with pytest.raises(TokenizerError, match=r"adder\.py do not spell it"):
        tokenize_texts(tokenizer, [("adder.py", documents[0].text)], [piece.upper() for piece in spelled])


def test_special_ids_come_from_the_roles(tokenizer):
    assert set(dataclasses.asdict(tokenizer.special).values()) == special_ids(tokenizer)
    assert pieces(tokenizer)[tokenizer.special.mask] == b""
