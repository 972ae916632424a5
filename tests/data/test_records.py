"""Rows of files with their own text: nothing of a row changes when fields are put behind it."""

import gzip
import json
from pathlib import Path

import pytest

from glmkit.data.records import Record, read_records, record_format
from glmkit.errors import DataError
from support.shared import shared_dir


def records_of(tmp_path: Path, name: str, data: bytes) -> list[Record]:
    path = tmp_path / name
    path.write_bytes(data)
    return list(read_records(path))


def test_a_line_keeps_its_own_text(tmp_path: Path) -> None:
    rows = [
        b'{"a": 1.50, "b": 1e400, "c": 123456789012345678901234567890.10}',
        b'{"a": "\\u4f60", "b": "\xe4\xbd\xa0", "c": "\\ud800"}  ',
        b'{"a": 1, "a": 2 }',
        b"{}",
        b"{ }",
    ]
    records = records_of(tmp_path, "x.jsonl", b"\n".join(rows) + b"\n")
    added = [record.line({"answer": "\u00e9"}) for record in records]
    assert added[0] == rows[0][:-1] + b', "answer": "\xc3\xa9"}\n'
    assert added[1] == rows[1].strip()[:-1] + b', "answer": "\xc3\xa9"}\n'
    assert added[2] == b'{"a": 1, "a": 2, "answer": "\xc3\xa9"}\n'
    assert added[3] == added[4] == b'{"answer": "\xc3\xa9"}\n'
    assert all(record.begins(line) for record, line in zip(records, added, strict=True))


def test_where_a_line_stands(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": 2}'
    records = records_of(tmp_path, "x.jsonl", data)
    assert [record.where for record in records] == [f"{tmp_path}/x.jsonl: line {n}" for n in (1, 4)]
    assert [record.fields for record in records] == [{"a": 1}, {"a": 2}]
    assert records[-1].position == len(data) - 3  # the mark is not counted


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": }', "broken JSON at column 7"),
        (b'["a"]', "a list of 1, not an object"),
        (b'"a"', "a string, not an object"),
        (b"\xff", "invalid UTF-8 at byte 0 (0xff)"),
        (b'{"a": ' + b"1" * 5000 + b"}", "unusable JSON"),
        (b"[" * 100_000, "unusable JSON"),
    ],
)
def test_unusable_lines_are_rows_too(tmp_path: Path, line: bytes, problem: str) -> None:
    records = records_of(tmp_path, "x.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    assert [record.fields for record in records] == [{"a": 1}, None, {"a": 3}]
    assert problem in records[1].problem
    result = json.loads(records[1].line({"error": "no"}))
    assert result["error"] == "no"
    assert set(result) == {"input", "error"}
    assert records[1].begins(records[1].line({"error": "no"}))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.jsonl", b'{"a": "1", "b": "\xe4\xbd\xa0"}\n{"a": "2", "b": "x"}\n'),
        ("x.json", b'[{"a": "1", "b": "\xe4\xbd\xa0"},\n {"a": "2", "b": "x"}]'),
        ("lines.json", b'{"a": "1", "b": "\xe4\xbd\xa0"}\n{"a": "2", "b": "x"}\n'),
        ("x.csv", b'a,b\r\n1,"\xe4\xbd\xa0"\r\n2,x\r\n'),
        ("x.tsv", b"a\tb\n1\t\xe4\xbd\xa0\n\n2\tx"),
    ],
)
def test_all_formats_give_the_same_rows(tmp_path: Path, name: str, data: bytes) -> None:
    records = records_of(tmp_path, name, data)
    assert [record.fields for record in records] == [{"a": "1", "b": "你"}, {"a": "2", "b": "x"}]
    assert json.loads(records[0].line({"c": 1})) == {"a": "1", "b": "你", "c": 1}
    packed = records_of(tmp_path, f"{name}.gz", gzip.compress(data))
    assert [record.head for record in packed] == [record.head for record in records]


def test_rows_of_a_table_that_do_not_fit(tmp_path: Path) -> None:
    records = records_of(tmp_path, "x.csv", b'a,b\n1\n"x","y\ny"\n\xff,2\n3,4\n')
    assert [record.problem for record in records] == ["1 fields, but the header has 2", "", "invalid UTF-8", ""]
    assert [record.where[-6:] for record in records] == ["line 2", "line 3", "line 5", "line 6"]
    with pytest.raises(DataError, match="two columns have the same name"):
        records_of(tmp_path, "y.csv", b"a,a\n1,2\n")


def test_a_broken_array_ends_the_reading(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'[{"a": 1}, {"a": 2} {"a": 3}]')
    records = read_records(tmp_path / "x.json")
    assert next(records).fields == {"a": 1}
    with pytest.raises(DataError, match="expected ',' or ']'"):
        list(records)


@pytest.mark.parametrize("line", [b'{"a": 12, "c": 0}\n', b'{"a": 1', b'{"a": 1, "c": 0}', b'{"b": 1, "c": 0}\n'])
def test_a_line_of_another_row_is_told_apart(tmp_path: Path, line: bytes) -> None:
    (record,) = records_of(tmp_path, "x.jsonl", b'{"a": 1}\n')
    assert not record.begins(line)


@pytest.mark.parametrize("name", ["x.txt", "x", "x.parquet", "x.gz", "jsonl"])
def test_an_unknown_suffix(name: str) -> None:
    with pytest.raises(DataError, match=r"give a file named \.jsonl"):
        record_format(Path(name))


def test_the_hint_for_another_encoding_is_no_option(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"prompt": "话说天下大势，分久必合"}'.encode("gb18030"))
    (record,) = read_records(tmp_path / "a.jsonl")
    assert "iconv -f gb18030 -t UTF-8" in record.problem
    assert "--encoding" not in record.problem


def test_real_files() -> None:
    """Every row of published files comes back with its fields unchanged."""
    count = 0
    for name in ("advertisegen/dev.json", "dureader_qg/dev.json", "summarisation/gigaword/gigaword_TLDR.jsonl"):
        path = shared_dir("data", *name.split("/"))
        wanted = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        records = list(read_records(path))
        assert [record.fields for record in records] == wanted
        assert [json.loads(record.line({"x": 1})) for record in records] == [{**row, "x": 1} for row in wanted]
        assert records[-1].position == path.stat().st_size
        count += len(records)
    assert count > 300
