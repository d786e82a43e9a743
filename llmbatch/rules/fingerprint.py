"""Are these two requests the same? A hash of everything that decides what an answer is, and of no secret."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any
from urllib.parse import urlsplit

import orjson

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Unwritable(ValueError):
    """A body that JSON can not hold, or that no request can carry: it can not be sent. The text says what is wrong."""


def fingerprint(endpoint: str, body: Mapping[str, Any]) -> str:
    """``fp1:`` and 32 hex digits; use a Fingerprinter for many bodies and one endpoint. Raises Unwritable."""
    return Fingerprinter(endpoint)(body)


class Fingerprinter:
    """Fingerprints of bodies POSTed to one endpoint.

    128 bits of BLAKE2b over the method, the endpoint's origin and path, and the body as JSON with sorted keys. The
    endpoint's query and user name are left out: they may hold keys. Finished rows are found again by this value, so
    fp1 never changes; another algorithm gets another prefix. ``generation`` is hashed if it is not 0: the same request,
    wanted once more for another answer. So is a ``schema``: of what it demands the body may hold only a part.

    Raises Unwritable for what orjson, which writes the request too, refuses: lone surrogates, names that are no
    strings, integers beyond 64 bits, objects, nesting without end.
    """

    def __init__(self, endpoint: str, generation: int = 0, schema: Mapping[str, Any] | None = None) -> None:
        again = f"generation {generation}\n" if generation else ""
        self._prefix = blake2b(f"POST\n{_origin_and_path(endpoint)}\n{again}".encode(), digest_size=16)
        if schema is not None:
            self._prefix.update(b"schema " + _canonical(schema) + b"\n")

    def __call__(self, body: Mapping[str, Any]) -> str:
        hasher = self._prefix.copy()
        hasher.update(_canonical(body))
        return "fp1:" + hasher.hexdigest()


def _origin_and_path(endpoint: str) -> str:
    url = urlsplit(endpoint)
    host = (url.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    port = "" if url.port in (None, _DEFAULT_PORTS.get(url.scheme)) else f":{url.port}"
    return f"{url.scheme}://{host}{port}{url.path}"


def _canonical(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise Unwritable(f"the request can not be written as JSON: {error}") from None
