"""What goes back over one connection for one request: pieces of bytes with their times, whole or spoilt by a fault."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from llmbatch.sim.answer import Answer
from llmbatch.sim.dialect import Dialect, Stream
from llmbatch.sim.http11 import LAST_CHUNK, Headers, chunk, response_head
from llmbatch.sim.ledger import Bill
from llmbatch.sim.problems import FAULTS

Ending = Literal["keep", "close", "reset", "stall"]
"""Afterwards the connection waits for the next request, is closed, is reset (RST), or never says anything again."""

Parts = Iterator[tuple[float, bytes]]
"""Pieces to send, each with its time in seconds after the request arrived; made when they are needed."""

JSON = "application/json"
GATEWAY_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body>bad gateway</body></html>"
# Tokens that fall into one tick of a paced stream share a chunk: 10,000 streams must not need a timer per token.
TICK_S = 0.02

_ENDINGS: dict[str, Ending] = {
    "reset-before": "reset",
    "reset-after": "reset",
    "truncate": "close",
    "stall": "stall",
}
# The faults that strike a stream in its middle; the others are the same with and without.
_STREAM_FAULTS = frozenset({"reset-after", "truncate", "error200", "garbage-json"})


@dataclass(frozen=True, slots=True)
class Reply:
    """The whole course of one request; ``status`` is None when no status line will be sent.

    ``bill`` falls due with the first part: a stream that is cut later is paid for as well. ``working`` marks the
    requests that count as in flight, ``takes_slot`` those among them that are worked on and not refused at once.
    """

    parts: Parts
    status: int | None = 200
    ending: Ending = "keep"
    bill: Bill | None = None
    working: bool = False
    takes_slot: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds after arrival: when a stream's first token goes, and when the answer is complete."""

    first_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """An admitted request and all that is foreseen for it. ``stream`` is set when the answer is to be streamed."""

    dialect: Dialect
    answer: Answer
    stream: Stream | None
    timing: Timing
    fault: str | None
    bill: Bill
    headers: Headers
    time_s: float


def timing_of(latency_s: float, first_token_s: float | None, tokens: int, tokens_per_s: float | None) -> Timing:
    """An answer takes its latency and its tokens' time; a stream begins earlier but ends at that same time."""
    total_s = latency_s + (tokens / tokens_per_s if tokens_per_s else 0.0)
    return Timing(min(latency_s if first_token_s is None else first_token_s, total_s), total_s)


def stream_steps(tokens: int, first_s: float, total_s: float) -> Iterator[tuple[float, int, int]]:
    """When which tokens of a stream are sent: (seconds after arrival, from, to).

    The first token goes at ``first_s`` and the last at ``total_s``, evenly between. Tokens that are due at once are
    still chunks of their own.
    """
    span_s = total_s - first_s
    steps = tokens if span_s <= 0 else min(tokens, max(2, math.ceil(span_s / TICK_S)))
    for step in range(steps):
        at_s = first_s + span_s * step / max(1, steps - 1)
        yield at_s, tokens * step // steps, tokens * (step + 1) // steps


def json_reply(status: int, body: bytes, headers: Headers, time_s: float, content_type: str = JSON) -> Reply:
    """An answer that goes at once."""
    return Reply(iter([(0.0, _response(status, content_type, body, headers, time_s))]), status)


def work_reply(work: Work) -> Reply:
    """The course of an admitted request, under its fault if it has one."""
    if work.fault is None:
        return Reply(_good_parts(work), bill=work.bill, working=True, takes_slot=True)
    fault = FAULTS[work.fault]
    if work.fault in ("reset-before", "stall"):
        return Reply(iter(()), None, _ENDINGS[work.fault], working=True, takes_slot=work.fault == "stall")
    if fault.error:
        return _error_reply(work, work.fault, work.timing.total_s if fault.late else 0.0)
    spoilt = _spoilt_stream(work) if work.stream and work.fault in _STREAM_FAULTS else _spoilt_body(work)
    return Reply(
        spoilt,
        502 if work.fault == "502" else 200,
        _ENDINGS.get(work.fault, "keep"),
        work.bill if fault.billed else None,
        working=True,
        takes_slot=True,
    )


def _error_reply(work: Work, fault: str, at_s: float) -> Reply:
    vendor = work.dialect.vendor
    error = vendor.errors[fault]
    body = error.body(work.bill.request_id)
    response = _response(error.status, vendor.content_type, body, work.headers, work.time_s)
    return Reply(iter([(at_s, response)]), error.status, working=True, takes_slot=FAULTS[fault].late)


def _good_parts(work: Work) -> Parts:
    if work.stream is None:
        return iter([(work.timing.total_s, _whole(work, work.dialect.body(work.answer)))])
    return _stream_parts(work, work.stream)


def _stream_parts(work: Work, stream: Stream) -> Parts:
    timing = work.timing
    yield timing.first_s, _stream_head(work) + _chunks(stream.begin())
    for at_s, start, stop in stream_steps(work.answer.tokens, timing.first_s, timing.total_s):
        yield at_s, _chunks(stream.content(start, stop))
    yield timing.total_s, _chunks(stream.finish()) + LAST_CHUNK


def _spoilt_stream(work: Work) -> Parts:
    """Half of the tokens, then the fault."""
    assert work.stream, "only a streamed answer can be spoilt in mid-stream"
    timing, half = work.timing, work.answer.tokens // 2
    yield timing.first_s, _stream_head(work) + _chunks(work.stream.begin())
    at_s = timing.first_s
    for at_s, start, stop in stream_steps(work.answer.tokens, timing.first_s, timing.total_s):
        if stop > half:
            break
        yield at_s, _chunks(work.stream.content(start, stop))
    if work.fault == "error200":
        yield at_s, _chunks(work.stream.failure()) + LAST_CHUNK
    elif work.fault == "garbage-json":
        yield at_s, _chunks(work.stream.garbage()) + LAST_CHUNK
    else:
        yield at_s, b""


def _spoilt_body(work: Work) -> Parts:
    body = work.dialect.body(work.answer)
    content_type = work.dialect.vendor.content_type
    pages: dict[str | None, tuple[int, str, bytes]] = {
        "502": (502, "text/html", GATEWAY_PAGE),
        "html": (200, "text/html", GATEWAY_PAGE),
        "empty": (200, content_type, b""),
        "error200": (200, content_type, work.dialect.failure(work.answer)),
        "garbage-json": (200, content_type, body[: len(body) // 2]),
    }
    deliveries: dict[str | None, bytes] = {
        "reset-after": b"",
        "truncate": _whole(work, body)[: -(len(body) // 2)],
    }
    if work.fault in deliveries:
        return iter([(work.timing.total_s, deliveries[work.fault])])
    status, content_type, page = pages[work.fault]
    return iter([(work.timing.total_s, _response(status, content_type, page, work.headers, work.time_s))])


def _whole(work: Work, body: bytes) -> bytes:
    vendor = work.dialect.vendor
    headers = [*work.headers, *vendor.good_headers(work.timing.total_s)]
    return _response(200, vendor.content_type, body, headers, work.time_s)


def _stream_head(work: Work) -> bytes:
    stream: Headers = [("content-type", "text/event-stream; charset=utf-8"), ("transfer-encoding", "chunked")]
    return response_head(
        200, [*stream, *work.headers, *work.dialect.vendor.good_headers(work.timing.first_s)], work.time_s
    )


def _response(status: int, content_type: str, body: bytes, headers: Headers, time_s: float) -> bytes:
    framing = [("content-type", content_type), ("content-length", str(len(body)))]
    return response_head(status, [*framing, *headers], time_s) + body


def _chunks(events: Iterable[bytes]) -> bytes:
    return b"".join([chunk(data) for data in events])
