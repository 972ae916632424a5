"""Replies cleaned step by step: after every token what a look at the whole text gives, at a cost that does not grow."""

import random
from time import perf_counter

import pytest

from glmkit.families import chatglm2_text, glm4_text
from glmkit.families.common import round_chat as chatglm_chat
from glmkit.families.family import family_named
from glmkit.tokenizer.chat_template import DATE_MARK, ChatTemplate, ReplyStream
from glmkit.tokenizer.inputs import InputTokenizer
from support.chat import VOCABULARIES, WholeReply
from support.served_models import CHAT_FAMILIES, small_chat
from support.shared import shared_dir

pytestmark = pytest.mark.sampled(4)

TEMPLATES: dict[str, ChatTemplate] = {
    "chatglm": chatglm_chat.CHAT,
    "chatglm2": chatglm2_text.CHAT_2,
    "chatglm3": chatglm2_text.CHAT_3,
    "glm-4": glm4_text.CHAT,
    "glm-4-0414": glm4_text.CHAT_0414,
}
NEXT = "<|assistant|>"
# Whole marks, beginnings of marks, what stands beside them, and white space of all kinds.
PARTS = [
    *(DATE_MARK, DATE_MARK[:3], DATE_MARK[3:], "[[", "[", "]]", "训", "练时间]]", NEXT, NEXT[:5], NEXT[5:], "<", "<|"),
    *("中", "文", "年", "a", "b2", ",", "!", ":", ";", "?", ",,", "，", " ", "\n", "\n\n", "\t", "\u3000", "\xa0"),
    *("", "  ", "get_weather\n", "```python\n", "x = 1", "。"),
]  # fmt: skip


OFFERED = frozenset({"get_weather", "中", "[[x", "a b"})


def assert_same_steps(template: ChatTemplate, pieces: list[str], draw: random.Random) -> None:
    offered = draw.choice([OFFERED, frozenset[str]()])
    cleaner, whole = template.cleaner(offered), WholeReply(template, offered)
    for number, piece in enumerate(pieces):
        cleaner.feed(piece)
        whole.feed(piece)
        if draw.random() < 0.8:
            assert cleaner.shown() == whole.shown(), pieces[: number + 1]
        if draw.random() < 0.8:
            assert cleaner.fresh() == whole.fresh(), pieces[: number + 1]
    assert cleaner.shown() == whole.shown(), pieces
    assert cleaner.fresh(final=True) == whole.fresh(final=True), pieces


@pytest.mark.parametrize("name", TEMPLATES)
def test_random_texts(name: str) -> None:
    draw = random.Random(name)
    for _ in range(3000):
        few = draw.sample(PARTS, draw.choice([2, 4, 8, len(PARTS)]))
        assert_same_steps(TEMPLATES[name], draw.choices(few, k=draw.randrange(1, 25)), draw)
    for _ in range(300):  # the same characters, cut elsewhere
        text = "".join(draw.choices(PARTS, k=30))
        cuts = sorted(draw.sample(range(len(text)), min(len(text), 12)))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert_same_steps(TEMPLATES[name], pieces, draw)


def assert_same_streams(template: ChatTemplate, tokenizer: InputTokenizer, seed: str) -> None:
    draw = random.Random(seed)
    for number in range(25):
        few = [draw.randrange(tokenizer.vocab_size) for _ in range(30)]
        for part in draw.choices(PARTS, k=8):
            few += tokenizer.encode(part)
        ids = draw.choices(few, k=60)
        stream, slow = ReplyStream(template, tokenizer), ReplyStream(template, tokenizer)
        slow._cleaner = WholeReply(template)
        for index in ids:
            assert stream.push(index) == slow.push(index), number
            assert stream.fresh() == slow.fresh(), number
        assert stream.fresh(final=True) == slow.fresh(final=True)
        assert stream.text == slow.text


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_random_ids(family: str) -> None:
    lm = small_chat(family)
    assert isinstance(lm.tokenizer, InputTokenizer)
    assert_same_streams(lm.chat_template, lm.tokenizer, family)


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_random_ids_of_published_vocabularies(family: str) -> None:
    tokenizer = family_named(family).tokenizer(shared_dir("tokenizers", VOCABULARIES[family]), None)
    assert isinstance(tokenizer, InputTokenizer)
    assert_same_streams(TEMPLATES[family], tokenizer, family)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("piece", ["好,", "word ", " ", "!", "[[训练", "\n", "<|assistant", f"{NEXT}a\n"])
def test_a_token_costs_the_same_at_any_length(name: str, piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = TEMPLATES[name]
    for method in ("shown", "settled"):
        monkeypatch.setattr(type(template), method, lambda *_, **__: pytest.fail("the whole reply was read"))
    cleaner = template.cleaner()

    def seconds(pieces: int) -> float:
        start = perf_counter()
        for _ in range(pieces):
            cleaner.feed(piece)
            cleaner.fresh()
        return perf_counter() - start

    seconds(200)
    early = min(seconds(200) for _ in range(5))
    cleaner.feed(piece * 100_000)
    late = min(seconds(200) for _ in range(5))
    assert late < 8 * early + 0.01
