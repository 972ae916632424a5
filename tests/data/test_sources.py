"""Documents from files of every kind, in order, complete."""

import csv
import gzip
import io
import json
import os
import re
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data.corpora import TEXTS, json_lines, read, read_with_report, write
from glmkit.data import hub
from glmkit.data.rows import ReadOptions, ReadReport
from glmkit.data.sources import Sources
from glmkit.errors import DataError
from support.shared import shared_dir

ROWS = [{"id": i, "text": text, "other": "x"} for i, text in enumerate(TEXTS)]


def table(delimiter: str) -> str:
    out = io.StringIO()
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator="\n")
    writer.writerow(["id", "text"])
    for i, text in enumerate(TEXTS):
        writer.writerow([i, text if delimiter == "," else text.replace("\n", " ")])
    return out.getvalue()


FILES = {
    "a.jsonl": json_lines(ROWS),
    "array.json": json.dumps(ROWS, ensure_ascii=False, indent=1),
    "compact.json": json.dumps(ROWS),
    "lines.json": json_lines(ROWS),
    "pretty.json": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "a.csv": table(","),
    "bom.jsonl": "\ufeff" + json_lines(ROWS),
    "bom.json": "\ufeff" + json.dumps(ROWS),
    "bom.csv": "\ufeff" + table(",").replace("id,text", "text,id", 1).replace("text,id", "id,text", 1),
    "crlf.jsonl": json_lines(ROWS).replace("\n", "\r\n"),
}


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", FILES)
def test_rows_of_every_format(name: str, packing: str, tmp_path: Path) -> None:
    path = write(tmp_path / (name + packing), FILES[name])
    documents, report = read_with_report(path)
    assert documents == TEXTS
    assert report.documents == len(TEXTS)
    assert report.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert (report.empty, report.bad_rows) == (0, {})


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_parquet(packing: str, tmp_path: Path) -> None:
    out = io.BytesIO()
    columns = {"id": list(range(len(TEXTS))), "text": TEXTS}
    pyarrow.parquet.write_table(pyarrow.table(columns), out, row_group_size=7)
    assert read(write(tmp_path / f"a.parquet{packing}", out.getvalue())) == TEXTS


def test_parquet_columns_with_a_dictionary_and_large_strings(tmp_path: Path) -> None:
    for kind in (pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), pyarrow.large_string()):
        array = pyarrow.array(TEXTS[:5]).cast(kind)
        pyarrow.parquet.write_table(pyarrow.table({"body": array}), tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet", text_field="body") == TEXTS[:5]


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tn\nsay "hi\t1\n"quoted"\t2\n')
    assert read(path) == ['say "hi', '"quoted"']
    assert read(write(tmp_path / "b.tsv", table("\t"))) == [text.replace("\n", " ") for text in TEXTS]


def test_csv_fields_hold_line_breaks_quotes_and_commas(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'n,text\r\n1,"a,\r\n""b"""\r\n\r\n2,c\r\n')
    assert read(path) == ['a,\r\n"b"', "c"]


TEXT = "one\n\n  two\nthree\n \n\nfour\n"


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("file", [TEXT]),
        ("lines", ["one", "  two", "three", "four"]),
        ("blank_lines", ["one", "  two\nthree", "four"]),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.md.gz", "a.text.zst"])
def test_text_files(split: str, expected: list[str], name: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / name, TEXT), split_text=split) == expected


def test_line_ends_of_text_files_become_lf_and_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", TEXT.replace("\n", "\r\n"))
    documents, report = read_with_report(path)
    assert (documents, report.crlf) == ([TEXT], 1)
    documents, report = read_with_report(path, keep_crlf=True)
    assert (documents, report.crlf) == ([TEXT.replace("\n", "\r\n")], 0)
    assert read(path, split_text="blank_lines") == ["one", "  two\nthree", "four"]
    assert read(write(tmp_path / "old.txt", "a\rb")) == ["a\rb"]


def test_long_text_files_are_cut_at_line_ends_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "aaaa\nbb\ncc\n一二三四五六七八\nd")
    documents, report = read_with_report(path, max_document_bytes=10)
    assert documents == ["aaaa\nbb\n", "cc\n", "一二三四五六七八\n", "d"]
    assert report.cut_files == 1
    documents, report = read_with_report(path, max_document_bytes=10_000)
    assert (len(documents), report.cut_files) == (1, 0)


def test_empty_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"text": ""}, {"text": " \n　"}, {"text": "x"}]
    documents, report = read_with_report(write(tmp_path / "a.jsonl", json_lines(rows)), write(tmp_path / "e.txt", ""))
    assert (documents, report.empty) == (["x"], 3)


def test_directories_are_walked_in_order_and_say_what_they_left_out(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/b/c.jsonl", "c/deep/er/x.txt.gz"):
        write(tmp_path / name, json_lines([{"text": name}]) if name.endswith("jsonl") else name)
    for name in (".git/config.txt", ".hidden.txt", "picture.png", "Makefile"):
        write(tmp_path / name, "no")
    sources = Sources([tmp_path])
    assert list(sources.documents(ReadReport())) == ["b.txt", "a/z.txt", "a/b/c.jsonl", "c/deep/er/x.txt.gz"]
    assert dict(sources.ignored) == {"hidden": 2, ".png": 1, "without suffix": 1}
    assert any("1 .png, 2 hidden, 1 without suffix" in note for note in sources.notes)
    assert read(tmp_path, format="text") == [
        "no",
        "b.txt",
        "no",
        "a/z.txt",
        '{"text": "a/b/c.jsonl"}\n',
        "c/deep/er/x.txt.gz",
    ]


def test_a_loop_of_links_is_visited_once_and_said(tmp_path: Path) -> None:
    write(tmp_path / "in/a.txt", "one")
    (tmp_path / "in/sub").mkdir()
    (tmp_path / "in/sub/up").symlink_to(tmp_path / "in")
    sources = Sources([tmp_path / "in"])
    assert list(sources.documents(ReadReport())) == ["one"]
    assert [note for note in sources.notes if "sub/up is a link to a directory already visited" in note]


def test_links_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/b.txt", "two")
    write(tmp_path / "in/a.txt", "one")
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/c.txt").symlink_to(tmp_path / "elsewhere/b.txt")
    assert read(tmp_path / "in") == ["one", "two"]  # b.txt once, though two names lead to it


def test_globs_and_repeated_names(tmp_path: Path) -> None:
    for name in ("x/1.txt", "x/2.txt", "y/3.txt", "y/no.bin"):
        write(tmp_path / name, name)
    assert read(f"{tmp_path}/*/[13].txt") == ["x/1.txt", "y/3.txt"]
    sources = Sources([f"{tmp_path}/**/*.txt", tmp_path / "x", tmp_path / "y" / "3.txt"])
    assert list(sources.documents(ReadReport())) == ["x/1.txt", "x/2.txt", "y/3.txt"]
    assert "3 files were named more than once and are read once" in sources.notes
    with pytest.raises(DataError, match=r"\*\.csv: nothing matches"):
        read(f"{tmp_path}/*.csv")


def test_reading_stops_at_max_documents(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(ROWS))
    documents, report = read_with_report(path, max_documents=5)
    assert documents == TEXTS[:5]
    assert report.reached_max_documents
    assert not read_with_report(path, max_documents=60)[1].reached_max_documents


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_the_bytes_read_add_up_to_the_size_on_disk(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), path)
    else:
        write(path, json_lines(ROWS * 50))
    counted: list[int] = []
    sources = Sources([path])
    for _ in sources.documents(ReadReport(), counted.append):
        pass
    assert sum(counted) == path.stat().st_size == sources.total_bytes


def test_options_without_effect_are_said(tmp_path: Path) -> None:
    rows, text = write(tmp_path / "a.jsonl", json_lines(ROWS)), write(tmp_path / "a.txt", "x")
    changed = ReadOptions(split_text="lines", keep_crlf=True, hub_split="test", text_field="body")
    expected = [
        "the option split_text has no effect: there is no text file",
        "the option keep_crlf has no effect: there is no text file",
        "the option hub_split has no effect: there is no dataset of the hub",
    ]
    assert Sources([rows], changed).notes == expected
    assert Sources([text], changed).notes == [
        "the option text_field has no effect: all files are plain text",
        expected[2],
    ]
    assert Sources([rows, text, "hub:c4"], changed).notes == []
    assert Sources([rows]).notes == Sources([text]).notes == []


def test_several_frames_and_members_in_one_file(tmp_path: Path) -> None:
    halves = [json_lines(ROWS[:30]).encode(), json_lines(ROWS[30:]).encode()]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, halves)))
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(map(zstandard.ZstdCompressor().compress, halves)))
    assert read(tmp_path / "a.jsonl.gz") == read(tmp_path / "a.jsonl.zst") == TEXTS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.zst"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    rows = [{"text": "word " * 2000}] * 1500  # 15 MB
    path = write(tmp_path / name, json.dumps(rows) if name == "a.json" else json_lines(rows))
    tracemalloc.start()
    count = sum(1 for _ in Sources([path]).documents(ReadReport()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1500
    assert peak < 8e6


def test_values_longer_than_a_block_of_a_json_array(tmp_path: Path) -> None:
    texts = ["a" * 3_000_000, "中" * 1_100_000, "b"]
    path = write(tmp_path / "a.json", json.dumps([{"text": text} for text in texts], ensure_ascii=False))
    assert read(path) == texts


def test_a_dataset_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def load_dataset(path: str, config: str | None, *, split: str, streaming: bool) -> list[dict[str, str]]:
        asked.append((path, config, split, streaming))
        return [{"body": text} for text in TEXTS]

    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_require_hub", lambda name: None)
    assert read("org/name:zh", text_field="body", hub_split="test") == TEXTS
    assert asked == [("org/name", "zh", "test", True)]
    assert Sources(["hub:wikitext"]).total_bytes is None
    with pytest.raises(DataError, match=r"^org/name \(train\): row 1: no field 'text'; fields with text: body"):
        read("org/name")


def test_what_can_be_a_name_of_the_hub() -> None:
    assert [hub.dataset_name(name) for name in ("allenai/c4", "allenai/c4:en", "a-b/c_d.e", "hub:c4", "hub:c4:en")] == [
        "allenai/c4", "allenai/c4:en", "a-b/c_d.e", "c4", "c4:en",
    ]  # fmt: skip
    assert not any(map(hub.dataset_name, ("c4", "/tmp/x", "a/b/c", "./a", "../a", "a b", "", "目录")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mytexts", "mytexts: no such file or directory; did you mean my-texts?"),
        ("poems", "poems: no such file or directory; a dataset of the hub without an owner is hub:NAME"),
        ("my-texts/novls", "my-texts/novls: no such file or directory; did you mean my-texts/novels?"),
        ("mytexts/novels", "mytexts/novels: no such file or directory; did you mean my-texts/novels?"),
        ("my-texts/zzz", "my-texts/zzz: no such file or directory"),
    ],
)
def test_a_slip_in_a_path_is_no_dataset(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-texts" / "novels").mkdir(parents=True)
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        Sources([name])


def test_real_files_named_json_with_one_object_a_line() -> None:
    path = shared_dir("data", "advertisegen") / "dev.json"
    documents = read(path, text_field="summary")
    with open(path) as file:
        assert documents == [json.loads(line)["summary"] for line in file]


def test_a_real_json_array_with_crlf_line_ends() -> None:
    path = shared_dir("data", "text", "chinese_poetry") / "lunyu.json"
    documents, report = read_with_report(path, text_field="chapter")
    assert documents == [row["chapter"] for row in json.loads(path.read_bytes())]
    assert report.crlf == 0  # strings of JSON are never changed
    with pytest.raises(
        DataError, match=r"row 1 \(line 2\): no field 'text'; fields with text: paragraphs, chapter; choose"
    ):
        read(path)


def test_real_books_and_poems() -> None:
    folder = shared_dir("data", "text")
    documents, report = read_with_report(folder, max_document_bytes=200_000, format="text")
    files = [name for _, _, names in os.walk(folder) for name in names]
    assert report.cut_files >= 8
    assert len(documents) > len(files)
    books = sorted((folder / "books").glob("*.txt"))
    assert "".join(read(folder / "books", max_document_bytes=50_000)) == "".join(book.read_text() for book in books)
