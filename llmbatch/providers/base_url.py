"""Base URLs: which can be used, which are this machine, and what a key is bound to."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from llmbatch.errors import OptionsError

_LABEL = re.compile(r"[a-z0-9_-]{1,63}", re.ASCII | re.IGNORECASE)


def check_url(url: str, said_by: str) -> None:
    """Raises OptionsError, naming ``said_by`` (an option or a variable), for what is no base URL."""
    if " " in url or not url.isprintable():
        raise OptionsError(f"{said_by} has blanks, or characters that no URL has")
    try:
        parts = urlsplit(url)
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        port_ok, parts = False, urlsplit("")
    if "@" in url:
        raise OptionsError(f"{said_by} must not carry a user name or password; use --key-env NAME for the key")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok:
        raise OptionsError(f"{said_by} {url!r} is no http(s) URL; an example: http://localhost:8000/v1")
    if not _is_host(parts.hostname):
        raise OptionsError(f"{said_by} {url!r}: {parts.hostname!r} is no name of a host")
    if "?" in url or "#" in url:
        raise OptionsError(f"{said_by} must not carry a query or fragment")
    for end in ("/chat/completions", "/responses", "/embeddings", "/messages"):
        if parts.path.rstrip("/").endswith(end):
            raise OptionsError(f"{said_by} is the address before {end}; leave that part out")


def origin(url: str) -> str:
    """``https://host:port`` of a URL, the port always said."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{port}"


def is_loopback(host: str) -> bool:
    """True for this machine itself: ``localhost``, 127.0.0.0/8, ::1 and ::ffff:127.0.0.0/104.

    No other name is, whatever it resolves to; ``localhost`` is held to it when the connection is made
    (``calls.connect.loopback_socket``). Numbers that only a resolver takes for an address are names.
    """
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    # Not left to ip_address: Python before 3.13 says no for the mapped ones.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _is_host(host: str) -> bool:
    """An address, or a name that can be looked up: labels of 1 to 63 characters, 253 in all (RFC 1035)."""
    if ":" in host:
        return True  # urlsplit has looked at addresses in brackets
    try:
        name = host.encode("idna").decode().removesuffix(".")
    except UnicodeError:
        return False
    return len(name) <= 253 and all(map(_LABEL.fullmatch, name.split(".")))
