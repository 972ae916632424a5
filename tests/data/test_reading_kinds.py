"""Input that is not what a name promises: other encodings, delimiters, nested fields, archives, arrays named .jsonl."""

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data.corpora import TEXTS, json_lines, read, read_with_report, tokenizer, write
from glmkit.cli.main import main
from glmkit.data.charset import guess_encoding
from glmkit.errors import DataError
from support.shared import shared_dir

SAMPLES = {
    "gb18030": "红楼梦第一回，甄士隐梦幻识通灵，贾雨村风尘怀闺秀。此开卷第一回也。作者自云：曾历过一番梦幻之后。",
    "big5": "紅樓夢第一回，甄士隱夢幻識通靈，賈雨村風塵懷閨秀。此開卷第一回也。作者自云：曾歷過一番夢幻之後。",
    "shift_jis": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "euc_kr": "나라의 말이 중국과 달라 한자와는 서로 통하지 아니하므로 어리석은 백성이 말하고자 하는 바가 있어도",
    "euc_jp": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "cp1252": "Où est né le garçon? À l'été, près de la forêt. Grüße aus München, señor.",
}


@pytest.mark.parametrize("encoding", SAMPLES)
def test_an_encoding_is_guessed_for_the_message_and_read_when_named(encoding: str, tmp_path: Path) -> None:
    text = "A title in ASCII\n" + SAMPLES[encoding] * 3
    path = write(tmp_path / "a.txt", text.encode(encoding))
    with pytest.raises(DataError, match=f"if the file is {encoding.upper()}: --encoding {encoding}"):
        read(path)
    assert read(path, encoding=encoding) == [text]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.json", "a.csv", "a.tsv"])
@pytest.mark.parametrize("encoding", ["gbk", "utf-16", "utf-16-be", "utf-32", "latin-1", "utf-8-sig"])
def test_every_format_in_every_encoding(name: str, encoding: str, tmp_path: Path) -> None:
    text = "naïve café" if encoding == "latin-1" else "话说天下大势，分久必合"
    content = {
        "jsonl": json_lines([{"text": text}]), "json": json.dumps([{"text": text}], ensure_ascii=False),
        "csv": f"id,text\n1,{text}\n", "tsv": f"id\ttext\n1\t{text}\n",
    }.get(name.split(".")[1], text)  # fmt: skip
    path = write(tmp_path / name, content.encode(encoding))
    assert read(path, encoding=encoding) == [text]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_text_without_a_mark_is_told_from_binary_files(encoding: str, tmp_path: Path) -> None:
    text = "话说天下大势，分久必合。\nA second line, in ASCII.\n" * 3
    path = write(tmp_path / "a.txt", text.encode(encoding))
    with pytest.raises(DataError, match=f"if the file is {encoding.upper()}: --encoding {encoding}"):
        read(path)
    with pytest.raises(DataError, match="the file is UTF-32; read it with --encoding utf-32"):
        read(write(tmp_path / "b.txt", text.encode("utf-32")))
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "c.txt", random.Random(0).randbytes(4000)))
    assert "--encoding u" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["cp1251", "koi8_r"])
def test_russian(encoding: str) -> None:
    assert guess_encoding("Сегодня хорошая погода, и мы идём гулять.\n".encode(encoding) * 5) == encoding


def test_quotes_of_western_text() -> None:
    assert guess_encoding("“Quoted” — it’s naïve… ".encode("cp1252") * 5) == "cp1252"


def test_no_guess_where_nothing_is_likely() -> None:
    assert guess_encoding(random.Random(0).randbytes(4000)) is None
    assert guess_encoding(b"\x80\x81\xfe\xff" * 100) is None


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_mark_at_the_start_says_the_encoding(encoding: str) -> None:
    assert guess_encoding("天 [MASK] 气".encode(encoding)) == encoding
    assert guess_encoding(b"\xff\xfe\x00\xd8\x00\xd8") is None


def test_wrong_bytes_of_a_named_encoding_are_one_bad_row(tmp_path: Path) -> None:
    good = SAMPLES["gb18030"].encode("gb18030")
    path = write(tmp_path / "a.txt", good + b"\n\xff\xff\n" + good)
    documents, report = read_with_report(path, encoding="gb18030", split_text="lines", on_bad_row="skip")
    assert documents == [SAMPLES["gb18030"]] * 2
    assert (report.bad_rows["invalid_utf8"].count, report.bad_rows["invalid_utf8"].size) == (1, 3)
    with pytest.raises(DataError, match="not utf-16"):
        read(write(tmp_path / "odd.txt", "text".encode("utf-16-le") + b"\x00\xd8"), encoding="utf-16-le")


def test_an_unknown_encoding(tmp_path: Path) -> None:
    for name in ("gbk2", "base64", "utf-8\0", "idna", "punycode"):
        with pytest.raises(DataError, match="which is unknown; give one such as utf-8, gb18030") as caught:
            read(write(tmp_path / "a.txt", "x"), encoding=name)
        assert caught.value.param == "encoding"


def test_what_is_skipped_says_how_many_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in/good.txt", "\n".join(TEXTS))
    bad = SAMPLES["gb18030"].encode("gb18030")
    write(tmp_path / "in/bad.txt", bad)
    tokenizer().save(tmp_path / "tokenizer")
    arguments = ["--output", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tokenizer"), "--split-lines"]
    assert main(["prepare", str(tmp_path / "in"), *arguments, "--on-bad-row", "skip"]) == 0
    out = capsys.readouterr().out
    assert f"skipped 1 bad rows (invalid_utf8, {len(bad)} bytes); the first: " in out
    assert "--encoding gb18030" in out


# --- tables ---

TABLES = {
    "semicolon": ("id;text\n1;one, two\n2;three\n", {}, ["one, two", "three"]),
    "bar": ("id|text\n1|one; two\n", {}, ["one; two"]),
    "tab": ('id\ttext\n1\t"one\ttwo"\n', {}, ["one\ttwo"]),
    "comma_first": ("text,a;b\none;two,3\n", {}, ["one;two"]),
    "quoted_header": ('"a,b";text\n1;one\n', {}, ["one"]),
    "spreadsheet": ("sep=;\nid;text\n1;one\n", {}, ["one"]),
    "given": ("id^text\n1^one\n", {"delimiter": "^"}, ["one"]),
    "typed_tab": ("id\ttext\n1\tone\n", {"delimiter": "\\t"}, ["one"]),
    "one_column": ("text\none\ntwo\n", {}, ["one", "two"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_delimiters(name: str, tmp_path: Path) -> None:
    content, options, expected = TABLES[name]
    path = write(tmp_path / "a.csv", content)
    documents, report = read_with_report(path, **options)
    assert documents == expected
    found = {"semicolon": ";", "bar": "|", "tab": "\t", "quoted_header": ";", "spreadsheet": ";"}.get(name)
    assert report.delimiters == ({} if found is None else {str(path): found})


def test_another_sign_between_columns_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id^text\n1^one\n")
    with pytest.raises(DataError, match=r"columns: 'id\^text'; choose with --text-field; --delimiter names the sign"):
        read(path)
    assert read(path, delimiter="^") == ["one"]


def test_a_delimiter_that_cannot_be(tmp_path: Path) -> None:
    for delimiter in ("", ";;", '"', "\n"):
        with pytest.raises(DataError, match="give one character") as caught:
            read(write(tmp_path / "a.csv", "text\nx\n"), delimiter=delimiter)
        assert caught.value.param == "delimiter"


# --- nested fields ---

NESTED: dict[str, Any] = {
    "plain": {"paragraphs": ["a", "b"]},
    "object": {"data": {"content": "c"}},
    "deep": {"a": {"b": {"c": ["d", "e"]}}},
    "objects": {"messages": [{"content": "f"}, {"content": "g"}]},
    "whole": {"a.b": "h", "a": {"b": "i"}},
    "nested": {"rows": [["m"], ["n", "o"]]},
    "lists": {"parts": [{"lines": ["j", "k"]}, {"lines": ["l"]}]},
}
FIELDS = {
    "plain": ("paragraphs", "a\nb"), "object": ("data.content", "c"), "deep": ("a.b.c", "d\ne"),
    "objects": ("messages.content", "f\ng"), "whole": ("a.b", "h"), "lists": ("parts.lines", "j\nk\nl"),
    "nested": ("rows", "m\nn\no"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("name", NESTED)
def test_nested_fields(name: str, kind: str, tmp_path: Path) -> None:
    rows = [NESTED[name]]
    if kind == "parquet":
        out = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
        content: str | bytes = out.getvalue()
    else:
        content = json.dumps(rows) if kind == "json" else json_lines(rows)
    field, expected = FIELDS[name]
    documents, report = read_with_report(write(tmp_path / f"a.{kind}", content), text_field=field)
    assert documents == [expected]
    assert report.joined == ("\n" in expected)


@pytest.mark.parametrize(
    ("row", "field", "said"),
    [
        ({"data": {"content": "c"}}, "text", "no field 'text'; fields with text: data.content; choose with"),
        ({"data": {"content": "c"}}, "data.body", "no field 'body' in 'data'; fields with text: data.content"),
        ({"text": [1, 2]}, "text", "field 'text' is a list of 2, not text"),
        ({"text": []}, "text", "field 'text' is a list of 0, not text"),
        ({"data": [{"c": 1}, {"d": 2}]}, "data.c", "no field 'c' in 'data'"),
        ({"paragraphs": ["a"], "title": "bb"}, "text", "fields with text: title, paragraphs; choose with"),
    ],
)
def test_nested_fields_that_are_not_there(row: Any, field: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "a.jsonl", json_lines([row])), text_field=field)
    assert said in str(caught.value)


def test_poems_as_they_are_published() -> None:
    path = shared_dir("data", "text", "chinese_poetry", "songci300.json")
    rows = json.loads(path.read_text())
    documents, report = read_with_report(path, text_field="paragraphs")
    assert documents == ["\n".join(row["paragraphs"]) for row in rows]
    assert report.joined == sum(len(row["paragraphs"]) > 0 for row in rows)


# --- archives and names ---


def tar(files: dict[str, bytes], mode: str, *more: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return out.getvalue()


def members() -> dict[str, bytes]:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["p"]}), out)
    packed = tar({"x.txt": b"inner"}, "w")
    return {
        "a/one.txt": "第一".encode(), "a/two.jsonl": b'{"text": "t"}\n', "b.csv": b"text\nc\n",
        "p.parquet": out.getvalue(), "a/picture.png": b"\0\1", "a/.hidden.txt": b"no", "in.tar": packed,
        "empty.txt": b"",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "mode"), [("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar", "w"), ("a.tar.zst", "")])
def test_archives(name: str, mode: str, tmp_path: Path) -> None:
    link = tarfile.TarInfo("link.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    data = tar(members(), mode or "w", link)
    path = tmp_path / name
    if mode:
        path.write_bytes(data)
    else:
        write(path, data)
    documents, report = read_with_report(path)
    assert documents == ["第一", "t", "c", "p"]
    assert report.ignored == {".png": 1, "hidden": 1, ".tar": 1}
    assert report.empty == 1
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_row_in_an_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(tar({"b/c.jsonl": b'{"text": "a"}\n{"x": 1}\n'}, "w:gz"))
    with pytest.raises(DataError, match=r"a\.tgz/b/c\.jsonl: line 2: no field 'text'"):
        read(tmp_path / "a.tgz")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar"])
@pytest.mark.parametrize("keep", [0.1, 0.6])
def test_an_archive_that_is_cut(name: str, keep: float, tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(50_000).hex().encode()
    data = tar({"a.txt": noise, "b.txt": noise}, "w:gz" if name.endswith("gz") else "w")
    (tmp_path / name).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=rf"{name}: (the gzip data stops in the middle|damaged tar archive)"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([{"text": "a"}, {"text": "b"}]),
        '\ufeff[\n{"text": "a"},\n{"text": "b"}\n]\n',
        ' [ {"text": "a"}\n, {"text": "b"}]',
    ],
)
def test_an_array_named_jsonl(content: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", content)) == ["a", "b"]
    with pytest.raises(DataError, match="line 1: the row is a list of 1, not an object"):
        read(write(tmp_path / "b.jsonl", '["a"]\n["b"]\n'))
