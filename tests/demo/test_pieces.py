"""Tokens, their bytes, and where they are."""

import dataclasses

import pytest

from glmkit.demo.blanks import blankable, pieces, special_ids, tokenize_texts
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
