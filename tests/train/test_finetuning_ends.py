"""How a fine-tuning ends before its end: a signal, a rival in its directory, a disk that takes no more."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from glmkit.cli import finetune as verb
from glmkit.cli.main import main
from glmkit.train.checkpoints import CheckpointStore, RunLock
from glmkit.train.finetuning import finetune
from glmkit.train.metrics import MetricsLog
from glmkit.train.run import RunResult
from glmkit.train.state import StepRecord
from support.finetuning import toy_base, toy_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_base(tmp_path_factory.mktemp("tuned") / "base")


@pytest.fixture(scope="module")
def rows(base: Path) -> Path:
    return toy_rows(base.parent / "rows.jsonl")


def command(method: str, base: Path, rows: Path, output: Path, *more: str) -> list[str]:
    words = ["finetune", method, "--model", str(base), "--data", str(rows), "--output", str(output), "--quiet"]
    words += ["--max_steps", "5", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]
    words += ["--training.precision", "fp32", "--training.device", "cpu", "--output.plot", "false"]
    words += ["--save_steps", "0", "--evaluation.report_rows", "0"]
    return [*words, *(["--pre_seq_len", "4"] if method == "ptuning" else []), *more]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("method", "number", "status"),
    [("lora", signal.SIGTERM, 143), ("ptuning", signal.SIGINT, 130)],
)
def test_a_signal_saves_the_last_step_and_the_run_goes_on_bit_for_bit(
    method: str, number: signal.Signals, status: int, base: Path, rows: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The bases have dropout; nothing but the signal asks for a checkpoint."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(command(method, base, rows, whole)) == 0

    def interrupt(record: StepRecord, trainer: object) -> None:
        if record.step == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(verb, "finetune", partial(finetune, on_step=interrupt))
        assert main(command(method, base, rows, cut)) == status
    stopped = CheckpointStore(cut).steps()
    assert stopped in ([3], [4])  # the signal comes with the step or behind it
    assert f"stopped at step {stopped[0]} ({number.name}); continue with --resume auto" in capsys.readouterr().out
    assert not (cut / "model").exists()
    assert main(command(method, base, rows, cut, "--resume", "auto")) == 0
    first, second = (CheckpointStore(run).path(5) for run in (whole, cut))
    names = [name for name in ("adapter_model.safetensors", "optimizer.safetensors") if (first / name).is_file()]
    assert names
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes()
    assert (cut / "report.html").is_file()


@contextmanager
def rival(directory: Path) -> Iterator[None]:
    """Another process that trains in a directory: a record lock is of a process."""
    (ready, says_ready), (end, says_end) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with RunLock(directory):
            os.write(says_ready, b"x")
            os.read(end, 1)
        os._exit(0)
    os.read(ready, 1)
    try:
        yield
    finally:
        os.write(says_end, b"x")
        os.waitpid(child, 0)


def test_a_second_run_in_the_same_directory_is_refused(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start, and behind the training, where the report is made."""
    output = tmp_path / "run"
    told = f"glm finetune: another process is training in {output}; wait for it or give another --output\n"
    with rival(output):
        before = sorted(output.rglob("*"))
        for resume in ("never", "auto"):
            assert main(command("lora", base, rows, output, "--resume", resume)) == 2
            assert capsys.readouterr().err == told
        assert sorted(output.rglob("*")) == before
    with ExitStack() as stack, monkeypatch.context() as patch:

        def trained(*given: Any, **options: Any) -> RunResult:
            outcome = finetune(*given, **options)
            stack.enter_context(rival(output))
            return outcome

        patch.setattr(verb, "finetune", trained)
        assert main(command("lora", base, rows, output)) == 2
        assert capsys.readouterr().err == told
    assert main(command("lora", base, rows, output, "--resume", "auto")) == 0
    assert (output / "report.html").is_file()


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """A disk on which no file becomes larger than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("method", "size", "words"),
    [
        ("lora", 20_000, "File too large ({run}/before_tuning.safetensors)"),
        ("full", 150_000, "model.safetensors cannot"),
    ],
)
def test_a_disk_that_takes_no_more_is_told_in_a_line_and_nothing_is_half_written(
    method: str, size: int, words: str, base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    with no_file_above(size):
        assert main(command(method, base, rows, output)) == 2
    told = capsys.readouterr().err
    assert told.startswith("glm finetune: ")
    assert words.format(run=output) in told
    assert "File too large" in told
    assert told.count("\n") == 1
    assert CheckpointStore(output).steps() == []
    assert [path for path in output.rglob("*") if ".tmp-" in str(path)] == []
    assert main(command(method, base, rows, output, "--resume", "auto")) == 0


def test_a_log_that_takes_no_more_is_named(tmp_path: Path) -> None:
    with no_file_above(10), pytest.raises(OSError, match="File too large") as error:
        MetricsLog(tmp_path).metrics({"step": 1, "loss": 1.0})
    assert error.value.filename == str(tmp_path / "metrics.jsonl")


@pytest.mark.exhaustive
def test_a_merge_that_cannot_be_written_leaves_nothing(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, merged = tmp_path / "run", tmp_path / "merged"
    assert main(command("lora", base, rows, run, "--optimizer.learning_rate", "0.01")) == 0
    capsys.readouterr()
    for more in ([], ["--layout", "paddle"]):
        with no_file_above(60_000):
            assert main(["merge", str(run), "--output", str(merged), *more]) == 2
        _, told = capsys.readouterr().err.splitlines()  # that a run is read is told before
        assert told.startswith("glm merge: ")
        assert "cannot be written" in told
        assert "File too large" in told
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert main(["merge", str(run), "--output", str(merged)]) == 0


@pytest.mark.sampled(2)
@pytest.mark.parametrize("words", [["finetune"], ["merge"]], ids=str)
def test_a_folder_that_takes_nothing_is_told(
    words: list[str], base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """/sys is written by nobody; a file is no folder either."""
    occupied = tmp_path / "file"
    occupied.write_text("")
    for output in (Path("/sys/glmkit-run"), occupied / "run"):
        args: list[Any] = command("lora", base, rows, output)
        if words == ["merge"]:
            args = ["merge", str(base), str(base), "--output", str(output)]
        assert main(args) == 2
        told = capsys.readouterr().err
        assert str(output.parent) in told
        assert told.count("\n") == 1
