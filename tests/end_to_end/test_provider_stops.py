"""When every row will fail for the same reason the run stops with 3, and the same command goes on once it is mended."""

from __future__ import annotations

import socket
import time

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
