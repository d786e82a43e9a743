"""What goes back over one connection for one request: pieces of bytes with their times, whole or spoilt by a fault."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import orjson

from llmbatch.sim.chat_answer import ChatAnswer, StreamEvents, completion_body, event, stream_steps
from llmbatch.sim.http11 import LAST_CHUNK, Headers, chunk, response_head
from llmbatch.sim.ledger import Bill
from llmbatch.sim.problems import FAULTS, ApiError

Ending = Literal["keep", "close", "reset", "stall"]
"""Afterwards the connection waits for the next request, is closed, is reset (RST), or never says anything again."""

Parts = Iterator[tuple[float, bytes]]
"""Pieces to send, each with its time in seconds after the request arrived; made when they are needed."""

JSON = "application/json"
GATEWAY_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body>bad gateway</body></html>"
# A gateway that failed behind a status of 200 (OpenRouter API reference, "Errors").
ERROR_IN_200 = orjson.dumps({"error": {"code": 502, "message": "Provider returned error"}})
# OpenAI sends an error in mid-stream as one event with an error object.
_ERROR_EVENT = event({"error": {"message": "The server had an error.", "type": "server_error", "code": None}})

# How a stream goes on from half of its tokens, under the faults that strike there.
_STREAM_SPOILS: dict[str, bytes] = {
    "reset-after": b"",
    "truncate": b"",
    "error200": chunk(_ERROR_EVENT) + LAST_CHUNK,
    "garbage-json": chunk(b'data: {"id":"chatcmpl-\n\n') + chunk(b"data: [DONE]\n\n") + LAST_CHUNK,
}
_ENDINGS: dict[str, Ending] = {
    "reset-before": "reset",
    "reset-after": "reset",
    "truncate": "close",
    "stall": "stall",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """The whole course of one request; ``status`` is None when no status line will be sent.

    ``bill`` falls due with the first part: a stream that is cut later is paid for as well. ``working`` marks the
    requests that count as in flight.
    """

    parts: Parts
    status: int | None = 200
    ending: Ending = "keep"
    bill: Bill | None = None
    working: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds after arrival: when a stream's first token goes, and when the answer is complete."""

    first_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """An admitted request and all that is foreseen for it. ``events`` is set when the answer is to be streamed."""

    answer: ChatAnswer
    events: StreamEvents | None
    timing: Timing
    fault: str | None
    bill: Bill
    headers: Headers
    time_s: float


def timing_of(latency_s: float, first_token_s: float | None, tokens: int, tokens_per_s: float | None) -> Timing:
    """An answer takes its latency and its tokens' time; a stream begins earlier but ends at that same time."""
    total_s = latency_s + (tokens / tokens_per_s if tokens_per_s else 0.0)
    return Timing(min(latency_s if first_token_s is None else first_token_s, total_s), total_s)


def json_reply(status: int, body: bytes, headers: Headers, time_s: float) -> Reply:
    """An answer that goes at once."""
    return Reply(iter([(0.0, _response(status, JSON, body, headers, time_s))]), status)


def error_reply(error: ApiError, headers: Headers, time_s: float) -> Reply:
    return json_reply(error.status, error.body, headers, time_s)


def work_reply(work: Work) -> Reply:
    """The course of an admitted request, under its fault if it has one."""
    if work.fault is None:
        return Reply(_good_parts(work), bill=work.bill, working=True)
    fault = FAULTS[work.fault]
    if work.fault in ("reset-before", "stall"):
        return Reply(iter(()), None, _ENDINGS[work.fault], working=True)
    if fault.error:
        response = _response(fault.error.status, JSON, fault.error.body, work.headers, work.time_s)
        at_s = work.timing.total_s if fault.late else 0.0
        return Reply(iter([(at_s, response)]), fault.error.status, working=True)
    spoilt = _spoilt_stream(work) if work.events and work.fault in _STREAM_SPOILS else _spoilt_body(work)
    return Reply(
        spoilt,
        502 if work.fault == "502" else 200,
        _ENDINGS.get(work.fault, "keep"),
        work.bill if fault.billed else None,
        working=True,
    )


def _good_parts(work: Work) -> Parts:
    if work.events is None:
        return iter([(work.timing.total_s, _completion(work, completion_body(work.answer)))])
    return _stream_parts(work, work.events)


def _stream_parts(work: Work, events: StreamEvents) -> Parts:
    timing = work.timing
    yield timing.first_s, _stream_head(work) + _chunks(events.role())
    for at_s, start, stop in stream_steps(work.answer.tokens, timing.first_s, timing.total_s):
        yield at_s, _chunks(events.content(start, stop))
    yield timing.total_s, _chunks(events.finish()) + LAST_CHUNK


def _spoilt_stream(work: Work) -> Parts:
    """Half of the tokens, then the fault."""
    assert work.events, "only a streamed answer can be spoilt in mid-stream"
    assert work.fault, "only a fault spoils"
    timing, half = work.timing, work.answer.tokens // 2
    yield timing.first_s, _stream_head(work) + _chunks(work.events.role())
    at_s = timing.first_s
    for at_s, start, stop in stream_steps(work.answer.tokens, timing.first_s, timing.total_s):
        if stop > half:
            break
        yield at_s, _chunks(work.events.content(start, stop))
    yield at_s, _STREAM_SPOILS[work.fault]


def _spoilt_body(work: Work) -> Parts:
    body = completion_body(work.answer)
    pages: dict[str | None, tuple[int, str, bytes]] = {
        "502": (502, "text/html", GATEWAY_PAGE),
        "html": (200, "text/html", GATEWAY_PAGE),
        "empty": (200, JSON, b""),
        "error200": (200, JSON, ERROR_IN_200),
        "garbage-json": (200, JSON, body[: len(body) // 2]),
    }
    deliveries: dict[str | None, bytes] = {
        "reset-after": b"",
        "truncate": _completion(work, body)[: -(len(body) // 2)],
    }
    if work.fault in deliveries:
        return iter([(work.timing.total_s, deliveries[work.fault])])
    status, content_type, page = pages[work.fault]
    return iter([(work.timing.total_s, _response(status, content_type, page, work.headers, work.time_s))])


def _completion(work: Work, body: bytes) -> bytes:
    return _response(200, JSON, body, [*work.headers, *_processing(work)], work.time_s)


def _stream_head(work: Work) -> bytes:
    stream: Headers = [("content-type", "text/event-stream; charset=utf-8"), ("transfer-encoding", "chunked")]
    return response_head(200, [*stream, *work.headers, *_processing(work)], work.time_s)


def _processing(work: Work) -> Headers:
    # For a stream OpenAI counts the time to its beginning.
    busy_s = work.timing.first_s if work.events else work.timing.total_s
    return [("openai-processing-ms", f"{busy_s * 1000:.0f}"), ("openai-version", "2020-10-01")]


def _response(status: int, content_type: str, body: bytes, headers: Headers, time_s: float) -> bytes:
    framing = [("content-type", content_type), ("content-length", str(len(body)))]
    return response_head(status, [*framing, *headers], time_s) + body


def _chunks(events: Iterable[bytes]) -> bytes:
    return b"".join([chunk(data) for data in events])
