"""Texts with blanks: which strings are blanks, and how answers are put into the text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glmkit.errors import RequestError
from glmkit.families.chatglm_text import ChatGLMTokenizer
from glmkit.families.chatglm_text import load_tokenizer as load_chatglm
from glmkit.families.glm_text import GLMTokenizer
from glmkit.families.glm_text import load_tokenizer as load_glm
from glmkit.generate.blank_text import BlankText
from tokenizer.small_vocabularies import WORDS, sentencepiece_bytes


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> GLMTokenizer:
    folder = tmp_path_factory.mktemp("chinese")
    (folder / "cog-pretrain.model").write_bytes(sentencepiece_bytes())
    loaded = load_glm(folder, None)
    assert loaded is not None
    return loaded


@pytest.fixture(scope="module")
def chatglm(tmp_path_factory: pytest.TempPathFactory) -> ChatGLMTokenizer:
    folder = tmp_path_factory.mktemp("chatglm")
    (folder / "ice_text.model").write_bytes(sentencepiece_bytes(fallback=False))
    loaded = load_chatglm(folder, None)
    assert loaded is not None
    return loaded


def filled(tokenizer: Any, text: str, *spans: list[int]) -> str:
    return BlankText(text, tokenizer, tokenizer.special).filled(spans)[0]


def test_an_answer_stands_as_its_pieces_say(chinese: GLMTokenizer) -> None:
    """White space beside a mask belongs to it: the answer's own pieces say whether a word begins there."""
    word, inside = chinese.encode("the"), [chinese.encode("学而")[-1]]
    assert chinese.model.token(word[0]).startswith("▁")
    assert not chinese.model.token(inside[0]).startswith("▁")
    assert filled(chinese, "a  [MASK] b", word) == "a  the b"
    assert filled(chinese, "a  [MASK] b", inside) == f"a{chinese.decode(inside)} b"
    assert filled(chinese, "a[MASK]b", word) == "atheb"
    assert filled(chinese, "a [MASK] b", []) == "a b"
    assert filled(chinese, " [sMASK] [gMASK]\n", word, word) == " the the\n"


def test_white_space_behind_a_blank_stays(chatglm: ChatGLMTokenizer) -> None:
    word = chatglm.encode("the")
    assert filled(chatglm, "a [MASK]\n  b", word) == "a the\n  b"
    assert filled(chatglm, "！ [MASK] ， [gMASK]", word, word) == "！ the ， the"


def test_every_mask_of_the_model_is_a_blank(chatglm: ChatGLMTokenizer) -> None:
    """Also one that the tokenizer alone reads as ordinary text."""
    special, encode = chatglm.special, chatglm.encode
    assert special.gmask not in encode("the [gMASK] fox", specials=True)
    text = BlankText("the [gMASK] fox [MASK] dog[gMASK]", chatglm, special)
    masks = (special.gmask, special.mask, special.gmask)
    assert text.ids == [
        *encode("the"), masks[0], *encode("fox"), masks[1], *encode("dog"), masks[2]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", r"text 3 has no blank; put \[MASK\] or \[gMASK\] where something is missing, or use generate"),
        ("a [MASK] b [sMASK]", r"text 3 has \[sMASK\], which this model does not know; its blanks are \[MASK\] or"),
        (None, r"text is None; give a text \(str\)"),
    ],
)
def test_mistakes(chatglm: ChatGLMTokenizer, text: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        BlankText(text, chatglm, chatglm.special, called="text 3")
    assert "\n" not in str(caught.value)


def test_a_model_without_task_masks(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    bert = load_glm(tmp_path, None)
    assert bert is not None
    assert BlankText("the [MASK] fox", bert, bert.special).ids == [5, 4, 7]
    assert filled(bert, "the [MASK] fox", [6, 8]) == "the quickes fox"
    with pytest.raises(RequestError, match=r"has \[gMASK\], which this model does not know; its blanks are \[MASK\]$"):
        BlankText("the [gMASK]", bert, bert.special)


def test_masks_of_another_model(chatglm: ChatGLMTokenizer) -> None:
    special = replace(chatglm.special, mask=7, gmask=8)
    with pytest.raises(RequestError, match=r"the model's \[7, 8\]; take both from one model"):
        BlankText("a [MASK]", chatglm, special)
