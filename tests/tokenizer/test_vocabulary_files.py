"""Vocabulary files: their number of entries, JSON that cannot be read, writing the same bytes."""

from pathlib import Path

import pytest

from glmkit.errors import TokenizerError
from glmkit.tokenizer.vocabulary_files import check_entries, parse_json, write_vocabularies


def test_the_number_of_entries() -> None:
    published = {30592: 30522}
    check_entries("vocab.txt", 30522, 30592, published)
    check_entries("vocab.txt", 7, None, published)
    check_entries("vocab.txt", 7, 64, published)
    with pytest.raises(TokenizerError, match=r"^vocab\.txt: 30521 entries, but .* 30592 rows has 30522; it is cut off"):
        check_entries("vocab.txt", 30521, 30592, published)


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000, '{"a": }'], ids=lambda text: text[:5])
def test_json_that_cannot_be_read(text: str) -> None:
    with pytest.raises(
        TokenizerError, match=r"^x\.json is (not valid JSON \(.*\)|nested too deeply).*; copy or download it again"
    ) as caught:
        parse_json(text, "x.json")
    assert "\n" not in str(caught.value)


def test_files_are_written_as_they_were(tmp_path: Path) -> None:
    files = {"a.txt": b"\x00\xff\r\n", "b.json": b""}
    write_vocabularies(tmp_path / "new" / "folder", files)
    assert {path.name: path.read_bytes() for path in (tmp_path / "new" / "folder").iterdir()} == files
