"""Settings of a server: address, limits, keys. Checked before anything is opened; needs no optional package."""

import ipaddress
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TypeVar

from glmkit.errors import ConfigError
from glmkit.small_files import read_small

KEYS_VARIABLE = "GLM_API_KEYS"
_MOST_KEY_BYTES = 1 << 20  # of a file of keys
LOG_LEVELS = ("debug", "info", "warning", "error")
_LOOPBACK = ("localhost", "ip6-localhost", "::1")
_LARGE = 2**40
T = TypeVar("T")


def _setting(default: T, help: str, low: float | None = None, high: float | None = None) -> T:
    """A field with its line of help and its limits; the unit is in the name or in the help."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Every setting of a server. Raises ConfigError naming the value and its limits."""

    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 is every network of this machine")
    port: int = _setting(8000, "port to listen on; 0 takes a free one", 0, 65535)
    tokens: int | None = _setting(None, "tokens of all requests together in the cache (default: what memory allows)", 1)
    rows: int = _setting(64, "most answers written at the same time", 1, 4096)
    max_waiting: int = _setting(64, "most requests that wait for a place; more get status 429", 1, 100_000)
    deadline_seconds: float = _setting(600.0, "most seconds from a request to its last token, waiting included", 0.001)
    drain_seconds: float = _setting(60.0, "most seconds that accepted requests get after SIGTERM", 0)
    read_seconds: float = _setting(30.0, "most seconds a client may take to send a request", 0.001)
    write_seconds: float = _setting(30.0, "most seconds a client may read nothing of what waits for it", 0.001)
    max_body_bytes: int = _setting(1 << 20, "largest body of a request, in bytes", 1)
    max_unread: int = _setting(8192, "most events of an answer kept for a client that reads slowly", 1)
    max_connections: int = _setting(1024, "most open connections, as far as the system allows so many", 1, 100_000)
    max_address_connections: int | None = _setting(
        None, "most open connections from one address (default: half of max_connections)", 1, 100_000
    )
    model_id: str | None = _setting(None, "name of the model in the API (default: the directory's name)")
    page: bool = _setting(True, "the page for the browser at /")
    root_path: str = _setting("", "path under which a proxy shows this server, such as /glm")
    log_level: str = _setting("info", f"how much goes to stderr: {', '.join(LOG_LEVELS)}; info has a line a request")
    api_keys: tuple[str, ...] = _setting(
        (),
        f"a key that clients must give, may be repeated; better in a file or in {KEYS_VARIABLE}: ps shows it",
    )
    cors_origins: tuple[str, ...] = _setting((), "web origin that may call the API from a browser, may be repeated")
    allowed_hosts: tuple[str, ...] = _setting(
        (), "name by which the server may be asked, besides addresses; *.NAME for all below it; may be repeated"
    )
    trusted_proxies: tuple[str, ...] = _setting(
        (), "address or network of a proxy whose X-Forwarded-For and -Proto are believed, may be repeated"
    )

    def __post_init__(self) -> None:
        """Raise ConfigError."""
        for item in fields(self):
            _check(item.name, getattr(self, item.name), item.type, item.metadata)
        object.__setattr__(self, "root_path", self.root_path.rstrip("/"))
        if self.root_path and not re.fullmatch(r"(/[\w.~-]+)+", self.root_path):
            raise ConfigError(f"root_path is {self.root_path!r}; give a path such as /glm")
        if not self.host or any(mark in self.host for mark in "/ "):
            raise ConfigError(f"host is {self.host!r}; give an address or a name, such as 127.0.0.1")
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(f"log_level is {self.log_level!r}; choose one of {', '.join(LOG_LEVELS)}")
        if self.model_id is not None and not re.fullmatch(r"[\w.:@+/-]{1,200}", self.model_id, re.ASCII):
            raise ConfigError(f"model_id is {self.model_id!r}; use letters, digits and . : @ + / - _, at most 200")
        for key in self.api_keys:
            if not re.fullmatch(r"[!-~]{8,}", key):
                raise ConfigError(f"an API key has {len(key)} characters; give at least 8, ASCII, without spaces")
        for origin in self.cors_origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise ConfigError(f"cors_origins has {origin!r}; give scheme://host[:port], or *")
        for name in self.allowed_hosts:
            if name != "*" and not re.fullmatch(r"(\*\.)?[\w-]+(\.[\w-]+)*\.?|\[?[0-9A-Fa-f:]+\]?", name, re.ASCII):
                raise ConfigError(f"allowed_hosts has {name!r}; give a name without scheme and port, *.NAME, or *")
        for proxy in self.trusted_proxies:
            _check_network(proxy)

    @property
    def loopback(self) -> bool:
        """True when only this machine can reach the server."""
        return self.host.lower() in _LOOPBACK or self.host.startswith("127.")


def _check_network(proxy: str) -> None:
    if proxy != "*":
        try:
            ipaddress.ip_network(proxy, strict=False)
        except ValueError:
            raise ConfigError(
                f"trusted_proxies has {proxy!r}; give an address, a network such as 10.0.0.0/8, or *"
            ) from None


def _check(name: str, value: object, kind: object, limits: Mapping[str, float | None]) -> None:
    """Raise ConfigError for a value of the wrong type or beyond its limits."""
    if value is None and kind in (int | None, str | None):
        return
    if kind == tuple[str, ...]:
        fine = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        what = "a tuple of texts"
    elif kind in (str, str | None):
        fine, what = isinstance(value, str), "a text"
    elif kind is bool:
        fine, what = isinstance(value, bool), "true or false"
    else:
        number = (int, float) if kind is float else int
        what = "a number" if kind is float else "a whole number"
        low, high = limits["low"], limits["high"] if limits["high"] is not None else _LARGE
        fine = False
        if isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value):
            fine = True
            if low is not None and not low <= value <= high:
                bounds = f"at least {low:g}" if value < low else f"at most {high}"
                raise ConfigError(f"{name} is {value}; give {bounds}")
    if not fine:
        raise ConfigError(f"{name} is {value!r}; give {what}")


def read_keys(given: Iterable[str], file: str | os.PathLike[str] | None) -> tuple[str, ...]:
    """Collect the API keys: those given, one on each line of a file, and those of GLM_API_KEYS with commas between.

    Empty lines and lines that begin with # are none. Raises ConfigError for a file that cannot be read or has no key.
    """
    keys = list(given)
    if file is not None:
        step = "give a text file with one key on each line"
        try:
            lines = read_small(file, ConfigError, limit=_MOST_KEY_BYTES, step=step).decode("utf-8-sig").splitlines()
        except (FileNotFoundError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"cannot read the keys of {file}: {reason}", step=step) from None
        found = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if not found:
            raise ConfigError(f"{file} has no key; write one on each line, or leave out --api_key_file")
        keys += found
    keys += [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]
    return tuple(dict.fromkeys(keys))
