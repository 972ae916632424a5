"""Tokens added behind a published vocabulary, in every family: read from any file, decoded back, saved, refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import glmkit
from glmkit.errors import TokenizerError, UnreadWarning
from glmkit.tokenizer.composed import ComposedTokenizer
from support.directories import huggingface_directory
from support.shared import shared_dir
from tokenizer.small_vocabularies import WORDS, bpe_texts, sentencepiece_bytes
from tokenizer.tiny_ranks import rank_file

# family -> files of a small vocabulary, and the id of the first token behind its published ones
SMALL: dict[str, tuple[str, dict[str, bytes]]] = {
    "chatglm2": ("chatglm2", {"tokenizer.model": sentencepiece_bytes(rule="identity")}),
    "chatglm3": ("chatglm3", {"tokenizer.model": sentencepiece_bytes(rule="identity")}),
    "chatglm": ("chatglm", {"ice_text.model": sentencepiece_bytes(fallback=False)}),
    "glm-130b": ("glm-130b", {"ice_text.model": sentencepiece_bytes(fallback=False)}),
    "chinese": ("glm", {"cog-pretrain.model": sentencepiece_bytes()}),
    "bert": ("glm", {"vocab.txt": "\n".join(WORDS).encode()}),
    "gpt2": ("glm", dict(zip(("vocab.json", "merges.txt"), (text.encode() for text in bpe_texts()), strict=True))),
    "ranks": ("glm-4", {"tokenizer.model": rank_file()}),
}
FORMS = ("added", "decoder", "fast", "settings", "map")


def declared(form: str, *tokens: tuple[str, int], **flags: bool) -> dict[str, Any]:
    """The file that declares tokens in one of the forms, by its name."""
    entries = [{"content": text, "lstrip": False, "rstrip": False, **flags} for text, _ in tokens]
    ids = [index for _, index in tokens]
    return {
        "added": {"added_tokens.json": dict(tokens)},
        "decoder": {"tokenizer_config.json": {"added_tokens_decoder": dict(zip(map(str, ids), entries, strict=True))}},
        "fast": {"tokenizer.json": {"added_tokens": [{"id": i, **e} for i, e in zip(ids, entries, strict=True)]}},
        "settings": {"tokenizer_config.json": {"additional_special_tokens": [text for text, _ in tokens]}},
        "map": {"special_tokens_map.json": {"additional_special_tokens": entries}},
    }[form]


def opened(place: Path, kind: str, files: dict[str, Any]) -> ComposedTokenizer:
    family, vocabulary = SMALL[kind]
    place.mkdir(exist_ok=True)
    for name, data in vocabulary.items():
        (place / name).write_bytes(data)
    for name, values in files.items():
        (place / name).write_text(json.dumps(values))
    tokenizer = glmkit.load_tokenizer(place, family=family)
    assert isinstance(tokenizer, ComposedTokenizer)
    return tokenizer


@pytest.mark.parametrize("kind", SMALL)
def test_one_id_in_every_family_and_back(kind: str, tmp_path: Path) -> None:
    size = opened(tmp_path / "plain", kind, {}).vocab_size
    tokens = [("<CAR>", size), ("<BUS>", size + 1)]
    found = set()
    for form in FORMS:
        tokenizer = opened(tmp_path / form, kind, declared(form, *tokens))
        assert tokenizer.encode("<CAR>") == tokenizer.encode("<CAR>", specials=True) == [size]
        assert tokenizer.encode_batch(["<BUS>"]) == [[size + 1]]
        assert tokenizer.decode([size]) == tokenizer.id_to_token(size) == "<CAR>"
        ids = tokenizer.encode("the<CAR>fox<BUS>")
        assert tokenizer.decode(ids) == "the<CAR>fox<BUS>"
        stream = tokenizer.stream()
        assert "".join([*(stream.feed([index]) for index in ids), stream.finish()]) == "the<CAR>fox<BUS>"
        assert [item.id for item in tokenizer.explain("the<CAR>")][-1] == size
        assert (tokenizer.vocab_size, tokenizer.token_to_id("<BUS>")) == (size + 2, size + 1)
        assert bool(tokenizer.added.notes) == (form in ("settings", "map"))  # they state no ids: the next ones
        found.add(tokenizer.fingerprint())
        tokenizer.save(tmp_path / "saved")
        again = glmkit.load_tokenizer(tmp_path / "saved", family=SMALL[kind][0])
        assert (again.encode("<CAR><BUS>"), again.fingerprint()) == ([size, size + 1], tokenizer.fingerprint())
        shutil.rmtree(tmp_path / "saved")
    assert opened(tmp_path / "plain", kind, {}).fingerprint() not in found


def test_published_vocabularies() -> None:
    tokenizer = glmkit.load_tokenizer(shared_dir("tokenizers", "chatglm2-chatglm3"), family="chatglm3")
    assert len(tokenizer.encode("<CAR>")) > 1
    assert tokenizer.vocab_size == 64798


def test_what_the_release_has_stays_what_it_is(tmp_path: Path) -> None:
    """Programs write the published tokens into the same files: nothing changes, and user text makes no role of them."""
    plain = opened(tmp_path / "plain", "chatglm3", {})
    names = ("[gMASK]", "sop", "<|user|>", "<|assistant|>", "<unk>")
    known = [(name, plain.token_to_id(name) or 0) for name in names]
    for form in FORMS:
        tokenizer = opened(tmp_path / form, "chatglm3", declared(form, *known))
        assert tokenizer.fingerprint() == plain.fingerprint()
        assert tokenizer.encode("<|user|>") == plain.encode("<|user|>")
    chinese = {"additional_special_tokens": ["[UNUSED1]", "[UNUSED2]", "<|startofpiece|>", "[sMASK]", "[gMASK]"]}
    assert not opened(tmp_path / "c", "chinese", {"tokenizer_config.json": chinese}).added.tokens


def test_white_space_that_a_token_swallows(tmp_path: Path) -> None:
    size = opened(tmp_path / "plain", "ranks", {}).vocab_size
    for flags, text in (({}, "a <CAR> b"), ({"lstrip": True}, "a<CAR> b"), ({"rstrip": True}, "a <CAR>b")):
        tokenizer = opened(tmp_path / "t", "ranks", declared("decoder", ("<CAR>", size), **flags))
        assert tokenizer.decode(tokenizer.encode("a <CAR> b")) == text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            lambda n: {"added_tokens.json": {"<CAR>": n - 3}},
            r"puts '<CAR>' at \d+, but the vocabulary has '<\|user\|>' th",
        ),
        (lambda n: {"added_tokens.json": {"<CAR>": 7}}, "but the vocabulary has '"),
        (lambda n: {"added_tokens.json": {"<CAR>": n, "<BUS>": n}}, "'<BUS>' at .* but '<CAR>' has that id, too"),
        (
            lambda n: {"added_tokens.json": {"<CAR>": n}} | declared("decoder", ("<CAR>", n + 1)),
            "tokenizer_config.json: puts '<CAR>' at .* but added_tokens.json at",
        ),
        (lambda n: {"added_tokens.json": {"<|user|>": n}}, r"puts '<\|user\|>' at \d+, but the vocabulary has it at"),
        (
            lambda n: {"added_tokens.json": {"<CAR>": n, "<BUS>": n + 2}},
            r"'<BUS>' has the id \d+, but no token has the id",
        ),
        (lambda n: {"added_tokens.json": {"<CAR>": n + 9}}, "but no token has the ids from"),
        (lambda n: {"added_tokens.json": {"<CAR>": "x"}}, "'<CAR>' has the id 'x'; it must be a whole number"),
        (lambda n: {"tokenizer_config.json": {"added_tokens_decoder": {"x": "<CAR>"}}}, "it must be a whole number"),
        (lambda n: {"tokenizer_config.json": {"added_tokens_decoder": {str(n): 5}}}, "a token is 5, not a text"),
        (
            lambda n: {"tokenizer_config.json": {"added_tokens_decoder": {"9" * 5000: {"content": "<CAR>"}}}},
            "it must be a whole number",
        ),
        (lambda n: {"special_tokens_map.json": {"additional_special_tokens": "<CAR>"}}, "is no list"),
    ],
)
def test_what_cannot_be_is_refused(files: Any, message: str, tmp_path: Path) -> None:
    size = opened(tmp_path / "plain", "chatglm3", {}).vocab_size
    with pytest.raises(TokenizerError, match=message) as caught:
        opened(tmp_path / "t", "chatglm3", files(size))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    size = opened(tmp_path / "plain", "chatglm3", {}).vocab_size
    tokenizer = opened(tmp_path / "w", "chatglm3", declared("decoder", ("<CAR>", size), single_word=True))
    assert tokenizer.added.notes == (
        "tokenizer_config.json: single_word of '<CAR>' is not read; it is found inside words too",
    )
    (tmp_path / "plain" / "added_tokens.json").write_text("{")
    (note,) = opened(tmp_path / "plain", "chatglm3", {}).added.notes
    assert note.startswith("added_tokens.json is not valid JSON (")
    assert note.endswith("; tokens that it adds are unknown")


@pytest.mark.parametrize("values", [["<CAR>"], {"car": "<CAR>"}, {"car": {"content": "<CAR>"}}])
@pytest.mark.parametrize("key", ["extra_special_tokens", "model_specific_special_tokens"])
def test_names_of_newer_tokenizers(key: str, values: object, tmp_path: Path) -> None:
    size = opened(tmp_path / "plain", "chatglm3", {}).vocab_size
    tokenizer = opened(tmp_path / "t", "chatglm3", {"tokenizer_config.json": {key: values}})
    assert tokenizer.encode("<CAR>") == [size]


def test_a_part_to_play_without_a_token_is_named(tmp_path: Path) -> None:
    files = {"special_tokens_map.json": {"eos_token": "<END>", "unk_token": {"content": "<unk>"}, "pad_token": ""}}
    (note,) = opened(tmp_path / "t", "chatglm3", files).added.notes
    assert note == "special_tokens_map.json: eos_token is '<END>', which is no token here and stays plain text"


def test_a_model_is_loaded_with_them(tmp_path: Path) -> None:
    """Loading warns of what is not read; an id outside the table is refused; a conversion carries the files."""
    opened(tmp_path / "plain", "chatglm3", {})
    size = glmkit.load_tokenizer(tmp_path / "plain", family="chatglm3").vocab_size
    folder = tmp_path / "m"
    huggingface_directory(folder, "chatglm3/huggingface", vocab_size=size + 1, special=None)
    opened(folder, "chatglm3", declared("map", ("<CAR>", size)))
    with pytest.warns(UnreadWarning, match="lists '<CAR>' without an id; it gets the next one"):
        lm = glmkit.load(folder)
    assert lm.tokenizer.encode("<CAR>") == [size]
    opened(folder, "chatglm3", declared("added", ("<CAR>", size)))
    (folder / "added_tokens.json").write_text(json.dumps({"<CAR>": size, "<BUS>": size + 1}))
    with pytest.raises(
        TokenizerError, match=rf"'<BUS>' has the id {size + 1}, outside the embedding of {size + 1} rows"
    ):
        glmkit.load(folder)
