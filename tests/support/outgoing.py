"""Connections to other machines, refused and recorded by an audit hook.

The tests' own process calls `refuse_outgoing` (conftest.py). A copy of this file named sitecustomize.py on a child's
path does the same there, and in its children; GLMKIT_OUTGOING names the file that gets a line an attempt. What is
written in C or Rust with sockets of its own is not seen.
"""

import errno
import os
import sys

ATTEMPTS: list[str] = []
_LOG = "GLMKIT_OUTGOING"
_HERE = ("", "localhost", "localhost.localdomain", "ip6-localhost", "::1", "::", "0.0.0.0")
_NO = ".invalid"  # names that nobody has (RFC 6761)


def is_here(host: object) -> bool:
    """True for an address or a name of this machine."""
    name = host.decode() if isinstance(host, bytes) else host
    return name is None or (isinstance(name, str) and (name in _HERE or name.startswith("127.") or name.endswith(_NO)))


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        if not isinstance(address, tuple):  # a path of this machine
            return
        host = address[0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if not is_here(host):
        attempt = f"{event} {arguments[1:] if event == 'socket.connect' else arguments}"
        ATTEMPTS.append(attempt)
        if _LOG in os.environ:
            with open(os.environ[_LOG], "a") as log:
                log.write(f"{sys.argv}: {attempt}\n")
        raise OSError(errno.ENETUNREACH, f"the tests refuse {attempt}")


def refuse_outgoing() -> None:
    """Refuse from now on, for the rest of the process."""
    sys.addaudithook(_refuse)


if _LOG in os.environ and __name__ == "sitecustomize":
    refuse_outgoing()
