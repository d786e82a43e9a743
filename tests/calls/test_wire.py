"""The wire against a server of byte-exact scripts: each bad answer gets its right class, and no good one is lost."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import time
from base64 import b64encode
from dataclasses import replace
from urllib.parse import quote

import pytest
from raw_server import ANSWER, ASK, KEY, QUICK, ask, chunked, http, once, read_request, says, serve, wired

from llmbatch.options import MAX_BODY_BYTES
from llmbatch.records import Attempt, Failure, Reply, Request, Trace
from llmbatch.rules.kept import EXCERPT_BYTES


@pytest.mark.parametrize(
    "script",
    [
        says(http()),
        says(http(b"\n\n" + ANSWER)),
        says(http(), end="close"),
        says(http(), end="reset"),  # all of the answer had come
        says(b"HTTP/1.1 200 OK\n" + b"Content-Length: %d\n\n" % len(ANSWER) + ANSWER),  # LF only
        says(http().replace(b"application/json", b"text/plain; charset=klingon")),
        says(*(http()[at : at + 7] for at in range(0, len(http()), 7))),
        says(chunked(ANSWER)),
        says(chunked(*(ANSWER[at : at + 1] for at in range(len(ANSWER))))),
        says(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + ANSWER, end="close"),  # framed by the end only
        says(http(gzip.compress(ANSWER), "200 OK", "Content-Encoding: gzip")),  # not asked for
        says(http(ANSWER, "200 OK", "Set-Cookie: a=b; Path=/")),
        says(b"HTTP/1.1 102 Processing\r\n\r\n" * 3 + http()),
    ],
)
async def test_a_good_answer(script: object) -> None:
    outcome = await once(script)  # type: ignore[arg-type]
    assert isinstance(outcome, Reply), outcome
    assert (outcome.output, outcome.finish_reason, outcome.usage.input_tokens) == ("pong", "stop", 3)


@pytest.mark.parametrize(
    ("script", "kind", "word", "retryable"),
    [
        (says(end="close"), "ambiguous", "disconnected", True),
        (says(end="reset"), "ambiguous", "connection_reset", True),
        (says(b"HTTP/1.1 200 OK\r\nContent-", end="close"), "ambiguous", "disconnected", True),
        (says(http(length=len(ANSWER) + 5), end="close"), "ambiguous", "body_cut", True),
        (says(http(ANSWER, length=len(ANSWER) - 5)), "ambiguous", "bad_http", True),
        (says(http(b"", "200 OK", "X: " + "y" * 9000)), "ambiguous", "bad_http", True),
        (says(http(ANSWER, "200 OK", "Content-Length: 7")), "ambiguous", "bad_http", True),
        (says(http(length=-1)), "ambiguous", "bad_http", True),
        (says(chunked(last=b"zz\r\nabc\r\n0\r\n\r\n")), "ambiguous", None, True),
        (says(chunked(ANSWER[:30], last=b"zz\r\nabc\r\n0\r\n\r\n")), "ambiguous", None, True),
        (says(chunked(ANSWER[:30], last=b""), end="close"), "ambiguous", "body_cut", True),
        (says(chunked(ANSWER[:30], last=b""), end="reset"), "ambiguous", None, True),
        (says(b"garbage\r\n\r\n"), "ambiguous", "bad_http", True),
        (says(b"\x16\x03\x01\x02\x00", end="close"), "ambiguous", "bad_http", True),  # a TLS port
        (says(http(b"<!doctype html><title>Sign in</title>")), "unusable", "html_answer", True),
        (says(http(b"")), "unusable", "empty_answer", True),
        (says(b"HTTP/1.1 204 No Content\r\n\r\n"), "unusable", "no_content", True),
        (says(b"HTTP/1.1 200 OK\r\n\r\n" + ANSWER[:40], end="close"), "unusable", "bad_json", True),
        (says(http(gzip.compress(ANSWER)[:40], "200 OK", "Content-Encoding: gzip")), "unusable", None, True),
        (says(http(ANSWER, "200 OK", "Content-Encoding: gzip")), "unusable", "bad_encoding", True),
        (says(http(ANSWER, "200 OK", "Content-Encoding: br")), "unusable", "bad_encoding", True),
        (says(http(b"{}", "500 Oops")), "rejected", "http_500", True),
        (says(http(b"<html>bad gateway</html>", "502 Bad Gateway")), "ambiguous", "bad_gateway", True),
        (says(http(b"{}", "404 Not Found")), "permanent", "not_found", False),
    ],
)  # fmt: skip
async def test_a_bad_answer(script: object, kind: str, word: str | None, retryable: bool) -> None:
    failure = await once(script)  # type: ignore[arg-type]
    assert isinstance(failure, Failure), failure
    assert (failure.kind, failure.retryable) == (kind, retryable), failure
    assert word in (None, failure.type), failure
    assert failure.http_status != 400  # that is how aiohttp reports its own parse errors


async def test_connection_refused_was_never_sent() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        async with wired(f"http://127.0.0.1:{port}/v1") as wire:
            failure = await ask(wire)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.type, failure.retryable) == ("never_sent", "connection_refused", True)
    assert f"127.0.0.1:{port}" in failure.message and not failure.maybe_billed


async def test_a_server_that_closes_at_once_may_have_read_the_request() -> None:
    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    failure = await once(closes)
    assert isinstance(failure, Failure) and failure.kind == "ambiguous"


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_refused_and_the_other_host_sees_nothing(status: str) -> None:
    async with serve(says(http())) as other:
        failure = await once(says(http(b"", status, f"Location: {other.url}")))
        await asyncio.sleep(0.01)
        assert other.connections == 0
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.type, failure.retryable) == ("permanent", "redirect_refused", False)
    assert other.url in failure.message


async def test_a_rate_limit_answer_whose_body_is_cut_is_still_a_rate_limit() -> None:
    script = says(http(b'{"error"', "429 Too Many Requests", "Retry-After: 7", length=500), end="close")
    failure = await once(script)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.rate_limited, failure.retry_after_s) == ("rejected", True, 7.0)


async def test_the_request_id_of_a_failure_is_kept_even_if_the_body_is_cut() -> None:
    failure = await once(says(http(ANSWER, "200 OK", "X-Request-Id: req_7", length=999), end="close"))
    assert isinstance(failure, Failure) and failure.request_id == "req_7"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("401 Unauthorized", json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}.", "code": "bad"}})),
        ("401 Unauthorized", json.dumps({"error": {"message": "no", "code": KEY}})),
        ("403 Forbidden", json.dumps({"error": {"message": "no", "type": f"key_{KEY}"}})),
        ("400 Bad Request", json.dumps({"error": f"no: {quote(KEY)}"}).replace("-", "\\u002d")),
        ("400 Bad Request", "no: " + b64encode(f"Bearer {KEY}".encode()).decode()),
        ("400 Bad Request", "x" * (EXCERPT_BYTES - len(KEY) + 2) + KEY),
        ("307 Temporary Redirect", ""),
        ("200 OK", f"not JSON: {KEY.encode().hex()}"),
        ("200 OK", json.dumps({"error": {"message": f"no {KEY}", "code": 400}})),
    ],
)  # fmt: skip
async def test_a_key_that_the_server_repeats_is_not_kept(status: str, body: str) -> None:
    headers = (f"Location: https://elsewhere.example/{'x' * 160}?{KEY}", f"X-Request-Id: {KEY}")
    trace = Trace()
    async with serve(says(http(body.encode(), status, *headers))) as server, wired(server.url) as wire:
        failure = await ask(wire, trace=trace)  # ``ask`` has looked for the key
    assert isinstance(failure, Failure) and failure.request_id == trace.attempts[0].request_id == "[key]"
    assert not any(KEY[at : at + 8] in repr((failure, trace)) for at in range(len(KEY) - 7))


async def test_a_good_answer_that_repeats_the_key_loses_it() -> None:
    message = {"content": f"{KEY}!", "reasoning": KEY, "tool_calls": [{"function": {"arguments": KEY}}]}
    body = json.dumps({"model": KEY, "choices": [{"message": message, "finish_reason": "stop"}]})
    outcome = await once(says(http(body.replace("-", "\\u002d").encode())))
    assert isinstance(outcome, Reply) and "canary" not in repr(outcome)
    assert outcome.output == "[key]!"


async def test_an_endless_body_is_cut_off_at_the_cap() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
    bomb = gzip.compress(b" " * (MAX_BODY_BYTES + 2**20))
    failure = await once(says(head + b"Content-Length: %d\r\n\r\n" % len(bomb) + bomb))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.type) == ("unusable", "answer_too_large")


async def test_a_request_carries_what_it_must_and_nothing_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    requests = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await read_request(reader):
            requests.append(request)
            writer.write(http(ANSWER, "200 OK", "Set-Cookie: a=b; Path=/"))

    # By name: cookies of numeric addresses are dropped anyway.
    async with serve(script) as server, wired(server.url.replace("127.0.0.1", "localhost")) as wire:
        for _ in range(2):
            assert isinstance(await ask(wire), Reply)
    head, _, body = requests[1].partition(b"\r\n\r\n")
    names = {line.split(b":")[0].lower() for line in head.split(b"\r\n")[1:]}
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1")
    assert f"Authorization: Bearer {KEY}".encode() in head and b"Content-Type: application/json" in head
    assert not names & {b"cookie", b"accept-encoding", b"transfer-encoding"}
    assert json.loads(body) == {"model": "m", "messages": ASK.messages}


# Connections


async def test_connections_are_reused() -> None:
    async with serve(says(http())) as server, wired(server.url) as wire:
        for _ in range(5):
            assert isinstance(await ask(wire), Reply)
        assert server.connections == 1


@pytest.mark.parametrize(
    "script",
    [says(http() + b"HTTP/1.1 200 OK\r\n\r\nanswer to another request"), says(http(ANSWER, length=len(ANSWER) - 1))],
)
async def test_a_connection_with_odd_framing_is_not_reused(script: object) -> None:
    async with serve(script) as server, wired(server.url) as wire:  # type: ignore[arg-type]
        await ask(wire)
        await ask(wire)
        assert server.connections == 2


async def test_the_window_not_the_pool_limits_connections() -> None:
    together, arrived = asyncio.Event(), []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        arrived.append(1)
        if len(arrived) == 150:
            together.set()
        await together.wait()
        writer.write(http())
        await writer.drain()
        await reader.read()

    async with serve(script) as server, wired(server.url) as wire:
        outcomes = await asyncio.gather(*(ask(wire) for _ in range(150)))
    assert all(isinstance(outcome, Reply) for outcome in outcomes)
    assert server.most_at_once == 150


@pytest.mark.parametrize("size_bytes", [2**20 - 200, 2**20 + 200, 5 * 2**20])
async def test_a_large_request_arrives_whole_and_without_warnings(size_bytes: int) -> None:
    request, bodies = Request("m", [{"role": "user", "content": "x" * size_bytes}]), []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while raw := await read_request(reader):
            bodies.append(json.loads(raw.partition(b"\r\n\r\n")[2]))
            writer.write(http())

    async with serve(script) as server, wired(server.url) as wire:
        for _ in range(2):
            assert isinstance(await ask(wire, request), Reply)
    assert bodies == [{"model": "m", "messages": request.messages}] * 2


# Time


async def test_no_answer_within_the_total_limit() -> None:
    started_s = time.monotonic()
    failure = await once(says(2.0, http()), timeouts=replace(QUICK, total_s=0.1))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.type, failure.retryable) == ("ambiguous", "timeout", True)
    assert "--timeout" in failure.message and "0.1 s" in failure.message
    assert 0.1 <= time.monotonic() - started_s < 0.5


async def test_a_task_whose_attempt_timed_out_is_not_cancelled() -> None:
    """Else its next ``asyncio.timeout`` or task group would take the limit for a cancellation from outside."""
    await once(says(2.0, http()), timeouts=replace(QUICK, total_s=0.1))
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_a_slow_body_meets_the_total_limit() -> None:
    drip = [part for byte in ANSWER for part in (bytes([byte]), 0.02)]
    failure = await once(says(http(b"", length=len(ANSWER)), *drip), timeouts=replace(QUICK, total_s=0.15))
    assert isinstance(failure, Failure) and failure.type == "timeout"


async def test_a_body_that_begins_and_stands_still_meets_the_idle_limit() -> None:
    script = says(http(ANSWER[:20], length=len(ANSWER)), 2.0)
    failure = await once(script, timeouts=replace(QUICK, idle_s=0.1))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.type) == ("ambiguous", "idle_timeout") and "--idle-timeout" in failure.message


async def test_the_connection_of_an_abandoned_attempt_is_not_used_again() -> None:
    """Else the late answer would be taken for the answer to the next request."""
    answers = iter([0.15, 0.0])

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await read_request(reader):
            await asyncio.sleep(next(answers))
            writer.write(http())

    async with serve(script) as server, wired(server.url, timeouts=replace(QUICK, total_s=0.1)) as wire:
        assert isinstance(await ask(wire), Failure)
        assert isinstance(await ask(wire), Reply)
        assert server.connections == 2


async def test_a_row_deadline_shortens_the_attempt_and_is_named() -> None:
    async with serve(says(2.0)) as server, wired(server.url, timeouts=replace(QUICK, idle_s=0.4)) as wire:
        trace = Trace(deadline_s=asyncio.get_running_loop().time() + 0.1)
        failure = await ask(wire, trace=trace)
    assert isinstance(failure, Failure) and failure.kind == "ambiguous"
    assert "--row-deadline" in failure.message


async def test_a_row_whose_deadline_has_passed_is_not_sent() -> None:
    async with serve(says(http())) as server, wired(server.url) as wire:
        trace = Trace(deadline_s=asyncio.get_running_loop().time() - 1)
        failure = await ask(wire, trace=trace)
        assert server.connections == 0
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.type) == ("never_sent", "row_deadline") and "--row-deadline" in failure.message


async def test_cancelling_from_outside_passes_through() -> None:
    async with serve(says(2.0)) as server, wired(server.url) as wire:
        task = asyncio.create_task(wire(ASK, Trace()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


class ThreadServer:
    """Blocking, in a thread of its own: it goes on while the loop stands still."""

    def __init__(self, connections: int) -> None:
        self.asked, self.go, self.said = (threading.Event() for _ in range(3))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=connections)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._connections = connections
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener:
            clients = [self._listener.accept()[0] for _ in range(self._connections)]
        for client in clients:
            client.recv(65536)
        self.asked.set()
        self.go.wait(5)
        for client in clients:
            client.sendall(http())
        self.said.set()
        for client in clients:
            client.recv(1)
            client.close()

    async def wait_asked(self) -> None:
        while not self.asked.is_set():
            await asyncio.sleep(0.002)


async def test_answers_that_came_while_the_loop_stood_still_are_kept() -> None:
    """They are paid for; the stall is twice as long as the limit."""
    server = ThreadServer(10)
    async with wired(server.url, timeouts=replace(QUICK, total_s=0.1)) as wire:
        asking = [asyncio.create_task(ask(wire)) for _ in range(10)]
        await server.wait_asked()
        server.go.set()
        server.said.wait(5)
        time.sleep(0.2)
        outcomes = await asyncio.gather(*asking)
    assert [type(outcome) for outcome in outcomes] == [Reply] * 10


async def test_latency_and_request_id_are_measured() -> None:
    trace = Trace()
    async with serve(says(0.05, http(ANSWER, "200 OK", "X-Request-Id: req_1"))) as server, wired(server.url) as wire:
        await ask(wire, trace=trace)
    (attempt,) = trace.attempts
    assert isinstance(attempt, Attempt)
    assert 0.05 <= attempt.latency_s < 1 and attempt.request_id == "req_1" and attempt.first_token_s is None
