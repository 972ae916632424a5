"""What all tests rely on: which cases `make test` takes, what a run reports of times and skips."""

import signal
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from support.outgoing import ATTEMPTS, refuse_outgoing

refuse_outgoing()

# A shell that starts tests in the background ignores Ctrl-C for them and for every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_SECONDS: defaultdict[str, float] = defaultdict(float)
_SKIPS: dict[str, str] = {}  # where -> reason


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--allowed-skips",
        metavar="FILE",
        help="fail when a test is skipped for a reason that FILE does not list (one pattern a line, # for comments)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as exhaustive what a `sampled(n)` test leaves out: all but its first case and one in n of the others."""
    seen: set[str] = set()
    for item in items:
        marker = item.get_closest_marker("sampled")
        if marker is None:
            continue
        (share,) = marker.args
        function = item.nodeid.split("[", 1)[0]
        if function in seen and zlib.crc32(item.nodeid.encode()) % share:
            item.add_marker(pytest.mark.exhaustive)
        seen.add(function)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that asks another machine for anything, also where the refusal was caught."""
    before = len(ATTEMPTS)
    yield
    assert ATTEMPTS[before:] == [], "no test may reach for the network"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _SECONDS[_folder(report.nodeid)] += report.duration
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _SKIPS[report.nodeid] = reason.removeprefix("Skipped: ")


def _folder(nodeid: str) -> str:
    parts = nodeid.split("::", 1)[0].split("/")
    return "/".join(parts[:2]) + "/" if len(parts) > 2 else parts[-1]


def _unlisted(config: pytest.Config) -> Iterator[tuple[str, str]]:
    """Skipped tests whose reason fits no pattern of --allowed-skips, with the reason."""
    name = config.getoption("--allowed-skips")
    if name is None:
        return
    lines = (line.split("#", 1)[0].strip() for line in Path(name).read_text().splitlines())
    patterns = [line for line in lines if line]
    for where, reason in _SKIPS.items():
        if not any(fnmatch(reason, pattern) for pattern in patterns):
            yield where, reason


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker process skipped: modules skipped at collection are reported nowhere else."""
    _SKIPS.update(getattr(node, "workeroutput", {}).get("skips", {}))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["skips"] = _SKIPS
    elif exitstatus == pytest.ExitCode.OK and next(_unlisted(session.config), None):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Seconds per folder, summed over the processes; skipped tests by reason; skips that are not allowed."""
    if len(_SECONDS) > 1:
        terminalreporter.section("seconds per folder (all processes together)")
        for folder, seconds in sorted(_SECONDS.items(), key=lambda item: -item[1]):
            terminalreporter.line(f"{seconds:8.1f}  {folder}")
    if _SKIPS:
        terminalreporter.section("skipped")
        for reason, count in Counter(_SKIPS.values()).most_common():
            terminalreporter.line(f"{count:5}  {reason}")
    for where, reason in _unlisted(config):
        terminalreporter.line(f"skipped for a reason that is not on the list: {where}: {reason}", red=True)
