"""Special tokens around a byte-level vocabulary, from ranks and from a tokenizer.json."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from glmkit.errors import TokenizerError
from glmkit.tokenizer.byte_bpe import JsonVocabulary
from glmkit.tokenizer.byte_level import ByteLevelTokenizer
from glmkit.tokenizer.byte_tokens import byte_alphabet
from glmkit.tokenizer.incremental import IncrementalDecoder
from glmkit.tokenizer.protocol import Tokenizer as TokenizerProtocol
from tokenizer.tiny_ranks import SPECIALS, tiny_tokenizer, with_roles

SIZE = 321
SPACED, JOINED = tiny_tokenizer(), tiny_tokenizer(spaced=False)
USER = SPACED.encode("<|user|>", specials=True)[0]
ids_lists = st.lists(
    st.one_of(st.integers(0, SIZE - 1), st.integers(0x80, 0xF8), st.integers(SIZE, SIZE + len(SPECIALS) + 2)),
    max_size=30,
)


def by_parts(ids: list[int], *, skip: bool, spaced: bool) -> str:
    """The published rule, written down plainly."""
    parts: list[str] = []
    run: list[bytes | None] = []

    def text_of(run: list[bytes | None]) -> str:
        pieces = [b""]
        for token in run:
            if token is not None:
                pieces[-1] += token
            elif spaced:
                pieces.append(b"")
        return "".join(piece.decode(errors="replace") for piece in pieces)

    for index in ids:
        if index < SIZE:
            run.append(SPACED._token_bytes[index])
        elif index >= SIZE + len(SPECIALS):
            run.append(None)
        elif not skip:
            if text_of(run):
                parts.append(text_of(run))
            run = []
            parts.append(SPECIALS[index - SIZE])
    if run:
        parts.append(text_of(run))
    return (" " if spaced else "").join(parts)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("tokenizer", [SPACED, JOINED], ids=["spaced", "joined"])
@settings(max_examples=200, deadline=None)
@given(ids_lists)
def test_decoding_whole_and_step_by_step(tokenizer: ByteLevelTokenizer, skip: bool, ids: list[int]) -> None:
    whole = tokenizer.decode(ids, skip_specials=skip)
    assert whole == by_parts(ids, skip=skip, spaced=tokenizer is SPACED)
    decoder = IncrementalDecoder(tokenizer, skip_specials=skip)
    pieces = [decoder.push(index) for index in ids]
    assert "".join(pieces) + decoder.flush() == whole


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab 中é\n😀<|user|>[MASK]"), max_size=40))
def test_texts_come_back_and_nothing_in_them_is_special(text: str) -> None:
    ids = SPACED.encode(text)
    assert all(index < SIZE for index in ids)
    assert SPACED.decode(ids) == text
    assert JOINED.decode(JOINED.encode(text, specials=True), skip_specials=False) == text


def test_special_strings() -> None:
    assert isinstance(SPACED, TokenizerProtocol)
    assert SPACED.encode("a <|user|> b", specials=True) == [*SPACED.encode("a "), USER, *SPACED.encode(" b")]
    assert SPACED.token_to_id("<|user|>") == USER
    assert SPACED.token_to_id("nothing of the kind") is None
    assert SPACED.id_to_token(USER) == "<|user|>"
    assert SPACED.vocab_size == SIZE + len(SPECIALS)


def test_inputs() -> None:
    opening = [SPACED.special.gmask, SPACED.special.sop]
    assert SPACED.encode_inputs("ab") == [*opening, *SPACED.encode("ab")]
    with pytest.raises(TokenizerError, match="no form for two texts"):
        SPACED.encode_inputs("a", "b")
    with pytest.raises(TokenizerError, match="max_length"):
        SPACED.encode_inputs("ab", max_length=1)
    batch = SPACED.pad_batch([[1], [1, 2, 3]], multiple_of=2)
    assert batch.input_ids.tolist() == [[SPACED.pad_id] * 3 + [1], [SPACED.pad_id, 1, 2, 3]]
    assert batch.position_ids[:, 0].tolist() == [[0, 0, 0, 0], [0, 0, 1, 2]]


# --- tokenizer.json ---------------------------------------------------------------------------------------------------


def json_file() -> bytes:
    alphabet = byte_alphabet()
    merges = [("a", "b"), ("ab", "ab"), (alphabet[0xE4], alphabet[0xB8])]
    entries = [*alphabet, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({entry: index for index, entry in enumerate(entries)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    content: str = tokenizer.to_str()
    return content.encode()


@pytest.fixture(scope="module")
def from_json() -> ByteLevelTokenizer:
    vocabulary = JsonVocabulary(json_file())
    return with_roles(vocabulary, vocabulary.specials, spaced=False)


def test_a_tokenizer_json_gives_what_the_library_gives(from_json: ByteLevelTokenizer) -> None:
    library = Tokenizer.from_str(json_file().decode())
    for text in ("abab ab 中é", "a<|user|>b[gMASK]", "", "😀\n"):
        ids = library.encode(text, add_special_tokens=False).ids
        assert from_json.encode(text, specials=True) == ids
        assert from_json.decode(ids, skip_specials=False) == library.decode(ids, skip_special_tokens=False)
        assert from_json.decode(ids) == library.decode(ids)
        assert max(from_json.encode(text), default=0) < 259
    assert from_json.token_to_id("ab") == 256
    assert from_json.id_to_token(258) == "<0xE4><0xB8>"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.pop("model"), "not a tokenizer.json"),
        (lambda content: content["model"]["vocab"].update({"中": 259}), "entry '中' is not byte-level BPE"),
        (
            lambda content: content["model"]["vocab"].update({"aa": 9000}),
            "260 entries, but id 9000 of 'aa' is out of line",
        ),
    ],
)
def test_damaged_json(change: object, reason: str) -> None:
    content = json.loads(json_file())
    change(content)  # type: ignore[operator]
    with pytest.raises(TokenizerError, match=reason):
        JsonVocabulary(json.dumps(content).encode())
