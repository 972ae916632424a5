"""`glm generate --input`: the answers are those of one text at a time, whatever kills it, and no row is lost."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from glmkit.checkpoint.native import write_model
from glmkit.cli.main import main
from glmkit.session import LM
from glmkit.tokenizer.trained import TrainedTokenizer
from support.chat import say
from support.served_models import small_base, small_chat
from support.shared import shared_dir

TEXTS = ["凯旋门是", "The quick", "纪念", "x", "brown fox. The quick brown fox.", "巴黎 fox"]
SHORT = ["--max_new_tokens", "6"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model's directory."""
    lm, folder = small_base(), tmp_path_factory.mktemp("base")
    write_model(folder, lm.config, dict(lm.model.named_parameters()))
    assert isinstance(lm.tokenizer, TrainedTokenizer)
    lm.tokenizer.save(folder)
    return folder


@cache
def chat_lm(family: str) -> LM:
    return small_chat(family, max_positions=240)


@pytest.fixture
def chat(base: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes every directory hold a chat model."""

    def use(family: str) -> Path:
        monkeypatch.setattr("glmkit.cli.text_input.load", lambda *_, **__: chat_lm(family))
        return base

    return use


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows(rows: list[Any], name: str = "in.jsonl") -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(name).write_bytes(lines.encode("utf-8", "backslashreplace"))


def run(model: Path, *options: str, source: str = "in.jsonl") -> int:
    return main(["generate", str(model), "--input", source, "--output", "out.jsonl", "--quiet", *options])


def answers(model: Path, *options: str, source: str = "in.jsonl") -> list[dict[str, Any]]:
    """What a run writes, each time from the beginning."""
    assert run(model, *options, "--overwrite", source=source) == 0
    return [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]


def error_of(capsys: pytest.CaptureFixture[str], model: Path, *options: str, source: str = "in.jsonl") -> str:
    capsys.readouterr()
    assert run(model, *options, source=source) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


# --- the same as alone ------------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--temperature", "0.9", "--top_p", "0.8", "--seed", "5"],
        ["--num_beams", "3", "--length_penalty", "0.7", "--no_repeat_ngram_size", "2"],
    ],
)
@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_answers_are_those_of_one_text_at_a_time(base: Path, folder: Path, options: list[str], batch_size: str) -> None:
    write_rows([{"id": number, "text": text} for number, text in enumerate(TEXTS)])
    rows = answers(base, *options, "--tgt_length", "9", "--min_tgt_length", "2", "--batch_size", batch_size)
    lm = small_base()
    numbers = (float(word) if "." in word else int(word) for word in options[1::2])
    params = {name[2:]: value for name, value in zip(options[::2], numbers, strict=True)}
    for number, (row, text) in enumerate(zip(rows, TEXTS, strict=True)):
        (wanted,) = lm.answers([text], max_new_tokens=9, min_new_tokens=2, **params)[0]
        assert (row["id"], row["text"]) == (number, text)
        assert (row["answer"], row["finish"], row["answer_tokens"]) == (wanted.text, wanted.finish, len(wanted.ids))
        assert row["prompt_tokens"] == len(lm.tokenizer.encode(text)) + 3
        assert ("score" in row) == ("--num_beams" in options)


def test_several_answers(base: Path, folder: Path) -> None:
    write_rows([{"prompt": text} for text in TEXTS[:3]])
    sampled = answers(base, *SHORT, "--n", "3", "--temperature", "1", "--seed", "2", "--logprobs", "1")
    beams = answers(base, *SHORT, "--num_beams", "3", "--num_return_sequences", "2")
    lm = small_base()
    for text, row, best in zip(TEXTS, sampled, beams, strict=False):
        wanted = lm.answers([text], max_new_tokens=6, n=3, temperature=1.0, seed=2, logprobs=1)[0]
        assert row["answers"] == [answer.text for answer in wanted]
        assert [item["id"] for item in row["logprobs"][2]] == wanted[2].ids
        assert row["logprobs"][2][0]["top"][0]["id"] == (wanted[2].logprobs or [])[0].top[0][0]
        found = lm.answers([text], max_new_tokens=6, num_beams=3, num_return_sequences=2)[0]
        assert best["answers"] == [answer.text for answer in found]
        assert best["score"] == [round(answer.score or 0, 4) for answer in found]


def test_equal_rows_get_equal_answers(base: Path, folder: Path) -> None:
    write_rows([{"text": TEXTS[number % 3]} for number in range(9)])
    rows = answers(base, *SHORT, "--temperature", "1", "--seed", "9", "--batch_size", "2")
    assert rows[:3] == rows[3:6] == rows[6:]


@pytest.mark.parametrize("order", ["shared", "inserted"])
def test_blanks(base: Path, folder: Path, order: str) -> None:
    texts = ["The [MASK] fox. [MASK]", "凯旋门是为[MASK]而建", "[gMASK]"]
    write_rows([{"text": text} for text in texts])
    rows = answers(base, *SHORT, "--task", "fill", "--order", order)
    lm = small_base()
    for text, row in zip(texts, rows, strict=True):
        filled = lm.fill(text, max_tokens=6, order=order)
        assert (row["text"], row["answer"], row["blanks"]) == (text, filled.text, filled.blanks)
        assert row["answer_tokens"] == [len(ids) for ids in filled.ids]


@pytest.mark.parametrize("family", ["chatglm", "chatglm3", "glm-4"])
def test_conversations(chat: Callable[[str], Path], folder: Path, family: str) -> None:
    pair = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba"}]
    asked = {"role": "user", "content": "abc"}
    long = [*pair * 40, asked]
    write_rows([{"messages": [asked]}, {"messages": [*pair, asked]}, {"messages": long}])
    rows = answers(chat(family), *SHORT)
    lm = chat_lm(family)
    assert rows[0]["answer"] == lm.chat("abc", temperature=0, max_new_tokens=6)[0]
    assert rows[1]["answer"] == lm.chat("abc", pair, temperature=0, max_new_tokens=6)[0]
    assert [row.get("dropped_turns", 0) > 0 for row in rows] == [False, False, True]
    write_rows([{"content": "abc"}, {"content": "abc", "history": []}, {"content": "abc", "history": [["ab", "ba"]]}])
    texts = answers(chat(family), *SHORT, "--task", "chat")
    assert [row["answer"] for row in texts] == [rows[number]["answer"] for number in (0, 0, 1)]


@pytest.mark.parametrize("family", ["chatglm3", "glm-4"])
def test_what_looks_like_a_call_is_text(
    chat: Callable[[str], Path], folder: Path, family: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    lm, text = chat_lm(family), "Thought: a\n\nAction: b\nObservation: 12"
    stop = lm.chat_template.stop_ids(lm.tokenizer)[0]  # type: ignore[arg-type]
    row = {"messages": [{"role": "user", "content": "abc"}]}
    write_rows([row])
    say(monkeypatch, [*lm.tokenizer.encode(text), stop])
    (told,) = answers(chat(family), "--max_new_tokens", "99")
    assert (told["answer"], told["finish"]) == (text, "stop")
    say(monkeypatch, [*lm.tokenizer.encode(text), stop])
    (told,) = answers(chat(family), "--max_new_tokens", "99", "--stop", "Observation:", "--overwrite")
    assert (told["answer"], told["finish"]) == ("Thought: a\n\nAction: b\n", "stop")
    say(monkeypatch, [stop])
    answers(chat(family), "--max_new_tokens", "9", "--overwrite")
    assert "note: 1 answers are empty" in capsys.readouterr().out


def test_several_replies(chat: Callable[[str], Path], folder: Path) -> None:
    messages = [{"role": "user", "content": "abc"}]
    write_rows([{"messages": messages}])
    (row,) = answers(chat("chatglm2"), *SHORT, "--n", "3", "--temperature", "1", "--seed", "4")
    lm = chat_lm("chatglm2")
    job = lm.chat_job(messages, {"max_new_tokens": 6, "n": 3, "temperature": 1.0, "top_p": 1.0, "seed": 4})
    lm.engine.run(lm.engine.submit(job))
    assert row["answers"] == [job.reply(number)[0] for number in range(3)]
    assert row["finish"] == [answer.finish for answer in job.answers]


def test_tools_beside_messages(chat: Callable[[str], Path], folder: Path) -> None:
    tools = [{"name": "ab", "description": "ba", "parameters": {}}]
    messages = [{"role": "user", "content": "abc"}]
    write_rows([{"messages": messages}, {"messages": messages, "tools": tools}])
    plain, offered = answers(chat("chatglm3"), *SHORT)
    job = chat_lm("chatglm3").chat_job(messages, {"max_new_tokens": 6, "temperature": 0.0}, tools=tools)
    assert offered["prompt_tokens"] == job.prompt_tokens > plain["prompt_tokens"]
    write_rows([{"messages": messages, "tools": tools}])
    assert run(chat("chatglm"), *SHORT, "--overwrite") == 2, "it was not taught to use them"


# --- what the prompt is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "options", "prompt"),
    [
        ({"text": "b", "prompt": "a"}, [], "a"),
        ({"content": "c", "source": "b", "src": "a"}, [], "a"),
        ({"summary": "c", "content": "a"}, [], "a"),
        ({"instruction": "a", "input": "b", "output": "c"}, [], "a\nb"),
        ({"instruction": "a", "input": ""}, [], "a"),
        ({"input": "a", "target": "b"}, [], "a"),
        ({"text": "b", "question": "a"}, ["--prompt_field", "question"], "a"),
        ({"context": "c", "answer": "d"}, ["--template", "答案：{answer}，上下文：{context}", "--added_prefix", "m_"],
         "答案：d，上下文：c"),
    ],
)  # fmt: skip
def test_which_field_is_the_prompt(base: Path, folder: Path, row: Any, options: list[str], prompt: str) -> None:
    write_rows([row])
    (result,) = answers(base, *SHORT, *options)
    prefix = "m_" if "m_" in options else ""
    assert result[f"{prefix}answer"] == small_base().generate(prompt, max_new_tokens=6)
    assert {name: result[name] for name in row} == row


@pytest.mark.parametrize("side", ["left", "right"])
def test_src_length_cuts_the_text_and_says_so(
    base: Path, folder: Path, side: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows([{"text": text} for text in TEXTS])
    lm = small_base()
    options = ["--src_length", "7", "--truncation_side", side]
    rows = answers(base, *SHORT, *options)
    assert f"note: {sum('cut_tokens' in row for row in rows)} prompts were longer" in capsys.readouterr().out
    for text, row in zip(TEXTS, rows, strict=True):
        ids = lm.tokenizer.encode(text)
        assert row.get("cut_tokens", 0) == max(0, len(ids) - 4)
        assert row["prompt_tokens"] == min(len(ids), 4) + 3
        kept = lm.tokenizer.decode(ids[-4:] if side == "left" else ids[:4])
        if lm.tokenizer.encode(kept) == (ids[-4:] if side == "left" else ids[:4]):
            assert row["answer"] == lm.generate(kept, max_new_tokens=6)
    assert 0 < sum("cut_tokens" in row for row in rows) < len(TEXTS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.json", '[{"text": "x", "n": "1"},\n{"text": "巴黎", "n": "2"}]'),
        ("in.csv", 'text,n\r\nx,1\r\n"巴黎",2\r\n'),
        ("in.tsv", "text\tn\nx\t1\n巴黎\t2\n"),
    ],
)
def test_other_formats(base: Path, folder: Path, name: str, content: str) -> None:
    Path(name).write_text(content, encoding="utf-8", newline="")
    write_rows([{"text": "x", "n": "1"}, {"text": "巴黎", "n": "2"}])
    wanted = answers(base, *SHORT)
    assert answers(base, *SHORT, source=name) == wanted


# --- mistakes ---------------------------------------------------------------------------------------------------------

BAD: list[tuple[Any, str]] = [
    ({"text": 5}, "field 'text': it is a number (5), not a text"),
    ({"title": "x"}, "no field 'messages' or 'prompt' or"),
    ({"text": "a\x00"}, "field 'text': NUL byte"),
    ({"text": "x" * 5000}, "field 'text': the text has"),
    ({"text": "a\ud800"}, "field 'text': lone surrogate U+D800"),
    ({"messages": []}, "field 'messages': it is a list of 0; give a list of messages"),
    ({"messages": [5]}, "field 'messages': a turn is a number (5); give messages"),
    ({"messages": [{"role": "user", "content": "x"}]}, "field 'messages': "),
    ({"text": "x", "answer": "y"}, "the row has a field 'answer' already; --added_prefix"),
    ([1], "the row is a list of 1, not an object"),
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("bad", "message"), BAD)
def test_a_bad_row_stops_the_run_and_keeps_what_is_done(
    base: Path, folder: Path, bad: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows([{"text": "x"}, {"text": "巴黎"}, bad, {"text": "fox"}])
    error = error_of(capsys, base, *SHORT)
    assert error.startswith("glm generate: in.jsonl: line 3: ")
    assert message in error
    assert "2 rows are done and kept in out.jsonl.partial" in error
    assert not Path("out.jsonl").exists()
    write_rows([{"text": "x"}, {"text": "巴黎"}, {"text": "纪念"}, {"text": "fox"}])
    assert run(base, *SHORT) == 0
    assert "2 of them by an earlier run" in capsys.readouterr().out
    mended = Path("out.jsonl").read_bytes()
    answers(base, *SHORT)
    assert Path("out.jsonl").read_bytes() == mended


def test_bad_rows_can_be_recorded(base: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows([{"text": "x"}, *(bad for bad, _ in BAD), {"text": "fox"}])
    with open("in.jsonl", "a") as file:
        file.write('{"text": "fox", \n')
    assert run(base, *SHORT) == 2
    capsys.readouterr()
    assert run(base, *SHORT, "--on_error", "record") == 1, "goes on where the run before stopped"
    said, failed = capsys.readouterr(), f"{len(BAD) + 1} of {len(BAD) + 3} rows have an error instead of an answer\n"
    assert f"note: {len(BAD) + 1} rows could not be answered" in said.out
    assert said.err.endswith(f"glm generate: {failed}")
    assert run(base, *SHORT, "--on_error", "record") == 1, "also where all is done"
    assert capsys.readouterr().err == f"glm generate: {failed}"
    rows = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(BAD) + 3
    for row, (bad, message) in zip(rows[1:], BAD, strict=False):
        assert message in row.pop("error")
        assert row == (bad if isinstance(bad, dict) else {"input": bad})
    assert [rows[0]["finish"], rows[-2]["finish"]] == ["length", "length"]
    assert rows[-1]["input"] == '{"text": "fox",'
    assert "broken JSON" in rows[-1]["error"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--src_length", "3"], "src_length is 3, and 3 are not of the text; give at least 4"),
        (["--src_length", "9", "--task", "fill"], "src_length cuts a text that is continued"),
        (["--truncation_side", "right"], "--truncation_side goes with --src_length"),
        (["--order", "shared"], "--order goes with --task fill"),
        (["--task", "chat"], "was not taught to chat"),
        (["--batch_size", "0"], "--batch_size is 0; give at least 1"),
        (["--tgt_length", "3", "--max_new_tokens", "4"], "--tgt_length is 3 and --max_new_tokens 4"),
        (["--tgt_length", "0"], "max_new_tokens is 0; give at least 1"),
        (["--template", "no field"], "template is 'no field', which is no template"),
        (["--template", "{text}", "--prompt_field", "text"], "leave one out"),
        (["--num_beams", "2", "--prompt_lookup", "4"], "prompt_lookup does not go with num_beams 2"),
        (["some text"], "both TEXT and --input were given"),
    ],
)
def test_options_that_do_not_go_together(
    base: Path, folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows([{"text": "x"}])
    assert message in error_of(capsys, base, *options)
    assert not Path("out.jsonl").exists()
    assert not Path("out.jsonl.partial").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "absent.jsonl", "--output", "out.jsonl"], "absent.jsonl: no such file"),
        (["--input", "in.txt", "--output", "out.jsonl"], "in.txt: unknown suffix"),
        (["--input", "in.jsonl"], "--input needs --output"),
        (["--input", "in.jsonl", "--output", "in.jsonl"], "--output is the input"),
        (["--input", "in.jsonl", "--output", "out.csv"], "name it .jsonl"),
        (["--input", "in.jsonl", "--output", "absent/out.jsonl"], "absent is no directory"),
        (["--output", "out.jsonl", "text"], "--output goes with --input"),
        (["--src_length", "5", "text"], "--src_length goes with --input"),
        (["--tgt_length", "5", "text"], "--tgt_length goes with --input FILE, which was not given; use --max_new_to"),
    ],
)
def test_files_that_do_not_do(
    base: Path, folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows([{"text": "x"}])
    Path("in.txt").write_text("x")
    assert main(["generate", str(base), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# --- taken up again ---------------------------------------------------------------------------------------------------


def test_progress_is_told_on_stderr(
    base: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows([{"text": text} for text in TEXTS])
    command = ["generate", str(base), "--input", "in.jsonl", "--output", "out.jsonl", *SHORT, "--overwrite"]
    monkeypatch.setattr("glmkit.progress.SECONDS_BETWEEN_LINES", 0)
    assert main(command) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(TEXTS)
    size = f"{Path('in.jsonl').stat().st_size} B"
    assert lines[-1].startswith(f"answering {size} of {size}  6 lines, ")
    assert "tokens/s" in lines[-1]
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main([*command, "--json"]) == 0
    shown = capsys.readouterr()
    assert "answering" in shown.err
    facts = json.loads(shown.out)
    assert (facts["lines"], facts["new_lines"], facts["errors"]) == (6, 6, 0)
    rows = map(json.loads, Path("out.jsonl").read_text(encoding="utf-8").splitlines())
    assert facts["answer_tokens"] == sum(row["answer_tokens"] for row in rows)


def test_an_empty_input(base: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.jsonl").write_text("\n")
    assert answers(base) == []
    assert run(base, "--json") == 0
    said, again = capsys.readouterr().out.splitlines()
    assert said == "out.jsonl: the input has no rows"
    assert json.loads(again)["lines"] == json.loads(again)["errors"] == 0


def test_what_changed_is_named(base: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows([{"text": "x"}, {"text": 5}])
    assert run(base, *SHORT) == 2
    assert "temperature was 0.0, now 1.0" in error_of(capsys, base, *SHORT, "--temperature", "1")
    other = folder / "other"
    shutil.copytree(base, other)
    (other / "notes.md").write_text("not read")
    write_rows([{"text": "x"}, {"text": "y"}])
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "the model's model.safetensors has changed" in error_of(capsys, other, *SHORT)
    shutil.copy(base / "model.safetensors", weights)
    assert run(other, *SHORT, "--batch_size", "3") == 0, "neither the place nor the batch is part of it"


def test_ctrl_c_says_how_to_go_on(
    base: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows([{"text": text} for text in TEXTS])
    whole = answers(base, *SHORT)
    written = 0

    def interrupted(self: Any, tokens: int, position: int) -> None:
        nonlocal written
        written += 1
        self.lines += 1
        if written == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("glmkit.cli.generate_batch.BatchProgress.add", interrupted)
        Path("out.jsonl").unlink()
        assert run(base, *SHORT) == 130
    assert "3 rows are done and kept in out.jsonl.partial; the same command goes on" in capsys.readouterr().err
    assert run(base, *SHORT) == 0
    rows = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == whole


@pytest.mark.exhaustive
def test_a_killed_run_goes_on(base: Path, folder: Path) -> None:
    """kill -9 somewhere in the middle; in the end the file is that of a run in peace.

    What every other place of a kill leaves is in generate/batch/test_output.py.
    """
    write_rows([{"text": TEXTS[number % 6] + "x" * (number % 5), "id": number} for number in range(80)])
    options = ["--max_new_tokens", "20", "--batch_size", "4", "--temperature", "0.8", "--seed", "3"]
    answers(base, *options)
    whole = Path("out.jsonl").read_bytes()
    Path("out.jsonl").unlink()
    command = [sys.executable, "-m", "glmkit", "generate", str(base), "--input", "in.jsonl", "--output", "out.jsonl"]
    partial = Path("out.jsonl.partial")
    with subprocess.Popen([*command, *options, "--quiet"], stderr=subprocess.DEVNULL) as process:
        while not (partial.exists() and partial.stat().st_size >= len(whole) // 3):
            with pytest.raises(subprocess.TimeoutExpired):  # not over before it was killed
                process.wait(0.005)
        process.kill()
    assert len(whole) // 3 <= partial.stat().st_size < len(whole)
    for _ in range(2):  # the second time there is nothing left to do
        assert run(base, *options) == 0
        assert Path("out.jsonl").read_bytes() == whole


def test_published_rows(base: Path, folder: Path) -> None:
    """Rows of published files: AdvertiseGen by its own field, DuReaderQG by the published prompt."""
    advertise = shared_dir("data", "advertisegen", "dev.json").read_text(encoding="utf-8").splitlines()[:6]
    Path("in.jsonl").write_text("\n".join(advertise), encoding="utf-8")
    options = [*SHORT, "--src_length", "60", "--num_beams", "2", "--no_repeat_ngram_size", "3"]
    rows = answers(base, *options)
    assert [{name: row[name] for name in ("content", "summary")} for row in rows] == list(map(json.loads, advertise))
    questions = shared_dir("data", "dureader_qg", "dev.json").read_text(encoding="utf-8").splitlines()[:6]
    Path("in.jsonl").write_text("\n".join(questions), encoding="utf-8")
    template = "答案：{answer}，上下文：{context}在已知答案的前提下，问题："
    rows = answers(base, *options, "--template", template, "--added_prefix", "model_")
    assert all(row["model_prompt_tokens"] == 60 for row in rows)
    assert all(row["model_cut_tokens"] > 0 for row in rows)
