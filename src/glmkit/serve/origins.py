"""Names by which the server may be asked, sites whose pages may ask it, and proxies that may speak for others.

A browser runs the pages of strangers. Such a page can make a name of its own point to this machine (DNS rebinding) and
ask the server as if it were its own site, or send requests whose answers it cannot read. Browsers tell both: Host is
then the name of the page, Origin its site. Sources: RFC 9110, 4.2 and 7.2; RFC 6454; the Fetch standard.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import Scope

from .error_responses import ApiError
from .settings import ServeSettings

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?(?::(\d{1,5}))?", re.ASCII)
_PORTS = {"http": "80", "https": "443"}
_FORWARDED = (b"forwarded", b"x-real-ip")  # and everything that begins with x-forwarded-
IpAddress = IPv4Address | IPv6Address


class Authority(NamedTuple):
    """host: in lower case, without brackets and without the dot at its end; port: digits, or "" where none is given."""

    host: str
    port: str

    @classmethod
    def of(cls, text: str) -> "Authority | None":
        """Parse host[:port]; None for anything else, such as user names and zones of addresses."""
        found = _AUTHORITY.fullmatch(text.lower())
        return cls(found[1].strip("[]"), found[2] or "") if found else None

    def same(self, other: "Authority | None", scheme: str) -> bool:
        """True where both name the same place for this scheme, whose usual port may be left out."""
        usual = _PORTS.get(scheme, "")
        return other is not None and self.host == other.host and (self.port or usual) == (other.port or usual)


def address_of(host: str) -> IpAddress | None:
    """The address that a text is; IPv4 addresses in IPv6's clothes are undressed. None for names."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


class Origins:
    """The checks of one server's settings."""

    def __init__(self, settings: ServeSettings) -> None:
        self._loopback = settings.loopback
        self._origins = settings.cors_origins
        self._names = {settings.host.lower(), "localhost"}
        self._domains: list[str] = []
        self._any = "*" in settings.allowed_hosts
        if not settings.loopback:
            self._names.add(socket.gethostname().lower())
        for name in settings.allowed_hosts:
            if name.startswith("*."):
                self._domains.append(name[1:].lower())
            else:
                self._names.add(name.strip("[]").lower().rstrip("."))

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raise ApiError: 400 without one usable Host, 403 for a name of strangers or another site's page."""
        asked = self._check_host(headers.getlist("host"))
        # Preflights carry out nothing; without headers that allow it the browser goes no further.
        if scope["method"] != "OPTIONS":
            self._check_origin(scope, headers, asked)

    def _check_host(self, given: list[str]) -> Authority:
        asked = Authority.of(given[0].strip()) if len(given) == 1 else None
        if asked is None:
            what = "one Host header is needed" if len(given) != 1 else "the Host header is not host[:port]"
            raise ApiError(400, f"{what}; send the name or address of this server", code="invalid_http")
        if not self._any and not self._is_ours(asked.host):
            message = f"this server does not answer to the name {asked.host[:100]!r}; name it with --allowed_host"
            raise ApiError(403, message, code="host_not_allowed")
        return asked

    def _is_ours(self, host: str) -> bool:
        if host in self._names or any(host.endswith(domain) for domain in self._domains):
            return True
        address = address_of(host)
        if self._loopback:
            return address is not None and address.is_loopback
        # Rebinding needs a name that a stranger can register: no address, no name without a dot, none of the local net.
        return address is not None or "." not in host or host.endswith(".local")

    def _check_origin(self, scope: Scope, headers: Headers, asked: Authority) -> None:
        if "*" in self._origins:
            return
        given = headers.getlist("origin")
        allowed = bool(given) and all(origin in self._origins for origin in given)
        if not given:
            # Browsers send this themselves, also where they send no Origin.
            foreign = scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site") == "cross-site"
        else:
            foreign = not allowed and not all(self._is_own(origin, scope["scheme"], asked) for origin in given)
        if foreign:
            message = (
                "calls from other sites' pages are not allowed; name their origin with --cors_origin, "
                "a proxy that this page is shown through with --trusted_proxy"
            )
            raise ApiError(403, message, code="cross_site")

    def _is_own(self, origin: str, scheme: str, asked: Authority) -> bool:
        said, _, rest = origin.partition("://")
        return said == scheme and asked.same(Authority.of(rest), scheme)


class Proxies:
    """The headers by which proxies speak for their clients: believed from those that are trusted, else left out."""

    def __init__(self, trusted: Iterable[str]) -> None:
        trusted = tuple(trusted)
        self._any = "*" in trusted
        self._networks: list[IPv4Network | IPv6Network] = [
            ipaddress.ip_network(item, strict=False) for item in trusted if item != "*"
        ]

    def trusts(self, host: str) -> bool:
        """True for the address of a trusted proxy."""
        address = address_of(host)
        return self._any or (address is not None and any(address in network for network in self._networks))

    def read(self, scope: Scope) -> Scope:
        """The request as its client made it: a copy with the client and scheme of before the proxy."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        kept = [pair for pair in headers if pair[0] not in _FORWARDED and not pair[0].startswith(b"x-forwarded-")]
        if len(kept) == len(headers):
            return scope
        client = scope.get("client")
        found: Scope = {**scope, "headers": kept}
        if client is None or not self.trusts(client[0]):
            return found
        said = Headers(raw=headers)
        scheme = said.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower()
        if scheme in _PORTS:
            found["scheme"] = scheme
        # From the last one, which the trusted proxy itself added, to the first that is no trusted proxy.
        for one in reversed(",".join(said.getlist("x-forwarded-for")).split(",")):
            written = Authority.of(one.strip())
            address = address_of(written.host if written else one.strip())
            if address is None:
                break
            found["client"] = (str(address), 0)
            if not self.trusts(str(address)):
                break
        return found
