"""The token store: what is written is what is read; damage is named."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from data.corpora import TEXTS, tokenizer
from glmkit.data.encoding import token_dtype
from glmkit.data.store import StoreWriter, TokenStore, write_store
from glmkit.errors import DataError, TokenizerError


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_store(tmp_path / "store", tokenizer(), {"train": TEXTS, "validation": TEXTS[:3]})
    return tmp_path / "store"


def test_documents_are_the_encoded_texts_with_eos(store: Path) -> None:
    opened = TokenStore(store)
    eos = tokenizer().special.eos
    assert len(opened) == len(TEXTS)
    for i, text in enumerate(TEXTS):
        assert opened.document(i).tolist() == [*tokenizer().encode(text), eos]
    assert opened.tokens.dtype == np.uint16
    assert opened.offsets.dtype == np.int64
    assert opened.num_tokens == len(opened.tokens) == opened.offsets[-1]
    assert np.array_equal(np.flatnonzero(opened.tokens == eos), opened.offsets[1:] - 1)
    assert (opened.eos, opened.vocab_size, opened.name) == (eos, 320, "train")
    assert isinstance(opened.tokens, np.memmap)
    for outside in (-1, len(TEXTS)):
        with pytest.raises(IndexError):
            opened.document(outside)


def test_splits_and_the_manifest(store: Path) -> None:
    validation = TokenStore(store).split("validation")
    assert (validation.name, len(validation)) == ("validation", 3)
    assert TokenStore(store, "validation", verify=True).tokens.tolist() == validation.tokens.tolist()
    entry = validation.manifest["splits"]["validation"]
    assert entry["documents"] == 3
    assert entry["tokens"] == validation.num_tokens
    assert entry["text_bytes"] == sum(len(text.encode()) for text in TEXTS[:3])
    assert validation.tokenizer().fingerprint() == tokenizer().fingerprint()
    with pytest.raises(DataError, match="no split 'test'; splits: train, validation"):
        validation.split("test")


def test_it_travels_to_other_processes_without_its_tokens(store: Path) -> None:
    opened = TokenStore(store, "validation")
    data = pickle.dumps(opened)
    assert len(data) < 500
    again = pickle.loads(data)
    assert again.name == "validation"
    assert np.array_equal(again.tokens, opened.tokens)


def test_equal_data_has_an_equal_fingerprint(store: Path, tmp_path: Path) -> None:
    write_store(tmp_path / "same", tokenizer(), {"train": TEXTS, "validation": TEXTS[:3]})
    write_store(tmp_path / "other", tokenizer(), {"train": TEXTS[::-1], "validation": TEXTS[:3]})
    assert TokenStore(store).fingerprint == TokenStore(tmp_path / "same", "validation").fingerprint
    assert TokenStore(store).fingerprint != TokenStore(tmp_path / "other").fingerprint


def test_an_empty_split_can_be_opened(tmp_path: Path) -> None:
    write_store(tmp_path / "s", tokenizer(), {"train": TEXTS, "validation": []})
    empty = TokenStore(tmp_path / "s", "validation", verify=True)
    assert (len(empty), empty.num_tokens, empty.offsets.tolist()) == (0, 0, [0])


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    class Big:
        vocab_size = 70_000
        special = tokenizer().special
        kind = "big"

        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            return [[69_999, len(text)] for text in texts]

        def fingerprint(self) -> str:
            return "f"

        def save(self, directory: Path) -> None:
            pass

    assert [token_dtype(size) for size in (65_536, 65_537)] == ["uint16", "uint32"]
    write_store(tmp_path / "s", Big(), {"train": ["abc"]})  # type: ignore[arg-type]
    opened = TokenStore(tmp_path / "s")
    assert opened.tokens.tolist() == [69_999, 3, 1]
    assert opened.tokens.dtype == np.uint32


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    def texts():  # type: ignore[no-untyped-def]
        yield "one"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_store(tmp_path / "s", tokenizer(), {"train": texts()})
    assert list(tmp_path.iterdir()) == []
    write_store(tmp_path / "s", tokenizer(), {"train": ["one"]})
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        write_store(tmp_path / "s", tokenizer(), {"train": ["two"]})
    write_store(tmp_path / "s", tokenizer(), {"train": ["two", "three"]}, replace=True)
    assert len(TokenStore(tmp_path / "s")) == 2


def test_batches_are_appended_in_order(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, tokenizer()) as writer:
        for text in TEXTS[:5]:
            writer.add("train", [text])
        writer.add("validation", [])
        writer.add("train", TEXTS[5:])
        assert writer.counts("train") == (60, sum(len(ids) + 1 for ids in tokenizer().encode_batch(TEXTS)))
        manifest = writer.finish({"extra": 1})
    assert manifest["extra"] == 1
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    write_store(tmp_path / "s", tokenizer(), {"train": TEXTS})
    assert TokenStore(tmp_path).tokens.tobytes() == TokenStore(tmp_path / "s").tokens.tobytes()


def edit(path: Path, **changes: object) -> None:
    """Change values of a JSON file; a manifest then looks like one of an earlier version, which had no seal."""
    values = json.loads(path.read_text())
    if values.pop("seal", None):
        del values["tokenizer"]["files"]
    path.write_text(json.dumps({**values, **changes}))


DAMAGE = {
    "manifest.json: no such file, so this is no token store": lambda d: (d / "manifest.json").unlink(),
    "manifest.json is not valid JSON": lambda d: (d / "manifest.json").write_text("{"),
    "manifest.json: not the manifest of a token store": lambda d: (d / "manifest.json").write_text("[]"),
    "store version 2, this glmkit reads 1": lambda d: edit(d / "manifest.json", version=2),
    "damaged: unknown dtype 'int8'": lambda d: edit(d / "manifest.json", dtype="int8"),
    "manifest.json: damaged (KeyError('documents'))": lambda d: edit(d / "manifest.json", splits={"train": {}}),
    "train.tokens.bin: missing": lambda d: (d / "train.tokens.bin").unlink(),
    "train.offsets.bin: 480 bytes, but the manifest says 488": lambda d: (d / "train.offsets.bin").write_bytes(
        b"0" * 480
    ),
    "train.offsets.bin: ends at token": lambda d: (d / "train.offsets.bin").write_bytes(b"\0" * 488),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_named(message: str, store: Path) -> None:
    DAMAGE[message](store)
    with pytest.raises(DataError) as error:
        TokenStore(store)
    assert message in str(error.value)
    assert str(store) in str(error.value)


def test_verifying_finds_a_changed_token_and_a_changed_tokenizer(store: Path) -> None:
    path = store / "train.tokens.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    TokenStore(store)
    with pytest.raises(DataError, match=r"train\.tokens\.bin: the content does not match the SHA-256"):
        TokenStore(store, verify=True)
    TokenStore(store, "validation", verify=True)
    edit(store / "special_tokens.json", mask="[sMASK]", smask="[MASK]")
    with pytest.raises(TokenizerError, match="not those the store was written with"):
        TokenStore(store).tokenizer()


def test_what_is_not_a_directory_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        with pytest.raises(DataError, match=f"{name}/manifest.json: no such file, so this is no token store"):
            TokenStore(tmp_path / name)
