"""What may have been paid for is kept: whatever came of an answer stands in its failure, without the key."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import replace
from typing import Any

import pytest
from raw_server import ANSWER, ASK, KEY, QUICK, Script, ask, chunked, http, once, says, serve, wired

from llmbatch.files.results import result_line
from llmbatch.options import Timeouts
from llmbatch.providers.openai_stream import ChatStream
from llmbatch.records import Failure, Reply, Request, Trace
from llmbatch.rules.kept import EXCERPT_BYTES, KEPT_BODY_BYTES, KEPT_TEXT_CHARS
from llmbatch.scheduler import Job, folded

HALF = ANSWER[:60]
IMPATIENT = replace(QUICK, total_s=0.1)
SILENT = replace(QUICK, idle_s=0.1)
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
TOKEN = 'data: {"choices":[{"delta":{"content":"Grüß"}}]}\n\n'.encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def failed(script: Script, *, stream: bool = False, timeouts: Timeouts = QUICK) -> Failure:
    outcome = await once(script, stream=stream, timeouts=timeouts)
    assert isinstance(outcome, Failure), outcome
    return outcome


@pytest.mark.parametrize(
    ("script", "kind", "timeouts"),
    [
        (says(http(HALF, length=999), end="close"), "ambiguous", QUICK),
        (says(http(HALF, length=999), end="reset"), "ambiguous", QUICK),
        (says(http(HALF, length=999), 0.02, end="close"), "ambiguous", QUICK),
        (says(http(HALF, length=999), 0.02, end="reset"), "ambiguous", QUICK),
        (says(http(HALF, length=999)), "ambiguous", IMPATIENT),
        (says(http(HALF, length=999)), "ambiguous", SILENT),
        (says(chunked(HALF, last=b"")), "ambiguous", IMPATIENT),
        (says(chunked(HALF, last=b""), end="close"), "ambiguous", QUICK),
        (says(chunked(HALF, last=b""), end="reset"), "ambiguous", QUICK),
        (says(chunked(HALF, last=b""), 0.02, b"zz\r\n"), "ambiguous", QUICK),
        (says(chunked(HALF, last=b""), 0.02, b"zz\r\n", end="close"), "ambiguous", QUICK),
        (says(CLOSE + b"\r\n" + HALF, end="close"), "unusable", QUICK),
        (says(http(HALF)), "unusable", QUICK),
        (says(http(HALF, "502 Bad Gateway")), "ambiguous", QUICK),
        (says(http(HALF, "504 Gateway Timeout", length=999), end="close"), "ambiguous", QUICK),
    ],
)
async def test_the_half_of_an_answer_is_kept_however_it_was_cut(script: Script, kind: str, timeouts: Timeouts) -> None:
    failure = await failed(script, timeouts=timeouts)
    assert (failure.kind, failure.maybe_billed) == (kind, True)
    assert (failure.body, failure.body_bytes) == (HALF.decode(), None)


@pytest.mark.parametrize(
    "body",
    [
        b"not JSON",
        b'{"error":{"message":"m","type":"odd"}}',
        b'{"choices":[]}',
        b"<!doctype html><title>Sign in</title>",
        ANSWER + ANSWER,
        ANSWER[:-1] + b',"nan":NaN}',
        b" " * 5000 + b"?",
    ],
)
async def test_an_answer_that_is_none_is_kept_whole(body: bytes) -> None:
    failure = await failed(says(http(body)))
    assert failure.kind == "unusable" and failure.body == body.decode()


@pytest.mark.parametrize("body", [b'{"choices":[\xff\xfe]}', b"\x89PNG\r\n", ANSWER.decode().encode("utf-16")])
async def test_bytes_that_are_no_text_are_kept_as_bytes(body: bytes) -> None:
    failure = await failed(says(http(body)))
    assert failure.kind == "unusable" and failure.body == body


@pytest.mark.parametrize("size", [KEPT_BODY_BYTES, KEPT_BODY_BYTES + 2])
@pytest.mark.parametrize("text", ["x", "ü", "?ü"])
async def test_no_more_than_a_mebibyte_is_kept_and_its_size_is_told(size: int, text: str) -> None:
    body = (text + text[-1] * (KEPT_BODY_BYTES + 2)).encode()[:size]
    failure = await failed(says(http(body)))
    whole_characters = size > KEPT_BODY_BYTES or text != "?ü"  # else the server's own cut is inside one
    assert isinstance(failure.body, str) is whole_characters
    assert failure.body_bytes == (size if size > KEPT_BODY_BYTES else None)
    kept = failure.body.encode() if isinstance(failure.body, str) else failure.body
    assert kept is not None and body.startswith(kept) and KEPT_BODY_BYTES - 1 <= len(kept) <= KEPT_BODY_BYTES


@pytest.mark.parametrize("status", ["400 Bad Request", "429 Too Many Requests", "503 Unavailable", "401 Unauthorized"])
async def test_of_a_refusal_an_excerpt_is_kept(status: str) -> None:
    failure = await failed(says(http(b"x" * 10 * EXCERPT_BYTES, status)))
    assert not failure.maybe_billed and failure.body == "x" * EXCERPT_BYTES and failure.bound is None


@pytest.mark.parametrize(
    ("packed", "encoding", "body"),
    [
        (gzip.compress(b"x" * 9 + ANSWER, mtime=0)[:-12], "gzip", None),
        (gzip.compress(ANSWER, mtime=0)[:-4], "gzip", ANSWER.decode()),  # only the checksum is missing
        (gzip.compress(ANSWER, mtime=0)[:-8] + b"\0" * 8, "gzip", ANSWER.decode()),  # the checksum is wrong
        (zlib.compress(ANSWER)[:-1], "deflate", ANSWER.decode()),
        (ANSWER, "gzip", ANSWER.decode()),  # it says so and is not
        (b"\xff\x00br", "br", b"\xff\x00br"),
        (ANSWER, "zstd", ANSWER.decode()),
    ],
)
async def test_of_a_packed_answer_what_can_be_unpacked_is_kept(packed: bytes, encoding: str, body: Any) -> None:
    failure = await failed(says(http(packed, "200 OK", f"Content-Encoding: {encoding}")))
    assert (failure.kind, failure.type, failure.retryable) == ("unusable", "bad_encoding", True)
    assert failure.body == body if body is not None else str(failure.body).startswith("x" * 9 + "{")


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "deflate", "identity"])
async def test_a_packed_answer_that_is_whole_is_taken(encoding: str) -> None:
    pack = {"deflate": zlib.compress, "identity": bytes}.get(encoding, gzip.compress)
    outcome = await once(says(http(pack(ANSWER), "200 OK", f"Content-Encoding: {encoding}")))
    assert isinstance(outcome, Reply) and outcome.output == "pong"


@pytest.mark.parametrize("status", ["429 Too Many Requests", "400 Bad Request"])
async def test_the_status_counts_also_when_the_body_can_not_be_unpacked(status: str) -> None:
    failure = await failed(says(http(b"?", status, "Content-Encoding: gzip", "Retry-After: 3")))
    assert failure.http_status == int(status[:3]) and failure.body == "?"


@pytest.mark.parametrize(
    ("script", "timeouts"),
    [
        (says(SSE + chunk(TOKEN), end="close"), QUICK),
        (says(SSE + chunk(TOKEN), end="reset"), QUICK),
        (says(SSE + chunk(TOKEN), 0.02, end="reset"), QUICK),
        (says(SSE + chunk(TOKEN) + b"0\r\n\r\n"), QUICK),
        (says(SSE + chunk(TOKEN)), SILENT),
        (says(SSE + chunk(TOKEN)), IMPATIENT),
        (says(SSE + chunk(TOKEN), 0.02, b"zz\r\n"), QUICK),
    ],
)
async def test_a_cut_stream_keeps_its_events_and_their_text(script: Script, timeouts: Timeouts) -> None:
    failure = await failed(script, stream=True, timeouts=timeouts)
    assert failure.maybe_billed
    assert (failure.body, failure.output_so_far) == (TOKEN.decode(), "Grüß")


async def test_the_last_events_before_a_reset_are_read_even_if_it_came_with_them() -> None:
    stop = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    outcome = await once(says(SSE + chunk(TOKEN + stop), end="reset"), stream=True)
    assert isinstance(outcome, Reply) and outcome.output == "Grüß"


async def test_a_long_stream_keeps_its_first_mebibyte_and_all_of_its_text() -> None:
    event = b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % (b"x" * 1000)
    failure = await failed(says(SSE + chunk(event * 1200) + b"0\r\n\r\n"), stream=True)
    assert isinstance(failure.body, str) and len(failure.body) == KEPT_BODY_BYTES
    assert failure.body_bytes == len(event) * 1200 and failure.output_so_far == "x" * 1_200_000


def test_the_text_of_a_stream_without_end_is_bounded() -> None:
    answer = ChatStream()
    for _ in range(5):
        answer.feed('{"choices":[{"delta":{"content":"%s"}}]}' % ("x" * 2**20))
    failure = answer.finish()
    assert isinstance(failure, Failure) and failure.output_so_far == answer.text == "x" * KEPT_TEXT_CHARS


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe" + KEY.encode() + b"\xff",
        b"\xff" + KEY.encode().hex().encode(),
        b"x" * 900_000 + KEY.encode(),
        b'{"error":{"message":"m %s"}}' % KEY.encode(),
    ],
)
@pytest.mark.parametrize("pack", [False, True])
async def test_the_key_is_taken_out_of_what_is_kept(body: bytes, pack: bool) -> None:
    headers = ("Content-Encoding: gzip",) if pack else ()
    failure = await failed(says(http(gzip.compress(body, mtime=0)[:-3] if pack else body, "200 OK", *headers)))
    kept = failure.body.encode("utf-8") if isinstance(failure.body, str) else failure.body
    assert kept is not None and b"[key]" in kept and len(kept) > len(body) - 2 * len(KEY)
    assert KEY.encode() not in kept and KEY.encode().hex().encode() not in kept


def line(failure: Failure, trace: Trace) -> dict[str, Any]:
    return dict(json.loads(result_line(folded(Job(1, "a", "fp1:a", ASK), failure, trace))))


async def test_the_line_of_bytes_of_a_cut_body_and_of_a_stream() -> None:
    trace = Trace()
    async with serve(says(http(b"\xff" * (KEPT_BODY_BYTES + 5)))) as server, wired(server.url) as wire:
        failure = await ask(wire, trace=trace)
    assert isinstance(failure, Failure)
    error = line(failure, trace)["error"]
    assert error["body"] is None and error["body_bytes"] == KEPT_BODY_BYTES + 5 and error["body_b64"].startswith("////")
    stream = Failure("unusable", "stream_cut", "m", body="data: x", output_so_far="x")
    error = line(stream, trace)["error"]
    assert (error["body"], error["output_so_far"]) == ("data: x", "x") and "body_b64" not in error


async def test_the_line_has_the_request_ids_of_all_tries() -> None:
    trace = Trace()
    script = says(http(b"?", "200 OK", "X-Request-Id: req_1"))
    async with serve(script) as server, wired(server.url) as wire:
        failure = await ask(wire, trace=trace)
        assert isinstance(failure, Failure) and "request_ids" not in line(failure, trace)
    async with serve(says(end="close")) as server, wired(server.url) as wire:
        await ask(wire, trace=trace)
    async with serve(says(http(ANSWER, "200 OK", "X-Request-Id: req_3"))) as server, wired(server.url) as wire:
        failure = await ask(wire, trace=trace)
    assert isinstance(failure, Reply)
    written = json.loads(result_line(folded(Job(1, "a", "fp1:a", ASK), failure, trace)))
    assert (written["request_ids"], written["request_id"], written["attempts"]) == (["req_1", "req_3"], "req_3", 3)


async def test_what_may_have_been_billed_has_a_bound() -> None:
    asked = Request("gpt-4o", ASK.messages, params={"max_tokens": 7})
    async with serve(says(end="close")) as server, wired(server.url) as wire:
        failure = await ask(wire, asked)
    assert isinstance(failure, Failure) and failure.bound is not None
    assert (failure.bound.model, failure.bound.output_tokens) == ("gpt-4o", 7)
    assert failure.bound.input_tokens is not None and failure.bound.input_tokens > 50


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, ()),
        ({"model": "other"}, ("model_mismatch",)),
        ({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}] * 2}, ("choices_mismatch",)),
        ({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}, ("empty",)),
    ],
)
async def test_an_odd_answer_is_good_and_says_so(changes: dict[str, Any], flags: tuple[str, ...]) -> None:
    body = json.dumps({**json.loads(ANSWER), "model": "m", **changes}).encode()
    outcome = await once(says(http(body)))
    assert isinstance(outcome, Reply) and outcome.flags == flags
    trace = Trace(attempts=[])
    async with serve(says(http(body))) as server, wired(server.url) as wire:
        outcome = await ask(wire, trace=trace)
    assert isinstance(outcome, Reply)
    written = json.loads(result_line(folded(Job(1, "a", "fp1:a", ASK), outcome, trace)))
    assert written["status"] == "ok" and {name for name in written if written[name] is True} == set(flags)


@pytest.mark.parametrize(
    "answer",
    [
        http(ANSWER, length=len(ANSWER) - 5),
        http(ANSWER, length=0),
        http(ANSWER) + b"and then some",
        http(ANSWER, "200 OK", "Content-Length: 7"),
        chunked(ANSWER, last=b"zz\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_came_in_one_piece_with_bad_framing_is_kept_as_it_came(answer: bytes, stream: bool) -> None:
    failure = await failed(says(answer), stream=stream)
    assert (failure.kind, failure.type, failure.body) == ("ambiguous", "bad_http", answer.decode())
