"""Values in rows: null, numbers, blanks, end words, fields that are not used. Ids are those of the published models."""

import json
from pathlib import Path

import pytest

from families.tuned import Tuned
from glmkit.data.dialogues.row_forms import Columns

from .opened import encoded, ids_and_labels, one_set, opened, refusal, texts, write

NO = [-100]


@pytest.fixture(scope="module")
def chatglm() -> Tuned:
    return Tuned("chatglm")


@pytest.mark.parametrize(
    "rows",
    [
        '{"instruction":"翻译","input":null,"output":"Hi"}\n',
        '{"instruction":"翻译","output":"Hi"}\n',
        '{"instruction":"翻译","input":"","output":"Hi"}\n',
        "instruction,input,output\n翻译,,Hi\n",
    ],
    ids=["null", "absent", "empty", "cell"],
)
def test_nothing_is_nothing(rows: str, tmp_path: Path, chatglm: Tuned) -> None:
    path = write(tmp_path / ("x.csv" if rows.startswith("i") else "x.jsonl"), rows)
    prompt = [37010, 12, 5, 67769, 4, 13049, 12]
    ids = [*prompt, 130001, 130004, 7950, 130005]
    found = ids_and_labels(path, chatglm, "chatglm", template=["chatglm_tuning"])
    assert found == [(ids, NO * 8 + [130004, 7950, 130005])]


def test_zero_is_an_answer(tmp_path: Path, chatglm: Tuned) -> None:
    path = write(tmp_path / "x.jsonl", '{"content":"几次","summary":0}\n')
    ids = [5, 68797, 130001, 130004, 5, 8, 130005]
    assert ids_and_labels(path, chatglm, "chatglm") == [(ids, NO * 3 + ids[3:])]
    (row,) = encoded(path, Tuned("chatglm2"), "chatglm2")
    assert row.ids[-3:] == [30910, 30940, 2]


def test_numbers_are_as_they_were_written(tmp_path: Path) -> None:
    written = ["0", "-0", "-3", "1.50", "1e3", "0.10", "12345678901234567890"]
    lines = "".join(f'{{"prompt":"q","response":{number}}}\n' for number in written)
    assert [texts(one)[1][1] for one in one_set(write(tmp_path / "x.jsonl", lines))] == written
    array = "[" + ",".join(lines.split("\n")[:-1]) + "]"
    assert [texts(one)[1][1] for one in one_set(write(tmp_path / "x.json", array))] == written


def test_cells_are_text(tmp_path: Path, chatglm: Tuned) -> None:
    cells = ["NA", "null", "007", "1e3", "True", "None", "nan"]
    path = write(tmp_path / "x.csv", "prompt,response\n" + "".join(f"q,{cell}\n" for cell in cells))
    assert [texts(one)[1][1] for one in one_set(path)] == cells
    kept = {
        "好<|endoftext|>": "好",
        "好 <|endoftext|>\n": "好",
        "好<|endofpiece|>": "好",
        "好</s>": "好",
        "好<|im_end|></s>": "好",
        "好[EOS]": "好",
        "<|endoftext|>在前": "<|endoftext|>在前",
        "<s>旧</s>": "<s>旧</s>",
        "见[1]": "见[1]",
    }
    path = write(tmp_path / "x.jsonl", [{"prompt": "q", "response": text} for text in kept])
    found = one_set(path)
    assert [texts(one)[1][1] for one in found] == list(kept.values())
    assert found.report.remarks["end_word"].count == 6


def test_a_reserved_word_in_an_answer_is_named(tmp_path: Path, chatglm: Tuned) -> None:
    path = write(
        tmp_path / "x.jsonl", [{"prompt": "[gMASK]", "response": "行"}, {"prompt": "q", "response": "好<eop>坏"}]
    )
    found = one_set(path, family=chatglm, name="chatglm")
    assert found.report.remarks["reserved"].first == f"{path}: line 2"
    (row, _) = encoded(path, chatglm, "chatglm")
    assert row.ids[:4] == [53, 199, 15475, 42]  # text, whatever it says


def test_lost_characters_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"prompt": "q", "response": "好\ufffd坏"}])
    assert one_set(path).report.remarks["lost_text"].count == 1


def test_line_ends(tmp_path: Path, chatglm: Tuned) -> None:
    prompts = ["a\nb", "a\r\nb", "a\\nb", "a<n>b"]
    path = write(tmp_path / "x.jsonl", [{"prompt": text, "response": "c"} for text in prompts])
    starts = [row.ids[: row.ids.index(130001)] for row in encoded(path, chatglm, "chatglm")]
    assert starts == [[104, 4, 178], [104, 5, 4, 178], [104, 43, 11089], [104, 4, 178]]
    write(tmp_path / "x.source", b"a\r\nb\\n\n")
    write(tmp_path / "x.target", b"c\nd\r\n")
    assert [texts(one) for one in one_set(tmp_path / "x.source")] == [
        [("user", "a"), ("assistant", "c")],
        [("user", "b\\n"), ("assistant", "d")],
    ]


def test_placeholders_are_named_and_filled(tmp_path: Path) -> None:
    rows = [{"instruction": "hi", "output": "I am {{name}} by {{ author }}"}] * 2 + [
        {"instruction": "q", "output": "a"}
    ]
    path = write(tmp_path / "x.jsonl", rows)
    assert one_set(path).report.remarks["placeholders"].count == 2
    filled = one_set(path, fill={"name": "小智", "author": "我们"})
    assert texts(filled[0])[1][1] == "I am 小智 by 我们"
    assert "placeholders" not in filled.report.remarks
    rare = one_set(write(tmp_path / "y.jsonl", [*rows[:1], *rows[2:] * 3]))
    assert "placeholders" not in rare.report.remarks


@pytest.mark.parametrize("template", ["instruction", "belle", "chatglm_tuning"])
def test_every_field_is_in_the_question_or_named(template: str, tmp_path: Path) -> None:
    row = {"instruction": "翻译", "input": "你好", "output": "Hi", "source": "网", "id": 3, "note": ""}
    found = one_set(write(tmp_path / "x.jsonl", [row]), template=[template])
    assert "你好" in texts(found[0])[0][1]
    assert list(found.report.unused) == ["source"]
    quirk = one_set(write(tmp_path / "x.jsonl", [row]), template=["belle_reference"])
    assert texts(quirk[0])[0] == ("user", "翻译")
    assert list(quirk.report.unused) == ["input", "source"]


def test_a_field_may_be_null_for_long(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "system": None, "output": "a"}] * 300
    path = write(tmp_path / "x.jsonl", [*rows, {"instruction": "q", "system": "短", "output": "a"}])
    found = one_set(path)
    assert texts(found[300]) == [("system", "短"), ("user", "q"), ("assistant", "a")]
    assert texts(found[0]) == [("user", "q"), ("assistant", "a")]


def test_columns_by_name(tmp_path: Path) -> None:
    from glmkit.data.dialogues.row_forms import Columns

    path = write(tmp_path / "x.jsonl", [{"问": "q", "答": "a", "记录": [["早", "早安"]], "别的": "x"}])
    found = one_set(path, columns=Columns(prompt="问", response="答", history="记录"))
    assert texts(found[0]) == [("user", "早"), ("assistant", "早安"), ("user", "q"), ("assistant", "a")]
    assert found.report.counted == 1
    assert found.report.turns == 2
    assert list(found.report.unused) == ["别的"]
    everything = one_set(path, columns=Columns(prompt="问", response="答", history="记录"), answers="all")
    assert everything.report.counted == 2
    error = refusal(path, columns=Columns(prompt="问题", response="答"))
    assert "the prompt column is '问题'; the row has 问, 答" in str(error)
    assert error.param == "问题"


def test_own_templates(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"passage": f"文{n}", "q": "问", "a": "答"} for n in range(20)])
    made = write(
        tmp_path / "t.yaml",
        'templates:\n  - {prompt: ["{passage}\\n", "问：{q}"], answer: "{a}"}\n'
        '  - {prompt: "{q}（{passage}）", answer: "{{答}}{a}", system: 短}\n',
    )
    found = [texts(one) for one in one_set(path, template=[str(made)], seed=1)]
    assert {len(one) for one in found} == {2, 3}, "both are used"
    assert found[0] in (
        [("user", "文0\n问：问"), ("assistant", "答")],
        [("system", "短"), ("user", "问（文0）"), ("assistant", "{答}答")],
    )
    assert found == [texts(one) for one in one_set(path, template=[str(made)], seed=1)]
    assert found != [texts(one) for one in one_set(path, template=[str(made)], seed=2)]
    assert json.dumps(found[:5]) == json.dumps(found)[: len(json.dumps(found[:5])) - 1] + "]", "by seed and index"


def test_a_blank_system_text_is_none(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"system": " \u3000", "messages": talk}, {"system": "\t", "prompt": "q", "response": "a"}]
    found = one_set(write(tmp_path / "x.jsonl", rows))
    assert [texts(one) for one in found] == [[("user", "q"), ("assistant", "a")]] * 2


def test_a_field_of_a_template_may_be_absent_in_some_rows_and_not_in_all(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"q": "a", "a": "b"}, {"q": "a", "hint": "h", "a": "b"}])
    wording = '- {prompt: ["{q}", "（{hint}）"], answer: "{a}"}\n'
    found = one_set(path, template=[str(write(tmp_path / "t.yaml", wording))])
    assert [texts(one)[0][1] for one in found] == ["a", "a（h）"]
    made = write(tmp_path / "u.yaml", wording.replace("hint", "hnt"))
    assert str(refusal(path, template=[str(made)])) == (f"{path}: no row has a field 'hnt', which template 'u 1' names")


def test_a_given_column_may_be_absent_in_some_rows_and_not_in_all(tmp_path: Path) -> None:
    rows = [{"q": "a", "a": "b", "h": [["x", "y"]], "in": "i"}, {"q": "a", "a": "b"}]
    path = write(tmp_path / "x.jsonl", rows)
    columns = {"prompt": "q", "response": "a"}
    first, second = one_set(path, columns=Columns(**columns, history="h", query="in"))
    assert [text for _, text in texts(first)] == ["x", "y", "a\ni", "b"]
    assert texts(second) == [("user", "a"), ("assistant", "b")]
    assert str(refusal(path, columns=Columns(**columns, history="hist"))) == (
        f"{path}: no row has a field 'hist', the history column"
    )
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write(tmp_path / "y.jsonl", [{"talk": talk, "sys": "S"}, {"talk": talk}])
    found = one_set(path, columns=Columns(messages="talk", system="sys"))
    assert [len(texts(one)) for one in found] == [3, 2]
    assert "no row has a field 'tool', the tools column" in str(
        refusal(path, columns=Columns(messages="talk", tools="tool"))
    )


def test_a_form_is_kept_where_one_of_its_fields_is_null(tmp_path: Path) -> None:
    rows = [
        {"context": "c", "answer": "a", "question": "q"},
        {"context": None, "answer": "a", "question": "q"},
        {"context": "c", "answer": "a", "question": None},
    ]
    found = one_set(write(tmp_path / "x.jsonl", rows))
    assert [texts(one)[0][1] for one in found] == ["答案：a，上下文：c", "答案：a，上下文："]
    assert found.report.remarks["empty_answer"].count == 1


def test_bad_columns_do_not_hide_behind_skip(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.jsonl", [{"prompt": "q", "response": "a"}, {"prompt": "q"}, {"prompt": "q", "response": []}]
    )
    found = one_set(path, on_bad_row="skip")
    assert (len(found), found.report.remarks["bad_row"].count) == (1, 2)
    assert found.report.remarks["bad_row"].first.startswith(f"{path}: line 2: no field 'response'")
    sets = opened(path, on_bad_row="skip")
    assert any("rows that cannot be used, left out: 2 (first" in line for line in sets.lines())


def test_the_report_is_plain_values(tmp_path: Path) -> None:
    found = one_set(write(tmp_path / "x.jsonl", [{"prompt": "q", "response": "a", "n": 1}] * 3))
    report = json.loads(json.dumps(found.report.to_dict()))
    assert report["kinds"] == {str(tmp_path / "x.jsonl"): {"prompt/response": 3}}
    assert (report["rows"], report["dialogues"], report["counted"]) == (3, 3, 3)
    assert report["unused"] == {"n": {"count": 3, "first": f"{tmp_path}/x.jsonl: line 1"}}
