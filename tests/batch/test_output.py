"""A file of results that grows: taken up again after a kill at any byte, and never mixed with another run's."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glmkit.batch.output import Output
from glmkit.data.records import Record, read_records
from glmkit.errors import DataError, RequestError

PLAN = {"a": 1, "options": {"seed": 0}, "files": {"the model's w": "12"}}
ROWS = 7


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"n": {number}, "text": "第{number}"}}\n' for number in range(ROWS)), encoding="utf-8")
    return path


def line_of(record: Record) -> bytes:
    assert record.fields is not None
    return record.line({"answer": f"答 {record.fields['n']}" * 3})


def write_all(out: Path, source: Path, *, stop: int | None = None, plan: object = None, **options: object) -> int:
    """One run; how many rows had their line before. stop: give up before that row, as a failed run does."""
    output = Output(out)
    try:
        output.begin(plan or PLAN, **options)  # type: ignore[arg-type]
        done, records = output.resume(lambda: read_records(source))
        if output.complete:
            return done
        count = done
        for record in records:
            if count == stop:
                return done
            output.write(line_of(record))
            count += 1
        output.finish(count)
        return done
    finally:
        output.close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_whole_run(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert write_all(out, source) == 0
    assert out.read_bytes() == b"".join(map(line_of, read_records(source)))
    assert names(tmp_path) == {"in.jsonl", "out.jsonl", "out.jsonl.run.json"}
    assert json.loads((tmp_path / "out.jsonl.run.json").read_text())["plan"] == PLAN


def test_a_kill_at_every_byte(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # it takes most of the time, some five times a byte
    out = tmp_path / "out.jsonl"
    write_all(out, source)
    whole = out.read_bytes()
    out.unlink()
    for size in range(len(whole) + 1):
        (tmp_path / "out.jsonl.partial").write_bytes(whole[:size])
        assert write_all(out, source) == whole[:size].count(b"\n")
        assert out.read_bytes() == whole
        out.unlink()


def test_the_same_command_on_a_complete_file_does_nothing(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    write_all(out, source)
    before = out.stat()
    assert write_all(out, source) == ROWS
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with source.open("a") as file:
        file.write('{"n": 9}\n')
    with pytest.raises(DataError, match="line 8 is new since .*out.jsonl was complete; --overwrite begins again"):
        write_all(out, source)
    assert write_all(out, source, overwrite=True) == 0
    assert out.read_bytes().count(b"\n") == ROWS + 1


@pytest.mark.parametrize(
    ("plan", "difference"),
    [
        ({**PLAN, "a": "你"}, 'a was 1, now "你"'),
        ({**PLAN, "options": {"seed": 1}}, "seed was 0, now 1"),
        ({**PLAN, "files": {"the model's w": "13"}}, "the model's w has changed"),
        ({**PLAN, "files": {"the model's w": "12", "the model's v": "13"}}, "the model's v is new"),
        ({**PLAN, "files": {}}, "the model's w is gone"),
    ],
)
@pytest.mark.parametrize("stop", [None, 3])
def test_another_plan_is_refused(tmp_path: Path, source: Path, plan: object, difference: str, stop: int | None) -> None:
    out = tmp_path / "out.jsonl"
    write_all(out, source, stop=stop)
    left = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with pytest.raises(RequestError, match=f"of another run \\({difference}\\); --overwrite begins again"):
        write_all(out, source, plan=plan)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == left
    assert write_all(out, source, plan=plan, overwrite=True) == 0
    assert out.read_bytes().count(b"\n") == ROWS


def test_a_value_that_may_change(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    write_all(out, source, stop=3)
    with pytest.raises(RequestError, match="a was 1, now 2"):
        write_all(out, source, plan={**PLAN, "a": 2}, may_become={"a": 3})
    assert write_all(out, source, stop=4, plan={**PLAN, "a": 2}, may_become={"a": 2}) == 3
    with pytest.raises(RequestError, match="a was 2, now 1"):
        write_all(out, source)
    assert write_all(out, source, plan={**PLAN, "a": 2}) == 4


def test_a_changed_input_is_refused_where_it_was_answered(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    write_all(out, source, stop=3)
    rows = source.read_text(encoding="utf-8").splitlines(keepends=True)
    source.write_text("".join([rows[0], '{"n": 10}\n', *rows[2:]]), encoding="utf-8")
    with pytest.raises(DataError, match=r"in.jsonl: line 2 has changed: line 2 of .*partial has other fields"):
        write_all(out, source)
    source.write_text("".join(rows[:2]), encoding="utf-8")
    with pytest.raises(DataError, match="has a line 3, which the input lacks"):
        write_all(out, source)
    source.write_text("".join([*rows[:3], '{"n": 10}\n']), encoding="utf-8")  # a row that was mended
    assert write_all(out, source) == 3
    assert out.read_bytes() == b"".join(map(line_of, read_records(source)))


def test_overwrite_keeps_the_old_file_until_the_new_one_is_complete(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("precious\n")
    with pytest.raises(RequestError, match=r"out.jsonl exists; --overwrite begins again, or choose another --output"):
        write_all(out, source)
    assert write_all(out, source, stop=3, overwrite=True) == 0
    assert out.read_text() == "precious\n"
    assert write_all(out, source, stop=5, overwrite=True) == 3, "the same command goes on"
    assert write_all(out, source) == 5, "what may be replaced was said before"
    assert out.read_bytes().count(b"\n") == ROWS


def test_a_foreign_beginning_is_not_touched(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out.jsonl.partial").write_text("{}\n")
    with pytest.raises(RequestError, match=r"\(out.jsonl.run.json is not there\)"):
        write_all(tmp_path / "out.jsonl", source)
    (tmp_path / "out.jsonl.run.json").write_text("[]")
    with pytest.raises(RequestError, match=r"run.json is not a run's; move it away"):
        write_all(tmp_path / "out.jsonl", source)
    assert (tmp_path / "out.jsonl.partial").read_text() == "{}\n"


def test_a_kill_before_the_last_rename(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out.jsonl"
    write_all(out, source)
    whole = out.read_bytes()
    out.rename(tmp_path / "out.jsonl.partial")
    (tmp_path / ".out.jsonl.run.json.tmp-12").write_text("half")
    assert write_all(out, source) == ROWS
    assert out.read_bytes() == whole
    assert names(tmp_path) == {"in.jsonl", "out.jsonl", "out.jsonl.run.json"}


def test_no_rows(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n")
    for _ in range(2):
        assert write_all(tmp_path / "out.jsonl", tmp_path / "in.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b""


HOLD = """
import sys
from pathlib import Path
from glmkit.batch.output import Output
output = Output(Path(sys.argv[1]))
output.begin({"a": 1})
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out.jsonl")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_one_process_at_a_time(tmp_path: Path, source: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(RequestError, match=r"another process is writing .*out.jsonl; wait for it"):
        write_all(tmp_path / "out.jsonl", source)
    holder.kill()
    holder.wait()
    assert write_all(tmp_path / "out.jsonl", source, plan={"a": 1}) == 0, "the lock goes with the process"


def test_paths_that_cannot_become_a_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is a directory"):
        Output(tmp_path)
    with pytest.raises(RequestError, match="is no directory; make it first"):
        Output(tmp_path / "absent" / "out.jsonl")
