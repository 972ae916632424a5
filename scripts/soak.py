"""The long tests of the server: fuzzing by its own document, many streams for minutes, and being told to stop.

    python scripts/soak.py [--minutes 10] [--clients 32] [--model DIR] [fuzz] [load] [stop]

Without names all three run, `fuzz` and `load` for so many minutes each. Servers are `glm serve` processes on loopback.
`load`: every stream must be the answer that its prompt gets alone, some clients vanish in the middle, and after its
first minute the server's memory must not grow by 3 %. `stop`: SIGTERM comes while every client reads; no accepted
request may be lost. The last line is JSON; the status is 1 when something failed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402

import glmkit  # noqa: E402
from glmkit.session import LM  # noqa: E402
from support import load_client  # noqa: E402
from support.fuzzing import fuzz  # noqa: E402
from support.served_models import demo_size, small_chat  # noqa: E402
from support.server import ProcessServer, glm_serve  # noqa: E402
from support.watching import accepted, metrics, resident_bytes, save, wait_for  # noqa: E402

CODE = (
    "def add(first, second):\n    return",
    "import os\n",
    "class Node:\n    def __init__(self",
    "for line in",
    "x = [",
)
QUIET = ("--log_level", "warning", "--no_page")
GROWTH = 0.03  # of the memory after the first minute
RESET = 1.0  # seconds in which the row of a client that reset its connection must be free
FUZZED = ("chatglm3", "chatglm")
NAME = "chatglm3-6b"  # the model of the examples in the document, which are tried first


def requests(lm: LM, count: int) -> list[dict[str, Any]]:
    """Streams of many lengths, greedy and sampled, and the answer that each gets alone."""
    made = []
    for number in range(count):
        prompt = f"{CODE[number % len(CODE)]} {number}"
        sampling: dict[str, Any] = ({"temperature": 0}, {"temperature": 0.9, "seed": number, "top_p": 0.9})[number % 2]
        length = 8 + (number * 7) % 57
        (answer,) = lm.answers([prompt], max_new_tokens=length, **sampling)[0]
        body = {"model": "demo", "prompt": prompt, "max_tokens": length, "stream": True, **sampling}
        body["stream_options"] = {"include_usage": True}
        made.append({"path": "/v1/completions", "body": body, "text": answer.text})
    return made


def vanishing(kinds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with some whose client leaves after a few pieces, every second one with a reset."""
    gone = [{**kinds[number], "vanish": 3, "reset": number % 2 == 0} for number in range(0, len(kinds), 16)]
    return [*kinds, *gone]


class Load:
    """The load client, in a process of its own."""

    def __init__(self, server: ProcessServer, **plan: Any) -> None:
        command = [sys.executable, load_client.__file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        json.dump({"port": port_of(server), **plan}, self._process.stdin)
        self._process.stdin.close()
        # Read at once: what it prints is more than a pipe holds, and it would never end.
        self._said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._said = self._process.stdout.read()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def tally(self) -> dict[str, Any]:
        """What all clients saw; waits for their end."""
        self._reader.join()
        self._process.wait()
        tally: dict[str, Any] = json.loads(self._said)
        return tally


def run_fuzz(seconds: int, folder: Path) -> dict[str, Any]:
    """schemathesis on chat models with and without blanks; both together take `seconds`."""
    result: dict[str, Any] = {"cases": 0, "failures": []}
    for family in FUZZED:
        model = save(small_chat(family, max_positions=512), folder / family)
        with glm_serve(model, *QUIET, "--model_id", NAME) as server:
            fuzzed = fuzz(server.url, folder, seconds=max(1, seconds // len(FUZZED)), examples=1_000_000)
            result["cases"] += fuzzed.cases
            result["failures"] += fuzzed.failures
            result[family] = {"seconds": round(fuzzed.seconds), "cases": fuzzed.cases, "accepted": fuzzed.accepted}
            if server.process.poll() is not None or "Traceback" in server.text:
                result["failures"].append(f"the server said: {server.text}")
            wait_for(lambda: metrics(server.url)["glm_rows_running"] == 0)
        print(f"fuzz {family}: {fuzzed.cases} requests, {len(fuzzed.failures)} failures", flush=True)
    result["passed"] = not result["failures"]
    return result


def run_load(lm: LM, model: Path, clients: int, seconds: float) -> dict[str, Any]:
    """Many streams; memory is looked at every second."""
    kinds = requests(lm, 160)
    with glm_serve(model, *QUIET, "--model_id", "demo") as server:
        free = metrics(server.url)["glm_free_tokens"]
        load, start = Load(server, clients=clients, seconds=seconds, requests=vanishing(kinds)), time.monotonic()
        resident: list[tuple[float, int]] = []
        while load.running:
            resident.append((time.monotonic() - start, resident_bytes(server.process.pid)))
            threading.Event().wait(1.0)
        tally, numbers = load.tally(), metrics(server.url)
        early = [size for when, size in resident if when <= min(60.0, seconds / 2)]
        growth = max(size for _, size in resident) / max(early) - 1
        resets = [reset_latency(server, number) for number in range(10)]
        wait_for(lambda: metrics(server.url)["glm_rows_running"] == 0)
        left = metrics(server.url)
        said = server.text
    batch = numbers["glm_step_rows_sum"] / numbers["glm_step_rows_count"]
    first = sorted(tally["first"])
    result = {
        "clients": clients,
        "seconds": round(tally["seconds"]),
        "answers": tally["answers"],
        "vanished": tally["vanished"],
        "faults": tally["faults"],
        "details": tally["details"],
        "tokens_per_second": round(tally["tokens"] / tally["seconds"]),
        "mean_batch": round(batch, 1),
        "first_token_ms": {
            "median": round(1e3 * first[len(first) // 2]),
            "p99": round(1e3 * first[-len(first) // 100]),
        },
        "resident_mib": [round(max(early) / 2**20), round(max(size for _, size in resident) / 2**20)],
        "growth_after_first_minute": round(growth, 4),
        "reset_seconds": round(max(resets), 3),
        "rows_left": left["glm_rows_running"],
        "tokens_lost": free - left["glm_free_tokens"],
        "server_said": said[-2000:],
    }
    result["passed"] = (
        not tally["faults"]
        and tally["answers"] > 0
        and growth < GROWTH
        and max(resets) < RESET
        and not result["rows_left"]
        and not result["tokens_lost"]
        and "Traceback" not in said
    )
    return result


def reset_latency(server: ProcessServer, number: int) -> float:
    """Seconds from a client's reset until its row is free."""
    body = {"model": "demo", "prompt": f"{CODE[0]} {number}", "max_tokens": 100, "temperature": 0, "stream": True}
    load_client.leave(port_of(server), "/v1/completions", body, reset=True)
    return wait_for(lambda: metrics(server.url)["glm_rows_running"] == 0, 30)


def run_stop(lm: LM, model: Path, clients: int, times: int) -> dict[str, Any]:
    """SIGTERM while every client reads its stream."""
    kinds = [{**request, "key": str(number)} for number, request in enumerate(requests(lm, clients))]
    result: dict[str, Any] = {"times": times, "answers": 0, "faults": {}, "details": [], "statuses": [], "seconds": []}
    for number in range(times):
        with glm_serve(model, *QUIET, "--model_id", "demo", "--rows", str(max(1, clients // 2))) as server:
            load = Load(server, clients=clients, rounds=1, requests=kinds)
            # All are accepted, half of them wait, and the first have begun to read.
            wait_for(lambda: accepted(server.url) >= clients)
            server.signal()
            start, tally = time.monotonic(), load.tally()
            result["statuses"].append(server.ended())
            result["seconds"].append(round(time.monotonic() - start, 2))
        result["answers"] += tally["answers"]
        result["details"] += tally["details"]
        for kind, count in tally["faults"].items():
            result["faults"][kind] = result["faults"].get(kind, 0) + count
        print(
            f"stop {number + 1}: {tally['answers']} of {clients} answered, {tally['faults'] or 'none'} lost", flush=True
        )
    result["passed"] = result["answers"] == times * clients and not result["faults"] and set(result["statuses"]) == {0}
    return result


def port_of(server: ProcessServer) -> int:
    return int(server.url.rpartition(":")[2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="fuzz, load, stop (default: all)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of fuzz and of load (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=32, help="streams at once (default: %(default)s)")
    parser.add_argument("--stops", type=int, default=5, help="how often a server is stopped (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="a model directory (default: the demo's network, random weights)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = args.parts or ["fuzz", "load", "stop"]
    seconds, results = 60 * args.minutes, dict[str, Any]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lm = demo_size() if args.model is None else glmkit.load(args.model, device="cpu", dtype="float32")
        model = save(lm, folder / "demo") if args.model is None else args.model
        for part in parts:
            print(f"== {part}", flush=True)
            if part == "fuzz":
                results[part] = run_fuzz(int(seconds), folder)
            elif part == "load":
                results[part] = run_load(lm, model, args.clients, seconds)
            elif part == "stop":
                results[part] = run_stop(lm, model, args.clients, args.stops)
            else:
                parser.error(f"unknown part {part!r}; choose from fuzz, load, stop")
    passed = all(result["passed"] for result in results.values())
    print(json.dumps({"soak": "serve", "passed": passed, **results}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
