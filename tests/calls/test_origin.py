"""A key belongs to one origin, an answer to one request: what comes from or leads to elsewhere is refused."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from certificates import authority
from raw_server import ANSWER, Script, Server, ask, http, once, read_request, says, serve, wired

from llmbatch.calls.connect import loopback_socket, patient_socket, tls_context
from llmbatch.records import Failure, Reply, Request

STATUSES = ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
TARGETS = {
    "other port": "http://127.0.0.1:{port}/v1",
    "other host": "http://localhost:{port}/v1",
    "no scheme": "//127.0.0.1:{port}/v1",
    "file": "file:///etc/passwd",
    "script": "javascript:alert(1)",
    "itself": "/v1/chat/completions",
    "nowhere": "",
}


def silent_sink(seen: list[bytes]) -> Script:
    """Notes whatever anybody sends."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            seen.append(data)

    return script


def port_of(server: Server) -> int:
    return int(server.url.split(":")[2].split("/")[0])


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("location", TARGETS.values(), ids=list(TARGETS))
async def test_a_redirect_is_not_followed_wherever_it_leads(status: str, location: str) -> None:
    seen: list[bytes] = []
    async with serve(silent_sink(seen)) as sink:
        target = location.format(port=port_of(sink))
        headers = [f"Location: {target}"] if target else []
        async with serve(says(http(b"", status, *headers))) as server, wired(server.url) as wire:
            failure = await ask(wire)
            assert server.connections == 1
        await asyncio.sleep(0)
        assert sink.connections == 0 and not seen
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.type, failure.retryable) == ("permanent", "redirect_refused", False)
    assert target in failure.message


async def test_a_redirect_from_https_to_http_is_not_followed(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    async with serve(says(http())) as sink:
        redirect = says(http(b"", "308 Permanent", f"Location: {sink.url}"))
        async with serve(redirect, ca.server()) as server, wired(server.url, tls=tls_context(ca.ca_file)) as wire:
            failure = await ask(wire)
        assert sink.connections == 0
    assert isinstance(failure, Failure) and failure.type == "redirect_refused" and sink.url in failure.message


def numbered(*after: bytes | float) -> Script:
    """Answers with the number of the request, then says ``after``, which nobody asked for."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        while asked := await read_request(reader):
            number = int(asked[asked.rindex(b"row ") + 4 :].split(b'"')[0])
            writer.write(http(ANSWER.replace(b"pong", b"answer %d" % number)))
            for part in after:
                if isinstance(part, float):
                    await asyncio.sleep(part)
                else:
                    writer.write(part)

    return script


UNASKED = http(ANSWER.replace(b"pong", b"an answer to nothing"))


@pytest.mark.parametrize(
    "script",
    [numbered(UNASKED), numbered(0.0, 0.0, UNASKED), numbered(0.005, UNASKED), numbered(0.005, b"garbage")],
    ids=["at_once", "next_turn", "later", "garbage"],
)
async def test_an_answer_that_nobody_asked_for_is_given_to_no_row(script: Script) -> None:
    """An intermediary out of step would else answer every row with the answer of the one before, silently."""
    async with serve(script) as server, wired(server.url) as wire:
        for number in range(3):
            reply = await ask(wire, _row(number))
            assert isinstance(reply, Reply) and reply.output == f"answer {number}"
            await asyncio.sleep(0.02)
        assert server.connections == 3  # a connection that says more than it was asked is not used again


def _row(number: int) -> Request:
    return Request("m", [{"role": "user", "content": f"row {number}"}])


async def test_a_connection_that_keeps_step_is_used_again() -> None:
    async with serve(numbered()) as server, wired(server.url) as wire:
        for number in range(3):
            assert isinstance(await ask(wire, _row(number)), Reply)
            await asyncio.sleep(0.01)
        assert server.connections == 1


async def test_a_connection_closed_while_idle_costs_no_row() -> None:
    """The end of a connection that has come but was not yet looked at is looked for before it is used again."""
    async with serve(says(http(), end="close")) as server, wired(server.url) as wire:
        for _ in range(20):
            assert isinstance(await ask(wire), Reply)
        assert server.connections == 20


def address(host: str, port: int) -> tuple[object, ...]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]


def test_a_silent_peer_is_asked_whether_it_is_there() -> None:
    with patient_socket(address("127.0.0.1", 9)) as made:  # type: ignore[arg-type]
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            assert [made.getsockopt(socket.IPPROTO_TCP, name) for name in names] == [60, 30, 4]


def test_a_system_without_these_options_connects_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"):
        monkeypatch.delattr(socket, name, raising=False)
    patient_socket(address("127.0.0.1", 9)).close()  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_a_key_over_http_stays_on_this_machine(host: str) -> None:
    loopback_socket((socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, 9))).close()


@pytest.mark.parametrize("host", ["10.0.0.1", "192.0.2.1", "0.0.0.0", "fe80::1%eth0", "::", "::ffff:10.0.0.1"])
def test_localhost_that_is_elsewhere_is_refused(host: str) -> None:
    with pytest.raises(OSError, match="another machine"):
        loopback_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, 9)))


async def test_a_name_that_leads_off_this_machine_gets_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(*args: object, **kwargs: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", elsewhere)
    async with wired("http://localhost:80/v1", loopback_only=True) as wire:
        failure = await ask(wire)
    assert isinstance(failure, Failure) and failure.kind == "never_sent"


async def test_a_loopback_server_is_reached_as_ever() -> None:
    async with serve(says(http())) as server, wired(server.url, loopback_only=True) as wire:
        assert isinstance(await ask(wire), Reply)
    assert isinstance(await once(says(http())), Reply)
