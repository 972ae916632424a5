"""The progress display: plain lines, a bar on a terminal, quiet and silent."""

import io

from glmkit.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines() -> None:
    now, stream = [0.0], io.StringIO()
    line = Progress(eager=True, stream=stream, seconds_between_lines=10, clock=lambda: now[0])
    line.start("step", 100)
    for step in range(1, 101):
        now[0] += 1
        line.update(step, "loss 3.2500")
    line.stop()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 1/100  loss 3.2500  1:39 left"
    assert [text.split()[1] for text in lines] == [f"{n}/100" for n in (*range(1, 100, 10), 100)]


def test_short_work_leaves_no_line_without_a_terminal() -> None:
    now, stream = [0.0], io.StringIO()
    line = Progress(stream=stream, clock=lambda: now[0])
    line.start("writing", 4 << 20, unit="bytes")
    line.update(1 << 20)
    line.update(4 << 20)
    assert stream.getvalue() == ""
    line.start("verifying", 4 << 20, 1 << 20, unit="bytes")
    now[0] = 30
    line.update(2 << 20, "a few words", label="verifying model.safetensors")
    assert stream.getvalue() == "verifying model.safetensors 2.0 MiB of 4.0 MiB  a few words  1:00 left\n"


def test_an_unknown_total_has_no_time_left() -> None:
    now, stream = [0.0], io.StringIO()
    line = Progress(stream=stream, clock=lambda: now[0])
    line.start("reading", None)
    now[0] = 60
    line.update(1234)
    assert stream.getvalue() == "reading 1,234\n"


def test_quiet_is_quiet() -> None:
    stream = io.StringIO()
    line = Progress(stream=stream, quiet=True, eager=True)
    line.start("step", 10)
    line.update(1, "something")
    line.say("something")
    line.stop()
    assert stream.getvalue() == ""


def test_warnings_are_shown_though_quiet_but_by_one_rank_only() -> None:
    stream = io.StringIO()
    Progress(stream=stream, quiet=True).warn("the curve will differ")
    Progress(stream=stream, silent=True).warn("from another rank")
    assert stream.getvalue() == "the curve will differ\n"


def test_bar_on_a_terminal() -> None:
    stream = Terminal()
    with Progress(stream=stream) as line:
        line.start("step", 10, 4)
        line.update(5, "loss 2.5")
        line.say("evaluated")
    assert "evaluated" in stream.getvalue()
    assert "5/10" in stream.getvalue()


def test_duration() -> None:
    assert [duration(s) for s in (-1, 59.6, 3725)] == ["0:00", "1:00", "1:02:05"]
