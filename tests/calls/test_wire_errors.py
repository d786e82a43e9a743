"""Transport errors that no loopback server can be made to cause, and a look that no class of aiohttp was forgotten."""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Iterator
from inspect import isclass

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from aioresponses import aioresponses
from multidict import CIMultiDict, CIMultiDictProxy
from raw_server import KEY, ask, wired
from yarl import URL

from llmbatch.calls.wire import transport_failure
from llmbatch.records import Failure, Reply

ENDPOINT = "https://api.example/v1/chat/completions"
HOST = ConnectionKey("api.example", 443, True, True, None, None, None)
ASKED = aiohttp.RequestInfo(
    URL(ENDPOINT), "POST", CIMultiDictProxy(CIMultiDict({"Authorization": f"Bearer {KEY}"})), URL(ENDPOINT)
)


@pytest.fixture
def server() -> Iterator[aioresponses]:
    with aioresponses() as mocked:
        yield mocked


@pytest.mark.parametrize(
    ("error", "kind", "word", "retryable", "fatal"),
    [
        (
            aiohttp.ClientConnectorCertificateError(HOST, ssl.SSLCertVerificationError(1, "expired")),
            "never_sent", "tls_certificate", False, True,
        ),
        (aiohttp.ClientConnectorSSLError(HOST, ssl.SSLError(1, "handshake")), "never_sent", "tls_error", False, True),
        (aiohttp.ClientConnectorDNSError(HOST, OSError(-2, "Name not known")), "never_sent", "dns_error", True, False),
        (aiohttp.ConnectionTimeoutError("slow"), "never_sent", "connect_timeout", True, False),
        (
            aiohttp.ClientConnectorError(HOST, OSError(errno.EMFILE, "Too many open files")),
            "never_sent", "too_many_open_files", True, False,
        ),
        (
            aiohttp.ClientConnectorError(HOST, OSError(errno.EHOSTUNREACH, "No route")),
            "never_sent", "connect_error", True, False,
        ),
        (aiohttp.ServerDisconnectedError(), "ambiguous", "disconnected", True, False),
        (aiohttp.ClientPayloadError("cut"), "ambiguous", "body_cut", True, False),
        (aiohttp.ClientResponseError(ASKED, (), status=400, message="Bad"), "ambiguous", "bad_http", True, False),
        (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), "ambiguous", "connection_reset", True, False),
        (aiohttp.SocketTimeoutError("read"), "ambiguous", None, True, False),
        (ssl.SSLError(1, "alert"), "ambiguous", None, True, False),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "ambiguous", None, True, False),
        (TimeoutError(), "ambiguous", None, True, False),
        (aiohttp.InvalidURL("http://["), "never_sent", "invalid_url", False, True),
    ],
)  # fmt: skip
async def test_what_an_error_says_of_the_request(
    server: aioresponses, error: Exception, kind: str, word: str | None, retryable: bool, fatal: bool
) -> None:
    server.post(ENDPOINT, exception=error)
    async with wired(ENDPOINT) as wire:
        failure = await ask(wire)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.retryable, failure.fatal) == (kind, retryable, fatal)
    assert word in (None, failure.type) and failure.http_status is None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            aiohttp.ClientConnectorCertificateError(
                HOST, ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed (_ssl.c:1006)")
            ),
            "cannot connect to api.example:443: its TLS certificate is not valid",
        ),
        (
            aiohttp.ClientConnectorSSLError(HOST, ssl.SSLError(1, "[SSL] record layer failure (_ssl.c:1006)")),
            "cannot connect to api.example:443: no TLS connection (is it http, not https?)",
        ),
        (
            aiohttp.ClientConnectorError(HOST, OSError(111, "Connect call failed ('127.0.0.1', 9)")),
            f"cannot connect to api.example:443: {os.strerror(111)}",
        ),
        (
            aiohttp.ClientConnectorError(HOST, OSError("Multiple exceptions: [Errno 111] Call failed ('::1', 9, 0)")),
            "cannot connect to api.example:443: Multiple exceptions",
        ),
        (
            aiohttp.ClientConnectorDNSError(HOST, OSError(-2, "Name not known")),
            "cannot connect to api.example:443: Name not known",
        ),
        (aiohttp.ServerDisconnectedError(), "the server closed the connection without an answer"),
        (aiohttp.ServerDisconnectedError("x"), "the server closed the connection without an answer"),
        (aiohttp.ClientOSError(errno.ECONNRESET, "x"), f"the connection broke: {os.strerror(errno.ECONNRESET)}"),
        (ConnectionResetError("Cannot write to transport"), "the connection broke: Cannot write to transport"),
        (
            aiohttp.ClientPayloadError("Response payload is not completed: <ContentLengthError: 400, message=''>"),
            "the answer was cut short",
        ),
        (
            aiohttp.ClientResponseError(ASKED, (), status=400, message="Data after `Connection: close`:\n\n b'x'\n"),
            "the server's answer is not valid HTTP: Data after `Connection: close`",
        ),
        (aiohttp.InvalidURL("http://[", "why"), "not a URL that can be asked: http://["),
        (UnicodeError("label empty or too long"), "the host of the URL has no valid name"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "the answer is not UTF-8"),
        (aiohttp.ServerFingerprintMismatch(b"a", b"b", "h", 1), "the connection broke: ServerFingerprintMismatch"),
        (TimeoutError(), "the connection broke: TimeoutError"),
    ],
)  # fmt: skip
def test_a_message_is_one_sentence(error: Exception, message: str) -> None:
    assert transport_failure(error).message == message


async def test_a_host_that_no_name_service_can_be_asked_for_ends_the_run_not_the_program() -> None:
    async with wired("http://a..b/v1/chat/completions") as wire:
        failure = await ask(wire)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.type, failure.retryable, failure.fatal) == ("never_sent", "invalid_url", False, True)


async def test_a_good_answer_behind_the_same_mock(server: aioresponses) -> None:
    server.post(ENDPOINT, payload={"choices": [{"message": {"content": "pong"}, "finish_reason": "stop"}]})
    async with wired(ENDPOINT) as wire:
        assert isinstance(await ask(wire), Reply)


# What the classes keep inside; they are made without their constructors, which all differ.
CONTENTS = {
    "_conn_key": HOST,
    "_os_error": OSError(1, "why"),
    "_certificate_error": ssl.CertificateError("why"),
    "_url": ENDPOINT,
    "_description": "why",
    "message": "why",
    "status": 400,
    "request_info": ASKED,
    "history": (),
}


def every_error() -> list[type[Exception]]:
    return [
        cls for cls in vars(aiohttp).values() if isclass(cls) and issubclass(cls, (aiohttp.ClientError, OSError))
    ]  # fmt: skip


@pytest.mark.parametrize("cls", every_error())
def test_no_error_of_aiohttp_is_forgotten(cls: type[Exception]) -> None:
    error = cls.__new__(cls)
    for name, value in CONTENTS.items():
        if not isinstance(getattr(cls, name, None), property):
            error.__dict__[name] = value
    failure = transport_failure(error)
    assert failure.type and failure.message and "canary" not in repr(failure)
    assert failure.kind in ("never_sent", "ambiguous")
    assert (failure.kind == "never_sent") == issubclass(
        cls,
        (
            aiohttp.ClientConnectorError,
            aiohttp.ClientHttpProxyError,
            aiohttp.ConnectionTimeoutError,
            aiohttp.InvalidURL,
        ),
    )
