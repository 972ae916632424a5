"""Tokens, their bytes, and where they are."""

import dataclasses

import pytest
from demo_texts import ADDER

from glmkit.demo.pieces import blankable, pieces, special_ids, tokenize
from glmkit.errors import TokenizerError


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
        assert document.starts[-1] == len(document.text)
        for index, start, end in zip(document.ids, document.starts[:-1], document.starts[1:], strict=True):
            piece = spelled[index]
            if piece.isascii():
                assert document.text[start:end].encode() == piece


def test_a_boundary_inside_a_character_counts_as_its_start(tokenizer, spelled):
    text = "a加b"
    found = tokenize(tokenizer, [("t", text)], spelled)[0]
    lengths = [len(spelled[index]) for index in found.ids]
    assert max(lengths) < 3  # the character is in pieces
    offsets = [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    expected = {0: 0, 1: 1, 2: 1, 3: 1, 4: 2, 5: 3}
    assert found.starts.tolist() == [expected[offset] for offset in offsets]


def test_text_that_does_not_come_back_is_refused(tokenizer, spelled):
    with pytest.raises(TokenizerError, match=r"adder\.py do not spell it"):
        tokenize(tokenizer, [("adder.py", ADDER)], [piece.upper() for piece in spelled])


def test_special_ids_come_from_the_roles(tokenizer):
    assert set(dataclasses.asdict(tokenizer.special).values()) == special_ids(tokenizer)
    assert pieces(tokenizer)[tokenizer.special.mask] == b""
