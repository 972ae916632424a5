"""Files of rows in every container, folders with splits, saved data sets; broken ones refused with their place."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from glmkit.tokenizer.dialogue import Tokenized

from .opened import one_set, opened, refusal, texts, write

ROW = {"instruction": "问", "input": "", "output": "答"}
LINE = json.dumps(ROW, ensure_ascii=False) + "\n"
ASKED = [("user", "问"), ("assistant", "答")]


def packed(path: Path, files: dict[str, str]) -> Path:
    """A tar.gz of these files."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))
    return path


def test_every_container_gives_the_same_dialogues(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([ROW])
    table.to_parquet(str(tmp_path / "a.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    paths = [
        write(tmp_path / "a.jsonl", LINE),
        write(tmp_path / "a.ndjson", b"\xef\xbb\xbf" + LINE.encode()),
        write(tmp_path / "a.json", LINE),
        write(tmp_path / "b.json", json.dumps([ROW], indent=2)),
        write(tmp_path / "a.csv", "instruction,input,output\n问,,答\n"),
        write(tmp_path / "a.tsv", "instruction\tinput\toutput\n问\t\t答\n"),
        write(tmp_path / "c.jsonl.gz", gzip.compress(LINE.encode())),
        packed(tmp_path / "a.tar.gz", {"folder/rows.jsonl": LINE}),
        tmp_path / "a.parquet",
        tmp_path / "saved",
    ]
    found = [one_set(path) for path in paths]
    assert [texts(one[0]) for one in found] == [ASKED] * len(paths)


def test_a_saved_folder_with_splits(tmp_path: Path) -> None:
    rows = [ROW | {"instruction": str(n)} for n in range(3)]
    parts = {"train": datasets.Dataset.from_list(rows[:2]), "validation": datasets.Dataset.from_list(rows[2:])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    sets = opened(tmp_path / "saved")
    assert (len(sets.train[0]), len(sets.validation[0])) == (2, 1)
    (tmp_path / "saved" / "train" / "data-00000-of-00001.arrow").unlink()
    assert "data-00000-of-00001.arrow is missing" in str(refusal(tmp_path / "saved"))


def test_a_cloned_folder_of_the_hub(tmp_path: Path) -> None:
    for name, rows in (("train", 2), ("validation", 1), ("test", 1)):
        path = tmp_path / "clone" / "data" / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list([ROW] * rows).to_parquet(str(path))
    write(tmp_path / "clone" / "dataset_infos.json", "{}")
    write(tmp_path / "clone" / "README.md", "words")
    sets = opened(tmp_path / "clone")
    assert (len(sets.train[0]), len(sets.validation[0])) == (2, 1)
    assert any("1 rows of another split" in note for note in sets.train[0].report.notes)


def test_an_archive_with_splits(tmp_path: Path) -> None:
    rows = json.dumps({"content": "a", "summary": "b"}) + "\n"
    path = packed(
        tmp_path / "AdvertiseGen.tar.gz", {"AdvertiseGen/train.json": rows * 2, "AdvertiseGen/dev.json": rows}
    )
    sets = opened(path)
    assert (len(sets.train[0]), len(sets.validation[0])) == (2, 1)
    assert sets.train[0][1].where == f"{path}/AdvertiseGen/train.json: line 2"


def test_pairs_of_lines_are_not_read_from_an_archive(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.tar.gz", {"x/train.source": "a\n", "x/train.target": "b\n"})
    assert "train.source: a file of the kind .source is not read from an archive; unpack the archive" in str(
        refusal(path)
    )


def test_files_of_different_kinds(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", LINE)
    write(tmp_path / "b.jsonl", [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}])
    found = one_set(str(tmp_path / "*.jsonl"))
    assert [texts(one) for one in found] == [ASKED, [("user", "q"), ("assistant", "a")]]
    assert [list(kinds) for kinds in found.report.kinds.values()] == [["instruction"], ["conversations"]]


def test_a_table_of_rows_of_different_kinds(tmp_path: Path) -> None:
    """A table fills the fields of all other kinds, of rows and of messages, with null."""
    rows = [
        ROW,
        {"prompt": "p", "response": "r"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "b"}]},
        {"input_ids": [5, 6, 7], "seq_len": 2},
        {"prompt": "p", "response": "s", "messages": []},
    ]
    names = {name for row in rows for name in row} | {"chosen", "rejected", "tools", "functions"}
    keys = ("role", "content", "from", "value")
    full = [
        {
            name: [{key: message.get(key) for key in keys} for message in value]
            if name == "messages" and value
            else value
            for name in sorted(names)
            for value in [row.get(name)]
        }
        for row in rows
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(full), tmp_path / "x.parquet")
    found = one_set(tmp_path / "x.parquet")
    assert [example for example in found if isinstance(example, Tokenized)] == [found[4]]
    assert [texts(one)[-1][1] for one in found if one != found[4]] == ["答", "r", "a", "b", "s"]
    assert not found.report.unused
    assert not found.report.remarks


def test_a_file_without_rows_is_named(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.jsonl", LINE)
    write(tmp_path / "d" / "b.jsonl", "\n")
    found = one_set(tmp_path / "d")
    assert found.report.notes == [f"{tmp_path}/d/b.jsonl: no rows"]


def test_members_of_archives_stay_inside(tmp_path: Path) -> None:
    found = one_set(packed(tmp_path / "x.tar.gz", {"/rows.jsonl": LINE, "../x.jsonl": LINE}))
    assert [example.where for example in found] == [f"{tmp_path}/x.tar.gz/rows.jsonl: line 1"]


def test_rows_that_are_ids(tmp_path: Path) -> None:
    rows = [{"input_ids": [5, 6, 130001, 130004, 7, 130005], "seq_len": 4}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "data"))
    assert list(one_set(tmp_path / "data")) == [
        Tokenized(
            (5, 6, 130001, 130004, 7, 130005),
            4,
            f"{tmp_path}/data/data-00000-of-00001.arrow: row 1",
            str(tmp_path / "data"),
        )
    ]


def test_other_encodings(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.jsonl", '{"content":"类型上衣白色棉布","summary":"好看的衣服大家都喜欢"}\n'.encode("gb18030")
    )
    error = refusal(path)
    assert str(error).startswith(f"{path}: line 1: invalid UTF-8")
    assert "--encoding gb18030" in str(error)
    assert texts(one_set(path, encoding="gb18030")[0])[0] == ("user", "类型上衣白色棉布")


def test_the_first_rows(tmp_path: Path) -> None:
    found = one_set(write(tmp_path / "x.jsonl", LINE * 5), max_rows=2)
    assert (len(found), found.report.notes) == (2, ["rows behind the first 2 are not read"])


def test_another_delimiter_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "prompt;response\nq;a\n")
    found = one_set(path)
    assert texts(found[0]) == [("user", "q"), ("assistant", "a")]
    assert found.report.notes == [f"{path}: its columns are separated by ';'"]


def conversation(*messages: object, **row: object) -> str:
    return json.dumps({"conversations": messages, **row}) + "\n"


ASK, SAY = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
# Content of a file -> what its error says behind the file's name.
BROKEN = {
    "empty.jsonl": ("", "no rows"),
    "cut.jsonl": (LINE + LINE[:20], "line 2: broken JSON"),
    "utf16.jsonl": (LINE.encode("utf-16"), "the file is UTF-16"),
    "nul.jsonl": ('{"prompt":"a\\u0000","response":"b"}', "line 1: field 'prompt': NUL byte"),
    "surrogate.jsonl": ('{"prompt":"a\\ud800","response":"b"}', "line 1: field 'prompt': lone surrogate"),
    "list.jsonl": ("[1, 2]\n", "line 1: the row is a list of 2"),
    "null.jsonl": (LINE + "null\n", "line 2: the row is null"),
    "empty_row.jsonl": ("{}\n", "line 1: the row has no field with a value"),
    "deep.jsonl": ('{"a":' * 200 + "1" + "}" * 200, "line 1: unusable JSON: it is nested too deeply"),
    "twice.jsonl": (
        '{"prompt":"a","response":"b","response":"c"}',
        "line 1: unusable JSON: the field 'response'",
    ),
    "nan.jsonl": ('{"prompt":"a","response":NaN}', "line 1: field 'response' is a number (nan)"),
    "true.jsonl": ('{"prompt":"a","response":true}', "line 1: field 'response' is a boolean (true)"),
    "long.jsonl": (
        '{"prompt":"a","response":' + "9" * 5000 + "}",
        "line 1: unusable JSON: a number has",
    ),
    "missing.jsonl": ('{"instruction":"a","input":""}', "line 1: no field 'output'"),
    "unknown.jsonl": ('{"foo":"a","bar":"b"}', "line 1: the row has the fields foo, bar: no form that is known"),
    "cut.json": ("[" + LINE + ",", "line 2: broken JSON"),
    "more.json": ("[" + LINE + "] x", "line 2: broken JSON: more data"),
    "wrapped.json": ('{"data": [' + LINE.strip() + "]}", "line 1: the row has the fields data"),
    "no_messages.jsonl": (conversation(), "line 1: the conversation has no message"),
    "text.jsonl": (
        json.dumps({"conversations": "hello"}),
        "line 1: field 'conversations' is text that is no JSON list",
    ),
    "no_role.jsonl": (conversation({"value": "q"}, SAY), "line 1: field 'conversations[0]' has no role"),
    "no_text.jsonl": (conversation({"from": "human"}, SAY), "line 1: field 'conversations[0]' has no 'value'"),
    "object.jsonl": (
        conversation({"from": "human", "value": {}}, SAY),
        "line 1: field 'conversations[0].value' is an object",
    ),
    "null_item.jsonl": (conversation(None, SAY), "line 1: field 'conversations[0]' is null"),
    "no_answer.jsonl": (conversation(ASK), "nothing can be trained of 1 rows"),
    "call.jsonl": (
        conversation(ASK, {"from": "function_call", "value": "{bad"}, SAY),
        "line 1: field 'conversations[1].value' holds broken JSON",
    ),
    "nameless.jsonl": (
        conversation(ASK, {"from": "function_call", "value": '{"arguments":{}}'}, SAY),
        "line 1: field 'conversations[1].value.name' is null",
    ),
    "roles.jsonl": (conversation(ASK | {"role": "gpt"}, SAY), "line 1: field 'conversations[0]' has two roles"),
    "texts.jsonl": (conversation(ASK | {"content": "z"}, SAY), "line 1: field 'conversations[0]' has two texts"),
    "twice_called.jsonl": (
        conversation(ASK, {"from": "function_call", "value": '{"name":"a","name":"b"}'}, SAY),
        "line 1: field 'conversations[1].value': unusable JSON: the field 'name' stands twice",
    ),
    "deep_call.jsonl": (
        conversation(
            ASK, {"from": "function_call", "value": '{"name":"a","arguments":' + '{"a":' * 150 + "1" + "}" * 151}
        ),
        "line 1: field 'conversations[1].value': unusable JSON: it is nested too deeply",
    ),
    "nan_call.jsonl": (
        conversation(ASK, {"from": "function_call", "value": '{"name":"a","arguments":{"x":NaN}}'}),
        "line 1: field 'conversations[1].value.arguments' holds nan",
    ),
    "half_tool.jsonl": (
        conversation(ASK, SAY, tools='[{"name":"a","description":"\\ud800"}]'),
        "line 1: field 'tools': lone surrogate U+D800",
    ),
    "lines_call.jsonl": (
        conversation(ASK, {"from": "function_call", "value": '{"name":"a\\nb"}'}),
        "line 1: field 'conversations[1].value.name' has a line end",
    ),
    "unnamed_tool.jsonl": (conversation(ASK, SAY, tools=[{"name": " "}]), "line 1: field 'tools[0].name' is blank"),
    "half_history.jsonl": (
        json.dumps(ROW | {"history": '[["\\ud800", "b"]]'}),
        "line 1: field 'history[0][0]': lone surrogate",
    ),
    "tools.jsonl": (conversation(ASK, SAY, tools="[{bad"), "line 1: field 'tools' holds broken JSON"),
    "tools_number.jsonl": (conversation(ASK, SAY, tools=3), "line 1: field 'tools' is a number (3)"),
    "weight.jsonl": (conversation(ASK, SAY | {"weight": 0.5}), "line 1: field 'conversations[1].weight' is a number"),
    "history.jsonl": ('{"prompt":"a","response":"b","history":[["x"]]}', "line 1: field 'history[0]' is a list of 1"),
    "history_text.jsonl": ('{"prompt":"a","response":"b","history":"x"}', "line 1: field 'history' is text"),
    "seq_len.jsonl": ('{"input_ids":[1,2],"seq_len":2}', "line 1: field 'seq_len' is 2"),
    "negative.jsonl": ('{"input_ids":[1,-2],"seq_len":1}', "line 1: field 'input_ids'"),
    "ragged.csv": ("prompt,response\na\n", "line 2: 1 fields, but the header has 2"),
    "header.csv": ("prompt,response\n", "no rows"),
    "twice.csv": ("prompt,response,response\na,b,c\n", "line 1: two columns have the same name"),
    "quote.csv": ('prompt,response\n"a,b\n', "line 2: broken CSV"),
    "binary.csv": (bytes(range(256)), "line 1: the header is not text"),
    "cut.jsonl.gz": (gzip.compress(LINE.encode() * 99)[:-9], "the gzip data stops in the middle"),
    "not.jsonl.gz": (LINE, "damaged gzip data"),
    "not.parquet": (b"PAR1 and more", "not a readable parquet file"),
    "not.arrow": (b"junk and more", "not a readable arrow file"),
    "not.tar": (b"x" * 600, "damaged tar archive"),
    "pointer.parquet": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of Git LFS"),
    "pointer.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of Git LFS"),
    "page.json": ("<!DOCTYPE html>\n<html>\n", "line 1: broken JSON"),
    "comma.jsonl": (LINE.strip() + ",\n", "line 1: broken JSON"),
    "empty.parquet": (b"", "not a readable parquet file"),
    "wide.jsonl": (LINE.encode("utf-16-le"), "line 1: invalid UTF-8 at byte 34 (0xee); if the file is UTF-16-LE"),
    "lines.csv": ('"pro\nmpt",response\na,b\n', "line 1: the header is not text; is this a table?"),
    "packed.jsonl": (gzip.compress(LINE.encode()), "it is packed with gzip; add .gz to its name"),
    "zip.csv": (b"PK\x03\x04" + bytes(40), "it is a zip archive"),
    "case.jsonl": ('{"Instruction":"a","Output":"b"}', "line 1: the row has the fields Instruction, Output: no form"),
    "blanks.csv": ("instruction, output\na,b\n", "line 2: no field 'output'"),
    "words.txt": ("hello\n", "unknown format '.txt'"),
    "alone.source": ("a\n", "there is no alone.target beside it"),
    "alone.target": ("a\n", "there is no alone.source beside it"),
}


def test_names_of_fields_that_are_nearly_known(tmp_path: Path) -> None:
    for name, content, advice in (
        ("x.jsonl", '{"Conversations":[]}', "rename 'Conversations' to 'conversations'"),
        ("x.csv", "instruction, output\na,b\n", "rename ' output' to 'output'"),
    ):
        assert advice in (refusal(write(tmp_path / name, content)).step or "")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    path = write(tmp_path / name, content)
    error = refusal(path)
    assert str(error).startswith(f"{path}: {message}"), str(error)
    assert "\n" not in str(error)


def longer_target(folder: Path) -> Path:
    write(folder / "x.source", "a\nb\n")
    write(folder / "x.target", "a\n")
    return folder / "x.source"


def described(folder: Path) -> Path:
    write(folder / "d" / "state.json", '{"_data_files": []}')
    write(folder / "d" / "dataset_info.json", "{}")
    return folder / "d"


def only_dev(folder: Path) -> Path:
    write(folder / "d" / "dev.json", LINE)
    return folder / "d"


def same_columns(folder: Path) -> Path:
    columns = [pyarrow.array([text]) for text in "abc"]
    path = folder / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=["prompt", "response", "response"]), path)
    return path


def cut_arrow(folder: Path) -> Path:
    datasets.Dataset.from_list([ROW] * 50).save_to_disk(str(folder / "d"))
    path = folder / "d" / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:900])
    return folder / "d"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (longer_target, "line 2 has no line in x.target"),
        (described, "no file with rows"),
        (only_dev, "no rows; its files are of other splits"),
        (cut_arrow, "not a readable arrow file"),
        (same_columns, "two columns have the same name: prompt, response, response"),
        (lambda folder: Path(" "), "data.train has an empty name"),
    ],
)
def test_broken_folders(made: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    assert message in str(refusal(made(tmp_path)))
