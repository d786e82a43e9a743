"""A kill costs at most what was in flight, and the next run says how many that was."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from .processes import (
    Llmbatch,
    Sim,
    StartSim,
    assert_answers,
    prompts,
    read_lines,
    until,
    whole_lines,
    write_rows,
)

WIDTH = 12


def flags(server: Sim, *more: str) -> tuple[str, ...]:
    return ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", str(WIDTH), *more)


def in_flight(lock: Path) -> int:
    return int(json.loads(lock.read_text())["in_flight"])


def summary(llmbatch: Llmbatch) -> dict[str, Any]:
    return json.loads((llmbatch.directory / "s.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("output", ["in.results.jsonl", "-"])
def test_run_after_a_kill_says_how_many_requests_were_in_flight(llmbatch: Llmbatch, sim: StartSim, output: str) -> None:
    server, asked = sim("--latency", "uniform:low=0.02,high=0.3"), prompts(80)
    write_rows(llmbatch.directory / "in.jsonl", asked)
    command = flags(server, "-o", output, "--order", "input", "--summary-json", "s.json")
    first = llmbatch.start(*command)
    until(lambda: server.ledger()["billed"] >= 20, "20 answers")
    first.signal(signal.SIGKILL)
    first.end()
    places = llmbatch.state if output == "-" else llmbatch.directory
    (lock,), (journal,) = places.glob("*.lock"), places.glob("*.partial")
    noted, written = in_flight(lock), len(whole_lines(journal))
    received = server.ledger()["received"]
    assert received - written <= noted <= WIDTH
    done = llmbatch(*command)
    assert done.code == 0, done.err
    assert f"(pid {first.process.pid} on" in done.err
    assert f"was cut off with {noted} in flight; their rows are sent again and may be paid for twice" in done.err
    assert f"{noted} requests in flight when the last run was killed" in done.err
    assert summary(llmbatch)["in_flight_at_kill"] == noted
    lines = done.lines if output == "-" else read_lines(llmbatch.directory / output)
    assert_answers(lines, asked)
    assert 0 < server.ledger()["billed_twice"] <= noted
    assert not lock.exists()
    again = llmbatch(*command)
    assert "cut off" not in again.err
    assert summary(llmbatch)["in_flight_at_kill"] == 0


@pytest.mark.parametrize("interrupts", [0, 1, 2])
def test_run_that_ends_well_leaves_nothing_to_say(llmbatch: Llmbatch, sim: StartSim, interrupts: int) -> None:
    server = sim("--latency", "0.2" if interrupts < 2 else "5")
    write_rows(llmbatch.directory / "in.jsonl", prompts(30))
    running = llmbatch.start(*flags(server))
    lock = llmbatch.directory / "in.results.jsonl.lock"
    until(lambda: server.ledger()["received"] >= WIDTH, "requests in flight")
    assert in_flight(lock) == WIDTH
    for _ in range(interrupts):
        running.signal(signal.SIGINT)
        time.sleep(0.1)  # two of a kind at once would be one
    assert running.end().code == (130 if interrupts else 0)
    assert not lock.exists()


def test_rows_that_rest_between_tries_are_not_in_flight(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.01", "--fault", "500=1")
    write_rows(llmbatch.directory / "in.jsonl", prompts(3))
    running = llmbatch.start(*flags(server, "--max-attempts", "50"))
    lock = llmbatch.directory / "in.results.jsonl.lock"
    until(lambda: server.ledger()["received"] >= 3 and in_flight(lock) == 0, "all rows rest")
    running.signal(signal.SIGKILL)
    running.end()


def test_usr1_says_one_line_whatever_is_shown(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.4")
    write_rows(llmbatch.directory / "in.jsonl", prompts(WIDTH))
    for shown in (("--progress", "none"), ("--progress", "plain"), ("-q",)):
        before = server.ledger()["received"]
        running = llmbatch.start(*flags(server, *shown, "--restart"))
        until(lambda before=before: server.ledger()["received"] >= before + WIDTH, "requests in flight")  # type: ignore[misc]
        running.signal(signal.SIGUSR1)
        done = running.end()
        assert done.code == 0, done.err
        told = [line for line in done.err.splitlines() if f"{WIDTH}/{WIDTH} in flight" in line]
        assert len(told) == (0 if shown == ("-q",) else 1), (shown, done.err)
        assert all("requests/s" in line for line in told)


def test_tries_in_vain_of_rows_that_rest_count_as_in_flight(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--fault", "stall=1.0")
    write_rows(llmbatch.directory / "in.jsonl", prompts(3))
    first = llmbatch.start(*flags(server, "--timeout", "0.1", "--max-ambiguous-retries", "50", "--max-attempts", "50"))
    lock = llmbatch.directory / "in.results.jsonl.lock"
    until(lambda: server.ledger()["received"] >= 12, "four tries of each")
    time.sleep(0.15)  # a number that falls is noted a little later
    first.signal(signal.SIGKILL)
    first.end()
    assert in_flight(lock) >= 12
