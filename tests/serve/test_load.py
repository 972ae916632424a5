"""Many streams at once from another process: none lost, none mixed; clients that vanish; a server told to stop."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glmkit.serve.client import Client
from glmkit.session import LM
from support import load_client
from support.live import Live, serving
from support.served_models import small_base
from support.server import glm_serve
from support.watching import accepted, save, wait_for

WORDS = ("quick", "brown", "fox", "凯旋门", "纪念", "位于巴黎")
CLIENTS, ROUNDS = 32, 6


def start_load(port: int, kinds: list[dict[str, Any]], **plan: Any) -> "subprocess.Popen[str]":
    """Begin to load a server, in a process of its own."""
    plan = {"port": port, "clients": CLIENTS, "rounds": ROUNDS, "requests": kinds, **plan}
    command = [sys.executable, str(Path(load_client.__file__))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    json.dump(plan, process.stdin)
    process.stdin.close()
    return process


def finished(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What all clients saw."""
    assert process.stdout is not None
    tally: dict[str, Any] = json.loads(process.stdout.read())
    assert process.wait() == 0
    return tally


def load(live: Live, kinds: list[dict[str, Any]], **plan: Any) -> dict[str, Any]:
    return finished(start_load(live.port, kinds, **plan))


def requests(lm: LM, model: str, count: int) -> list[dict[str, Any]]:
    """Requests of different kinds and lengths, no two alike, and the answer that each gets alone."""
    made = []
    for number in range(count):
        prompt = f"{WORDS[number % len(WORDS)]} {number} {WORDS[number % 5]}"
        sampling: dict[str, Any] = ({"temperature": 0}, {"temperature": 1.1, "seed": number})[number % 2]
        length = 6 + number % 13
        body = {"model": model, "prompt": prompt, "max_tokens": length, "stream": True, **sampling}
        body["stream_options"] = {"include_usage": True}
        (answer,) = lm.answers([prompt], max_new_tokens=length, **sampling)[0]
        made.append({"path": "/v1/completions", "body": body, "text": answer.text})
    return made


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving(small_base) as server:
        yield server


@pytest.mark.exhaustive
def test_no_stream_is_lost_or_mixed(live: Live) -> None:
    free, steps = live.lm.engine.free_tokens, live.lm.engine.counters.steps
    tally = load(live, requests(live.direct, live.model, 96))
    assert tally["faults"] == {}, tally["details"]
    assert tally["answers"] == CLIENTS * ROUNDS
    live.settled(lambda: live.lm.engine.rows == 0 and live.lm.engine.free_tokens == free)
    counters = live.lm.engine.counters
    assert counters.decode_rows / (counters.steps - steps) > 4  # they were written together


@pytest.mark.exhaustive
def test_clients_that_vanish(live: Live) -> None:
    """Half of the clients leave in the middle, some with a reset; the others notice nothing."""
    free, kinds = live.lm.engine.free_tokens, requests(live.direct, live.model, 32)
    for number, request in enumerate(kinds):
        if number % 2:
            del request["text"]
            request["body"]["max_tokens"] = 300
            request |= {"vanish": 2, "reset": number % 4 == 1}
    tally = load(live, kinds, rounds=3)
    assert tally["faults"] == {}, tally["details"]
    assert tally["answers"] == 48
    assert tally["vanished"] == 48
    live.settled(lambda: live.lm.engine.rows == 0 and live.lm.engine.free_tokens == free)


@pytest.mark.exhaustive
def test_requests_beyond_the_queue_are_told_to_wait() -> None:
    with serving(small_base, rows=2, max_waiting=4) as live:
        asked = [{**request, "may_wait": True} for request in requests(live.direct, live.model, 64)]
        tally = load(live, asked, rounds=8)
        assert tally["faults"] == {}, tally["details"]
        assert set(tally["statuses"]) == {"200", "429"}
        assert tally["answers"] == tally["statuses"]["200"] > 0
        assert live.lm.engine.waiting == live.lm.engine.rows == 0


def test_more_rows_than_tokens() -> None:
    """The budget is smaller than what is asked at once: requests wait or give way, and every answer is right."""
    with serving(small_base, rows=64, tokens=256) as live:
        tally = load(live, requests(live.direct, live.model, 48), rounds=3)
        assert tally["faults"] == {}, tally["details"]
        assert tally["answers"] == CLIENTS * 3
        assert live.lm.engine.free_tokens == 256


def test_a_vanished_clients_row_is_free_at_the_next_step(live: Live) -> None:
    """Between the server's hearing of it and the freed row the engine makes one step at most."""
    engine = live.lm.engine
    body = {"model": live.model, "prompt": "the fox", "max_tokens": 400, "temperature": 1.0, "seed": 3, "stream": True}
    heard: list[int] = []
    freed: list[int] = []
    left, core = Client.left, engine._core
    remove = core.remove

    def hear(client: Client) -> None:
        if not client.answered:
            heard.append(engine.counters.steps)
        left(client)

    def free(ticket: Any) -> None:
        remove(ticket)
        freed.append(engine.counters.steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "left", hear)
        patch.setattr(core, "remove", free)
        for reset in (False, True):
            load_client.leave(live.port, "/v1/completions", body, reset=reset)
            live.settled(lambda: engine.rows == 0)
    assert len(heard) == len(freed) == 2
    assert all(after - before <= 1 for before, after in zip(heard, freed, strict=True))


@pytest.mark.exhaustive
def test_the_requests_of_a_stopping_server_are_answered(tmp_path: Path) -> None:
    """SIGTERM while 32 clients wait or read: all of them get what they would have got."""
    lm = small_base()
    kinds = requests(lm, "m", CLIENTS)
    with glm_serve(save(lm, tmp_path / "m"), "--no_page", "--log_level", "warning", "--rows", "8") as server:
        running = start_load(int(server.url.rpartition(":")[2]), kinds, rounds=1)
        wait_for(lambda: accepted(server.url) >= CLIENTS)
        server.signal()
        tally = finished(running)
        assert server.ended() == 0, server.text
    assert tally["faults"] == {}, tally["details"]
    assert tally["answers"] == CLIENTS
    assert "Traceback" not in server.text
