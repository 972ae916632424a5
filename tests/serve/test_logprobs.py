"""Tokens as OpenAI's interfaces show them: their bytes, their text in its place, offsets."""

import pytest

from glmkit.families.family import family_named
from glmkit.generate.outputs import TokenLogprob
from glmkit.serve.logprobs import LogprobWriter
from glmkit.tokenizer.protocol import Tokenizer
from support.served_models import small_base, small_chat
from support.shared import shared_dir

TEXTS = ["The quick brown fox.", "凯旋门是为纪念胜利", "a 😀 b", "x\ny  z"]


def tokenizers(kind: str) -> Tokenizer:
    return small_base().tokenizer if kind == "base" else small_chat(kind).tokenizer


def chosen(tokenizer: Tokenizer, text: str, **changes: object) -> list[TokenLogprob]:
    ids = tokenizer.encode(text)
    return [TokenLogprob(token, -float(place + 1)) for place, token in enumerate(ids)]


@pytest.mark.parametrize("kind", ["base", "chatglm", "chatglm2", "glm-4"])
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_joined_are_the_text(kind: str, text: str) -> None:
    tokenizer = tokenizers(kind)
    tokens = chosen(tokenizer, text)
    content = LogprobWriter(tokenizer).chat(tokens).content
    written = b"".join(bytes(one.bytes or ()) for one in content)
    assert written.decode() == tokenizer.decode([one.token for one in tokens])
    assert [one.logprob for one in content] == [one.logprob for one in tokens]
    assert all(bytes(one.bytes or ()).decode(errors="replace") == one.token for one in content)


@pytest.mark.parametrize("kind", ["base", "chatglm2", "glm-4"])
@pytest.mark.parametrize("text", TEXTS)
def test_offsets_are_places_in_the_text(kind: str, text: str) -> None:
    tokenizer = tokenizers(kind)
    tokens = chosen(tokenizer, text)
    whole = LogprobWriter(tokenizer).text(tokens)
    text = tokenizer.decode([one.token for one in tokens])
    ends = [*whole.text_offset[1:], len(text)]
    for token, start, end in zip(whole.tokens, whole.text_offset, ends, strict=True):
        if "\\x" not in token:
            assert text[start:end] == token
    assert whole.token_logprobs == [one.logprob for one in tokens]
    # In pieces, as a stream has them, it is the same.
    writer = LogprobWriter(tokenizer)
    parts = [writer.text([one]) for one in tokens]
    assert [part.text_offset[0] for part in parts] == whole.text_offset
    assert [part.tokens[0] for part in parts] == whole.tokens


def test_parts_of_a_character_are_told_apart() -> None:
    tokenizer = tokenizers("glm-4")
    first, *_ = ids = tokenizer.encode("😀")
    assert len(ids) > 1
    top = tuple((token, -float(place + 1)) for place, token in enumerate(ids))
    (one,) = LogprobWriter(tokenizer).chat([TokenLogprob(first, -1.0, top)]).content
    assert one.bytes == list("😀".encode())[: len(one.bytes or ())]
    assert one.token == "\ufffd"
    text = LogprobWriter(tokenizer).text([TokenLogprob(first, -1.0, top)])
    assert text.tokens[0].startswith("\\xf0")
    assert text.top_logprobs is not None
    assert len(text.top_logprobs[0]) == len(set(ids))


def test_the_chosen_token_is_among_its_alternatives() -> None:
    tokenizer = tokenizers("base")
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    logprobs = LogprobWriter(tokenizer).text([TokenLogprob(a, -3.0, ((b, -1.0),)), TokenLogprob(b, -2.0)])
    assert logprobs.top_logprobs == [{"b": -1.0, "a": -3.0}, {"b": -2.0}]


def test_what_is_impossible_is_still_json() -> None:
    tokenizer = tokenizers("base")
    a = tokenizer.encode("a")[0]
    one = TokenLogprob(a, -float("inf"), ((a, -float("inf")),))
    (shown,) = LogprobWriter(tokenizer).chat([one]).content
    assert shown.logprob == shown.top_logprobs[0].logprob == -9999.0


def test_published_vocabularies() -> None:
    for family, folder in (("chatglm", "chatglm-6b"), ("chatglm3", "chatglm2-chatglm3"), ("glm-4", "glm4")):
        tokenizer = family_named(family).tokenizer(shared_dir("tokenizers", folder), None)
        assert tokenizer is not None
        for text in ("你好，世界 hello world", "tabs\tand 😀 emoji", "def main():\n    return 1"):
            tokens = chosen(tokenizer, text)
            content = LogprobWriter(tokenizer).chat(tokens).content
            written = b"".join(bytes(one.bytes or ()) for one in content)
            assert written.decode() == tokenizer.decode([one.token for one in tokens])
