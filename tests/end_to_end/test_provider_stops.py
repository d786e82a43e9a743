"""When every row will fail for the same reason the run stops with 3, and the same command goes on once it is mended."""

from __future__ import annotations

import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .processes import GOOD_KEY, Llmbatch, Sim, StartSim, assert_answers, prompts, read_lines, whole_lines, write_rows

ROWS = 60


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


STOPS = {
    "bad_key": (["--api-key", GOOD_KEY], "Incorrect API key"),
    "unknown_model": (["--models", "other"], "does not exist"),
    "no_quota": (["--fault", "quota=1"], "credit balance is exhausted"),
}


@pytest.mark.parametrize("case", STOPS)
def test_run_stops_with_3_and_the_same_command_continues(llmbatch: Llmbatch, sim: StartSim, case: str) -> None:
    flags, words = STOPS[case]
    port = free_port()
    asked = prompts(ROWS)
    write_rows(llmbatch.directory / "in.jsonl", asked)
    command = ("run", "in.jsonl", "-m", "m", "--base-url", f"http://127.0.0.1:{port}/v1", "-c", "4")
    broken = sim("--port", port, *flags)
    done = llmbatch(*command, "--summary-json", "sum.json", env={"OPENAI_API_KEY": "sk-wrong"})
    assert done.code == 3, done.err
    assert words in done.err
    assert "run the same command again" in done.err
    assert broken.ledger()["received"] <= 10  # three in a row, and what was in flight with them
    assert not (llmbatch.directory / "in.results.jsonl").exists()
    assert len(whole_lines(llmbatch.directory / "in.results.jsonl.partial")) <= 10
    broken.stop()
    mended = sim("--port", port)
    assert llmbatch(*command).code == 0
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), asked)
    assert mended.ledger()["received"] == ROWS


@contextmanager
def tls_server(directory: Path) -> Iterator[tuple[int, list[bytes]]]:
    """A port with a certificate that nobody trusts, and what it got to read of each connection."""
    heard: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=127.0.0.1"]
    subprocess.run(
        ["openssl", "req", "-x509", *kind, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    context.load_cert_chain(certificate, key)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                with context.wrap_socket(self.request, server_side=True) as tls:
                    heard.append(tls.recv(100))
            except OSError:
                heard.append(b"")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_address[1], heard
        server.shutdown()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_certificate_that_is_not_trusted_stops_the_run_before_a_byte_is_sent(
    llmbatch: Llmbatch, tmp_path: Path
) -> None:
    write_rows(llmbatch.directory / "in.jsonl", prompts(ROWS))
    with tls_server(tmp_path) as (port, heard):
        done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", f"https://127.0.0.1:{port}/v1", "-c", "4")
    assert done.code == 3, done.err
    assert "certificate" in done.err and "run the same command again" in done.err
    assert 3 <= len(heard) <= 10 and not any(heard)
    assert len(whole_lines(llmbatch.directory / "in.results.jsonl.partial")) <= 10


@pytest.mark.parametrize("kind", ["401", "404", "quota"])
def test_what_is_in_flight_when_the_provider_stops_is_waited_for_and_written(
    llmbatch: Llmbatch, sim: StartSim, tmp_path: Path, kind: str
) -> None:
    """The key is revoked in mid-run: good answers came before, and slow ones are under way."""
    script = tmp_path / "script.jsonl"
    script.write_text(f'{{"prompt": "refused", "fault": "{kind}"}}\n')
    server = sim("--script", str(script), "--latency", "0.2")
    asked = [*prompts(12, "good"), "slow good", *prompts(8, "refused"), *prompts(30, "later")]
    write_rows(llmbatch.directory / "in.jsonl", asked)
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "4")
    assert done.code == 3, done.err
    ledger = server.ledger()
    lines = whole_lines(llmbatch.directory / "in.results.jsonl.partial")
    good = [line for line in lines if line["status"] == "ok"]
    assert len(good) == ledger["billed"] >= 13
    assert 3 <= len(lines) - len(good) <= 8 and len(lines) == ledger["received"] <= 13 + 8 + 3
    assert not (llmbatch.directory / "in.results.jsonl").exists()


@pytest.mark.parametrize("count", [5, 300])
def test_closed_port_ends_the_run_soon_with_words_to_act_on(llmbatch: Llmbatch, count: int) -> None:
    port = free_port()
    write_rows(llmbatch.directory / "in.jsonl", prompts(count))
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", f"http://127.0.0.1:{port}/v1", within_s=40)
    assert done.code == 3, done.err
    assert done.seconds < 20
    assert f"cannot connect to 127.0.0.1:{port}" in done.err


def test_unknown_host_is_named(llmbatch: Llmbatch) -> None:
    write_rows(llmbatch.directory / "in.jsonl", prompts(4))
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", "http://no-such-host.invalid/v1", "--max-attempts", "1")
    assert done.code == 3, done.err
    assert "cannot connect to no-such-host.invalid" in done.err


def test_server_that_restarts_costs_no_row(llmbatch: Llmbatch, sim: StartSim) -> None:
    """Its port is closed for a second; rows wait and are sent again, whatever their number."""
    port = free_port()
    asked = prompts(300)
    write_rows(llmbatch.directory / "in.jsonl", asked)
    first: Sim = sim("--port", port, "--latency", "0.02")
    running = llmbatch.start("run", "in.jsonl", "-m", "m", "--base-url", f"http://127.0.0.1:{port}/v1", "-c", "4")
    journal = llmbatch.directory / "in.results.jsonl.partial"
    while len(whole_lines(journal)) < 20:
        time.sleep(0.01)
    first.stop()
    time.sleep(0.2)
    sim("--port", port)
    done = running.end()
    assert done.code == 0, done.err
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), asked)


def test_row_that_no_server_takes_does_not_hold_up_the_others(llmbatch: Llmbatch, sim: StartSim) -> None:
    """Three rows that each name a model nobody has: they fail, OUT is sealed, and stays so when it is said again."""
    server = sim("--models", "m")
    rows = [{"prompt": f"p{n}", "model": "nobody-has-it"} for n in range(3)] + [
        {"prompt": f"p{n}"} for n in range(3, 9)
    ]
    write_rows(llmbatch.directory / "in.jsonl", rows)
    command = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "1")
    for _ in range(2):
        done = llmbatch(*command)
        assert done.code == 1, done.err
        lines = read_lines(llmbatch.directory / "in.results.jsonl")
        assert [line["status"] for line in lines] == ["error"] * 3 + ["ok"] * 6


def test_rows_that_failed_before_do_not_stop_the_run_before_it_comes_to_the_rest(
    llmbatch: Llmbatch, sim: StartSim, tmp_path: Path
) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text("".join(f'{{"prompt": "bad {n}", "fault": "401"}}\n' for n in range(3)))
    server = sim("--script", str(script))
    write_rows(llmbatch.directory / "in.jsonl", [{"prompt": f"bad {n}"} for n in range(3)] + prompts(6))
    command = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "1")
    assert llmbatch(*command).code == 3
    done = llmbatch(*command)
    assert done.code == 1, done.err
    assert sum(line["status"] == "ok" for line in read_lines(llmbatch.directory / "in.results.jsonl")) == 6


def test_complete_output_stays_when_its_failed_row_fails_again(
    llmbatch: Llmbatch, sim: StartSim, tmp_path: Path
) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text('{"prompt": "prompt 3", "fault": "401"}\n')
    server = sim("--script", str(script))
    write_rows(llmbatch.directory / "in.jsonl", prompts(6))
    command = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url)
    for _ in range(3):
        assert llmbatch(*command).code == 1
        assert len(read_lines(llmbatch.directory / "in.results.jsonl")) == 6
        assert not (llmbatch.directory / "in.results.jsonl.partial").exists()
