"""Proxies and certificates with the real command, on the loop that it really uses."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import SSLContext

import pytest
from certificates import Authority, authority

from llmbatch import __version__

from .processes import GOOD_KEY, Done, Llmbatch, prompts, write_rows

ANSWER = {"model": "m", "choices": [{"message": {"content": "pong"}, "finish_reason": "stop"}], "usage": {}}
PASSWORD = "p4ssw0rd-of-the-proxy"


class Seen(ThreadingHTTPServer):
    """A server that keeps the request line and the headers of what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Refused handshakes are expected."""


class _Handler(BaseHTTPRequestHandler):
    server: Seen

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, json.dumps(ANSWER).encode())

    def do_CONNECT(self) -> None:
        self._answer(407, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.server.asked.append(f"{self.requestline}\n{self.headers}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def serving(tls: SSLContext | None = None) -> Iterator[Seen]:
    with Seen() as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def server() -> Iterator[Seen]:
    with serving() as started:
        yield started


def run(llmbatch: Llmbatch, base_url: str, *flags: str | Path, **env: str) -> Done:
    write_rows(llmbatch.directory / "in.jsonl", prompts(3))
    command = ("run", "in.jsonl", "-m", "m", "--base-url", base_url, *flags)
    return llmbatch(*command, env={"OPENAI_API_KEY": GOOD_KEY, **env})


def test_a_proxy_that_wants_a_login_ends_the_run_and_sees_no_key(llmbatch: Llmbatch, server: Seen) -> None:
    where = f"127.0.0.1:{server.server_port}"
    done = run(llmbatch, "https://api.example/v1", HTTPS_PROXY=f"http://user:{PASSWORD}@{where}")
    assert done.code == 3, done.err
    assert f"through the proxy http://{where}" in done.err and "the proxy wants a login" in done.err
    assert PASSWORD not in done.err
    assert server.asked and all(asked.startswith("CONNECT api.example:443 ") for asked in server.asked)
    assert not [asked for asked in server.asked if GOOD_KEY in asked or "Bearer" in asked]


def test_who_asks_is_told_without_names_of_machines_or_places(llmbatch: Llmbatch, server: Seen) -> None:
    assert run(llmbatch, f"http://127.0.0.1:{server.server_port}/v1").code == 0
    (agent,) = {line for asked in server.asked for line in asked.splitlines() if line.startswith("User-Agent:")}
    assert agent == f"User-Agent: llmbatch/{__version__}"
    told = "".join(server.asked)
    assert socket.gethostname() not in told and str(llmbatch.directory) not in told and "Referer" not in told


def test_a_socks_proxy_is_refused_before_anything_is_sent(llmbatch: Llmbatch) -> None:
    done = run(llmbatch, "https://api.example/v1", ALL_PROXY=f"socks5://user:{PASSWORD}@127.0.0.1:9")
    assert done.code == 2 and "socks5" in done.err and PASSWORD not in done.err


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_no_proxy_and_no_netrc_for_this_machine(llmbatch: Llmbatch, server: Seen, name: str) -> None:
    netrc = llmbatch.directory / "home" / ".netrc"
    netrc.write_text("default login user password netrc-password\n")
    netrc.chmod(0o600)
    done = run(llmbatch, f"http://127.0.0.1:{server.server_port}/v1", **{name: "http://127.0.0.1:9"})
    assert done.code == 0, done.err
    assert len(server.asked) == 3 and "through the proxy" not in done.err
    assert all(f"Authorization: Bearer {GOOD_KEY}\n" in asked and "Basic" not in asked for asked in server.asked)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ca"))


def test_ca_file_trusts_a_private_authority(llmbatch: Llmbatch, ca: Authority) -> None:
    with serving(ca.server()) as server:
        done = run(llmbatch, f"https://127.0.0.1:{server.server_port}/v1", "--ca-file", ca.ca_file)
        assert done.code == 0, done.err
        assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("name", "days", "words"),
    [
        ("IP:127.0.0.1", 1, "local issuer certificate; --ca-file"),
        ("IP:127.0.0.2", 1, "IP address mismatch"),
        ("IP:127.0.0.1", -1, "certificate has expired"),
    ],
)
def test_a_wrong_certificate_ends_the_run_before_anything_is_sent(
    llmbatch: Llmbatch, ca: Authority, name: str, days: int, words: str
) -> None:
    flags = () if "issuer" in words else ("--ca-file", ca.ca_file)
    with serving(ca.server(name, days)) as server:
        done = run(llmbatch, f"https://127.0.0.1:{server.server_port}/v1", *flags)
        assert done.code == 3 and words in done.err, done.err
        assert not server.asked


def test_a_missing_ca_file_is_refused(llmbatch: Llmbatch) -> None:
    done = run(llmbatch, "https://127.0.0.1:9/v1", "--ca-file", "none.pem")
    assert done.code == 2 and "--ca-file none.pem: No such file" in done.err


def test_a_key_goes_unencrypted_to_this_machine_only(llmbatch: Llmbatch, server: Seen) -> None:
    done = run(llmbatch, "http://127.0.0.1.nip.io/v1", "--key-env", "OPENAI_API_KEY")
    assert done.code == 2 and "unencrypted" in done.err, done.err
    assert run(llmbatch, f"http://localhost:{server.server_port}/v1").code == 0
    assert len(server.asked) == 3 and all(GOOD_KEY in asked for asked in server.asked)
