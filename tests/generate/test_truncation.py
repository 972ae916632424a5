"""Prompts of a bounded length: tokens of the text go, those that the family puts around it stay."""

import pytest

from glmkit.errors import RequestError
from glmkit.generate.prompt_builder import Prompts
from glmkit.generate.truncation import Shortener, Side
from glmkit.session import LM
from support.served_models import CHAT_FAMILIES, small_base, small_chat


def model(name: str) -> LM:
    return small_base() if name == "base" else small_chat(name)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["base", *CHAT_FAMILIES])
def test_the_prompt_of_what_is_left(name: str, side: Side) -> None:
    """What is left, inside what stands around; where it has the same tokens by itself, the prompt is the same."""
    lm = model(name)
    prompts, tokenizer = Prompts(lm.parts), lm.tokenizer
    text = "abcabcbacbabcacbbac"
    ids = tokenizer.encode(text)
    whole = prompts.continuation(text)
    added = len(whole.ids) - len(ids)
    start = next(place for place in range(added + 1) if whole.ids[place : place + len(ids)] == tuple(ids))
    same = 0
    for length in range(added + 1, added + len(ids)):
        prompt, cut = Shortener(prompts, length, side).cut(text)
        assert prompt is not None
        assert cut == len(ids) + added - length
        kept = ids[cut:] if side == "left" else ids[:-cut]
        assert prompt.ids == (*whole.ids[:start], *kept, *whole.ids[start + len(ids) :])
        assert (prompt.forbidden, prompt.stops, prompt.padding) == (whole.forbidden, whole.stops, whole.padding)
        rest = tokenizer.decode(kept)
        if tokenizer.encode(rest) == kept:
            wanted = prompts.continuation(rest)
            assert (prompt.ids, prompt.part_a) == (wanted.ids, wanted.part_a)
            assert prompt.max_positions == wanted.max_positions
            assert prompt.positions.at(0, length + 5) == wanted.positions.at(0, length + 5)
            same += 1
    assert same > 3 or (side == "left" and name.startswith("chatglm")), "SentencePiece begins texts with a space"


def test_a_text_that_fits_is_left_alone() -> None:
    prompts = Prompts(small_base().parts)
    length = len(prompts.continuation("The quick").ids)
    assert Shortener(prompts, length).cut("The quick") == (None, 0)
    assert Shortener(prompts, length - 1).cut("The quick")[1] == 1


def test_no_room_for_a_text() -> None:
    prompts = Prompts(small_base().parts)
    with pytest.raises(RequestError, match="src_length is 3, and 3 are not of the text; give at least 4"):
        Shortener(prompts, 3)
    with pytest.raises(RequestError, match="truncation_side is 'middle'; use left or right"):
        Shortener(prompts, 9, "middle")  # type: ignore[arg-type]
