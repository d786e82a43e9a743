"""What bad servers say, byte by byte, and what ought to come of it: a table of numbered cases, some in variants.

1 to 20 are of the connection, to 49 of framing and headers, to 55 of redirects, to 71 of the content, to 78 of streams,
to 84 of statuses and limits. Two have no row: 15 (a server that refuses the 101st connection: on loopback the kernel
accepts for it, so to the client it is 4 or 10) and 18 (nobody asks for 100-continue: every request is looked at for it,
and for cookies, 48).
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from calls.raw_server import KEY

from llmbatch.records import FailureClass
from llmbatch.rules.kept import KEPT_BODY_BYTES

Position = Literal["first", "mid", "always"]
"""``first``: the first request meets it. ``mid``: every other row, each time. ``always``: all."""
POSITIONS: tuple[Position, ...] = ("first", "mid", "always")

# In the campaign an answer may have so much; the real limit is met in a process of its own.
CAP_BYTES = 2 * 2**20
BLOCK = b"x" * 2**16
RETRY_AFTER_S = 0.06


@dataclass(frozen=True)
class Answer:
    """What a good server would say to one request, and the parts of it, to be said badly."""

    row: int
    stream: bool
    id: str
    url: str = ""
    """The server itself."""
    sink: str = ""
    """Another origin, which nothing may ever reach."""

    @property
    def text(self) -> str:
        return f"the answer to row {self.row}"

    @property
    def half_text(self) -> str:
        return "the answer "

    @property
    def json(self) -> bytes:
        return completion(self.text)

    @property
    def body(self) -> bytes:
        return events(self.text) if self.stream else self.json

    @property
    def half(self) -> bytes:
        return tokens(self.half_text) if self.stream else self.json[: len(self.json) // 2]

    def head(self, *headers: str, status: str = "200 OK", kind: str | None = None) -> bytes:
        """Up to the blank line, without saying how long the body is."""
        kind = kind or ("text/event-stream" if self.stream else "application/json")
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"X-Request-Id: {self.id}", *headers, "", ""]
        return "\r\n".join(lines).encode()

    def whole(self, body: bytes | None = None, *headers: str, length: int | str | None = None, **head: Any) -> bytes:
        """With a Content-Length, right unless ``length`` says something else."""
        body = self.body if body is None else body
        return self.head(*headers, f"Content-Length: {len(body) if length is None else length}", **head) + body

    def plain(self, body: bytes | None = None, *headers: str, status: str = "200 OK", **more: Any) -> bytes:
        """JSON, also to a request for a stream."""
        return self.whole(self.json if body is None else body, *headers, status=status, kind="application/json", **more)

    def chunked(self, *chunks: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
        return self.head("Transfer-Encoding: chunked") + b"".join(map(chunk, chunks)) + last


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def completion(content: Any, finish: str | None = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
    document = {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 5}, **more}
    return json.dumps(document).encode()


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def tokens(text: str, index: int = 0) -> bytes:
    return b"".join(
        event({"model": "m", "choices": [{"index": index, "delta": {"content": part}}]})
        for part in (text[:4], text[4:8], text[8:])
        if part
    )


FINISH = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
DONE = b"data: [DONE]\n\n"


def events(text: str) -> bytes:
    return tokens(text) + FINISH + DONE


# What a server does beside writing bytes


@dataclass(frozen=True)
class Peer:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def descriptor(self) -> int:
        """Of the TCP connection beneath TLS; -1 once it is closed."""
        connection = self.writer.get_extra_info("socket")
        return -1 if connection is None else int(connection.fileno())


Act = Callable[[Peer], Awaitable[None]]
Part = bytes | float | Act
"""Bytes are written, a number is a pause in seconds, and anything may be done."""


async def close(peer: Peer) -> None:
    peer.writer.close()


async def reset(peer: Peer) -> None:
    connection = peer.writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.writer.transport.abort()


async def hang(peer: Peer) -> None:
    """Until the client goes away."""
    await peer.reader.read()


async def when_asked(peer: Peer) -> None:
    """Waits for the first bytes, whatever they are."""
    await peer.reader.read(1)


async def read_no_more(peer: Peer) -> None:
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(3600)


async def tear(peer: Peer) -> None:
    """The end of a TLS connection without its close_notify."""
    if peer.descriptor >= 0:
        with socket.socket(fileno=os.dup(peer.descriptor)) as beneath:
            beneath.shutdown(socket.SHUT_WR)


async def alert(peer: Peer) -> None:
    """A TLS record that is not encrypted, where only encrypted ones may come."""
    if peer.descriptor >= 0:
        os.write(peer.descriptor, b"\x15\x03\x03\x00\x02\x02\x50")
    await hang(peer)


def for_ever(data: bytes, pause_s: float = 0.0) -> Act:
    """The same again and again, as fast as it is read."""

    async def repeat(peer: Peer) -> None:
        while not peer.writer.transport.is_closing():
            peer.writer.write(data)
            await peer.writer.drain()
            await asyncio.sleep(pause_s)

    return repeat


# What ought to come of it


@dataclass(frozen=True)
class Outcome:
    """What one row is to get that meets it each time.

    ``words`` are the types allowed. ``tries`` is how often it may be sent; None: as often as its patience allows.
    ``keeps`` stands in the body that its error line keeps, ``so_far`` is what it gives as text, ``says`` stands in
    its message or in a notice. ``line`` is part of the line of a good answer, ``output`` what it says.
    """

    kind: FailureClass | Literal["ok"]
    words: str = ""
    tries: int | None = 1
    fatal: bool = False
    gives_up: bool = False
    keeps: Callable[[Answer], bytes] | None = None
    so_far: str | None = None
    says: str = ""
    line: Mapping[str, Any] = field(default_factory=dict)
    output: Callable[[Answer], Any] | None = None

    @property
    def maybe_billed(self) -> bool:
        return self.kind in ("ambiguous", "unusable")


def half(answer: Answer) -> bytes:
    return answer.half


def everything(answer: Answer) -> bytes:
    return answer.body


def of(text: bytes) -> Callable[[Answer], bytes]:
    return lambda answer: text


def ambiguous(words: str, keeps: Callable[[Answer], bytes] | None = None, **more: Any) -> Outcome:
    return Outcome("ambiguous", words, tries=2, keeps=keeps, **more)


def unusable(words: str, keeps: Callable[[Answer], bytes] | None = None, **more: Any) -> Outcome:
    return Outcome("unusable", words, tries=2, keeps=keeps, **more)


def cut_stream(keeps: Callable[[Answer], bytes] = half, so_far: str | None = "the answer ") -> Outcome:
    return unusable("stream_cut", keeps, so_far=so_far)


def rejected(words: str, **more: Any) -> Outcome:
    return Outcome("rejected", words, tries=3, **more)


def limited(**more: Any) -> Outcome:
    """A rate limit: all wait, and the row's patience counts, not its tries."""
    return Outcome("rejected", "rate_limit_exceeded", tries=None, **more)


def permanent(words: str, **more: Any) -> Outcome:
    return Outcome("permanent", words, **more)


def fatal(words: str, **more: Any) -> Outcome:
    """Every row would meet it: the run ends after three."""
    return Outcome("permanent", words, fatal=True, **more)


def no_entry(words: str, **more: Any) -> Outcome:
    """The same before anything was sent."""
    return Outcome("never_sent", words, fatal=True, **more)


def unreachable(words: str, **more: Any) -> Outcome:
    """Nobody there: the run waits, and in the end gives up."""
    return Outcome("never_sent", words, tries=None, gives_up=True, **more)


OK = Outcome("ok")
LATE = ambiguous("timeout")
LATE_STREAM = ambiguous("first_token_timeout")
BAD_HTTP = ambiguous("bad_http")


def ok(output: Callable[[Answer], Any] | None = None, **line: Any) -> Outcome:
    return Outcome("ok", line=line, output=output)


Script = Callable[[Answer], tuple[Part, ...]]


@dataclass(frozen=True)
class Case:
    """One thing that a server does. ``plain`` and ``stream`` are what is to come of it; None: it is no such case.

    ``slow``: with time limits of a fraction of a second. ``closes``: the connection must not be used again. ``has_id``:
    the client can have read the request id. ``at_accept``: it is done to a connection, whatever is asked on it.
    ``reads``: the server reads of the request what it needs to know the row. ``lookups``: what the name service says,
    an address or an error, the last one for ever; with it the server has a name. ``listens``: ``late`` begins after
    the first failure (and never, at ``always``); ``full`` likewise, and until then answers no SYN. ``tls``: whose
    certificate the server shows. ``proxy``: it is a proxy to a host that is none. ``alone``: not beside other cases.
    ``pause_s``: no request within that time of an odd answer.
    """

    name: str
    script: Script
    plain: Outcome | None
    stream: Outcome | None
    at: tuple[Position, ...] = POSITIONS
    slow: bool = False
    closes: bool = False
    has_id: bool = True
    at_accept: bool = False
    reads: Literal["request", "start"] = "request"
    lookups: tuple[str | int | None, ...] = ()
    listens: Literal["now", "late", "full"] = "now"
    tls: str = ""
    speaks_tls: bool = True
    proxy: bool = False
    dead_neighbour: bool = False
    alone: bool = False
    prompt_bytes: int = 0
    pause_s: float = 0.0

    @property
    def on_request(self) -> bool:
        """Whether it is an answer that is bad, not a name, a connection or a certificate."""
        return not (self.at_accept or self.lookups or self.listens != "now" or "certificate" in self.name)


CASES: list[Case] = []


def add(name: str, script: Script, plain: Outcome | None, stream: Outcome | str | None = "same", **more: Any) -> None:
    CASES.append(Case(name, script, plain, plain if isinstance(stream, str) else stream, **more))


def says(*parts: Part) -> Script:
    return lambda answer: parts


def good(answer: Answer) -> tuple[Part, ...]:
    return (answer.whole(),)


# Connection

_THERE = {"at": ("first", "always"), "has_id": False}
_LATE = {**_THERE, "slow": True}
add("1 no such name", good, unreachable("dns_error"), lookups=(socket.EAI_NONAME,), **_THERE)
add("2 name service fails", good, unreachable("dns_error"), lookups=(socket.EAI_AGAIN,), **_THERE)
add("2 name service does not answer", good, unreachable("connect_timeout|dns_error"), lookups=(None,), **_LATE)
add("3 first address refuses", good, OK, lookups=("127.0.0.2 127.0.0.1",), at=("always",))
add("3 first address is a black hole", good, OK, lookups=("127.0.0.2 127.0.0.1",), dead_neighbour=True, at=("always",))
add("4 refused", good, unreachable("connection_refused"), listens="late", **_THERE)
add("5 SYN black hole", good, unreachable("connect_timeout"), listens="full", **_LATE)
for _who in ("expired", "of another host", "self-signed", "of an unknown authority"):
    add(f"6 certificate {_who}", good, no_entry("tls_certificate"), tls=_who, at=("always",), has_id=False)
add("7 TLS handshake stalls", says(hang), unreachable("connect_timeout"), at_accept=True, tls="good", speaks_tls=False,
    slow=True, has_id=False, at=("always",))  # fmt: skip
add("8 TLS alert in mid-answer", lambda a: (a.whole()[: -len(a.body)] + a.half, 0.02, alert),
    ambiguous("connection_error|connection_reset|body_cut|disconnected", half), cut_stream(), tls="good",
    closes=True)  # fmt: skip
add("9 TLS without close_notify, whole", lambda a: (a.whole(None, "Connection: close"), 0.01, tear), OK, tls="good",
    closes=True)  # fmt: skip
add("9 TLS without close_notify, framed by the end", lambda a: (a.head("Connection: close") + a.body, 0.01, tear), OK,
    tls="good", closes=True)  # fmt: skip
add("9 TLS without close_notify, cut", lambda a: (a.head("Connection: close") + a.half, 0.01, tear),
    Outcome("unusable", "bad_json", 2, keeps=half), cut_stream(), tls="good", closes=True)  # fmt: skip
add("10 accepts and closes", says(close), ambiguous("disconnected|connection_reset"), at_accept=True, has_id=False)
add("10 accepts and resets", says(reset), ambiguous("disconnected|connection_reset"), at_accept=True, has_id=False)
add("11 reset before the answer", says(reset), ambiguous("connection_reset|disconnected"), closes=True, has_id=False)
add("12 reset after the answer", lambda a: (a.whole(), reset), OK, closes=True)
add("13 the peer vanishes", says(hang), LATE, LATE_STREAM, slow=True, closes=True, has_id=False)
add("13 the peer vanishes in mid-answer", lambda a: (a.whole()[: -len(a.body)] + a.half, hang),
    ambiguous("idle_timeout", half), ambiguous("idle_timeout", half, so_far="the answer "), slow=True,
    closes=True)  # fmt: skip
add("14 closes instead of an answer", says(close), ambiguous("disconnected|connection_reset"), closes=True,
    has_id=False)  # fmt: skip
_PROXY = {"proxy": True, "alone": True, "at": ("always",), "tls": "good", "speaks_tls": False, "has_id": False}
add("16 proxy wants a login", says(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", close),
    no_entry("proxy_login"), **_PROXY)  # fmt: skip
add("16 proxy can not connect", says(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", close),
    unreachable("proxy_cannot_connect"), **_PROXY)  # fmt: skip
add("17 upload stalls", says(read_no_more), LATE, LATE_STREAM, slow=True, closes=True, has_id=False, reads="start",
    prompt_bytes=8 * 2**20, alone=True)  # fmt: skip
add("19 HTTP/2 only", says(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64", close), BAD_HTTP,
    closes=True, has_id=False)  # fmt: skip
add("20 plain HTTP on the TLS port", says(when_asked, b"HTTP/1.1 400 Bad Request\r\n\r\n", close),
    no_entry("tls_error"), tls="good", speaks_tls=False, at_accept=True, at=("always",), has_id=False)  # fmt: skip
add("20 TLS on the plain port", says(b"\x15\x03\x01\x00\x02\x02\x46", close), no_entry("tls_port"), at=("always",),
    closes=True, has_id=False)  # fmt: skip

# Framing and headers

add("21 headers drip", lambda a: tuple(p for byte in a.whole() for p in (bytes([byte]), 0.02)), LATE, LATE_STREAM,
    slow=True, closes=True, has_id=False)  # fmt: skip
add("22 headers, then silence", lambda a: (a.head("Content-Length: 999"), hang), ambiguous("timeout|idle_timeout"),
    LATE_STREAM, slow=True, closes=True)  # fmt: skip
add("23 half of the headers, then the end", lambda a: (a.head()[:40], close), ambiguous("disconnected|bad_http"),
    closes=True, has_id=False)  # fmt: skip
add("23 headers, then the end", lambda a: (a.head("Content-Length: 999"), close), ambiguous("body_cut"),
    unusable("stream_cut"), closes=True)  # fmt: skip
add("24 content-length too long, cut", lambda a: (a.whole(a.half, length=999), close), ambiguous("body_cut", half),
    cut_stream(), closes=True)  # fmt: skip
add("24 content-length too long, whole JSON", lambda a: (a.plain(length=999), close),
    ambiguous("body_cut", lambda a: a.json), closes=True)  # fmt: skip
add("24 content-length too long, whole stream", lambda a: (a.whole(length=999), close), None, OK, closes=True)
add("24 content-length too long, the key in it", lambda a: (a.plain(f"half {KEY} of".encode(), length=999), close),
    ambiguous("body_cut", of(b"half [key] of")), closes=True)  # fmt: skip
# What comes in one packet with what breaks the framing is not parsed any more; it is kept as it came.
add("25 content-length too short", lambda a: (a.whole(length=len(a.body) - 9),), ambiguous("bad_http", everything),
    closes=True, has_id=False)  # fmt: skip
add("25 content-length too short, in two packets",
    lambda a: (a.whole(length=len(a.body) - 9)[:-99], 0.02, a.body[-99:]),
    unusable("bad_json", lambda a: a.body[:-9]), OK, closes=True)  # fmt: skip
add("25 content-length much too short, in two packets",
    lambda a: (a.whole(a.half)[:-9], 0.02, a.half[-9:] + a.body), unusable("bad_json", half), cut_stream(),
    closes=True)  # fmt: skip
add("26 content-length 0 with a body", lambda a: (a.whole(length=0),), ambiguous("bad_http", everything), closes=True,
    has_id=False)  # fmt: skip
add("27 two content-lengths", lambda a: (a.whole(None, "Content-Length: 7"),), BAD_HTTP, closes=True, has_id=False)
add("27 content-length and chunked", lambda a: (a.whole(None, "Transfer-Encoding: chunked"),), BAD_HTTP, closes=True,
    has_id=False)  # fmt: skip
for _length in ("-1", "abc", "1e3", "99999999999999999999999"):
    add(f"28 content-length {_length}", lambda a, n=_length: (a.whole(length=n), close), BAD_HTTP, closes=True,
        has_id=False)  # fmt: skip
add("28 content-length 10^18", lambda a: (a.whole(a.half, length=10**18), close), ambiguous("body_cut", half),
    cut_stream(), closes=True)  # fmt: skip
add("29 chunks cut between two", lambda a: (a.chunked(a.half, last=b""), close), ambiguous("body_cut", half),
    cut_stream(), closes=True)  # fmt: skip
add("29 chunks cut inside one", lambda a: (a.chunked(last=b"fff\r\n") + a.half, close), ambiguous("body_cut", half),
    cut_stream(), closes=True)  # fmt: skip
add("29 chunks reset", lambda a: (a.chunked(a.half, last=b""), 0.02, reset),
    ambiguous("body_cut|connection_reset|connection_error", half), cut_stream(), closes=True)  # fmt: skip
add("30 bad chunk size", lambda a: (a.chunked(a.half, last=b"zz\r\nabc\r\n0\r\n\r\n"),), ambiguous("bad_http", half),
    closes=True, has_id=False)  # fmt: skip
add("30 bad chunk size, in two packets", lambda a: (a.chunked(a.half, last=b""), 0.02, b"zz\r\nabc\r\n0\r\n\r\n"),
    ambiguous("bad_http|body_cut", half), cut_stream(), closes=True)  # fmt: skip
_TOO_LARGE = unusable("answer_too_large", of(b"x" * KEPT_BODY_BYTES))
add("31 chunks without end", lambda a: (a.chunked(last=b""), for_ever(chunk(BLOCK))), _TOO_LARGE, closes=True)
add("31 chunks without end, drop by drop", lambda a: (a.chunked(last=b""), for_ever(chunk(b"x"), 0.02)),
    ambiguous("timeout", of(b"xxx")), LATE_STREAM, slow=True, closes=True)  # fmt: skip
add("32 framed by the end, cut", lambda a: (a.head() + a.half, close), unusable("bad_json", half), cut_stream(),
    closes=True)  # fmt: skip
add("32 framed by the end, whole", lambda a: (a.head() + a.body, close), OK, closes=True)
add("33 body larger than any answer", lambda a: (a.head("Content-Length: 10000000000"), for_ever(BLOCK)), _TOO_LARGE,
    closes=True)  # fmt: skip
_GZIP = "Content-Encoding: gzip"
add("34 gzip bomb", lambda a: (a.whole(gzip.compress(b"x" * 16 * 2**20), _GZIP),), _TOO_LARGE)
add("35 gzip, unasked", lambda a: (a.whole(gzip.compress(a.body), _GZIP),), OK)
add("35 gzip cut", lambda a: (a.whole(gzip.compress(a.half + a.body)[:-20], _GZIP),), unusable("bad_encoding", half),
    unusable("stream_cut|bad_encoding", half, so_far="the answer "))  # fmt: skip
add("35 gzip cut to nothing", lambda a: (a.whole(gzip.compress(a.body)[:10], _GZIP),),
    unusable("bad_encoding", lambda a: gzip.compress(a.body)[:3]), unusable("stream_cut|bad_encoding"))  # fmt: skip
add("36 gzip with a bad checksum", lambda a: (a.whole(gzip.compress(a.body)[:-8] + bytes(8), _GZIP),),
    unusable("bad_encoding", everything))  # fmt: skip
add("37 called gzip, but is not", lambda a: (a.whole(None, _GZIP),), unusable("bad_encoding", everything),
    unusable("bad_encoding", everything))  # fmt: skip
add("37 deflate without a header", lambda a: (a.whole(_raw_deflate(a.body), "Content-Encoding: deflate"),),
    unusable("bad_encoding", lambda a: _raw_deflate(a.body)))  # fmt: skip
add("38 packed as nobody asked", lambda a: (a.whole(b"\x28\xb5\x2f\xfd not real", "Content-Encoding: zstd"),),
    unusable("bad_encoding", of(b"\x28\xb5\x2f\xfd not real")))  # fmt: skip
add("39 header of 9 kB", lambda a: (a.whole(None, "X-Long: " + "y" * 9000),), BAD_HTTP, closes=True, has_id=False)
add("40 too many headers", lambda a: (a.whole(None, *(f"X-{n}: {n}" for n in range(5_000))),), BAD_HTTP, closes=True,
    has_id=False)  # fmt: skip
add("41 lines end in LF", lambda a: (a.head(f"Content-Length: {len(a.body)}").replace(b"\r\n", b"\n") + a.body,), OK)
add("42 HTTP/0.9", lambda a: (a.body, close), BAD_HTTP, closes=True, has_id=False)
add("42 garbage for a status line", says(b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n"), BAD_HTTP, closes=True,
    has_id=False)  # fmt: skip
add("42 a banner of another protocol", says(b"SSH-2.0-OpenSSH_9.9\r\n", close), BAD_HTTP, closes=True, has_id=False)
add("43 status 999", lambda a: (a.plain(b"{}", status="999 What"),), ambiguous("http_999"))
add("43 status 600", lambda a: (a.plain(b"what is it", status="600 What"),), ambiguous("http_600", of(b"what is it")))
add("44 1xx flood, then the answer", lambda a: (b"HTTP/1.1 102 Processing\r\n\r\n" * 1_000 + a.whole(),), OK)
add("44 1xx flood without end", says(for_ever(b"HTTP/1.1 102 Processing\r\n\r\n" * 5, 0.02)), LATE, LATE_STREAM,
    slow=True, closes=True, has_id=False)  # fmt: skip
add("45 101, unasked", lambda a: (a.head("Upgrade: websocket", "Connection: Upgrade", status="101 Switching Protocols"),
    hang), ambiguous("http_101"), slow=True, closes=True)  # fmt: skip
for _status in ("204 No Content", "205 Reset Content", "304 Not Modified"):
    add(f"46 {_status}", lambda a, s=_status: (a.head("Content-Length: 0", status=s),), unusable("no_content"))
add("47 a blank line after the answer", lambda a: (a.whole() + b"\r\n",), OK)
add("47 bytes after the answer", lambda a: (a.whole() + b"and then some",), ambiguous("bad_http", everything),
    closes=True, has_id=False)  # fmt: skip
add("47 bytes after the answer, in two packets", lambda a: (a.whole()[:-9], 0.02, a.body[-9:] + b"and then some"), OK,
    closes=True)  # fmt: skip
add("47 two answers to one request", lambda a: (a.whole() + a.whole(completion("of another request")),), OK,
    closes=True)  # fmt: skip
add("47 two answers, in two packets",
    lambda a: (a.whole()[:-9], 0.02, a.body[-9:] + a.whole(completion("of another request"))), OK,
    closes=True)  # fmt: skip
add("48 cookies", lambda a: (a.whole(None, "Set-Cookie: a=b; Path=/"),), OK)
add("49 charset=klingon",
    lambda a: (a.head(f"Content-Length: {len(a.body)}").replace(b"\r\nX-", b"; charset=klingon\r\nX-")
    + a.body,), OK)  # fmt: skip
add("49 UTF-16", lambda a: (a.plain(a.json.decode().encode("utf-16")),),
    unusable("bad_json", lambda a: a.json.decode().encode("utf-16")))  # fmt: skip
add("49 latin-1", lambda a: (a.plain(a.json.replace(b"the", b"th\xe9")),), unusable("bad_json", of(b"th\xe9 answer")))
add("49 latin-1 and the key", lambda a: (a.plain(f"\xe9 {KEY} \xe9".encode("latin-1")),),
    unusable("bad_json", of(b"\xe9 [key] \xe9")))  # fmt: skip
add("49 byte order mark", lambda a: (a.whole(b"\xef\xbb\xbf" + a.body),), OK)

# Redirects

for _status in ("301 Moved Permanently", "302 Found", "303 See Other"):
    add(f"50 {_status[:3]} to another host", lambda a, s=_status: (a.plain(b"", f"Location: {a.sink}", status=s),),
        fatal("redirect_refused", says="http://127.0.0.1"))  # fmt: skip
for _status in ("307 Temporary Redirect", "308 Permanent Redirect"):
    add(f"51 {_status[:3]} to another host", lambda a, s=_status: (a.plain(b"", f"Location: {a.sink}", status=s),),
        fatal("redirect_refused", says="http://127.0.0.1"))  # fmt: skip
add("52 from https to http", lambda a: (a.plain(b"", f"Location: {a.sink}", status="308 Permanent Redirect"),),
    fatal("redirect_refused", says="http://127.0.0.1"), tls="good")  # fmt: skip
add("53 redirect to itself", lambda a: (a.plain(b"", f"Location: {a.url}", status="307 Temporary Redirect"),),
    fatal("redirect_refused"))  # fmt: skip
add("54 redirect to nowhere", lambda a: (a.plain(b"", status="302 Found"),), fatal("redirect_refused", says="nowhere"))
add("54 redirect to a file", lambda a: (a.plain(b"", "Location: file:///etc/passwd", status="302 Found"),),
    fatal("redirect_refused", says="file:///etc/passwd"))  # fmt: skip
add("55 redirect for every row", lambda a: (a.plain(b"", "Location: /login", status="302 Found"),),
    fatal("redirect_refused", says="/login"), at=("always",))  # fmt: skip

# Content

_PAGE = b"<!doctype html><title>Sign in</title><p>Welcome"
add("56 web page", lambda a: (a.whole(_PAGE, kind="text/html"),), unusable("html_answer", of(_PAGE)))
add("57 empty", lambda a: (a.plain(b""),), unusable("empty_answer"))
add("57 blanks", lambda a: (a.plain(b" \n\n "),), unusable("empty_answer"))
add("58 another content-type", lambda a: (a.whole(a.json, kind="text/plain"),), OK)
for _wrong in (b"{}", b"[]", b"null", b'"text"', b'{"choices":[]}', b'{"choices":[{}]}', b'{"choices":{"0":1}}',
               b'{"choices":[{"message":{"content":7}}]}'):  # fmt: skip
    add(f"59 {_wrong.decode()}", lambda a, w=_wrong: (a.plain(w),), unusable("bad_answer", of(_wrong)))
add("60 error with 200", lambda a: (a.plain(b'{"error":{"message":"no","type":"server_error"}}'),),
    unusable("server_error", of(b"server_error"), says="no"))  # fmt: skip
add("60 error 400 with 200", lambda a: (a.plain(b'{"error":{"message":"no","code":400}}'),), permanent("bad_request"))
add("60 error 429 with 200", lambda a: (a.plain(b'{"error":{"message":"slow","code":429}}'),), limited())
add("60 error 503 with 200", lambda a: (a.plain(b'{"error":{"message":"busy","code":503}}'),), rejected("overloaded"))
add("61 NaN", lambda a: (a.plain(a.json.replace(b"5}", b"NaN}")),), unusable("bad_json", of(b"NaN}")))
add("62 lone surrogate", lambda a: (a.plain(a.json.replace(b"the", b"\\ud83d")),),
    ok(lambda a: a.text.replace("the", "\\ud83d")))  # fmt: skip
add("63 two documents", lambda a: (a.plain(a.json + b"\n" + a.json),), unusable("bad_json", lambda a: a.json))
add("63 garbage behind", lambda a: (a.plain(a.json + b"<!-- served by x -->"),), unusable("bad_json", lambda a: a.json))
add("64 a name twice", lambda a: (a.plain(a.json.replace(b'{"model": "m"', b'{"model": "x", "model": "m"')),), OK)
add("65 deep nesting", lambda a: (a.plain(b'{"choices":' + b"[" * 3_000 + b"]" * 3_000 + b"}"),),
    unusable("bad_answer|bad_json", of(b"[" * 3_000)))  # fmt: skip
add("65 deep nesting beside the answer",
    lambda a: (a.plain(a.json[:-1] + b',"x":' + b"[" * 3_000 + b"]" * 3_000 + b"}"),),
    unusable("bad_answer|bad_json", lambda a: a.text.encode()))  # fmt: skip
add("66 another model", lambda a: (a.plain(completion(a.text, model="llama")),), ok(model="llama", model_mismatch=True))
_UNKNOWN = {"input_tokens": None, "output_tokens": None}
for _usage in (None, {}, {"prompt_tokens": -3}, {"prompt_tokens": "3"}, [], 7, {"prompt_tokens": True}):
    add(f"67 usage {json.dumps(_usage)}", lambda a, u=_usage: (a.plain(completion(a.text, usage=u)),),
        ok(usage=_UNKNOWN, cost_usd=None))  # fmt: skip
add("68 two choices", lambda a: (a.plain(a.json.replace(b'"choices": [', b'"choices": [' + _choice(a.text) + b", ")),),
    ok(choices_mismatch=True))  # fmt: skip
add("69 empty text", lambda a: (a.plain(completion("")),), ok(lambda a: "", empty=True))
add("69 null", lambda a: (a.plain(completion(None)),), ok(lambda a: "", empty=True))
add("69 nothing and no reason", lambda a: (a.plain(completion(None, None)),), unusable("no_answer"))
for _finish in ("length", "content_filter", "because"):
    add(f"70 finish_reason {_finish}", lambda a, f=_finish: (a.plain(completion(a.text, f)),),
        ok(finish_reason=_finish))  # fmt: skip
_ODD_TEXT = "\x1b]8;;http://x\x07\x9b31m \u202e\u2066\u200b\U000e0041 \u2028\u0085\x00\r\n\x7f ende"
add("71 ANSI and bidi", lambda a: (a.plain(completion(_ODD_TEXT)),), ok(lambda a: _ODD_TEXT))
add("71 a megabyte", lambda a: (a.plain(completion("ä€🎉" * 2**15)),), ok(lambda a: "ä€🎉" * 2**15))

# SSE

add("72 cut before its end marker", lambda a: (a.chunked(a.half),), None, cut_stream())
add("72 cut, the key in pieces in it", lambda a: (a.chunked(tokens(f"half {KEY} of")),), None,
    unusable("stream_cut", so_far="half [key] of"))  # fmt: skip
add("72 [DONE] without a finish reason", lambda a: (a.chunked(a.half + DONE),), None, cut_stream())
add("72 a finish reason without [DONE]", lambda a: (a.chunked(tokens(a.text) + FINISH),), None, OK)
add("72 cut inside an event", lambda a: (a.chunked(a.half + b'data: {"choices":[{"del'),), None,
    cut_stream(lambda a: a.half + b'data: {"choices":[{"del'))  # fmt: skip
_OVERLOADED = {"error": {"message": "busy", "type": "overloaded_error", "code": 503}}
add("73 error before the first token", lambda a: (a.chunked(event(_OVERLOADED)),), None, rejected("overloaded"))
add("73 error after some tokens", lambda a: (a.chunked(a.half + event(_OVERLOADED)),), None,
    unusable("overloaded", lambda a: a.half + event(_OVERLOADED), so_far="the answer "))  # fmt: skip
add("73 rate limit before the first token", lambda a: (a.chunked(event({"error": {"message": "slow", "code": 429}})),),
    None, limited())  # fmt: skip
add("74 stalls", lambda a: (a.chunked(a.half, last=b""), hang), None,
    ambiguous("idle_timeout", half, so_far="the answer "), slow=True, closes=True)  # fmt: skip
add("74 stalls, but comments come", lambda a: (a.chunked(a.half, last=b""), for_ever(chunk(b": PROCESSING\n\n"), 0.02)),
    None, ambiguous("idle_timeout", half, so_far="the answer "), slow=True, closes=True)  # fmt: skip
add("75 pings for ever", lambda a: (a.chunked(last=b""), for_ever(chunk(b": ping\n\n"), 0.02)), None, LATE_STREAM,
    slow=True, closes=True)  # fmt: skip
add("75 empty deltas for ever", lambda a: (a.chunked(last=b""),
    for_ever(chunk(event({"choices": [{"index": 0, "delta": {}}]})), 0.02)), None, LATE_STREAM, slow=True,
    closes=True)  # fmt: skip
add("75 tokens for ever", lambda a: (a.chunked(last=b""), for_ever(chunk(tokens("x")), 0.02)), None,
    ambiguous("timeout", lambda a: tokens("x") * 3, so_far="xxx"), slow=True, closes=True)  # fmt: skip
_FULL = tokens("Grüße 🎉") + FINISH + DONE
_UTF8 = _FULL.replace(json.dumps("Grüß").encode(), '"Grüß"'.encode()).replace(
    json.dumps("e 🎉").encode(), '"e 🎉"'.encode()
)
add("76 split inside characters", lambda a: (a.chunked(*(_UTF8[at : at + 1] for at in range(len(_UTF8)))),), None,
    ok(lambda a: "Grüße 🎉"))  # fmt: skip
add("76 CRLF", lambda a: (a.chunked(a.body.replace(b"\n", b"\r\n")),), None, OK)
add("76 CR", lambda a: (a.chunked(a.body.replace(b"\n", b"\r")),), None, OK)
add("76 CRLF and LF and CR", lambda a: (a.chunked(tokens(a.text).replace(b"\n", b"\r\n"), FINISH,
    DONE.replace(b"\n", b"\r")),), None, OK)  # fmt: skip
add("76 data: without a blank", lambda a: (a.chunked(a.body.replace(b"data: ", b"data:")),), None, OK)
add("76 data over several lines", lambda a: (a.chunked(a.body.replace(b'"choices"', b'\ndata: "choices"')),), None, OK)
add("76 event of a megabyte", lambda a: (a.chunked(event({"choices": [{"index": 0, "delta": {"content": "x" * 2**20}}]})
    + FINISH + DONE),), None, ok(lambda a: "x" * 2**20))  # fmt: skip
add("76 one line without end", lambda a: (a.chunked(last=b""), for_ever(chunk(b"data: " + BLOCK))), None,
    unusable("answer_too_large", of(b"x" * 2**16)), closes=True)  # fmt: skip
add("77 JSON to a request for a stream", lambda a: (a.plain(),), None, OK)
add("78 only another choice", lambda a: (a.chunked(tokens(a.text, index=1) + DONE),), None, unusable("stream_cut"))
add("78 two choices", lambda a: (a.chunked(tokens(a.text) + tokens("other", index=1) + FINISH + DONE),), None,
    ok(choices_mismatch=True))  # fmt: skip

# Statuses and limits

_BUSY = b'{"error":{"message":"slow down","type":"requests"}}'


def _limit(a: Answer, *headers: str) -> tuple[Part, ...]:
    return (a.plain(_BUSY, *headers, status="429 Too Many Requests"),)


add("79 429 with Retry-After", lambda a: _limit(a, f"Retry-After: {RETRY_AFTER_S}"), limited(), pause_s=RETRY_AFTER_S)
add("79 429 with retry-after-ms", lambda a: _limit(a, f"retry-after-ms: {RETRY_AFTER_S * 1000:.0f}"), limited(),
    pause_s=RETRY_AFTER_S)  # fmt: skip
for _value in ("1e9", "-5", "nan", "inf", "1_000", "٣", "0", "Wed, 01 Jan 2020 00:00:00 GMT", "", "soon"):
    add(f"80 Retry-After {_value or 'empty'}", lambda a, v=_value: _limit(a, f"Retry-After: {v}"), limited())
add("80 Retry-After a date without Date", lambda a: _limit(a, "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT"), limited())
add("80 two Retry-Afters", lambda a: _limit(a, f"Retry-After: {RETRY_AFTER_S}", "Retry-After: 0.01"), limited(),
    pause_s=RETRY_AFTER_S)  # fmt: skip
_GIVES_UP = {"gives_up": True}
_TODAY = "Date: Wed, 01 Jan 2020 00:00:00 GMT"
add("80 Retry-After of 31 years", lambda a: _limit(a, "Retry-After: 1000000000"),
    limited(gives_up=True, says="1,000,000,000 s"), at=("always",))  # fmt: skip
add("80 Retry-After in the year 9999", lambda a: _limit(a, "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT", _TODAY),
    limited(gives_up=True, says="asks to wait"), at=("always",))  # fmt: skip
add("81 429 insufficient_quota", lambda a: (a.plain(b'{"error":{"message":"pay","type":"insufficient_quota"}}',
    status="429 Too Many Requests"),), fatal("insufficient_quota"))  # fmt: skip
add("81 402", lambda a: (a.plain(b'{"error":{"message":"pay"}}', status="402 Payment Required"),),
    fatal("insufficient_quota"))  # fmt: skip
add("82 429 storm", lambda a: _limit(a), limited())
for _code, _word in (("500 Oops", "http_500"), ("503 Busy", "overloaded"), ("529 Overloaded", "overloaded"),
                     ("409 Conflict", "http_409")):  # fmt: skip
    add(f"82 {_code[:3]} burst", lambda a, s=_code: (a.plain(b"{}", status=s),), rejected(_word))
for _code, _word in (("408 Timeout", "server_timeout"), ("502 Bad Gateway", "bad_gateway"),
                     ("504 Gateway Timeout", "gateway_timeout"), ("520 Unknown", "http_520"),
                     ("524 A Timeout Occurred", "http_524")):  # fmt: skip
    add(f"82 {_code[:3]} burst", lambda a, s=_code: (a.whole(_PAGE, status=s, kind="text/html"),),
        ambiguous(_word, of(_PAGE)))  # fmt: skip
add("82 429 with a cut body", lambda a: (a.plain(b'{"error"', status="429 Too Many", length=999), close), limited(),
    closes=True)  # fmt: skip
add("82 500 with a cut body", lambda a: (a.plain(b'{"error"', status="500 Oops", length=999), close),
    rejected("http_500", keeps=of(b'{"error"')), closes=True)  # fmt: skip
_NO_KEY = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
add("83 401", lambda a: (a.plain(_NO_KEY, status="401 Unauthorized"),),
    fatal("invalid_api_key", says="provided: [key]"))  # fmt: skip
add("83 403", lambda a: (a.plain(b'{"error":{"message":"no access"}}', status="403 Forbidden"),),
    fatal("permission_denied"))  # fmt: skip
add("83 403 moderation", lambda a: (a.plain(b'{"error":{"message":"flagged"}}', status="403 Forbidden"),),
    permanent("content_filter"))  # fmt: skip
add("83 404", lambda a: (a.plain(b'{"error":{"message":"The model `m` does not exist"}}', status="404 Not Found"),),
    fatal("model_not_found"))  # fmt: skip
for _code, _word in (("400 Bad Request", "bad_request"), ("413 Too Large", "request_too_large"),
                     ("422 Unprocessable", "bad_request"), ("451 Unavailable", "http_451"),
                     ("418 Teapot", "http_418")):  # fmt: skip
    add(f"83 {_code[:3]}", lambda a, s=_code: (a.plain(b'{"error":{"message":"no"}}', status=s),), permanent(_word))
add("83 413 before the request is read", lambda a: (a.plain(b"{}", "Connection: close", status="413 Too Large"), 0.02,
    close), permanent("request_too_large"), reads="start", prompt_bytes=8 * 2**20, closes=True)  # fmt: skip
for _day, _now in (("behind", "Wed, 01 Jan 2020 00:00:00 GMT"), ("ahead", "Sat, 01 Jan 2089 00:00:00 GMT")):
    add(f"84 server's clock {_day}", lambda a, n=_now: _limit(a, f"Retry-After: {n.replace('00 GMT', '07 GMT')}",
        f"Date: {n}"), limited(gives_up=True, says="to wait 7 s"), at=("always",))  # fmt: skip
add("84 garbage for rate headers", lambda a: (a.whole(None, "x-ratelimit-limit-requests: -1",
    "x-ratelimit-remaining-requests: 0", "x-ratelimit-reset-requests: 1e999", "Retry-After: 99999"),), OK)  # fmt: skip
add("84 x-should-retry: false", lambda a: (a.plain(b"{}", "x-should-retry: false", status="500 Oops"),),
    Outcome("rejected", "http_500"))  # fmt: skip
add("84 x-should-retry: true", lambda a: (a.plain(b"{}", "x-should-retry: true", status="400 Bad Request"),),
    Outcome("permanent", "bad_request", tries=3))  # fmt: skip


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def _choice(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"index": 1, "message": message, "finish_reason": "stop"}).encode()
