"""What a server says: never at the price of an answer, never without bound, one line a record."""

import io
import logging
import os
import sys
import threading
from pathlib import Path

import pytest

from glmkit.serve.log import FewOfAKind, PatientStream, patient_stderr, set_up_logging
from support.watching import wait_for

PATIENCE = 30.0


def test_a_pipe_that_nobody_reads_holds_nobody_up() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as pipe:
        stream = PatientStream(pipe)
        for number in range(4000):
            print(f"{number} " + "x" * 1000, file=stream, flush=True)  # 4 MB; a pipe holds 64 KiB
        said = b""
        reader = threading.Thread(target=lambda: _drain(read, lambda data: None), daemon=True)
        reader.start()
        wait_for(lambda: not stream._texts and not stream._busy, PATIENCE)
        print("after", file=stream)
        stream.finish()
        assert said == b""
        assert not stream._texts
    reader.join(PATIENCE)


def _drain(read: int, take: object) -> None:
    with os.fdopen(read, "rb") as pipe:
        while pipe.read(65536):
            pass


def test_what_was_lost_is_said(tmp_path: Path) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as pipe:
        stream = PatientStream(pipe)
        for _ in range(3000):
            stream.write("x" * 1000 + "\n")
        found: list[bytes] = []

        def collect() -> None:
            with os.fdopen(read, "rb") as end:
                while part := end.read(65536):
                    found.append(part)

        reader = threading.Thread(target=collect, daemon=True)
        reader.start()
        stream.finish()
    reader.join(PATIENCE)
    said = b"".join(found)
    assert b"characters were lost here: nobody read them]" in said
    assert len(said) < 1_300_000


@pytest.mark.parametrize("closed", [False, True])
def test_a_full_disk_or_a_closed_end_is_no_error(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    with open("/dev/full", "w") as full:
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w") as broken:
            monkeypatch.setattr(sys, "stderr", broken if closed else full)
            with patient_stderr():
                print("a line", file=sys.stderr, flush=True)
                logging.StreamHandler(sys.stderr).handle(logging.makeLogRecord({"msg": "another"}))
            assert sys.stderr is (broken if closed else full)


def test_everything_is_written_at_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "said").open("w", encoding="gbk") as file:
        monkeypatch.setattr(sys, "stderr", file)
        with patient_stderr():
            print("中 \U0001f600", file=sys.stderr)
    assert (tmp_path / "said").read_bytes() == "中 ".encode("gbk") + b"\\U0001f600\n"
    memory = io.StringIO()
    monkeypatch.setattr(sys, "stderr", memory)
    with patient_stderr():
        sys.stderr.write("kept")
    assert memory.getvalue() == "kept"


def test_few_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("glmkit.serve.log.time.monotonic", lambda: clock[0])
    few = FewOfAKind()

    def passed(message: str, level: int, count: int) -> list[str]:
        records = [logging.LogRecord("x", level, "", 1, message, (number,), None) for number in range(count)]
        return [record.getMessage() for record in records if few.filter(record)]

    assert passed("trouble %d", logging.WARNING, 500) == [f"trouble {number}" for number in range(50)]
    assert passed("other %d", logging.WARNING, 2) == ["other 0", "other 1"]
    assert len(passed("request %d", logging.INFO, 5000)) == 1000
    clock[0] = 1.0
    assert passed("trouble %d", logging.WARNING, 9)[:2] == [
        "trouble 0 [450 records like this one were left out]",
        "trouble 1",
    ]


def test_records_are_one_line_of_a_bounded_length(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loggers = [logging.getLogger(name) for name in ("glmkit.serve", "uvicorn.error", "asyncio")]
    before = [(log.handlers, log.level, log.propagate) for log in loggers]
    try:
        set_up_logging("info")
        loggers[0].warning("a %s\nFAKE \x1b[31m中", "b\r")
        loggers[0].warning("long %s", "y" * 1_000_000)
        loggers[0].info("fine")
        loggers[1].info("not said")
    finally:
        for log, (handlers, level, propagate) in zip(loggers, before, strict=True):
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.endswith(r"a b\r\nFAKE \x1b[31m中")
    assert len(second) < 20_000
    assert third.endswith("INFO fine")
