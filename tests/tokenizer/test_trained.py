"""TrainedTokenizer: exact round trip, special strings, files, equality with the library's own encoding."""

import json
import pickle
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from glmkit.errors import TokenizerError
from glmkit.tokenizer import trained as bpe
from glmkit.tokenizer.protocol import Tokenizer
from glmkit.tokenizer.trained import SPECIAL_STRINGS, TrainedTokenizer, has_tokenizer
from glmkit.tokenizer.training import train_tokenizer
from support.shared import shared_dir
from tokenizer.trained import CHINESE, CODE, ENGLISH, trained

KINDS = ["bpe", "unigram"]
kinds = pytest.mark.parametrize("kind", KINDS)

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
near_text = st.text(st.sampled_from(list(" \t\n\r▁Ġ<>|[]_x0A1E4defMASK中国学而，。😀é²\0\u0301\ufeff")), max_size=80)
texts = st.one_of(
    any_text, near_text, st.lists(st.sampled_from([CODE, CHINESE, ENGLISH, "[MASK]", "<0x41>"])).map("".join)
)


@kinds
@settings(max_examples=120, deadline=None)
@given(texts)
def test_every_text_comes_back_exactly(kind: str, text: str) -> None:
    tokenizer = trained(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & {tokenizer.encode(s, specials=True)[0] for s in SPECIAL_STRINGS.values()}


@kinds
@settings(max_examples=120, deadline=None)
@given(texts)
def test_the_fast_path_gives_the_ids_of_the_library(kind: str, text: str) -> None:
    tokenizer = trained(kind)
    library = tokenizers.Tokenizer.from_str(tokenizer._json)
    library.encode_special_tokens = True
    assert tokenizer._fast
    assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids


@kinds
def test_long_texts_are_encoded_as_in_one_piece(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = trained(kind)
    text = (CODE + CHINESE + ENGLISH + "rare: ² Ⅷ e\u0301 ") * 30
    whole = tokenizer.encode(text)
    monkeypatch.setattr(bpe, "_PIECE", 37)
    monkeypatch.setattr(bpe, "_UNUSUAL_PIECE", 11)
    assert tokenizer.encode(text) == whole
    assert tokenizer.encode_batch([text, "", CODE]) == [whole, [], tokenizer.encode(CODE)]
    library = tokenizers.Tokenizer.from_str(tokenizer._json)
    library.encode_special_tokens = True
    assert whole == library.encode(text, add_special_tokens=False).ids


@kinds
def test_it_is_a_tokenizer_with_small_distinct_special_ids(kind: str) -> None:
    tokenizer = trained(kind)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.vocab_size == 380
    special = tokenizer.special
    roles = {role: getattr(special, role) for role in SPECIAL_STRINGS}
    assert sorted(roles.values()) == list(range(11))
    assert {tokenizer.id_to_token(index) for index in roles.values()} == set(SPECIAL_STRINGS.values())
    single_bytes = {tokenizer.token_bytes(index) for index in range(tokenizer.vocab_size)}
    assert {bytes([byte]) for byte in range(256)} <= single_bytes


@kinds
def test_special_strings_are_ids_only_when_asked_for(kind: str) -> None:
    tokenizer = trained(kind)
    s = tokenizer.special
    text = "one [MASK]two[gMASK]<|endoftext|>  [sMASK]"
    marked = tokenizer.encode(text, specials=True)
    assert [i for i in marked if i < 11] == [s.mask, s.gmask, s.eos, s.smask]
    plain = ["one", "two", "", "  ", ""]  # the space in front of a blank is the blank's
    expected = tokenizer.encode(plain[0])
    for mark, part in zip([s.mask, s.gmask, s.eos, s.smask], plain[1:], strict=True):
        expected += [mark, *tokenizer.encode(part)]
    assert marked == expected
    assert tokenizer.decode(marked, skip_specials=False) == tokenizer.without_blank_space(text)
    assert tokenizer.without_blank_space(text) == "one[MASK]two[gMASK]<|endoftext|>  [sMASK]"
    assert tokenizer.decode(marked) == "onetwo  "
    assert all(i >= 11 for i in tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_lstrip_masks_drops_white_space_on_the_left_of_masks_only() -> None:
    tokenizer = train_tokenizer([ENGLISH * 5], vocab_size=300, lstrip_masks=True)
    s = tokenizer.special
    assert tokenizer.lstrip_masks
    marked = tokenizer.encode("the \n [MASK] dog [CLS]", specials=True)
    assert marked == [*tokenizer.encode("the"), s.mask, *tokenizer.encode(" dog "), s.cls]
    assert not trained("bpe").lstrip_masks
    assert tokenizer.fingerprint() != train_tokenizer([ENGLISH * 5], vocab_size=300).fingerprint()


@kinds
def test_saved_and_loaded_it_is_the_same(kind: str, tmp_path: Path) -> None:
    tokenizer = trained(kind)
    assert not has_tokenizer(tmp_path)
    tokenizer.save(tmp_path / "new" / "folder")
    again = TrainedTokenizer.load(tmp_path / "new" / "folder")
    assert has_tokenizer(tmp_path / "new" / "folder")
    for other in (again, pickle.loads(pickle.dumps(tokenizer))):
        assert other.fingerprint() == tokenizer.fingerprint()
        assert other.special == tokenizer.special
        assert other.encode(CODE + CHINESE) == tokenizer.encode(CODE + CHINESE)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "special_tokens.json", "tokenizer.json",
    ]  # fmt: skip


def test_the_fingerprint_ignores_layout_but_no_content() -> None:
    tokenizer = trained("bpe")
    content = json.loads(tokenizer._json)
    reordered = json.dumps(dict(reversed(list(content.items()))), indent=7)
    assert TrainedTokenizer(reordered, SPECIAL_STRINGS).fingerprint() == tokenizer.fingerprint()
    merges = content["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    assert TrainedTokenizer(json.dumps(content), SPECIAL_STRINGS).fingerprint() != tokenizer.fingerprint()


def test_tokens_can_be_read() -> None:
    tokenizer = trained("bpe")
    names = {tokenizer.id_to_token(index) for index in range(tokenizer.vocab_size)}
    assert {" first", "\n    ", "<0xE4>", "a"} <= names
    han = tokenizer.encode("鑫")  # not in the training text: its three bytes
    assert [tokenizer.id_to_token(index) for index in han] == ["<0xE9>", "<0x91>", "<0xAB>"]


def test_bad_ids_and_bad_text_are_named() -> None:
    tokenizer = trained("bpe")
    for call in (lambda: tokenizer.decode([12, 380]), lambda: tokenizer.id_to_token(-1)):
        with pytest.raises(TokenizerError, match=r"token id (380|-1) is outside the vocabulary of 380 tokens"):
            call()
    with pytest.raises(TokenizerError, match=r"lone surrogate U\+DC80"):
        tokenizer.encode("ok \udc80")
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


def edit(path: Path, change) -> None:  # type: ignore[no-untyped-def]
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


BROKEN = {
    "tokenizer.json: no such file": lambda d: (d / "tokenizer.json").unlink(),
    "special_tokens.json: no such file": lambda d: (d / "special_tokens.json").unlink(),
    "tokenizer.json is not valid JSON": lambda d: (d / "tokenizer.json").write_text('{"version": "1.0", "mod'),
    "special_tokens.json is not valid JSON": lambda d: (d / "special_tokens.json").write_text("{"),
    "special_tokens.json: must be an object": lambda d: (d / "special_tokens.json").write_text("[1]"),
    "tokenizer.json: not UTF-8 text at byte 0": lambda d: (d / "tokenizer.json").write_bytes(b"\xff\xfe"),
    "no special string for mask": lambda d: edit(d / "special_tokens.json", lambda c: c.pop("mask") and None),
    "names the unknown role 'masc'": lambda d: edit(d / "special_tokens.json", lambda c: c.update(masc="x")),
    "'[OTHER]' (mask) is not in": lambda d: edit(d / "special_tokens.json", lambda c: c.update(mask="[OTHER]")),
    "model type WordPiece is not one": lambda d: edit(
        d / "tokenizer.json",
        lambda c: c.update(model={
            "type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 9, "vocab": {"a": 0},
        }),
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", BROKEN)
def test_damaged_files_are_named(message: str, tmp_path: Path) -> None:
    trained("bpe").save(tmp_path)
    BROKEN[message](tmp_path)
    with pytest.raises(TokenizerError) as error:
        TrainedTokenizer.load(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="nowhere: no such directory"):
        TrainedTokenizer.load(tmp_path / "nowhere")


@kinds
def test_real_books_come_back_exactly(kind: str) -> None:
    books = shared_dir("data", "text", "books")
    parts = [(books / name).read_text()[100_000:160_000] for name in ("zh_honglou.txt", "en_moby_dick.txt")]
    tokenizer = train_tokenizer(parts, vocab_size=2000, kind=kind)
    unseen = (books / "zh_sanguo.txt").read_text()[:50_000]
    for text in (*parts, unseen):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(parts[0].encode()) / len(tokenizer.encode(parts[0])) > 2.5  # bytes a token
