"""Where this service may connect to when a customer names the URL: nothing inside, unless the operator allows it.

A URL is checked as text, its host is resolved once, every address of it is checked, and the connection goes to the
address that was checked: a name that answers differently the second time gains nothing. Host header and certificate
are those of the name.
"""

import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpcore
import idna

MAX_URL_CHARACTERS = 2048
DEFAULT_PORTS = {"https": 443, "http": 80}
ALLOWED_PORTS = frozenset({80, 443, 8080, 8443})
_CHARACTERS = re.compile(r"(\w+:)?(//[^/\\\s?#]*)?[!-\[\]-~]*")
_NETLOC = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(:[0-9]*)?")
_HOST = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*\.?")
# As a last label, what some resolvers read as a number: 127.1, 0x7f000001, 2130706433.
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)\.?")
# Never public, whatever this Python's `ipaddress` says: reserved since it was written, obsolete, translated to what the
# local network decides, and the address at which every machine of Azure finds its host.
_INSIDE = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "192.88.99.0/24", "::/96", "::ffff:0:0:0/96",
                                           "64:ff9b:1::/48", "3fff::/20", "fec0::/10")))  # fmt: skip
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# The interface of an ISATAP address, before the IPv4 address it carries; its u bit may be set or not.
_ISATAP, _ISATAP_MASK = 0x00005EFE, 0xFDFFFFFF

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]


class EgressError(Exception):
    """A URL that is not called, or a call that failed. `code` is one word; the text is for the customer.

    It names no address: what a name resolves to inside is none of the customer's business.
    """

    def __init__(self, code: str, detail: str, *, hint: str = "") -> None:
        super().__init__(detail)
        self.code, self.detail, self.hint = code, detail, hint


@dataclass(frozen=True)
class EgressPolicy:
    """What the operator allows beyond the public internet: host names, addresses and networks."""

    allow: tuple[str, ...] = ()

    def allows_host(self, host: str) -> bool:
        """Whether this name may resolve to anything, on any port."""
        return host in self.allow

    def allows_address(self, address: Address) -> bool:
        """Whether a connection may go to this address."""
        return is_public(address) or any(address in network for network in self._networks())

    def _networks(self) -> Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        for entry in self.allow:
            try:
                yield ipaddress.ip_network(entry, strict=False)
            except ValueError:  # a host name
                continue


@dataclass(frozen=True)
class Target:
    """A URL that passed the check as text. `host` is ASCII, without brackets."""

    url: str
    scheme: str
    host: str
    port: int


def check_url(url: str, policy: EgressPolicy, *, schemes: Sequence[str] = ("https",)) -> Target:
    """What can be said of a URL without asking anybody. Raises EgressError `url_invalid` or `url_refused`."""
    parts = _split(url)
    if parts.scheme not in schemes:
        raise EgressError("url_invalid", f"The URL starts with {parts.scheme!r}.", hint=f"Use {' or '.join(schemes)}.")
    if parts.username is not None or parts.password is not None:
        raise EgressError("url_invalid", "The URL holds a user name or password.", hint="Leave them out.")
    host, port = _host(parts), parts.port or DEFAULT_PORTS[parts.scheme]
    allowed = policy.allows_host(host)
    address = _literal(host)
    if address is not None and not allowed and not policy.allows_address(address):
        raise _refused(host)
    if not (allowed or (address is not None and not is_public(address))) and port not in ALLOWED_PORTS:
        ports = ", ".join(map(str, sorted(ALLOWED_PORTS)))
        raise EgressError("url_refused", f"Port {port} is not called.", hint=f"Ports that are: {ports}.")
    shown = f"[{host}]" if ":" in host else host
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(f"{parts.scheme}://{shown}:{port}{path}", parts.scheme, host, port)


def _split(url: str) -> SplitResult:
    if len(url) > MAX_URL_CHARACTERS:
        raise EgressError("url_invalid", f"The URL has more than {MAX_URL_CHARACTERS} characters.")
    # Only a host may be written in other letters than ASCII.
    if not _CHARACTERS.fullmatch(url) or not url.isprintable():
        raise EgressError("url_invalid", "The URL holds characters that do not belong into one.")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise EgressError("url_invalid", f"The URL cannot be read: {error}.") from None
    # What stands beside brackets, others may read as the host.
    if not _NETLOC.fullmatch(parts.netloc.rpartition("@")[2]):
        raise EgressError("url_invalid", "The host of the URL is not a name.")
    return parts


def _host(parts: SplitResult) -> str:
    host = (parts.hostname or "").lower()
    if ":" in host or "[" in parts.netloc:
        return _canonical(host)
    try:
        host = host if host.isascii() else idna.encode(host, uts46=True).decode()
    except idna.IDNAError:
        raise EgressError("url_invalid", "The host of the URL is not a name.") from None
    if not _HOST.fullmatch(host):
        raise EgressError("url_invalid", "The host of the URL is not a name.")
    return _canonical(host) if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]) else host.rstrip(".")


def _canonical(host: str) -> str:
    """An address in the one way we take it: a dotted quad, or IPv6 without a zone."""
    address = _literal(host)
    if address is None or (address.version == 4 and str(address) != host):
        raise EgressError("url_invalid", "The host of the URL is an address in an unusual notation.")
    return str(address)


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host) if "%" not in host else None
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, and so is the one it carries, if it carries another."""
    if any(address in network for network in _INSIDE):
        return False
    if isinstance(address, ipaddress.IPv6Address):
        last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if (int(address) >> 32) & _ISATAP_MASK == _ISATAP and not is_public(last):
            return False
        carried = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        found = [inner for inner in (*carried, last if address in _NAT64 else None) if inner is not None]
        if found:
            return all(map(is_public, found))
    return address.is_global and not address.is_multicast and not address.is_reserved


def resolve(target: Target, policy: EgressPolicy, lookup: Resolve | None = None) -> str:
    """The address to connect to. Refused when any that the name has is inside: an honest name has none there.

    A name without an address is refused in the same words, or one could find out which names there are inside.
    Raises EgressError `url_refused`, or `unreachable` when nobody knows at the moment.
    """
    try:
        found = (lookup or _lookup)(target.host, target.port)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise EgressError("unreachable", f"The host {target.host!r} cannot be looked up now.") from None
        found = ()
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    if not addresses or not (policy.allows_host(target.host) or all(map(policy.allows_address, addresses))):
        raise _refused(target.host)
    return str(addresses[0])


def _lookup(host: str, port: int) -> Sequence[str]:
    return [str(row[4][0]) for row in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _refused(host: str) -> EgressError:
    return EgressError(
        "url_refused",
        f"The host {host!r} has no address of the public internet.",
        hint="Use one that has, or ask the operator to add it to ARCHREPAIR_EGRESS_ALLOW.",
    )


def pinned_pool(address: str, *, seconds: float) -> httpcore.ConnectionPool:
    """Connections that all go to one address, whatever name they are for, and end after `seconds` altogether."""
    backend = _PinnedBackend(address, deadline=time.monotonic() + seconds)
    return httpcore.ConnectionPool(ssl_context=ssl.create_default_context(), network_backend=backend)


class _PinnedBackend(httpcore.NetworkBackend):
    def __init__(self, address: str, *, deadline: float) -> None:
        self._inner, self._address, self._deadline = httpcore.SyncBackend(), address, deadline

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
                    socket_options: Any = None) -> httpcore.NetworkStream:  # fmt: skip
        left = _left(self._deadline, timeout, httpcore.ConnectTimeout)
        stream = self._inner.connect_tcp(self._address, port, left, local_address, socket_options)
        return _TimedStream(stream, self._deadline)


class _TimedStream(httpcore.NetworkStream):
    """A stream on which no drop of bytes, however slow, outlasts the deadline."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: float) -> None:
        self._inner, self._deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(self._deadline, timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(self._deadline, timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(self._deadline, timeout, httpcore.ConnectTimeout)
        return _TimedStream(self._inner.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _left(deadline: float, timeout: float | None, overdue: type[Exception]) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise overdue("the time for the whole exchange is over")
    return left if timeout is None else min(left, timeout)
