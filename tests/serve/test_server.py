"""How a server starts and ends: the line at the start, what is refused, signals, and that no answer is lost."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import threading
from collections.abc import AsyncIterator, Coroutine
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import glmkit.cli.serve
import glmkit.serve.app
import glmkit.serve.server
from glmkit.cli.main import main
from glmkit.errors import ConfigError
from glmkit.serve.settings import KEYS_VARIABLE, ServeSettings, read_keys
from support.fake_engine import PATIENCE, FakeEngine, fake_app
from support.server import ThreadServer, glm_serve, process_server, saved_base, thread_server


def in_time(test: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(test, PATIENCE))


async def reached(condition: Any) -> None:
    """Wait for what other threads bring about."""
    while not condition():
        await asyncio.sleep(0)


async def pieces(response: httpx.Response) -> AsyncIterator[Any]:
    async for line in response.aiter_lines():
        if line:
            data = line.removeprefix("data: ")
            yield None if data == "[DONE]" else json.loads(data)


async def stream(client: httpx.AsyncClient, tokens: int, seen: list[Any]) -> tuple[int, list[Any]]:
    async with client.stream("POST", "/v1/count", json={"tokens": tokens, "stream": True}) as response:
        if response.status_code != 200:
            await response.aread()
            return response.status_code, [response.json()["error"]["code"]]
        found = []
        async for piece in pieces(response):
            found.append(piece)
            seen.append(piece)
        return 200, found


@contextlib.asynccontextmanager
async def client_of(server: ThreadServer, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE, limits=limits, **options) as client:
        yield client


# --- the end ----------------------------------------------------------------------------------------------------------


def test_sigterm_finishes_every_accepted_stream_and_refuses_new_ones() -> None:
    engine = FakeEngine(rows=8)
    engine.hold()

    async def check(server: ThreadServer) -> None:
        async with client_of(server) as client:
            seen: list[Any] = []
            asking = [asyncio.create_task(stream(client, 20, seen)) for _ in range(32)]
            await reached(lambda: server.state.queue.waiting == 32)  # the first step has not begun or is held
            engine.let(2)
            await reached(lambda: len(seen) > 0)
            idle = await client.get("/v1/models")  # its connection is kept
            assert idle.status_code == 200
            server.signal()
            await reached(lambda: server.state.queue.draining)
            engine.release()
            whole = [f"{token} " for token in range(20)] + [None]
            assert await asyncio.gather(*asking) == [(200, whole)] * 32
            # The loop of the server looks for signals ten times a second; the streams may be over before it does.
            await reached(lambda: not any(listener.is_serving() for listener in server.server.servers))
            with pytest.raises(httpx.ConnectError):
                async with client_of(server) as other:
                    await other.get("/health")

    with thread_server(fake_app(engine)) as server:
        in_time(check(server))
        server.stopped()
        assert server.server.ended_by is None
        assert server.server.server_state.connections == set()


def test_a_kept_connection_hears_that_the_server_drains() -> None:
    engine = FakeEngine(rows=1)
    engine.hold()
    with thread_server(fake_app(engine)) as server, httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        assert client.get("/health").json()["status"] == "ok"
        server.state.queue.begin_drain()
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        refused = client.post("/v1/count", json={"tokens": 1})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["connection"] == "close"


def test_what_is_not_done_in_time_hears_so() -> None:
    engine = FakeEngine(rows=1)
    engine.hold()

    async def check(server: ThreadServer) -> None:
        async with client_of(server) as client:
            seen: list[Any] = []
            running = asyncio.create_task(stream(client, 20, seen))
            engine.let()
            await reached(lambda: seen == ["0 "])
            waiting = asyncio.create_task(client.post("/v1/count", json={"tokens": 2}))
            await reached(lambda: server.state.queue.waiting == 1)
            server.signal()
            status, found = await running
            assert status == 200
            assert [item["error"]["code"] for item in found if isinstance(item, dict)] == ["draining"]
            answer = await waiting
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
            engine.release()

    with thread_server(fake_app(engine, drain_seconds=0.2)) as server:
        in_time(check(server))
        server.stopped()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(second: int) -> None:
    engine = FakeEngine(rows=1)
    engine.hold()

    async def check(server: ThreadServer) -> None:
        async with client_of(server) as client:
            seen: list[Any] = []
            running = asyncio.create_task(stream(client, 20, seen))
            engine.let()
            await reached(lambda: seen == ["0 "])
            server.signal()
            await reached(lambda: server.state.queue.draining)
            server.signal(second)
            with pytest.raises(httpx.HTTPError):  # cut off, not ended as if it were whole
                await running

    with thread_server(fake_app(engine)) as server:
        in_time(check(server))
        server.stopped()
        assert server.server.ended_by == second
        thread = engine._inbox.thread
        assert thread is not None
        assert thread.is_alive(), "the server waited for the step that runs"
        engine.release()


def test_clients_that_come_all_the_time_lose_nothing_when_the_server_ends() -> None:
    """Each answer is whole, or the connection was refused, or it says that the server drains."""
    outcomes: list[str] = []
    going = threading.Event()

    async def ask(client: httpx.AsyncClient) -> None:
        while True:
            try:
                status, found = await stream(client, 5, [])
            except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError) as error:
                outcomes.append(type(error).__name__ if isinstance(error, httpx.ConnectError) else repr(error))
                return
            if status != 200:
                outcomes.append(f"{status} {found}")
                return
            outcomes.append("whole" if len(found) == 6 and found[-1] is None else str(found))
            if len(outcomes) > 100:
                going.set()

    async def check(server: ThreadServer) -> None:
        async with client_of(server) as client:
            asking = [asyncio.create_task(ask(client)) for _ in range(16)]
            await reached(going.is_set)
            server.signal()
            await asyncio.gather(*asking)

    with thread_server(fake_app(FakeEngine(rows=16, seconds=0.001))) as server:
        in_time(check(server))
        server.stopped()
    assert set(outcomes) <= {"whole", "ConnectError", "503 ['draining']"}, set(outcomes)
    assert "whole" in outcomes


@pytest.mark.exhaustive
def test_a_process_drains_on_sigterm_and_leaves_with_0(tmp_path: Path) -> None:
    """The real command with a real model; what it says and what it does not say."""
    model = saved_base(tmp_path / "little")
    with glm_serve(model, "--no_page", "--tokens", "4096", "--rows", "8") as server:
        assert re.search(r"http://127\.0\.0\.1:\d+ .*little.* MiB .*4,096 tokens.* 8 answers", server.line_with("http"))
        body = {"model": "little", "prompt": "SECRET fox", "max_tokens": 300, "temperature": 0, "stream": True}
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            plain = client.post("/v1/completions", json={**body, "stream": False})
            assert plain.status_code == 200, plain.text
            with client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.iter_lines()
                first = next(lines)
                server.signal()
                rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        events = [json.loads(line.removeprefix("data: ")) for line in [first, *rest[:-1]]]
        assert "".join(event["choices"][0]["text"] for event in events) == plain.json()["choices"][0]["text"]
        assert server.ended() == 0
    assert [line for line in server.lines if "POST /v1/completions 200" in line]
    assert "SECRET" not in server.text
    assert "Traceback" not in server.text
    assert "stopping" in server.text


@pytest.mark.exhaustive
def test_a_process_ends_at_once_on_a_second_signal() -> None:
    command = ["-m", "support.fake_engine", json.dumps({"seconds": 0.05})]
    body = {"tokens": 10_000, "stream": True}
    with (
        process_server(command, ready="ready:") as server,
        httpx.stream("POST", f"{server.url}/v1/count", json=body) as response,
    ):
        lines = response.iter_lines()  # to be kept, for httpx closes the connection with it
        next(lines)
        server.signal()
        server.line_with("stopping: 1 requests")
        server.signal(signal.SIGINT)
        assert server.ended() == 128 + signal.SIGINT  # its stream would take minutes
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    assert "Traceback" not in server.text


# --- the beginning ----------------------------------------------------------------------------------------------------


def serve(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["serve", *arguments])
    return status, capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, error = serve(capsys, "no-such-model", "--port", str(port))
    assert status == 2
    assert re.fullmatch(rf"glm serve: port {port} of 127\.0\.0\.1 cannot be used: .*in use; .*--port\n", error)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "70000"), "port is 70000; give at most 65535"),
        (("--rows", "0"), "rows is 0; give at least 1"),
        (("--deadline_seconds", "0"), "deadline_seconds is 0"),
        (("--max_waiting", "-1"), "max_waiting is -1"),
        (("--api_key", "short"), "an API key has 5 characters; give at least 8"),
        (("--cors_origin", "example.com"), "cors_origins has 'example.com'; give scheme://host"),
        (("--log_level", "loud"), "log_level is 'loud'; choose one of"),
        (("--root_path", "a b"), "root_path is 'a b'"),
        (("--model_id", "two words"), "model_id is 'two words'"),
        (("--api_key_file", "no-such-file"), "cannot read the keys of no-such-file: No such file"),
        (("--host", "x" * 64), f"host '{'x' * 64}' is not known"),
        (("--prot", "80"), "did you mean --port?"),
        (("--port", "0"), "no-such-model"),
    ],
)
def test_wrong_options_are_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str) -> None:
    status, error = serve(capsys, "no-such-model", *arguments)
    assert status == 2
    assert error.startswith("glm serve: ")
    assert error.count("\n") == 1
    assert words in error


def test_missing_packages_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        glmkit.cli.serve.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find_spec(name)
    )
    status, error = serve(capsys, "no-such-model")
    assert status == 2
    assert error == "glm serve: glm serve needs uvicorn; run: pip install 'glmkit[serve]'\n"


@pytest.mark.parametrize(
    ("host", "keys", "warned"),
    [("0.0.0.0", (), True), ("0.0.0.0", ("key-12345",), False), ("127.0.0.1", (), False)],
)
def test_an_open_server_without_keys_is_warned_of(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    host: str,
    keys: tuple[str, ...],
    warned: bool,
) -> None:
    seen: list[ServeSettings] = []

    def run(app: Any, settings: ServeSettings, listening: socket.socket, ready: Any) -> int:
        seen.append(settings)
        ready()
        return 0

    monkeypatch.setattr(glmkit.serve.server, "run", run)
    options = [option for key in keys for option in ("--api_key", key)]
    model = str(saved_base(tmp_path / "m"))
    status, said = serve(capsys, model, "--port", "0", "--host", host, "--no_page", "--rows", "3", *options)
    assert status == 0
    assert ("warning: everybody who reaches" in said) == warned
    assert seen == [ServeSettings(host=host, port=0, rows=3, page=False, api_keys=keys)]


def test_keys_come_from_everywhere_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\nfile-key-1\n  given-key\n")
    monkeypatch.setenv(KEYS_VARIABLE, "env-key-01, env-key-02,")
    assert read_keys(["given-key"], file) == ("given-key", "file-key-1", "env-key-01", "env-key-02")
    file.write_text("\ufeffmarked-key\r\n", encoding="utf-8")
    assert read_keys([], file)[0] == "marked-key"
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="has no key"):
        read_keys([], file)


def test_what_is_no_file_of_keys(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as large:
        large.truncate(3 << 30)
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path / "large", "it has 3.0 GiB"),
        (tmp_path / "pipe", "is a pipe"),
        (tmp_path, "director"),
    ):
        with pytest.raises(ConfigError, match=what) as caught:
            read_keys([], path)
        assert caught.value.step


def test_the_cache_is_what_the_settings_say() -> None:
    asked = []
    engine = FakeEngine()
    lm: Any = SimpleNamespace(
        start_engine=lambda limits, allocate: asked.append((limits, allocate)) or engine,
        parts=SimpleNamespace(directory=Path("m")),
        adapters={},
    )
    app = glmkit.serve.app.create_app(lm, ServeSettings(tokens=640, rows=5, page=False), routers=())
    assert [(limits.tokens, limits.rows, allocate) for limits, allocate in asked] == [(640, 5, True)]
    assert app.state.glm.model_id == "m"
