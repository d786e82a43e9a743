"""How a connection is made: through which proxy, trusting whom, noticed when its peer is gone."""

from __future__ import annotations

import ctypes
import errno
import select
import socket
import ssl
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed lacks it

from llmbatch.errors import OptionsError

# A peer that vanished without a word (a laptop's sleep, a NAT that forgot us) is noticed after 60 + 4 x 30 seconds.
KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 30
KEEPALIVE_PROBES = 4

# What getaddrinfo gives for one address; the address itself is the last member.
AddrInfo = tuple[Any, Any, Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. ``url`` is scheme, host and port, and may be shown; ``login`` is user and password."""

    url: str
    login: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def authorization(self) -> str | None:
        """The value of Proxy-Authorization (RFC 7617)."""
        return None if self.login is None else "Basic " + b64encode(":".join(self.login).encode()).decode()

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be repeated anywhere: the password, and the login as its header says it."""
        if self.login is None or self.authorization is None:
            return ()
        return (self.login[1], self.authorization.removeprefix("Basic "))


def proxy_for(url: str, proxies: Mapping[str, str]) -> Proxy | None:
    """The proxy that the environment names for ``url``; None goes there directly.

    ``proxies`` is what ``urllib.request.getproxies_environment`` reads from HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and
    NO_PROXY. Loopback addresses are the caller's to leave out. Raises OptionsError for a proxy that is not spoken
    here, without repeating its login.
    """
    parts = urlsplit(url)
    name = parts.scheme if proxies.get(parts.scheme) else "all"
    found = proxies.get(name)
    if not found or proxy_bypass_environment(parts.netloc, dict(proxies)):
        return None
    return _proxy(found if "://" in found else f"http://{found}", f"{name.upper()}_PROXY")


def _proxy(url: str, variable: str) -> Proxy:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise OptionsError(f"{variable} is no URL of a proxy; an example: http://proxy.example:3128") from None
    if parts.scheme not in ("http", "https"):
        scheme = parts.scheme if parts.scheme.isalnum() and len(parts.scheme) < 10 else "another kind of"
        raise OptionsError(
            f"{variable} names a {scheme} proxy; only http:// and https:// proxies can be used: "
            "set another one, or name the host in NO_PROXY to go there directly"
        )
    if not parts.hostname or not parts.hostname.isprintable():
        raise OptionsError(f"{variable} names no host; an example: http://proxy.example:3128")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    login = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
    return Proxy(f"{parts.scheme}://{host}:{port or (443 if parts.scheme == 'https' else 80)}", login)


def tls_context(ca_file: Path) -> ssl.SSLContext:
    """What the system trusts, and the certificates in ``ca_file`` (PEM) as well. TLS 1.2 and newer.

    Raises OptionsError if that file holds no certificates.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_verify_locations(cafile=ca_file)
    except ssl.SSLError:
        raise OptionsError(f"--ca-file {ca_file} holds no certificates in PEM form") from None
    except OSError as error:
        raise OptionsError(f"--ca-file {ca_file}: {error.strerror}") from error
    return context


def patient_socket(address: AddrInfo) -> socket.socket:
    """A socket that asks a silent peer now and then whether it is still there, where the system can."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS has TCP_KEEPALIVE for what Linux calls TCP_KEEPIDLE.
    for names, value in (
        (("TCP_KEEPIDLE", "TCP_KEEPALIVE"), KEEPALIVE_IDLE_S),
        (("TCP_KEEPINTVL",), KEEPALIVE_INTERVAL_S),
        (("TCP_KEEPCNT",), KEEPALIVE_PROBES),
    ):
        option = next((getattr(socket, name) for name in names if hasattr(socket, name)), None)
        if option is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def loopback_socket(address: AddrInfo) -> socket.socket:
    """For a key that may go unencrypted because it stays on this machine: ``localhost`` that is elsewhere is refused.

    RFC 6761 says that it is here; a name service may say something else.
    """
    found = ip_address(address[4][0].partition("%")[0])
    if not (getattr(found, "ipv4_mapped", None) or found).is_loopback:
        raise OSError(errno.EADDRNOTAVAIL, "localhost is another machine")
    return patient_socket(address)


class _PollFd(ctypes.Structure):
    """``struct pollfd`` of poll(2)."""

    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


# The call of the select module lets go of the interpreter, which wakes whoever waits for it (the journal's thread) for
# a call that never waits: a tenth of the CPU of a busy run. One by PyDLL does not.
_poll = ctypes.PyDLL(None).poll


def has_unread(descriptor: int) -> bool:
    """Whether bytes wait there that nobody asked for, or the end of the connection."""
    return bool(_poll(ctypes.byref(_PollFd(descriptor, select.POLLIN, 0)), 1, 0))
