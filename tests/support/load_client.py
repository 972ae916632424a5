"""Many streaming clients in one light process: asyncio sockets, no HTTP library.

As a script it reads one JSON object from standard input and writes one to standard output:

    {"port": 8000, "clients": 32, "seconds": 60, "requests": [{"path": ..., "body": {...}, "text": "..."}, ...]}

Each client sends one request of the list after the other, its own first one first, until `seconds` are over or, with
"rounds", until it has sent that many; every request has a connection of its own. `text` is the answer that the joined
stream must be, and may be left out. A request with "vanish" closes its connection after so many pieces, with a reset
when "reset" is true. The text of a request with "key" comes back under it.
"""

import asyncio
import json
import socket
import struct
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

LINGER = struct.pack("ii", 1, 0)  # close with a reset
TIMEOUT = 120.0  # seconds without one more byte


@dataclass
class Tally:
    """What all clients saw. Times in seconds. faults: what went wrong, by kind, with the first few in words."""

    answers: int = 0
    pieces: int = 0
    characters: int = 0
    tokens: int = 0
    vanished: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def fault(self, kind: str, detail: str) -> None:
        self.faults[kind] = self.faults.get(kind, 0) + 1
        if len(self.details) < 10:
            self.details.append(f"{kind}: {detail[:400]}")


def request_bytes(path: str, body: Any, *, method: str = "POST", headers: dict[str, str] | None = None) -> bytes:
    """An HTTP/1.1 request on a connection that is closed afterwards."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in {"Content-Type": "application/json", **(headers or {})}.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers, in lower case."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def body_parts(reader: asyncio.StreamReader, headers: dict[str, str]) -> Any:
    """The body as it comes, without the chunks' lengths. Raises IncompleteReadError when it is cut."""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline() or b"x", 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
    else:
        yield await reader.readexactly(int(headers["content-length"]))


def delta(choice: dict[str, Any]) -> str:
    """The text of one chunk of either endpoint."""
    return str(choice.get("text") or choice.get("delta", {}).get("content") or "")


async def stream_once(port: int, request: dict[str, Any], tally: Tally) -> None:
    """One request on its own connection."""
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request_bytes(request["path"], request["body"], headers=request.get("headers")))
        async with asyncio.timeout(TIMEOUT):
            status, headers = await read_head(reader)
        tally.statuses[str(status)] = tally.statuses.get(str(status), 0) + 1
        if status != 200:
            whole = b"".join([part async for part in body_parts(reader, headers)])
            if status != 429 or not request.get("may_wait"):
                tally.fault(f"status {status}", whole.decode(errors="replace"))
            return
        text, ended, finish, seen, buffer = "", False, None, 0, b""
        parts = body_parts(reader, headers)
        while True:
            async with asyncio.timeout(TIMEOUT):
                part = await anext(parts, None)
            if part is None:
                break
            buffer += part
            *events, buffer = buffer.split(b"\n\n")
            for event in events:
                if event.startswith(b":"):  # says only that the server is still there
                    continue
                if ended:
                    tally.fault("after the end", event.decode(errors="replace"))
                if event == b"data: [DONE]":
                    ended = True
                    continue
                chunk = json.loads(event.removeprefix(b"data: "))
                if "error" in chunk:
                    tally.fault("error in a stream", json.dumps(chunk))
                    return
                if chunk.get("usage"):
                    tally.tokens += chunk["usage"]["completion_tokens"]
                for choice in chunk["choices"]:
                    if not seen:
                        tally.first.append(time.perf_counter() - start)
                    seen += 1
                    text += delta(choice)
                    finish = choice.get("finish_reason") or finish
            if request.get("vanish") and seen >= request["vanish"]:
                tally.vanished += 1
                return
        tally.pieces += seen
        tally.characters += len(text)
        if not ended or finish is None or buffer:
            tally.fault("lost its end", f"{text!r} {finish} {buffer!r}")
        elif "text" in request and text != request["text"]:
            tally.fault("mixed", f"{text!r} instead of {request['text']!r}")
        else:
            tally.answers += 1
            if "key" in request:
                tally.texts[request["key"]] = text
            tally.whole.append(time.perf_counter() - start)
    except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError, KeyError) as error:
        tally.fault(type(error).__name__, repr(error))
    finally:
        if request.get("vanish") and request.get("reset"):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
            writer.transport.abort()
        writer.close()


def leave(port: int, path: str, body: Any, *, reset: bool) -> None:
    """Begin to read a stream, then close the connection, with a reset or as usual."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection:
        connection.sendall(request_bytes(path, body))
        received = b""
        while b"data: " not in received:
            part = connection.recv(65536)
            if not part:
                raise ConnectionError(f"no stream came: {received!r}")
            received += part
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)


async def client(number: int, plan: dict[str, Any], tally: Tally, until: float) -> None:
    """One client after another of its requests."""
    requests, sent = plan["requests"], 0
    while time.perf_counter() < until and sent < plan.get("rounds", sys.maxsize):
        await stream_once(plan["port"], requests[(number + sent * plan["clients"]) % len(requests)], tally)
        sent += 1


async def run(plan: dict[str, Any]) -> Tally:
    """All clients of a plan."""
    tally, start = Tally(), time.perf_counter()
    until = start + plan.get("seconds", 3600.0)
    await asyncio.gather(*(client(number, plan, tally, until) for number in range(plan["clients"])))
    tally.seconds = time.perf_counter() - start
    tally.statuses = dict(Counter(tally.statuses))
    return tally


def main() -> None:
    json.dump(asdict(asyncio.run(run(json.load(sys.stdin)))), sys.stdout)


if __name__ == "__main__":
    main()
