"""Which addresses that others name (media, callbacks) may be asked: scheme, host, and where the host really is.

What is asked there, and what an answer means, belongs to the callers.
"""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable
from functools import cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from ssl import SSLContext
from typing import Any

import httpcore
import httpx

from compliance_pipeline.platforms.port import Refused

HEADERS_DEADLINE_S = 60.0
"""For all headers of an answer together: timeouts are per read, and a host may send a byte a read."""

_UNICAST = IPv6Network("2000::/3")
_log = logging.getLogger(__name__)


class AddressRules:
    """Tells which URLs may be asked, and refuses the others: each refusal is logged (host only) and counted.

    hosts: host names, which may be anywhere, and `*.domain` for what is below a domain, which must be public; if empty,
    any public host. schemes: those allowed. listed_in: the setting that lists hosts, named in errors.
    refused: called with the reason of each refusal: scheme, host, userinfo, private_address or redirect.
    """

    def __init__(
        self,
        hosts: Collection[str],
        schemes: Collection[str],
        listed_in: str,
        refused: Callable[[str], None] | None = None,
    ) -> None:
        names = [_name(host.strip("[]")) for host in hosts]
        self._exact = frozenset(name for name in names if not name.startswith("*."))
        self._below = tuple(name[1:] for name in names if name.startswith("*."))
        self._schemes, self._listed_in, self._refused = schemes, listed_in, refused

    def check(self, url: str) -> httpx.URL:
        """Raise Refused for a URL that may not be asked, as far as its text says so. Errors have nothing of the URL."""
        try:
            target = httpx.URL(url)
        except (httpx.InvalidURL, UnicodeError, TypeError):
            raise self.refuse("host", "?", "it is not a URL") from None
        host = _name(target.raw_host.decode("ascii", "replace"))
        if target.scheme not in self._schemes or not host:
            raise self.refuse("scheme", host, f"it is not an {' or '.join(sorted(self._schemes))} URL")
        if target.userinfo:
            raise self.refuse("userinfo", host, "it holds a user name or password")
        if target.port is not None and not 0 < target.port < 65536:
            raise self.refuse("host", host, "it has no valid port")
        if (self._exact or self._below) and not self._lists(host):
            raise self.refuse("host", host, f"its host is not among those in {self._listed_in}; add it, if it is meant")
        if host not in self._exact and (host == "localhost" or is_local(_literal(host))):
            raise self._private(host)
        return target

    def addresses(self, host: str, port: int) -> list[str]:
        """The host's IP addresses, all of them checked. Raises Refused, OSError if it has none."""
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError:
            raise OSError("not a host name") from None
        found = list(dict.fromkeys(str(info[4][0]) for info in infos))
        if _name(host) not in self._exact and any(is_local(_literal(address)) for address in found):
            raise self._private(host)
        return found

    def refuse(self, reason: str, host: str, message: str) -> Refused:
        """The error to raise, logged and counted."""
        # %r, because a host is the sender's text: a line break must not make a log line of its own.
        _log.warning("address refused: %s, host %r", reason, host)
        if self._refused:
            self._refused(reason)
        return Refused(message)

    def _lists(self, host: str) -> bool:
        return host in self._exact or (_literal(host) is None and host.endswith(self._below))

    def _private(self, host: str) -> Refused:
        message = f"its host is not public; name it in {self._listed_in}, if it is meant"
        return self.refuse("private_address", host, message)


def trusted(*, http2: bool) -> SSLContext:
    """Who is trusted, loaded once: that takes longer than a run's requests. A context says which HTTP may be spoken."""
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    return _loaded(http2, file, folder, *(Path(one).stat().st_mtime_ns for one in (file, folder) if one))


@cache
def _loaded(_http2: bool, *_authorities: str | int | None) -> SSLContext:
    return httpx.create_ssl_context()


class CheckedTransport(httpx.HTTPTransport):
    """Connects to the very address that was checked, whatever DNS says a moment later. Uses no proxy.

    The host's name stays in URL, `Host`, SNI and certificate, and connections are kept by name: hosts behind one
    address (S3) never share a connection. Raises httpx.ReadTimeout where headers take longer than a minute.
    """

    def __init__(self, rules: AddressRules) -> None:
        # httpx logs whole URLs at INFO, httpcore and hpack headers at DEBUG: no signed URL or token may get there.
        for name in ("httpx", "httpx_retries", "httpcore", "hpack"):
            logging.getLogger(name).setLevel(logging.WARNING)
        context = trusted(http2=False)
        super().__init__(verify=context, trust_env=False)
        self._patience = _Patience()
        # httpx passes no network backend on to its pool, so the pool is made here; its limits are httpx's defaults.
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=_CheckedBackend(rules, self._patience),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._patience.until = time.monotonic() + HEADERS_DEADLINE_S
        try:
            return super().handle_request(request)
        finally:
            self._patience.until = math.inf


class _Patience(threading.local):
    until = math.inf
    """Until when, by the monotonic clock, this thread reads."""


class _PatientStream(httpcore.NetworkStream):
    """A connection on which a thread reads no longer than it has patience."""

    def __init__(self, plain: httpcore.NetworkStream, patience: _Patience) -> None:
        self._plain, self._patience = plain, patience

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        left_s = self._patience.until - time.monotonic()
        if left_s <= 0:
            raise httpcore.ReadTimeout("headers too slow")
        limits = [limit for limit in (timeout, left_s) if limit is not None and limit < math.inf]
        return self._plain.read(max_bytes, min(limits, default=None))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._plain.write(buffer, timeout)

    def close(self) -> None:
        self._plain.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _PatientStream(self._plain.start_tls(ssl_context, server_hostname, timeout), self._patience)

    def get_extra_info(self, info: str) -> Any:
        return self._plain.get_extra_info(info)


class _CheckedBackend(httpcore.NetworkBackend):
    def __init__(self, rules: AddressRules, patience: _Patience) -> None:
        self._rules, self._patience = rules, patience
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = self._rules.addresses(host, port)
        except OSError:
            raise httpcore.ConnectError("the host has no address") from None
        failure: Exception = httpcore.ConnectError("the host has no address")
        for address in found:
            try:
                plain = self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
                return _PatientStream(plain, self._patience)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def is_local(address: IPv4Address | IPv6Address | None) -> bool:
    """Whether an address is anything but public, or leads to another one in a way that we can't check."""
    if isinstance(address, IPv6Address) and (address not in _UNICAST or address.sixtofour or address.teredo):
        return True
    return address is not None and (not address.is_global or address.is_multicast)


def is_loopback(host: str) -> bool:
    """Whether a host, as written in a URL, is this machine: `localhost`, 127.0.0.0/8 or ::1."""
    address = _literal(host.strip("[]"))
    return address.is_loopback if address else host.lower() == "localhost"


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _name(host: str) -> str:
    """Host names as they are compared: IP addresses in one spelling, international names in ASCII."""
    if address := _literal(host):
        return str(address) if "%" not in host else host.lower()
    below, name = ("*.", host[2:]) if host.startswith("*.") else ("", host)
    try:
        return below + httpx.URL(scheme="http", host=name).raw_host.decode("ascii").lower()
    except httpx.InvalidURL:
        return below + name.lower()
