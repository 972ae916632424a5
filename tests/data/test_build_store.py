"""`prepare`: splits, duplicates, determinism, the manifest, and the command."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.corpora import TEXTS, json_lines, tokenizer, write
from glmkit.cli.main import main
from glmkit.data import build_store as module
from glmkit.data.build_store import SeenHashes, prepare
from glmkit.data.rows import ReadOptions
from glmkit.data.store import TokenStore
from glmkit.errors import DataError, TokenizerError
from glmkit.files import Digest, sha256_file
from glmkit.progress import Progress, Unit
from support.shared import shared_dir

MANY = [f"{text} {i}" for i in range(10) for text in TEXTS]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write(tmp_path / "in" / "corpus.jsonl", json_lines([{"text": text} for text in MANY]))


def texts_of(directory: Path, split: str) -> list[str]:
    store = TokenStore(directory, split, verify=True)
    decode = store.tokenizer().decode
    return [decode(store.document(i).tolist()) for i in range(len(store))]


def fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_documents_are_split_by_their_hash_in_order(corpus: Path, tmp_path: Path) -> None:
    prepare([corpus], tmp_path / "out", tokenizer=tokenizer(), validation_share=0.2)
    assert texts_of(tmp_path / "out", "validation") == [text for text in MANY if fraction(text) < 0.2]
    assert texts_of(tmp_path / "out", "train") == [text for text in MANY if fraction(text) >= 0.2]


def test_a_tokenizer_is_trained_on_the_training_split_only(corpus: Path, tmp_path: Path) -> None:
    result = prepare([corpus], tmp_path / "out", vocab_size=300, validation_share=0.2, tokenizer_type="unigram")
    held_out = sum(len(text.encode()) for text in MANY if fraction(text) < 0.2)
    everything = sum(len(text.encode()) for text in MANY)
    training = result.manifest["tokenizer_training"]
    assert training["bytes_seen"] == training["bytes_used"] == everything - held_out
    assert result.manifest["tokenizer"]["kind"] == "unigram"
    assert TokenStore(tmp_path / "out").tokenizer().vocab_size == 300


def test_equal_input_gives_equal_files_with_any_number_of_workers(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH_DOCUMENTS", 50)
    prepare([corpus], tmp_path / "one", vocab_size=320, validation_share=0.1)
    prepare([corpus], tmp_path / "two", vocab_size=320, validation_share=0.1)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    monkeypatch.setattr(module, "_WORTH_WORKERS", 0)
    prepare([corpus], tmp_path / "three", vocab_size=320, validation_share=0.1, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "three")


def test_the_manifest_counts_and_hashes(corpus: Path, tmp_path: Path) -> None:
    result = prepare([corpus], tmp_path / "out", tokenizer=tokenizer(), validation_share=0.2)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest == result.manifest
    splits = manifest["splits"]
    assert sum(split["documents"] for split in splits.values()) == len(MANY) == manifest["read"]["documents"]
    assert sum(split["text_bytes"] for split in splits.values()) == manifest["read"]["text_bytes"]
    for split in splits.values():
        for name, facts in split["files"].items():
            assert sha256_file(tmp_path / "out" / name) == facts["sha256"]
            assert (tmp_path / "out" / name).stat().st_size == facts["bytes"]
    facts = manifest["tokenizer"]
    for name, digest in facts.pop("files").items():
        assert digest == Digest.of(tmp_path / "out" / name).facts()
    assert facts == {"fingerprint": tokenizer().fingerprint(), "kind": "bpe", "vocab_size": 320}
    assert manifest["input"]["arguments"] == [
        {"name": str(corpus), "files": 1, "bytes": corpus.stat().st_size, "documents": len(MANY)}
    ]
    assert manifest["options"]["validation_share"] == 0.2
    assert manifest["options"]["text_field"] == "text"
    assert manifest["tokenizer_training"] is None


@pytest.mark.parametrize("drop", [False, True])
def test_duplicates_are_counted_and_dropped_only_when_asked(drop: bool, tmp_path: Path) -> None:
    rows = ["a b", "c d", "a b", "a b", "e f", "c d"]
    path = write(tmp_path / "a.jsonl", json_lines([{"text": text} for text in rows]))
    out = tmp_path / "out"
    result = prepare([path], out, tokenizer=tokenizer(), validation_share=0.0, drop_duplicates=drop)
    assert result.manifest["duplicates"] == {"documents": 3, "dropped": drop}
    assert texts_of(out, "train") == (["a b", "c d", "e f"] if drop else rows)
    assert any(note.startswith("3 documents are exact duplicates") for note in result.notes)


def test_skipped_rows_are_counted_by_reason_with_the_first(tmp_path: Path) -> None:
    lines = [
        '{"text": "ok"}', '{"text": 1}', '{"text": null}', '{"no": "x"}', "{oops", "", "[]",
        '{"text": "a\\u0000"}', '{"text": "\\udcff"}',
    ]  # fmt: skip
    path = write(tmp_path / "a.jsonl", "\n".join(lines).encode() + b'\n{"text": "\xff"}\n')
    options = ReadOptions(on_bad_row="skip")
    result = prepare([path], tmp_path / "out", tokenizer=tokenizer(), validation_share=0.0, read=options)
    bad = result.manifest["read"]["bad_rows"]
    assert {reason: entry["count"] for reason, entry in bad.items()} == {
        "wrong_type": 2, "missing_field": 1, "broken_json": 1, "not_an_object": 1,
        "nul_byte": 1, "lone_surrogate": 1, "invalid_utf8": 1,
    }  # fmt: skip
    assert bad["wrong_type"]["first"] == f"{path}: line 2: field 'text' is a number (1), not text; no field holds text"
    assert texts_of(tmp_path / "out", "train") == ["ok"]
    assert sum("bad rows" in note for note in result.notes) == 7


def test_an_existing_store_is_replaced_only_when_asked_and_only_at_the_end(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([corpus], out, tokenizer=tokenizer())
    before = files(out)
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        prepare([corpus], out, tokenizer=tokenizer())
    with pytest.raises(DataError, match="no field 'body'"):
        prepare([corpus], out, tokenizer=tokenizer(), read=ReadOptions(text_field="body"), replace=True)
    assert files(out) == before
    prepare([corpus], out, tokenizer=tokenizer(), read=ReadOptions(max_documents=7), replace=True, validation_share=0.0)
    assert len(TokenStore(out)) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("count", [2, 5, 30])
def test_few_documents_give_validation_one(count: int, given: bool, tmp_path: Path) -> None:
    texts = [f"{i} {TEXTS[i]}" for i in range(count)]
    assert all(fraction(text) >= 0.001 for text in texts)
    path = write(tmp_path / "a.jsonl", json_lines([{"text": text} for text in texts]))
    one = tokenizer() if given else None
    result = prepare([path], tmp_path / "out", tokenizer=one, validation_share=0.001)
    lowest = min(texts, key=fraction)
    assert texts_of(tmp_path / "out", "validation") == [lowest]
    assert texts_of(tmp_path / "out", "train") == [text for text in texts if text != lowest]
    said = f"a share of 0.001 of {count} documents is less than one: the validation split has one"
    assert said in result.notes
    again = prepare([path], tmp_path / "again", tokenizer=one, validation_share=0.001, workers=2)
    assert again.manifest["splits"] == result.manifest["splits"]


@pytest.mark.parametrize(
    ("text", "end"), [("one line\n" * 100, "one line\n" * 1), ("word " * 100, "word "), ("x" * 50, "x")]
)
def test_the_end_of_a_single_document_is_validation(text: str, end: str, tmp_path: Path) -> None:
    inputs = [write(tmp_path / "a.txt", text), write(tmp_path / "copy.txt", text)]
    result = prepare(inputs, tmp_path / "out", tokenizer=tokenizer())
    assert texts_of(tmp_path / "out", "validation") == [end]
    assert texts_of(tmp_path / "out", "train") == [text.removesuffix(end)]
    assert "there is one document: its end is the validation split" in result.notes


def test_an_empty_validation_split_is_said(tmp_path: Path) -> None:
    result = prepare([write(tmp_path / "a.txt", "x")], tmp_path / "out", tokenizer=tokenizer())
    assert any(note.startswith("validation is empty: 1 documents at a share of 0.01") for note in result.notes)


def test_options_that_make_no_sense_are_refused(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"validation share is 1\.0; it must be at least 0 and below 1"):
        prepare([corpus], out, validation_share=1.0)
    with pytest.raises(TokenizerError, match="no effect on a given tokenizer"):
        prepare([corpus], out, tokenizer=tokenizer(), vocab_size=300)
    with pytest.raises(DataError, match="workers is 0"):
        prepare([corpus], out, workers=0)
    with pytest.raises(DataError, match="fell into validation"):
        prepare(
            [write(tmp_path / "one.txt", "x"), write(tmp_path / "two.txt", "y")],
            out,
            tokenizer=tokenizer(),
            validation_share=0.9999999,
        )
    assert not out.exists()


def test_progress_counts_up_to_the_bytes_on_disk(corpus: Path, tmp_path: Path) -> None:
    stages: list[tuple[str, float | None]] = []
    seen: list[tuple[float, str]] = []

    class Watch(Progress):
        def start(self, label: str, total: float | None, done: float = 0, *, unit: Unit = "") -> None:
            stages.append((label, total))
            seen.clear()

        def update(self, done: float, info: str = "", *, label: str | None = None) -> None:
            seen.append((done, info))

    prepare([corpus], tmp_path / "out", vocab_size=300, progress=Watch())
    size = corpus.stat().st_size
    assert stages == [("reading for the tokenizer", size), ("training the tokenizer", None), ("encoding", size)]
    assert seen[-1] == (size, f"{len(MANY)} documents")
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_hashes_seen_before_are_found_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    from glmkit.data import build_store as duplicates

    monkeypatch.setattr(duplicates, "_RECENT", 16)
    seen = SeenHashes()
    values = [int.from_bytes(hashlib.sha256(bytes([i, i // 7])).digest()[:8], "big") for i in range(250)]
    values += [0, 2**64 - 1, 2**63]
    assert not any(seen.add(value) for value in values)
    assert all(seen.add(value) for value in reversed(values))
    assert sum(map(len, seen._arrays)) + len(seen._recent) == len(values)
    assert len(seen._arrays) <= 5


def test_the_command_prints_a_summary_or_json(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "prepare",
        str(corpus),
        "--output",
        str(tmp_path / "a"),
        "--vocab-size",
        "320",
        "--validation-share",
        "0.1",
    ]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    counts = {name: entry["documents"] for name, entry in TokenStore(tmp_path / "a").manifest["splits"].items()}
    assert out.splitlines()[0] == f"wrote {tmp_path / 'a'}: bpe tokenizer of 320 tokens"
    assert f"{counts['train']} documents" in out.splitlines()[1]
    assert f"{counts['validation']} documents" in out.splitlines()[2]
    reuse = [
        "prepare",
        str(corpus),
        "--output",
        str(tmp_path / "b"),
        "--tokenizer",
        str(tmp_path / "a"),
        "--json",
        "--quiet",
    ]
    assert main([*reuse, "--validation-share", "0.1"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["directory"] == str(tmp_path / "b")
    assert facts["manifest"]["splits"] == TokenStore(tmp_path / "a").manifest["splits"]


def test_the_command_needs_no_torch(corpus: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from glmkit.cli.main import main; code = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    arguments = ["prepare", corpus, "--output", tmp_path / "out", "--vocab-size", "300"]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, env=os.environ, stdout=subprocess.DEVNULL)
    assert len(TokenStore(tmp_path / "out"))


def test_real_text_in_both_languages_comes_back(tmp_path: Path) -> None:
    folder = shared_dir("data", "text")
    inputs = [folder / "tinyshakespeare/dev.txt", folder / "chinese_poetry/tang_poems_dev.txt"]
    read = ReadOptions(split_text="blank_lines")
    result = prepare(inputs, tmp_path / "out", vocab_size=2000, validation_share=0.1, read=read)
    together = texts_of(tmp_path / "out", "train") + texts_of(tmp_path / "out", "validation")
    expected = [part for path in inputs for part in path.read_text().split("\n\n") if part.strip()]
    assert sorted(together) == sorted(part.strip("\n") for part in expected)
    assert result.manifest["splits"]["validation"]["documents"] == pytest.approx(len(expected) * 0.1, rel=0.25)
