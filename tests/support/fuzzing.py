"""schemathesis against a running server: requests made from its OpenAPI document, right and wrong ones."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
# A body that breaks the document may also be too large (413), or name a model that is not there.
_SETTINGS = """
[checks.negative_data_rejection]
expected-statuses = [400, 404, 405, 413, 415]
"""


@dataclass(frozen=True)
class Fuzzed:
    """cases: requests that were sent. accepted: of them, those that were answered with 2xx, by operation."""

    cases: int
    operations: int
    accepted: dict[str, int]
    failures: list[str]
    seconds: float


def fuzz(
    url: str,
    folder: Path,
    *,
    seconds: int,
    examples: int,
    phases: str = "examples,coverage,fuzzing",
    seed: int = 1,
    timeout: float = 20.0,
) -> Fuzzed:
    """Fuzz every operation of a server, until the time or the examples for each are used up.

    A response must come within `timeout` seconds. `folder` is for reports.
    """
    report, settings = folder / "report.json", folder / "schemathesis.toml"
    settings.write_text(_SETTINGS)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings)),
        *("run", f"{url}/openapi.json", "--url", url),
        *("--checks", ",".join(CHECKS), "--seed", str(seed), "--max-examples", str(examples)),
        *("--phases", phases, "--max-time", str(seconds), "--request-timeout", str(timeout)),
        *("--generation-database", "none", "--suppress-health-check", "all", "--warnings", "off", "--no-color"),
        *("--report", "json", "--report-json-path", str(report), "--continue-on-failure", "--workers", "1"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds * 3 + 120)
    if not report.exists():
        raise RuntimeError(f"schemathesis ended with status {done.returncode}: {done.stdout}{done.stderr}")
    values = json.loads(report.read_text())
    rates = values["valid_rates"].items()
    failures = [json.dumps(failure)[:2000] for failure in [*values["failures"], *values["errors"]]]
    if done.returncode or failures:  # what was sent, as commands to send it again
        failures.append("\n".join(line[:1000] for line in (done.stdout + done.stderr).splitlines()))
    return Fuzzed(
        cases=values["test_cases"]["generated"],
        operations=values["operations"]["tested"],
        accepted={name: sum(phase["accepted"] for phase in phases.values()) for name, phases in rates},
        failures=failures,
        seconds=values["running_time"],
    )
