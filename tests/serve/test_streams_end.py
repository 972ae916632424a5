"""Streams of the real endpoints on a real engine: how they end, and that nothing is left of them."""

import contextlib
import json
import random
import socket
import struct
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from support.live import PATIENCE, Live, serving
from support.load_client import request_bytes
from support.served_models import small_base, small_chat
from support.watching import metrics

pytestmark = pytest.mark.sampled(4)

QUESTION = [{"role": "user", "content": "the fox"}]
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "completions": ("/v1/completions", {"model": "m", "prompt": "the fox"}),
    "infill": ("/v1/infill", {"text": "the [MASK] fox"}),
    "chat": ("/v1/chat/completions", {"model": "m", "messages": QUESTION}),
}
BUILD = {"base": partial(small_base, max_positions=8192), "chat": partial(small_chat, "chatglm3", max_positions=16384)}


class Gate:
    """Lets an engine's steps through, all of them or one at a time."""

    def __init__(self, live: Live) -> None:
        self._live, self.engine, self._step = live, live.lm.engine, live.lm.engine._core.step
        self.held = 0  # how often a step has begun to wait
        self._permits = threading.Semaphore(0)
        self._open = threading.Event()
        self._open.set()
        self.engine._core.step = self.step  # type: ignore[method-assign]

    def step(self) -> bool:
        if not self._open.is_set():
            self.held += 1
            assert self._permits.acquire(timeout=PATIENCE)
        return self._step()

    def hold(self) -> None:
        self._open.clear()

    def let(self, count: int = 1) -> None:
        self._permits.release(count)

    def let_one(self) -> None:
        """Let one step through and wait until the next one waits: no permit is left over."""
        held = self.held
        self.let()
        self._live.settled(lambda: self.held > held)

    def release(self) -> None:
        self._open.set()
        self.let(1000)


@contextlib.contextmanager
def gated(kind: str = "base", **settings: Any) -> Iterator[tuple[Live, Gate]]:
    with serving(BUILD[kind], model_id="m", **settings) as live:
        gate, free = Gate(live), live.lm.engine.free_tokens
        try:
            yield live, gate
        finally:
            gate.release()
        live.settled(lambda: live.state.queue.open_requests == 0 and live.lm.engine.rows == 0)
        assert (live.lm.engine.waiting, live.lm.engine.free_tokens) == (0, free)


def kind_of(endpoint: str) -> str:
    return "chat" if endpoint == "chat" else "base"


def body_of(endpoint: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    path, body = ASKED[endpoint]
    return path, {**body, "stream": True, "temperature": 0, "max_tokens": 12, **fields}


def events_of(lines: Any) -> list[Any]:
    datas = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


@pytest.mark.parametrize("endpoint", ASKED)
def test_a_deadline_inside_a_stream_is_its_last_event(endpoint: str) -> None:
    path, body = body_of(endpoint)
    with gated(kind_of(endpoint), deadline_seconds=0.6) as (live, gate):
        gate.hold()
        gate.let(4)
        with httpx.stream("POST", live.url + path, json=body, timeout=PATIENCE) as response:
            assert response.status_code == 200
            *before, last = events_of(response.iter_lines())
        assert before
        assert "[DONE]" not in before
        assert all(set(event) >= {"id", "object", "model"} for event in before)
        assert (last["error"]["code"], last["error"]["type"]) == ("deadline_exceeded", "timeout")


@pytest.mark.parametrize("endpoint", ASKED)
def test_a_stream_goes_on_while_the_server_drains(endpoint: str) -> None:
    path, body = body_of(endpoint, stream_options={"include_usage": True})
    if endpoint == "infill":
        del body["stream_options"]
    with gated(kind_of(endpoint)) as (live, gate):
        gate.hold()
        gate.let(3)
        with httpx.stream("POST", live.url + path, json=body, timeout=PATIENCE) as response:
            live.state.queue.begin_drain()
            refused = httpx.post(live.url + path, json=body, timeout=PATIENCE)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            gate.release()
            *events, done = events_of(response.iter_lines())
        assert done == "[DONE]"
        assert events[-1]["usage"]["completion_tokens"] >= 12


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_usage_comes_once_and_last(endpoint: str) -> None:
    path, body = body_of(endpoint, n=3)
    with gated(kind_of(endpoint)) as (live, _):
        streams = []
        for options in ({"include_usage": True}, None):
            said = httpx.post(live.url + path, json={**body, "stream_options": options}, timeout=PATIENCE)
            streams.append(events_of(said.text.splitlines()))
        counted, plain = streams
        assert [event["usage"] for event in counted[:-2]] == [None] * (len(counted) - 2)
        whole = httpx.post(live.url + path, json={**body, "stream": False}, timeout=PATIENCE).json()
        assert counted[-2]["choices"] == []
        assert counted[-2]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
        assert counted[-2]["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
        assert all("usage" not in event for event in plain[:-1])
        assert plain[-1] == counted[-1] == "[DONE]"


def test_two_streams_and_a_whole_answer_on_one_connection() -> None:
    with gated() as (live, _):
        path, body = body_of("completions")
        expected = live.answers("the fox")[0].text
        with socket.create_connection(("127.0.0.1", live.port), PATIENCE) as connection:
            parts = [{**body, "stream": True}, {**body, "stream": True}, {**body, "stream": False}]
            for part in parts:
                close = {} if part is parts[-1] else {"Connection": "keep-alive"}
                sent = request_bytes(path, part)
                connection.sendall(sent.replace(b"Connection: close", b"Connection: keep-alive") if close else sent)
            said = connection.makefile("rb").read().decode()
        assert said.count("HTTP/1.1 200 OK") == 3
        assert said.count("data: [DONE]") == 2
        whole = json.loads(said[said.rindex("\r\n\r\n") :])
        assert whole["choices"][0]["text"] == expected


@contextlib.contextmanager
def asking(live: Live, body: dict[str, Any]) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", live.port), PATIENCE) as connection:
        connection.sendall(request_bytes("/v1/completions", body))
        yield connection


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_client_that_goes_while_its_prompt_is_read_frees_its_row_within_a_step() -> None:
    _, body = body_of("completions", prompt="fox " * 1500)
    with gated("chat") as (live, gate):  # a model that reads left to right, some of a text at a time
        queue, engine = live.state.queue, live.lm.engine
        gate.hold()
        with asking(live, body) as connection:
            live.settled(lambda: queue.open_requests == 1)
            gate.let()
            live.settled(lambda: engine.rows == 1)
            assert 0 < engine.counters.read_tokens < 1500  # some of it is read, and no token is written
            assert engine.counters.decode_rows == 0
            reset(connection)
        live.settled(lambda: queue.open_requests == 0)
        steps = engine.counters.steps
        gate.let(2)
        live.settled(lambda: engine.rows == 0)
        assert engine.counters.steps - steps <= 1


def test_a_client_that_goes_while_it_waits_is_forgotten() -> None:
    _, body = body_of("completions", max_tokens=200)
    with gated(rows=1) as (live, gate):
        queue, engine = live.state.queue, live.lm.engine
        gate.hold()
        with asking(live, body), asking(live, body) as second:
            live.settled(lambda: queue.open_requests == 2)
            live.settled(lambda: gate.held > 0)
            while engine.running + engine.waiting < 2:
                gate.let_one()
            assert (engine.running, engine.waiting) == (1, 1)
            reset(second)
            live.settled(lambda: queue.open_requests == 1)
            steps = engine.counters.steps
            gate.let(2)
            live.settled(lambda: engine.waiting == 0)
            assert engine.counters.steps - steps <= 2
            assert engine.running == 1


def test_a_hundred_clients_that_come_and_go() -> None:
    """Afterwards everything is as it was, and every request that was answered was counted once."""
    draw = random.Random(3)
    kinds = [("completions", {"n": 2}), ("completions", {"prompt": ["a", "the", "fox"]}), ("infill", {})]
    plans = [(*draw.choice(kinds), draw.choice([0, 1, 200, 3000, None]), draw.random() < 0.7) for _ in range(100)]
    with gated(rows=8, max_waiting=16) as (live, _):
        engine, queue = live.lm.engine, live.state.queue
        statuses: list[str] = []
        answered: list[bytes] = []  # a reset takes away what the server has not read yet

        def visit(number: int) -> None:
            for endpoint, fields, bytes_read, streams in plans[number::10]:
                path, body = body_of(endpoint, max_tokens=20, **fields)
                with socket.create_connection(("127.0.0.1", live.port), PATIENCE) as connection:
                    connection.sendall(request_bytes(path, {**body, "stream": streams}))
                    if bytes_read is None:
                        said = connection.makefile("rb").read()
                        statuses.append(said[9:12].decode())
                        answered.append(said[:1])
                        assert not said.startswith(b"HTTP/1.1 200") or said.endswith((b"}", b"0\r\n\r\n"))
                        continue
                    with contextlib.suppress(TimeoutError):
                        connection.settimeout(0.02)
                        answered.append(connection.recv(bytes_read or 1)[:1])
                    reset(connection)

        threads = [threading.Thread(target=visit, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert set(statuses) <= {"200", "429"}
        assert statuses.count("200") > 5
        live.settled(lambda: queue.open_requests == 0 and engine.rows == 0)
        counted = live.state.metrics.registry.get_sample_value
        live.settled(lambda: sum_of(live, "glm_requests_total") >= len(answered))
        live.settled(lambda: sum_of(live, "glm_request_seconds_count") == sum_of(live, "glm_requests_total"))
        assert len(answered) <= sum_of(live, "glm_requests_total") <= len(plans)
        assert (queue.snapshot.rows, queue.snapshot.waiting, queue.snapshot.running, queue.waiting) == (0, 0, 0, 0)
        assert counted("glm_rows_running") == counted("glm_requests_waiting") == counted("glm_requests_running") == 0


def sum_of(live: Live, name: str) -> float:
    """Over all labels."""
    families = live.state.metrics.registry.collect()
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def test_metrics_are_the_sums_of_what_was_used() -> None:
    with gated() as (live, _):
        url, used = live.url, [0, 0, 0]
        steps: list[dict[str, Any]] = [
            {"prompt": "the fox", "max_tokens": 9},
            {"prompt": "the fox", "max_tokens": 9, "n": 3, "temperature": 1.0, "seed": 2},
            {"prompt": ["the", "a fox", "the fox"], "max_tokens": 5},
            {"prompt": "over the dog " * 20, "max_tokens": 7, "best_of": 3, "seed": 1, "temperature": 1.0},
            {"prompt": "over the dog " * 20, "max_tokens": 7, "num_beams": 1, "stop": ["e", "a"]},
            {"prompt": "the", "max_tokens": 30, "prompt_lookup": 4},
        ]
        before = metrics(url)
        for fields in steps:
            for stream in (False, True):
                if stream and "best_of" in fields:
                    continue
                body = {"model": "m", "temperature": 0, "stream": stream, **fields}
                body |= {"stream_options": {"include_usage": True}} if stream else {}
                said = httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE)
                assert said.status_code == 200, said.text
                usage = events_of(said.text.splitlines())[-2]["usage"] if stream else said.json()["usage"]
                used[0] += usage["prompt_tokens"]
                used[1] += usage["completion_tokens"]
                used[2] += usage["prompt_tokens_details"]["cached_tokens"]
        live.settled(lambda: live.state.queue.open_requests == 0)
        # A client can have the last token before the step that wrote it is counted.
        counted = live.state.metrics.registry.get_sample_value
        name = "glm_tokens_written_total"
        live.settled(lambda: (counted(name) or 0) - before.get(name, 0) >= used[1])
        after = metrics(url)

        def rise(name: str) -> float:
            return after[name] - before.get(name, 0)

        assert rise("glm_tokens_written_total") == used[1]
        assert rise("glm_tokens_reused_total") == used[2]
        assert rise("glm_tokens_read_total") + rise("glm_tokens_reused_total") == used[0]
        jobs = sum(
            (len(f["prompt"]) if isinstance(f["prompt"], list) else 1) * (1 + ("best_of" not in f)) for f in steps
        )
        assert rise("glm_time_to_first_token_seconds_count") == jobs
        requests = 2 * len(steps) - 1
        assert rise("glm_requests_total") == requests + 1  # and the first look at the metrics
        decoded = rise("glm_step_rows_sum")
        assert 0 < decoded <= used[1]  # guessed tokens come more than one a step
        assert 1 <= decoded / rise("glm_step_rows_count") <= 8
        assert rise("glm_tokens_accepted_total") <= rise("glm_tokens_drafted_total")
