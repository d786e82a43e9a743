"""Streamed answers: complete only with their end marker, alive only by parts of the answer."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from dataclasses import replace

import pytest
from raw_server import ANSWER, KEY, QUICK, ask, chunked, http, once, read_request, says, serve, wired

from llmbatch.records import Failure, Reply, Trace
from llmbatch.rules.kept import EXCERPT_BYTES

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def token(text: str) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % text.encode()


STOP = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
WHOLE = token("Grüße ") + PING + token("🎉") + STOP + DONE


def sse(data: bytes, step: int) -> bytes:
    return HEAD + b"".join(chunk(data[at : at + step]) for at in range(0, len(data), step)) + LAST


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
async def test_a_stream_split_anywhere_even_inside_a_character(step: int) -> None:
    outcome = await once(says(sse(WHOLE, step)), stream=True)
    assert isinstance(outcome, Reply) and outcome.output == "Grüße 🎉"


@pytest.mark.parametrize(
    "script",
    [
        says(HEAD + chunk(WHOLE) + LAST),
        says(HEAD + chunk(WHOLE)),  # the end marker has come: nobody waits for the end of the body
        says(HEAD + chunk(WHOLE), end="close"),
        says(HEAD + chunk(WHOLE.removesuffix(DONE)) + LAST),  # some servers leave [DONE] out
        says(HEAD + chunk(WHOLE.removesuffix(DONE)), end="close"),
        says(HEAD + chunk(WHOLE.replace(b"\n", b"\r\n")) + LAST),
        says(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + WHOLE, end="close"),
    ],
)
async def test_a_whole_stream(script: object) -> None:
    outcome = await once(script, stream=True)  # type: ignore[arg-type]
    assert isinstance(outcome, Reply) and outcome.output == "Grüße 🎉" and outcome.finish_reason == "stop"


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_stream_cut_before_its_end_marker_keeps_its_text_and_is_not_ok(end: str) -> None:
    failure = await once(says(HEAD + chunk(token("Hel")), 0.02, end=end), stream=True)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.type, failure.output_so_far) == ("unusable", "stream_cut", "Hel")
    assert failure.retryable and failure.maybe_billed


async def test_a_stream_that_ends_cleanly_without_its_end_marker_is_not_ok() -> None:
    failure = await once(says(HEAD + chunk(token("Hel")) + LAST), stream=True)
    assert isinstance(failure, Failure) and failure.type == "stream_cut"


async def test_an_error_in_mid_stream() -> None:
    script = says(HEAD + chunk(token("Hel") + b'data: {"error":{"message":"m","type":"server_error"}}\n\n') + LAST)
    failure = await once(script, stream=True)
    assert isinstance(failure, Failure) and (failure.type, failure.output_so_far) == ("server_error", "Hel")


@pytest.mark.parametrize(
    "event",
    [
        b'{"error":{"message":"bad key %s","type":"%s"}}' % (KEY.encode(), KEY.encode()),
        b'{"error":["%s"]}' % KEY.encode(),
        b"not JSON: %s" % KEY.encode(),
        b"%s%s" % (b"x" * 108, KEY.encode()),  # cut inside the key where the message quotes it
        b'{"error":{"code":401,"message":"%s"}}' % b64encode(KEY.encode()),
    ],
)
@pytest.mark.parametrize("before", [b"", token(f"Hel {KEY}"), token("Hel") + token("x" * (EXCERPT_BYTES - 15) + KEY)])
async def test_a_key_that_a_broken_stream_repeats_is_not_kept(event: bytes, before: bytes) -> None:
    failure = await once(says(HEAD + chunk(before + b"data: " + event + b"\n\n") + LAST), stream=True)
    assert isinstance(failure, Failure)  # ``ask`` has looked for the key
    assert not any(KEY[at : at + 8] in repr(failure) for at in range(len(KEY) - 7))


async def test_a_streamed_answer_that_repeats_the_key_in_two_parts_loses_it() -> None:
    outcome = await once(says(HEAD + chunk(token(KEY[:9]) + token(KEY[9:]) + STOP + DONE) + LAST), stream=True)
    assert isinstance(outcome, Reply) and outcome.output == "[key]"


async def test_a_stream_that_is_not_utf8() -> None:
    failure = await once(says(HEAD + chunk(b"data: \xff\xfe\n\n") + LAST), stream=True)
    assert isinstance(failure, Failure) and (failure.kind, failure.retryable) == ("unusable", True)


@pytest.mark.parametrize("script", [says(http()), says(chunked(ANSWER))])
async def test_a_plain_answer_to_a_streamed_request_is_taken(script: object) -> None:
    outcome = await once(script, stream=True)  # type: ignore[arg-type]
    assert isinstance(outcome, Reply) and outcome.output == "pong"


async def test_an_error_answer_to_a_streamed_request() -> None:
    failure = await once(says(http(b"{}", "429 Too Many Requests", "Retry-After: 3")), stream=True)
    assert isinstance(failure, Failure) and failure.rate_limited and failure.retry_after_s == 3.0


@pytest.mark.parametrize(
    ("parts", "limit"),
    [
        ([2.0], "first_token"),
        ([HEAD, 2.0], "first_token"),
        ([HEAD + chunk(b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'), 2.0], "first_token"),
        ([HEAD, *[chunk(PING), 0.02] * 100], "first_token"),  # pings are no tokens
        ([HEAD + chunk(token("Hel")), 2.0], "idle"),
        ([HEAD + chunk(token("Hel")), *[chunk(PING), 0.02] * 100], "idle"),
    ],
)
async def test_a_stall_is_seen_and_named(parts: list[bytes | float], limit: str) -> None:
    timeouts = replace(QUICK, first_token_s=0.12, idle_s=0.12)
    started_s = time.monotonic()
    failure = await once(says(*parts), stream=True, timeouts=timeouts)
    assert isinstance(failure, Failure), failure
    assert (failure.kind, failure.type, failure.retryable) == ("ambiguous", f"{limit}_timeout", True)
    assert f"--{limit.replace('_', '-')}-timeout" in failure.message
    assert time.monotonic() - started_s < 1


async def test_a_slow_stream_that_goes_on_is_not_stalled() -> None:
    parts: list[bytes | float] = [part for _ in range(10) for part in (chunk(token("a")), 0.04)]
    timeouts = replace(QUICK, first_token_s=0.15, idle_s=0.15)
    outcome = await once(says(HEAD, *parts, chunk(STOP + DONE), LAST), stream=True, timeouts=timeouts)
    assert isinstance(outcome, Reply) and outcome.output == "a" * 10


async def test_the_time_of_the_first_token_is_measured() -> None:
    trace = Trace()
    script = says(HEAD, chunk(PING), 0.05, chunk(token("a")), 0.05, chunk(STOP + DONE) + LAST)
    async with serve(script) as server, wired(server.url, stream=True) as wire:
        assert isinstance(await ask(wire, trace=trace), Reply)
    (attempt,) = trace.attempts
    assert attempt.first_token_s is not None
    assert 0.05 <= attempt.first_token_s < attempt.latency_s and attempt.latency_s >= 0.1


@pytest.mark.parametrize("last", [[LAST], [0.0, LAST], [0.003, LAST]])
async def test_connections_of_streams_are_reused(last: list[bytes | float]) -> None:
    """The end of the body often comes some packets after the end marker."""
    async with serve(says(HEAD + chunk(WHOLE), *last)) as server, wired(server.url, stream=True) as wire:
        for _ in range(5):
            assert isinstance(await ask(wire), Reply)
            await asyncio.sleep(0.01)
        assert server.connections == 1


async def test_a_server_that_never_ends_the_body_holds_nobody_up() -> None:
    started_s = time.monotonic()
    async with serve(says(HEAD + chunk(WHOLE), 2.0)) as server, wired(server.url, stream=True) as wire:
        assert isinstance(await ask(wire), Reply)
        assert time.monotonic() - started_s < 0.15


async def test_whoever_waits_for_the_beginning_of_an_answer_is_told_before_its_end() -> None:
    begun = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + chunk(PING))
        await asyncio.sleep(0.05)
        assert not begun.is_set()
        writer.write(chunk(token("Hel")))
        await asyncio.wait_for(begun.wait(), 5)
        writer.write(chunk(token("lo") + STOP + DONE) + LAST)

    async with serve(script) as server, wired(server.url, stream=True) as wire:
        reply = await ask(wire, trace=Trace(began=begun.set))
    assert isinstance(reply, Reply) and reply.output == "Hello" and not server.errors
