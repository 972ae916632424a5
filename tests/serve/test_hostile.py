"""A real `glm serve` under attack: its memory, connections, log and silence. All slow; run by make test-all."""

import contextlib
import http.client
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.server import ProcessServer, glm_serve, saved_base
from support.watching import resident_bytes, wait_for

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory and limits are read as Linux tells them"),
]

KEY = "a-key-of-the-test"
REQUESTS, CLIENTS = 10_000, 8
GROWTH = 0.05  # of the memory after the first requests
Attack = tuple[str, str, bytes, dict[str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_base(tmp_path_factory.mktemp("hostile") / "little")


def attacks(number: int, handler: int, inputs: int) -> Attack:
    """The request of this number: method, path, body, headers."""
    name, big = f"s{number}", "x" * 900_000
    json_type = {"content-type": "application/json"}
    event = {"data": ["x"] * inputs, "fn_index": handler, "session_hash": name}
    kinds: list[Attack] = [
        ("POST", "/gradio_api/queue/join", json.dumps(event).encode(), json_type),
        ("POST", "/gradio_api/queue/join", json.dumps({**event, "fn_index": 9999}).encode(), json_type),
        ("POST", "/gradio_api/queue/join", json.dumps({**event, "data": [[{}] * 1000] * inputs}).encode(), json_type),
        ("GET", f"/gradio_api/queue/data?session_hash={name}", b"", {}),
        ("GET", f"/gradio_api/heartbeat/{name}", b"", {}),
        ("POST", "/gradio_api/upload", b"x" * 10_000, {"content-type": "multipart/form-data; boundary=x"}),
        ("GET", f"/config?{name}", b"", {}),
        ("GET", f"/assets/{name}.js", b"", {}),
        ("GET", f"/{name}?" + "a=b&" * 2000, b"", {}),
        ("POST", "/v1/completions", b'{"prompt": 5' + b"}" * number, json_type),
        ("POST", "/v1/chat/completions", json.dumps({name: "y" * 20_000}).encode(), json_type),
        ("POST", "/v1/completions", b"{}", {"origin": f"http://{name}.example"}),
        ("GET", "/v1/models", b"", {"authorization": f"Bearer {name}", "x-request-id": name}),
        ("GET", "/health", b"", {"host": f"{name}.example"}),
        ("GET", "/", b"", {f"x-{name}-{each}": "z" * 50 for each in range(100)}),
        (f"M{number}", "/v1/models", b"", {}),
    ]
    if number % 50 == 0:
        return (
            "POST",
            "/gradio_api/queue/join",
            json.dumps({**event, "data": [big] * inputs}).encode()[:1_000_000],
            json_type,
        )
    if number % 50 == 25:
        return (
            "POST",
            "/gradio_api/queue/join",
            json.dumps({**event, "data": [big, *["x"] * (inputs - 1)]}).encode(),
            json_type,
        )
    return kinds[number % len(kinds)]


def send(url: str, numbers: Iterator[int], make: Callable[[int], Attack], seen: list[int]) -> None:
    """Requests on a kept connection until the numbers are over."""
    port = int(url.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for number in numbers:
        method, path, body, headers = make(number)
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            answer.read()
            seen.append(answer.status)
        except (OSError, http.client.HTTPException):
            connection.close()
            seen.append(0)
    connection.close()


def flood(server: ProcessServer, count: int, make: Callable[[int], Attack], first: int = 0) -> list[int]:
    """The statuses of all answers; 0 where the connection was broken off."""
    numbers, lock, seen = iter(range(first, first + count)), threading.Lock(), list[int]()

    def taken() -> Iterator[int]:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            yield number

    threads = [threading.Thread(target=send, args=(server.url, taken(), make, seen)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


@pytest.mark.parametrize("keyed", [True, False])
def test_ten_thousand_hostile_requests_leave_no_memory_behind(model: Path, keyed: bool, tmp_path: Path) -> None:
    """Without a key, with and without one asked for."""
    options = ["--tokens", "4096", "--log_level", "warning"]
    keys = {"GLM_API_KEYS": KEY} if keyed else {}
    with glm_serve(model, *options, env=keys) as server:
        config = httpx.get(f"{server.url}/config", timeout=60).json()
        names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
        handler = next(each for each in config["dependencies"] if names.get(each["targets"][0][0]) == "fill-run")

        def make(number: int) -> Attack:
            return attacks(number, handler["id"], len(handler["inputs"]))

        warm = flood(server, 1000, make)
        before = resident_bytes(server.process.pid)
        seen = flood(server, REQUESTS, make, first=1000)
        after = resident_bytes(server.process.pid)
        growth = after / before - 1
        print(f"keyed {keyed}: {before / 2**20:.0f} MiB -> {after / 2**20:.0f} MiB, {growth:+.2%}")
        print({status: seen.count(status) for status in sorted(set(seen))})
        assert len(warm) + len(seen) == 11_000
        assert not [status for status in seen if status >= 500 and status != 503]
        assert growth < GROWTH
        assert httpx.get(f"{server.url}/health", timeout=60).json()["status"] == "ok"
        assert "Traceback" not in server.text
        assert len(server.text) < 1_000_000


def few_files(count: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


@contextlib.contextmanager
def limited(model: Path, *options: str) -> Iterator[ProcessServer]:
    """`glm serve` that may have 1,024 open files, as after `ulimit -n 1024`."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        code = (
            "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024)); "
            "sys.argv = ['glm', *sys.argv[1:]]; runpy.run_module('glmkit', run_name='__main__')"
        )
        from support.server import process_server

        arguments = ["-c", code, "serve", str(model), "--port", "0", "--tokens", "4096", *options]
        with process_server(arguments) as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
            yield server
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n"


@pytest.mark.parametrize("begun", [b"", HEAD, HEAD + b"\r\n{"])
def test_eleven_hundred_connections_with_1024_files(model: Path, begun: bytes) -> None:
    """Idle, in the middle of a head, in the middle of a body: others are answered at once, and the log stays short."""
    with limited(model, "--no_page") as server, contextlib.ExitStack() as stack:
        port = int(server.url.rpartition(":")[2])
        for number in range(1100):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            with contextlib.suppress(OSError):
                connection.sendall(begun)
            if number % 100 == 99:
                assert httpx.get(f"{server.url}/health", timeout=10).status_code == 200
        for _ in range(20):
            assert httpx.get(f"{server.url}/health", timeout=10).status_code == 200
        other = httpx.HTTPTransport(local_address="127.0.0.3")
        with httpx.Client(transport=other) as client:
            body = {"model": "little", "prompt": "a", "max_tokens": 2}
            assert client.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code == 200
        assert "connections instead of 1024" in server.text
        assert len(server.text) < 1_000_000
        assert "Traceback" not in server.text
        print(server.text[:600])


def test_idle_connections_beyond_every_limit_of_files(model: Path) -> None:
    """Where something else has taken the files: accepting pauses, says so now and then, and goes on."""
    with limited(model, "--no_page", "--max_connections", "100000") as server, contextlib.ExitStack() as stack:
        port = int(server.url.rpartition(":")[2])
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (64, 1024))
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 60))
        wait_for(lambda: "no connection can be accepted" in server.text, 60)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (1024, 1024))
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
        assert len(server.text) < 100_000


@pytest.mark.parametrize("where", ["full", "closed", "unread"])
def test_a_stderr_that_takes_nothing_does_not_end_the_server(model: Path, where: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    read, write = os.pipe()
    if where == "closed":
        os.close(read)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "glmkit",
        "serve",
        str(model),
        "--port",
        str(port),
        "--no_page",
        "--tokens",
        "4096",
    ]
    with open("/dev/full", "w") as full:
        end: Any = full if where == "full" else write
        process = subprocess.Popen(command, stderr=end, env=environment)
    try:
        wait_for(lambda: _answers(port), 60)
        long = {"x-request-id": "x" * 120}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=long) as client:
            for number in range(500):  # more lines than a pipe holds
                assert client.get(f"/health/{number}" + "y" * 100).status_code == 404
        process.terminate()
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(write)
        if where != "closed":
            os.close(read)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False
