"""HTTP/1.1 without sockets: bytes in, requests out, strictly; and the bytes of responses.

Anything that two parsers could read differently (two lengths, a length and chunks, folded headers) is refused
(RFC 9112, sections 5.2 and 6.3). ``Expect: 100-continue`` is ignored, as the RFC allows.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

# OpenAI documents 64 KiB for all request headers together.
MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 2**20

Headers = list[tuple[str, str]]
# A piece of parsing that yields while it needs more bytes.
_Bytes = Generator[None, None, bytes]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_DIGITS = re.compile(r"[0-9]{1,15}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")


class BadRequest(Exception):
    """Bytes that are no request we take; the connection can not go on."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request. Header names are in lower case; ``query`` is what stands behind the question mark."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def keep_alive(self) -> bool:
        return "close" not in self.headers.get("connection", "").lower()


class RequestParser:
    """Cuts the bytes of one connection into requests."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._requests = _requests(self._buffer)

    def feed(self, data: bytes) -> Iterator[HttpRequest]:
        """The requests that ``data`` completes, one by one; BadRequest stands behind the last good one."""
        self._buffer += data
        return iter(self._requests.__next__, None)


def _requests(buffer: bytearray) -> Generator[HttpRequest | None, None, None]:
    """Yields a request as soon as it is whole, and None when it needs more bytes."""
    while True:
        head = yield from _until(buffer, b"\r\n\r\n")
        method, target, headers = _parse_head(head)
        if headers.get("transfer-encoding") is not None:
            body = yield from _chunked(buffer, headers)
        else:
            body = yield from _exactly(buffer, _content_length(headers))
        path, _, query = target.partition("?")
        yield HttpRequest(method, path, query, headers, body)


def _until(buffer: bytearray, mark: bytes) -> _Bytes:
    scanned = 0
    while (end := buffer.find(mark, scanned)) < 0 and len(buffer) <= MAX_HEAD_BYTES:
        scanned = max(0, len(buffer) - len(mark) + 1)
        yield
    if end < 0 or end > MAX_HEAD_BYTES:
        raise BadRequest(431, "headers above 64 KiB")
    piece = bytes(buffer[:end])
    del buffer[: end + len(mark)]
    return piece


def _exactly(buffer: bytearray, size_bytes: int) -> _Bytes:
    if size_bytes > MAX_BODY_BYTES:
        raise BadRequest(413, f"a body of {size_bytes} bytes")
    while len(buffer) < size_bytes:
        yield
    piece = bytes(buffer[:size_bytes])
    del buffer[:size_bytes]
    return piece


def _chunked(buffer: bytearray, headers: dict[str, str]) -> _Bytes:
    if headers["transfer-encoding"].lower() != "chunked" or "content-length" in headers:
        raise BadRequest(400, "transfer-encoding must be chunked, without content-length")
    body = bytearray()
    while size_bytes := _chunk_size((yield from _until(buffer, b"\r\n"))):
        if len(body) + size_bytes > MAX_BODY_BYTES:
            raise BadRequest(413, "a chunked body above 64 MiB")
        chunk = yield from _exactly(buffer, size_bytes + 2)
        if not chunk.endswith(b"\r\n"):
            raise BadRequest(400, "a chunk that is longer than its size")
        body += chunk[:-2]
    while (yield from _until(buffer, b"\r\n")):
        pass  # trailers carry nothing for us
    return bytes(body)


def _chunk_size(line: bytes) -> int:
    match = _CHUNK_SIZE.fullmatch(line)
    if not match:
        raise BadRequest(400, "a chunk without a size")
    return int(match[1], 16)


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    request_line, *lines = head.decode("latin-1").split("\r\n")
    parts = request_line.split(" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or not parts[1].startswith("/"):
        raise BadRequest(400, "a malformed request line")
    if parts[2] != "HTTP/1.1":
        raise BadRequest(505, "only HTTP/1.1 is spoken here")
    headers: dict[str, str] = {}
    for line in lines:
        _add_header(headers, line)
    return parts[0], parts[1], headers


def _add_header(headers: dict[str, str], line: str) -> None:
    name, colon, value = line.partition(":")
    if not colon or not _TOKEN.fullmatch(name):
        raise BadRequest(400, "a malformed header")
    name, value = name.lower(), value.strip(" \t")
    if name in headers and name in ("content-length", "transfer-encoding", "host"):
        raise BadRequest(400, f"{name} is given twice")
    headers[name] = f"{headers[name]}, {value}" if name in headers else value


def _content_length(headers: dict[str, str]) -> int:
    length = headers.get("content-length", "0")
    if not _DIGITS.fullmatch(length):
        raise BadRequest(400, "content-length is no number")
    return int(length)


def response_head(status: int, headers: Headers, time_s: float) -> bytes:
    """A status line, ``headers`` and the date, with the empty line behind them."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    return f"HTTP/1.1 {status} {_reason(status)}\r\ndate: {_date(int(time_s))}\r\n{lines}\r\n".encode("latin-1")


def chunk(data: bytes) -> bytes:
    """``data`` as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


@lru_cache(maxsize=2)
def _date(time_s: int) -> str:
    return formatdate(time_s, usegmt=True)


@lru_cache
def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"  # 529 and the like are in no register
