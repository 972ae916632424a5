"""A hub on loopback: the addresses of Hugging Face and of ModelScope that glmkit asks, over a dictionary of files."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Repositories by name, each a dictionary from path to bytes; large ones are redirected to another path.

    special: from path (without query) to what answers there instead. claims: sizes that the list of files states.
    asked: paths in the order of the requests, with their range; seen: the headers of each.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.special: dict[str, Callable[[Any], None]] = {}
        self.claims: dict[str, int] = {}
        self.asked: list[str] = []
        self.seen: list[dict[str, str]] = []
        self.closing = threading.Event()
        self.url = ""

    def listing(self, files: dict[str, bytes]) -> list[dict[str, Any]]:
        """Path, size and hash of each file."""
        return [
            {
                "path": path,
                "size": self.claims.get(path, len(content)),
                "sha256": hashlib.sha256(content).hexdigest() if path.endswith((".bin", ".safetensors")) else None,
            }
            for path, content in files.items()
        ]

    def answer(self, handler: "Handler") -> None:
        """Route one GET."""
        parts = urlsplit(handler.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        reach = handler.headers.get("Range", "")
        self.asked.append(f"{path} {reach}".strip())
        self.seen.append(dict(handler.headers))
        words = path.strip("/").split("/")
        if path in self.special:
            self.special[path](handler)
        elif words[:2] == ["api", "models"]:
            self._huggingface_list("/".join(words[2:4]), unquote("/".join(words[5:])), handler)
        elif words[:3] == ["api", "v1", "models"]:
            self._modelscope("/".join(words[3:5]), words[5:], query, handler)
        elif words[2:3] == ["resolve"]:
            content = self.repositories["/".join(words[:2])]["/".join(words[4:])]
            if words[-1].endswith((".bin", ".safetensors")):
                handler.reply(302, b"", Location=f"{self.url.replace('127.0.0.1', 'localhost')}/cdn{path}")
            else:
                handler.send(content)
        elif words[0] == "cdn":
            handler.send(self.repositories["/".join(words[1:3])]["/".join(words[5:])])
        else:
            handler.reply(404, b"")

    def _huggingface_list(self, name: str, revision: str, handler: "Handler") -> None:
        if name not in self.repositories:
            handler.reply(401, b"", **{"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "refs/pr/1", COMMIT):
            handler.reply(404, b"", **{"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [
                {"rfilename": file["path"], "size": file["size"]}
                | ({"lfs": {"sha256": file["sha256"]}} if file["sha256"] else {})
                for file in self.listing(self.repositories[name])
            ]
            handler.reply(200, json.dumps({"sha": COMMIT, "siblings": siblings}).encode())

    def _modelscope(self, name: str, words: list[str], query: dict[str, list[str]], handler: "Handler") -> None:
        if name not in self.repositories:
            handler.reply(404, json.dumps({"Code": 10010205001, "Message": "no such model"}).encode())
        elif words == ["repo", "files"]:
            files = [
                {"Path": file["path"], "Type": "blob", "Size": file["size"], "Sha256": file["sha256"] or ""}
                for file in self.listing(self.repositories[name])
            ]
            files.append({"Path": "figures", "Type": "tree", "Size": 0, "Sha256": ""})
            handler.reply(200, json.dumps({"Code": 200, "Data": {"Files": files}}).encode())
        else:
            handler.send(self.repositories[name][query["FilePath"][0]])


class Handler(BaseHTTPRequestHandler):
    """One request. hub: set on the class of a server."""

    hub: FakeHub

    def do_GET(self) -> None:
        self.hub.answer(self)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def reply(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        """A whole answer; length: what its header says, if that is not the body's."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def send(self, content: bytes) -> None:
        """A file, or the rest of it."""
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if begin == 0:
            self.reply(200, content)
        elif begin >= len(content):
            self.reply(416, b"")
        else:
            self.reply(206, content[begin:], Content_Range=f"bytes {begin}-{len(content) - 1}/{len(content)}")

    def half(self, content: bytes) -> None:
        """A file that breaks off in the middle."""
        self.reply(200, content[: len(content) // 2], length=len(content))
        self.close_connection = True

    def silence(self) -> None:
        """Nothing until the server ends."""
        self.hub.closing.wait()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A running one."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
