"""Certificates are always verified, and before that not one byte of a request has left."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from certificates import Authority, authority
from raw_server import ANSWER, ask, http, read_request, says, serve, wired

from llmbatch.calls.connect import tls_context
from llmbatch.errors import OptionsError
from llmbatch.records import Failure, Reply


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ca"))


async def refused(server_tls: ssl.SSLContext, tls: ssl.SSLContext | None) -> Failure:
    """The failure of one attempt, after a look that the server was told nothing."""
    told: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.append(await reader.read(1))

    async with serve(script, server_tls) as server, wired(server.url, tls=tls) as wire:
        failure = await ask(wire)
        assert server.connections == 0 and not told  # not even the handshake came to its end
    assert isinstance(failure, Failure)
    return failure


async def test_ca_file_makes_a_private_authority_trusted(ca: Authority) -> None:
    async with serve(says(http()), ca.server()) as server, wired(server.url, tls=tls_context(ca.ca_file)) as wire:
        assert isinstance(await ask(wire), Reply)


@pytest.mark.parametrize(
    ("name", "days", "trusted", "words"),
    [
        ("IP:127.0.0.1", 1, False, "unable to get local issuer certificate; --ca-file FILE"),
        ("IP:127.0.0.2", 1, True, "IP address mismatch"),
        ("DNS:elsewhere.example", 1, True, "IP address mismatch"),
        ("IP:127.0.0.1", -1, True, "certificate has expired"),
    ],
)
async def test_a_wrong_certificate_ends_the_run_and_is_told_why(
    ca: Authority, name: str, days: int, trusted: bool, words: str
) -> None:
    failure = await refused(ca.server(name, days), tls_context(ca.ca_file) if trusted else None)
    assert (failure.kind, failure.type, failure.retryable, failure.fatal) == (
        "never_sent",
        "tls_certificate",
        False,
        True,
    )
    assert words in failure.message, failure.message


async def test_a_self_signed_certificate_is_refused_and_told_so(ca: Authority) -> None:
    failure = await refused(ca.self_signed(), None)
    assert failure.fatal and "self-signed certificate; --ca-file FILE" in failure.message


@pytest.mark.parametrize("own_context", [True, False])
async def test_tls_before_1_2_is_refused(ca: Authority, own_context: bool) -> None:
    old = ca.server()
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    failure = await refused(old, tls_context(ca.ca_file) if own_context else None)
    assert failure.kind == "never_sent"


async def test_https_to_a_port_that_speaks_http_is_told_so() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(http(b"", "400 Bad Request"))

    async with serve(script) as server, wired(server.url.replace("http:", "https:")) as wire:
        failure = await ask(wire)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.fatal) == ("never_sent", True) and "is it http, not https?" in failure.message


async def test_http_to_a_port_that_answers_with_a_tls_alert_is_told_so() -> None:
    alert = b"\x15\x03\x01\x00\x02\x02\x46"
    async with serve(says(alert, end="close")) as server, wired(server.url) as wire:
        failure = await ask(wire)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.type, failure.fatal) == ("never_sent", "tls_port", True)
    assert "https://" in failure.message


async def test_a_body_that_looks_like_an_alert_is_none() -> None:
    async with serve(says(http(ANSWER + b"\x15\x03\x01"))) as server, wired(server.url) as wire:
        failure = await ask(wire)
    assert isinstance(failure, Failure) and failure.kind == "unusable"


def test_ca_file_only_adds(ca: Authority) -> None:
    usual, more = ssl.create_default_context(), tls_context(ca.ca_file)
    assert more.cert_store_stats()["x509_ca"] == usual.cert_store_stats()["x509_ca"] + 1
    assert more.verify_mode is ssl.CERT_REQUIRED and more.check_hostname


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), (b"", "no certificates"), (b"x", "no cert")])
def test_a_ca_file_without_certificates_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OptionsError, match=words):
        tls_context(path)


async def test_a_request_that_is_read_over_tls_is_the_whole_request(ca: Authority) -> None:
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(http())

    async with serve(script, ca.server()) as server, wired(server.url, tls=tls_context(ca.ca_file)) as wire:
        assert isinstance(await ask(wire), Reply)
    assert b"the prompt" in seen[0]
