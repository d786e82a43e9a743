"""Proxies of the environment: through them to TLS servers, past them where they are not meant, and nothing told."""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

import pytest
from certificates import Authority, authority
from raw_server import KEY, Script, Server, ask, http, read_request, says, serve, wired

from llmbatch.calls.connect import Proxy, proxy_for, tls_context
from llmbatch.errors import OptionsError
from llmbatch.records import Failure, Reply

API = "https://api.example/v1"
LOGIN = "user:p4ssw0rd-of-it"


@pytest.mark.parametrize(
    ("url", "proxies", "expected"),
    [
        (API, {}, None),
        (API, {"https": "http://proxy.example:3128"}, "http://proxy.example:3128"),
        (API, {"https": "proxy.example:3128"}, "http://proxy.example:3128"),
        (API, {"https": "http://proxy.example"}, "http://proxy.example:80"),
        (API, {"https": "https://proxy.example/"}, "https://proxy.example:443"),
        (API, {"https": "http://[fd00::1]:8080"}, "http://[fd00::1]:8080"),
        (API, {"http": "http://other.example:1"}, None),
        ("http://10.0.0.1/v1", {"http": "http://other.example:1"}, "http://other.example:1"),
        (API, {"all": "http://all.example:1"}, "http://all.example:1"),
        (API, {"all": "socks5://all.example:1", "https": "http://own.example:1"}, "http://own.example:1"),
        (API, {"https": "http://proxy.example:1", "no": "api.example"}, None),
        (API, {"https": "http://proxy.example:1", "no": ".example"}, None),
        (API, {"https": "http://proxy.example:1", "no": "*"}, None),
        (API, {"https": "http://proxy.example:1", "no": "other.example, api.example:443"}, "http://proxy.example:1"),
        (API + ":443", {"https": "http://proxy.example:1", "no": "pi.example"}, "http://proxy.example:1"),
        (API, {"https": ""}, None),
    ],
)
def test_the_proxy_of_an_address(url: str, proxies: Mapping[str, str], expected: str | None) -> None:
    found = proxy_for(url, proxies)
    assert (found.url if found else None) == expected


def test_a_login_is_kept_apart_and_never_shown() -> None:
    proxy = proxy_for(API, {"https": "http://us%40er:p4ss%2Fw0rd@proxy.example:3128"})
    assert proxy is not None and proxy.login == ("us@er", "p4ss/w0rd")
    assert "p4ss" not in f"{proxy!r} {proxy} {proxy.url}"
    assert proxy.secrets == ("p4ss/w0rd", b64encode(b"us@er:p4ss/w0rd").decode())


@pytest.mark.parametrize(
    ("proxies", "words"),
    [
        ({"https": f"socks5://{LOGIN}@proxy.example:1080"}, "HTTPS_PROXY names a socks5 proxy"),
        ({"all": f"socks5h://{LOGIN}@proxy.example:1080"}, "ALL_PROXY names a socks5h proxy"),
        ({"https": f"ftp://{LOGIN}@proxy.example"}, "ftp"),
        ({"https": f"http://{LOGIN}@proxy.example:99999"}, "no URL of a proxy"),
        ({"https": f"http://{LOGIN}@[::1"}, "no URL of a proxy"),
        ({"https": f"http://{LOGIN}@"}, "names no host"),
    ],
)
def test_a_proxy_that_can_not_be_used_is_refused_without_its_login(proxies: Mapping[str, str], words: str) -> None:
    with pytest.raises(OptionsError, match=words) as error:
        proxy_for(API, proxies)
    assert "p4ssw0rd" not in str(error.value)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ca"))


def root(server: Server) -> str:
    return server.url.removesuffix("/v1/chat/completions")


def tunnel(seen: list[bytes]) -> Script:
    """A proxy that does what CONNECT asks for (RFC 9110, 9.3.6), and notes what it could read."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            seen.append(data)
            writer.write(data)
        writer.close()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(asked := await read_request(reader))
        host, port = re.match(rb"CONNECT (\S+):(\d+) ", asked).groups()  # type: ignore[union-attr]
        server_reader, server_writer = await asyncio.open_connection(host.decode(), int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(copy(reader, server_writer), copy(server_reader, writer))

    return script


@pytest.mark.parametrize("login", [None, ("user", "p4ss:wörd")])
async def test_the_key_goes_through_a_proxy_unseen(ca: Authority, login: tuple[str, str] | None) -> None:
    seen: list[bytes] = []
    async with (
        serve(says(http()), ca.server()) as server,
        serve(tunnel(seen)) as middle,
        wired(server.url, tls=tls_context(ca.ca_file), proxy=Proxy(root(middle), login)) as wire,
    ):  # fmt: skip
        for _ in range(3):
            assert isinstance(await ask(wire), Reply)
        assert (middle.connections, server.connections) == (1, 1)
    # What a proxy is told is where to connect to, and its own login: nothing of ours.
    told = {line.split(b":")[0].lower() for line in seen[0].split(b"\r\n")[1:] if line}
    assert told <= {b"host", b"accept", b"accept-encoding", b"user-agent", b"proxy-authorization"}
    wants = b"" if login is None else b"\r\nProxy-Authorization: Basic " + b64encode(":".join(login).encode())
    assert (b"Proxy-Authorization" in seen[0]) == (login is not None) and wants in seen[0]
    everything = b"".join(seen)
    assert KEY.encode() not in everything and b"Bearer" not in everything and b"the prompt" not in everything


@pytest.mark.parametrize("login", [None, ("user", "p4ssw0rd")])
async def test_without_tls_the_request_itself_is_given_to_the_proxy(login: tuple[str, str] | None) -> None:
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(http())

    url = "http://api.example/v1/chat/completions"
    async with serve(script) as middle, wired(url, proxy=Proxy(root(middle), login)) as wire:
        assert isinstance(await ask(wire), Reply)
    assert seen[0].startswith(f"POST {url} ".encode()) and f"Authorization: Bearer {KEY}".encode() in seen[0]
    assert (b"Proxy-Authorization: Basic dXNlcjpwNHNzdzByZA==" in seen[0]) == (login is not None)
    assert seen[0].count(KEY.encode()) == 1


@pytest.mark.parametrize(
    ("answer", "word", "retryable", "words"),
    [
        (http(b"", "407 Proxy Authentication Required"), "proxy_login", False, "the proxy wants a login"),
        (http(b"", "502 Bad Gateway"), "proxy_cannot_connect", True, "the proxy refuses: 502 Bad Gateway"),
        (http(b"", "503 Unavailable"), "proxy_cannot_connect", True, "503"),
        (http(b"", "403 Forbidden by policy"), "proxy_refused", False, "403 Forbidden by policy"),
        (http(b"", "302 Found", "Location: http://elsewhere.example/"), "proxy_refused", False, "302"),
    ],
)
async def test_what_a_proxy_refuses_was_never_sent(answer: bytes, word: str, retryable: bool, words: str) -> None:
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(answer)
        seen.append(await reader.read())

    async with (
        serve(script) as middle,
        wired("https://api.example/v1", proxy=Proxy(root(middle), ("u", "p4ss-w0rd"))) as wire,
    ):
        failure = await ask(wire)
        assert isinstance(failure, Failure)
    assert (failure.kind, failure.type, failure.retryable, failure.fatal) == (
        "never_sent",
        word,
        retryable,
        not retryable,
    )
    assert failure.unreachable == retryable and failure.http_status is None and words in failure.message
    assert seen[0].startswith(b"CONNECT api.example:443 ") and b"Bearer" not in b"".join(seen)


async def test_a_proxy_that_is_not_there_is_named() -> None:
    async with serve(says()) as gone:
        url = root(gone)
    async with wired("https://api.example/v1", proxy=Proxy(url)) as wire:
        failure = await ask(wire)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.retryable, failure.unreachable) == ("never_sent", True, True)
    assert f"cannot connect to the proxy {url.removeprefix('http://')}" in failure.message


async def test_a_login_that_a_proxy_repeats_is_taken_out() -> None:
    login = b64encode(b"u:p4ss-w0rd-1").decode()
    answer = http(b"", f"502 no p4ss-w0rd-1, no {login}")
    async with (
        serve(says(answer)) as middle,
        wired(
            "https://api.example/v1",
            proxy=Proxy(root(middle), ("u", "p4ss-w0rd-1")),
        ) as wire,
    ):
        failure = await ask(wire)
    assert isinstance(failure, Failure) and failure.message == "the proxy refuses: 502 no [key], no [key]"


async def test_a_certificate_is_verified_behind_a_proxy_too(ca: Authority, tmp_path: Path) -> None:
    seen: list[bytes] = []
    async with (
        serve(says(http()), ca.server()) as server,
        serve(tunnel(seen)) as middle,
        wired(server.url, proxy=Proxy(root(middle))) as wire,
    ):
        failure = await ask(wire)
        assert isinstance(failure, Failure)
    assert (failure.type, failure.fatal) == ("tls_certificate", True)
