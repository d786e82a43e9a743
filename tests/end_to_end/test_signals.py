"""Ctrl-C, kill, a closed terminal: what is in flight is paid for, so it is waited for and written."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import termios
import time

import pytest

from .processes import (
    COMMAND,
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

# A signal that ends a run this fast was not waited for.
PROMPT_S = 1.5


def flags(server: Sim, *more: str) -> tuple[str, ...]:
    return ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, *more)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["int", "term", "hup"]
)
def test_first_signal_waits_for_what_is_in_flight_and_the_command_continues(
    llmbatch: Llmbatch, sim: StartSim, number: signal.Signals, code: int
) -> None:
    server = sim("--latency", "0.25")
    write_rows(llmbatch.directory / "in.jsonl", prompts(100))
    running = llmbatch.start(*flags(server, "-c", "20"))
    until(lambda: server.ledger()["received"] >= 30, "30 requests")
    running.signal(number)
    done = running.end()
    assert done.code == code, done.err
    recorded = whole_lines(llmbatch.directory / "in.results.jsonl.partial")
    assert len(recorded) == server.ledger()["billed"] >= 30
    assert "run the same command again" in done.err
    assert llmbatch(*flags(server, "-c", "50")).code == 0
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), prompts(100))
    assert server.ledger()["billed_twice"] == 0


def test_second_signal_leaves_at_once_and_the_rows_stay_pending(llmbatch: Llmbatch, sim: StartSim) -> None:
    script = llmbatch.directory / "script.jsonl"
    script.write_text("".join(f'{{"prompt": "prompt 2{n}", "fault": "stall"}}\n' for n in range(10)))
    server = sim("--script", str(script))
    write_rows(llmbatch.directory / "in.jsonl", prompts(30))
    running = llmbatch.start(*flags(server, "-c", "30"))
    until(lambda: len(whole_lines(llmbatch.directory / "in.results.jsonl.partial")) == 20, "all but the stalled rows")
    running.signal(signal.SIGINT)
    time.sleep(0.2)
    assert running.process.poll() is None
    began_s = time.monotonic()
    running.signal(signal.SIGINT)
    done = running.end()
    assert time.monotonic() - began_s < PROMPT_S
    assert done.code == 130
    assert "Traceback" not in done.err
    assert "30 rows = 20 ok + 0 failed + 0 skipped + 10 pending" in done.err


def test_drain_time_ends_a_stalled_drain(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--fault", "stall=1")
    write_rows(llmbatch.directory / "in.jsonl", prompts(3))
    running = llmbatch.start(*flags(server, "--drain", "0.3s"))
    until(lambda: server.ledger()["received"] == 3, "3 requests")
    began_s = time.monotonic()
    running.signal(signal.SIGTERM)
    assert running.end().code == 143
    assert 0.3 <= time.monotonic() - began_s < 0.3 + PROMPT_S


def test_hangup_that_nohup_ignores_stays_ignored(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.1")
    write_rows(llmbatch.directory / "in.jsonl", prompts(12))
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    running = llmbatch.start(*flags(server, "-c", "2"), **ignored)
    until(lambda: server.ledger()["received"] >= 2, "the first requests")
    running.signal(signal.SIGHUP)
    assert running.end().code == 0
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), prompts(12))


@pytest.mark.parametrize("rows", [b"", b'"prompt 1"\n"prompt 2"\n'], ids=["silent", "silent_after_two_rows"])
def test_interrupt_while_a_pipe_is_silent_ends_at_once(llmbatch: Llmbatch, sim: StartSim, rows: bytes) -> None:
    server = sim()
    running = llmbatch.start("run", "-", "-o", "out.jsonl", "-m", "m", "--base-url", server.base_url)
    assert running.process.stdin is not None
    running.process.stdin.write(rows)
    running.process.stdin.flush()
    partial = llmbatch.directory / "out.jsonl.partial"
    if rows:
        until(lambda: len(whole_lines(partial)) == 2, "two results")
    else:
        time.sleep(0.2)
        until(lambda: signals_caught(running.process.pid), "its handlers")
    began_s = time.monotonic()
    running.signal(signal.SIGINT)
    code = running.process.wait(10)
    assert time.monotonic() - began_s < PROMPT_S
    assert code == 130
    assert len(whole_lines(partial)) == rows.count(b"\n")


def signals_caught(pid: int) -> bool:
    """SIGHUP has a handler, which Python itself does not install."""
    with open(f"/proc/{pid}/status") as status:
        mask = next(int(line.split()[1], 16) for line in status if line.startswith("SigCgt"))
    return bool(mask & 1 << (signal.SIGHUP - 1))


def test_interrupt_while_starting_is_no_traceback(llmbatch: Llmbatch) -> None:
    for wait_s in (0.05, 0.15):
        running = llmbatch.start("run", "-", "-m", "sim/x")
        time.sleep(wait_s)
        running.signal(signal.SIGINT)
        code = running.process.wait(10)
        assert running.process.stderr is not None
        assert code in (130, -signal.SIGINT)


def test_interrupt_during_the_pause_before_a_retry_ends_at_once(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--fault", "503=1", "--retry-after", "60")
    write_rows(llmbatch.directory / "in.jsonl", prompts(5))
    running = llmbatch.start(*flags(server))
    until(lambda: server.ledger()["received"] >= 1, "a request")
    time.sleep(0.2)
    began_s = time.monotonic()
    running.signal(signal.SIGINT)
    done = running.end()
    assert time.monotonic() - began_s < PROMPT_S
    assert done.code == 130, done.err
    assert "5 rows = 0 ok + 0 failed + 0 skipped + 5 pending" in done.err
    assert whole_lines(llmbatch.directory / "in.results.jsonl.partial") == []


def test_interrupt_during_a_long_plan_ends_at_once_and_changes_nothing(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    write_rows(llmbatch.directory / "in.jsonl", prompts(3))
    assert llmbatch(*flags(server)).code == 0
    (llmbatch.directory / "in.jsonl").write_bytes(b'"prompt 1"\n' + b'{"prompt": "more of them"}\n' * 300_000)
    before = (llmbatch.directory / "in.results.jsonl").read_bytes()
    running = llmbatch.start(*flags(server))
    until(lambda: signals_caught(running.process.pid), "its handlers")
    time.sleep(0.2)
    began_s = time.monotonic()
    running.signal(signal.SIGINT)
    done = running.end()
    assert time.monotonic() - began_s < PROMPT_S
    assert done.code == 130, done.err
    assert (llmbatch.directory / "in.results.jsonl").read_bytes() == before
    assert server.ledger()["received"] == 3


def test_interrupt_in_a_terminal_restores_it(llmbatch: Llmbatch, sim: StartSim) -> None:
    """Ctrl-C typed at a pseudo-terminal, with the live bar on it."""
    server = sim("--latency", "0.3")
    write_rows(llmbatch.directory / "in.jsonl", prompts(50))
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(ours)
    running = llmbatch.start(
        *flags(server, "-c", "5"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={"TERM": "xterm-256color"},
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # makes it the controlling terminal
    )
    os.set_blocking(ours, False)
    until(lambda: server.ledger()["received"] >= 10, "10 requests")
    os.write(ours, b"\x03")
    shown = b""
    while running.process.poll() is None:
        shown += drained(ours)
        time.sleep(0.01)
    shown += drained(ours)
    after = termios.tcgetattr(ours)
    os.close(theirs)
    os.close(ours)
    assert running.process.returncode == 130, shown.decode(errors="replace")
    assert after == before
    assert b"Interrupted." in shown
    assert shown.count(b"\x1b[?25l") <= shown.count(b"\x1b[?25h")  # the cursor is back
    assert len(whole_lines(llmbatch.directory / "in.results.jsonl.partial")) == server.ledger()["billed"]


def drained(fd: int) -> bytes:
    found = b""
    try:
        while data := os.read(fd, 65536):
            found += data
    except BlockingIOError:
        pass
    return found


def test_sim_itself_ends_with_0_on_sigterm() -> None:
    process = subprocess.Popen([*COMMAND, "sim", "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    assert process.wait(10) == 0
    process.stdout.close()


def test_what_was_abandoned_is_counted_as_maybe_billed(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "30")
    write_rows(llmbatch.directory / "in.jsonl", prompts(5))
    running = llmbatch.start(
        "run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "2", "--summary-json", "sum.json"
    )
    until(lambda: server.ledger()["in_flight"] == 2, "two in flight")
    running.signal(signal.SIGINT)
    time.sleep(0.2)
    running.signal(signal.SIGINT)
    done = running.end()
    assert done.code == 130
    assert json.loads((llmbatch.directory / "sum.json").read_text())["ambiguous"] == 2
    assert "2 requests may have been billed without an answer" in done.err
