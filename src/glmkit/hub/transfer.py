"""Requests to a hub: a list as JSON, a file of which size and hash are checked. One attempt each, no retries."""

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn
from urllib.parse import urlsplit

from glmkit.errors import HubError, size_text

TIMEOUT = 10.0  # seconds without a byte
_LISTING_SECONDS = 60.0
_MOST_LISTING = 32 << 20  # bytes
_BLOCK = 1 << 20  # bytes
_AGENT = "glmkit"


@dataclass(frozen=True)
class Site:
    """A hub's address. headers: sent to that host alone. step: what to do when it does not give what is asked for."""

    address: str
    step: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise HubError(f"the hub's address is {self.address!r}", step="give one that begins with https://")

    def refuse(self, what: str) -> NoReturn:
        """Raise HubError with the hub's next step."""
        raise HubError(what, step=self.step)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a hub. path: inside its repository. size in bytes and sha256 (hex) where the hub says them."""

    path: str
    url: str
    size: int | None = None
    sha256: str | None = None


class StatusError(Exception):
    """An answer with a status of 400 or more. code: the hub's own word for it, if it says one."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"status {status} {code}".strip())
        self.status, self.code = status, code


def fetch_json(site: Site, url: str) -> object:
    """The JSON value at `url`. Raises StatusError, and HubError where nothing comes, too much, or no JSON."""
    begun, blocks, size = time.monotonic(), list[bytes](), 0
    with _open(site, url) as response:
        while block := _read(site, response, 1 << 16):
            blocks.append(block)
            size += len(block)
            if size > _MOST_LISTING or time.monotonic() - begun > _LISTING_SECONDS:
                site.refuse(f"{site.address} sends no list of files, but {size_text(size)} and more")
    try:
        value: object = json.loads(b"".join(blocks))
    except (ValueError, RecursionError):
        site.refuse(f"{site.address} answers with something that is no JSON; is it a hub?")
    return value


def announced_size(site: Site, file: RemoteFile) -> int | None:
    """Bytes of a file as its host announces them before they come; None where it does not. Raises HubError."""
    try:
        with _open(site, file.url) as response:
            return _announced(response, 0)
    except StatusError as error:
        site.refuse(f"{site.address} answers with {error} when asked for {file.path}")


def download(site: Site, file: RemoteFile, target: Path, count: Callable[[int], None]) -> None:
    """Write `file` to `target`, which appears only when size and hash are right; an earlier, cut one is gone on with.

    count: called with the number of bytes that are there more (less, when the hub begins again). Raises HubError.
    """
    partial = target.with_name(f"{target.name}.incomplete")
    digest = hashlib.sha256()
    with partial.open("ab+") as output:
        done = _known_bytes(output, file, digest)
        count(done)
        if file.size is None or done < file.size:
            try:
                response = _open(site, file.url, done)
            except StatusError as error:
                if error.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                    output.truncate(0)  # what is here is of another file
                site.refuse(f"{site.address} answers with {error} when asked for {file.path}")
            with response:
                if done and not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                    output.truncate(0)
                    digest = hashlib.sha256()
                    count(-done)
                    done = 0
                size = file.size if file.size is not None else _announced(response, done)
                while block := _read(site, response, _BLOCK, file.path):
                    output.write(block)
                    digest.update(block)
                    count(len(block))
                    done += len(block)
                    if size is not None and done > size:
                        break
            if size is not None and done < size:
                site.refuse(f"{file.path} broke off at {done:,} of {size:,} bytes; the same command goes on from there")
    if (file.size is not None and done != file.size) or file.sha256 not in (None, digest.hexdigest()):
        partial.unlink()
        site.refuse(f"{file.path} came with other bytes than the hub announces; they are thrown away")
    partial.replace(target)


def _known_bytes(output: BinaryIO, file: RemoteFile, digest: "hashlib._Hash") -> int:
    """Bytes that an earlier download has left, added to `digest`; more than there can be are dropped."""
    done = output.seek(0, 2)
    if file.size is None or done > file.size:
        output.truncate(0)
        return 0
    output.seek(0)
    while block := output.read(_BLOCK):
        digest.update(block)
    return done


def _announced(response: http.client.HTTPResponse, done: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return done + int(length) if length.isascii() and length.isdigit() else None


def _open(site: Site, url: str, begin: int = 0) -> http.client.HTTPResponse:
    headers = {"User-Agent": _AGENT, **(site.headers if _host(url) == _host(site.address) else {})}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    try:
        opened = _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            raise StatusError(error.code, error.headers.get("X-Error-Code", "")) from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # no network, no such host, no certificate
        _refuse_silence(site, error)
    assert isinstance(opened, http.client.HTTPResponse)
    return opened


def _read(site: Site, response: http.client.HTTPResponse, size: int, name: str = "the list of files") -> bytes:
    try:
        return response.read(size)
    except http.client.IncompleteRead as error:
        return error.partial
    except (OSError, http.client.HTTPException, ValueError) as error:
        site.refuse(f"{name} broke off ({_reason(error)}); the same command goes on from there")


def _refuse_silence(site: Site, error: Exception) -> NoReturn:
    site.refuse(f"{site.address} does not answer ({_reason(error)})")


def _reason(error: Exception) -> str:
    """A few words of a failure of the network."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"nothing came for {TIMEOUT:g} seconds"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return next(iter(str(cause).strip().splitlines()), "") or type(cause).__name__


def _host(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects: tokens stay with the host they are for, and nothing leaves HTTPS for plain HTTP."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: object,
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"it leads to {newurl[:100]!r}, which is not encrypted")
        following = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if following is not None and _host(newurl) != _host(req.full_url):
            following.remove_header("Authorization")
        return following


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS, through the proxies of the environment; no file: and no ftp:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener
