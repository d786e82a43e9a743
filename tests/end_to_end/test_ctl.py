"""`llmbatch ctl` from another process: a run is asked and steered while it runs, by its owner alone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmbatch.cli import ctl as ctl_command
from llmbatch.cli.app import app

from .processes import (
    PATIENCE_S,
    Done,
    Llmbatch,
    Running,
    Sim,
    StartSim,
    assert_answers,
    prompts,
    read_lines,
    until,
    whole_lines,
    write_rows,
)

OUT = "in.results.jsonl"
NOBODY = 65534
AS_NOBODY = f"import os, socket, sys\nos.setgid({NOBODY}); os.setuid({NOBODY})\ns = socket.socket(socket.AF_UNIX)\n"


def flags(server: Sim, *more: str) -> tuple[str, ...]:
    return ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, *more)


def started(llmbatch: Llmbatch, server: Sim, rows: int, *more: str) -> Running:
    """A run of so many rows that has sent the first ones."""
    before = server.ledger()["received"]
    write_rows(llmbatch.directory / "in.jsonl", prompts(rows))
    running = llmbatch.start(*flags(server, *more))
    until(lambda: server.ledger()["received"] > before, "the first request")
    return running


def ctl(llmbatch: Llmbatch, out: str | Path, *words: str) -> Done:
    """`llmbatch ctl` in this process, which is another one than the run's, without a start that takes longer."""
    name = str(out) if out == "-" else str(llmbatch.directory / out)
    done = CliRunner().invoke(app, ["ctl", name, *words], env=llmbatch.environment)
    return Done(done.exit_code, done.stdout_bytes, done.stderr, 0.0)


def status(llmbatch: Llmbatch, out: str | Path = OUT) -> dict[str, Any]:
    done = ctl(llmbatch, out, "status", "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)  # type: ignore[no-any-return]


def test_status_says_how_a_run_is(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "60")
    running = started(llmbatch, server, 200, "-c", "4", "--rpm", "100000")
    until(lambda: server.ledger()["in_flight"] == 4, "4 in flight")
    done = llmbatch("ctl", OUT)
    assert done.code == 0, done.err
    table = dict(re.split(r" {2,}", line, maxsplit=1) for line in done.out.decode().splitlines())
    out = llmbatch.directory / OUT
    assert (table["output"], table["socket"], table["state"]) == (str(out), f"{out}.ctl", "running")
    assert table["in flight"] == "4 of 4 allowed"
    assert table["limited by"] == "the concurrency"
    assert table["limits"].startswith("rpm 100,000, tpm none, ")
    assert "concurrency 4" in table["limits"]
    found = status(llmbatch)
    assert (found["pid"], found["in_flight"], found["limits"]["concurrency"]) == (running.process.pid, 4, 4)
    assert (found["done"], found["state"]) == (0, "running")
    assert [lane["in_flight"] for lane in found["lanes"]] == [4]
    assert found["changed"] == {}


def test_limits_are_changed_and_used_at_once(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.5")
    running = started(llmbatch, server, 2000, "-c", "1", "--progress", "plain")
    wider = ctl(llmbatch, OUT, "set", "concurrency=40")
    assert (wider.code, wider.out) == (0, b"concurrency 40 instead of 1\n")
    until(lambda: server.ledger()["in_flight"] == 40, "40 in flight")
    slower = ctl(llmbatch, OUT, "set", "rpm=6", "--json")
    assert json.loads(slower.out)["changed"] == {"rpm": {"old": None, "new": 6}}
    until(lambda: server.ledger()["in_flight"] == 0, "the pace of one in 10 s")
    until(lambda: status(llmbatch)["binding"] == "requests", "what held most of the last two seconds")
    assert ctl(llmbatch, OUT, "set", "rpm=none", "max-concurrency=15").code == 0
    until(lambda: server.ledger()["in_flight"] == 15, "15 in flight")
    assert status(llmbatch)["allowed"] == 15
    assert ctl(llmbatch, OUT, "set", "concurrency=600", "max-concurrency=none").code == 0
    done = running.end()
    assert done.code == 0, done.err
    assert_answers(read_lines(llmbatch.directory / OUT), prompts(2000))
    told = [line.partition("llmbatch: ")[2] for line in done.err.splitlines() if "by llmbatch ctl" in line]
    assert told == [
        "concurrency 40 instead of 1, by llmbatch ctl",
        "rpm 6 instead of none, by llmbatch ctl",
        "rpm none instead of 6, by llmbatch ctl",
        "max-concurrency 15 instead of none, by llmbatch ctl",
        "concurrency 600 instead of 40, by llmbatch ctl",
        "max-concurrency none instead of 15, by llmbatch ctl",
    ]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["set"], "set what?"),
        (["set", "rpm=0"], "--rpm must be above 0, not 0"),
        (["set", "concurrency=3", "speed=9"], "there is no such limit"),
        (["pause", "rpm=3"], "belongs to set"),
        (["faster"], "'faster' is not one of"),
    ],
)
def test_what_can_not_be_meant_is_bad_usage_before_a_run_is_looked_for(
    llmbatch: Llmbatch, words: list[str], why: str
) -> None:
    done = ctl(llmbatch, OUT, *words)
    assert (done.code, done.out) == (2, b"")
    assert why in done.err


def test_paused_sends_nothing_until_it_is_resumed(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.2")
    running = started(llmbatch, server, 60, "-c", "5", "--progress", "plain")
    done = ctl(llmbatch, OUT, "pause")
    assert done.code == 0
    assert re.fullmatch(rb"paused: no new requests; \d in flight go on\n", done.out)
    until(lambda: server.ledger()["in_flight"] == 0, "what was in flight")
    received = server.ledger()["received"]
    until(lambda: len(whole_lines(llmbatch.directory / f"{OUT}.partial")) == received < 60, "the last answer's line")
    assert ctl(llmbatch, OUT, "pause").code == 0
    found = status(llmbatch)
    assert (found["state"], found["paused"], found["binding"], found["eta_s"]) == ("paused", True, "paused", None)
    running.signal(signal.SIGUSR1)
    assert server.ledger()["received"] == received
    assert ctl(llmbatch, OUT, "resume").out == b"resumed\n"
    ended = running.end()
    assert ended.code == 0, ended.err
    assert_answers(read_lines(llmbatch.directory / OUT), prompts(60))
    assert ended.err.count("paused by llmbatch ctl: no new requests; to go on: llmbatch ctl ") == 1
    assert ended.err.count("resumed by llmbatch ctl") == 1
    assert ", paused by llmbatch ctl\n" in ended.err  # the line for SIGUSR1


def test_drained_is_as_terminated_and_the_same_command_continues(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.3")
    running = started(llmbatch, server, 80, "-c", "10")
    drain = llmbatch("ctl", OUT, "drain")
    assert drain.code == 0
    assert drain.out.startswith(b"stopped by llmbatch ctl: no new requests; ")
    done = running.end()
    assert done.code == 143, done.err
    recorded = whole_lines(llmbatch.directory / f"{OUT}.partial")
    assert len(recorded) == server.ledger()["billed"] >= 10
    none = llmbatch("ctl", OUT)
    assert none.code == 1
    assert f"{OUT}.partial is unfinished, and the same llmbatch run command continues it" in none.err
    assert llmbatch(*flags(server, "-c", "50")).code == 0
    assert_answers(read_lines(llmbatch.directory / OUT), prompts(80))
    assert server.ledger()["billed_twice"] == 0
    none = llmbatch("ctl", OUT, "drain")
    assert none.code == 1
    assert f"{OUT} is complete" in none.err


def test_a_paused_run_can_be_drained_and_interrupted(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.1")
    for end, code in ((lambda running: ctl(llmbatch, OUT, "drain"), 143), (interrupt, 130)):
        running = started(llmbatch, server, 100, "-c", "2", "--restart")
        ctl(llmbatch, OUT, "pause")
        end(running)
        assert running.end().code == code
        assert not (llmbatch.directory / f"{OUT}.ctl").exists()


def interrupt(running: Running) -> None:
    running.signal(signal.SIGINT)


def test_a_run_that_only_begins_can_be_paused_and_limited(llmbatch: Llmbatch, sim: StartSim) -> None:
    """The second one reads all of its pipe before it sends anything, to compare it with what the first one did."""
    server = sim()
    command = ("run", "-", "-o", "out.jsonl", "-m", "m", "--base-url", server.base_url)
    first = llmbatch.start(*command)
    said(first, b'"prompt 1"\n')
    until(lambda: len(whole_lines(llmbatch.directory / "out.jsonl.partial")) == 1, "a result")
    assert ctl(llmbatch, "out.jsonl", "drain").code == 0
    assert first.process.wait(PATIENCE_S) == 143
    second = llmbatch.start(*command)
    said(second, b'"prompt 1"\n"prompt 2"\n')
    until(lambda: (llmbatch.directory / "out.jsonl.ctl").exists(), "its socket")
    assert status(llmbatch, "out.jsonl")["state"] == "starting"
    assert ctl(llmbatch, "out.jsonl", "pause").code == 0
    assert ctl(llmbatch, "out.jsonl", "set", "concurrency=7").code == 0
    assert second.process.stdin is not None
    second.process.stdin.close()
    second.process.stdin = None
    until(lambda: status(llmbatch, "out.jsonl").get("done") == 1, "the beginning of the run")
    found = status(llmbatch, "out.jsonl")
    assert (found["state"], found["allowed"], found["in_flight"]) == ("paused", 7, 0)
    assert ctl(llmbatch, "out.jsonl", "resume").code == 0
    assert second.end().code == 0
    assert_answers(read_lines(llmbatch.directory / "out.jsonl"), prompts(2))


def said(running: Running, line: bytes) -> None:
    assert running.process.stdin is not None
    running.process.stdin.write(line)
    running.process.stdin.flush()


def test_only_the_owner_is_let_in_whatever_the_umask(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.2")
    write_rows(llmbatch.directory / "in.jsonl", prompts(40))
    running = llmbatch.start(*flags(server, "-c", "3"), umask=0)
    path = llmbatch.directory / f"{OUT}.ctl"
    until(path.exists, "its socket")
    status_now = path.lstat()
    assert stat.S_ISSOCK(status_now.st_mode)
    assert (stat.S_IMODE(status_now.st_mode), status_now.st_uid) == (0o600, os.geteuid())
    assert running.end().code == 0
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_refused_even_when_the_socket_lies_open(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.2")
    with tempfile.TemporaryDirectory(prefix="ctl", dir="/tmp") as name:
        open_to_all = Path(name)
        open_to_all.chmod(0o777)
        write_rows(llmbatch.directory / "in.jsonl", prompts(1000))
        running = llmbatch.start(*flags(server, "-c", "2", "-o", str(open_to_all / "out.jsonl")))
        path = open_to_all / "out.jsonl.ctl"
        until(path.exists, "its socket")
        assert as_nobody(path, b'{"action":"drain"}\n') == "Permission denied"
        path.chmod(0o666)
        assert as_nobody(path, b'{"action":"drain"}\n') == ""
        # And nobody's run is not asked by us: its answers could be anything.
        listen = "s.bind(sys.argv[1]); s.listen(); sys.stdin.read()"
        command = [sys.executable, "-c", f"{AS_NOBODY}{listen}", str(open_to_all / "theirs.jsonl.ctl")]
        theirs = subprocess.Popen(command, stdin=subprocess.PIPE)
        try:
            until((open_to_all / "theirs.jsonl.ctl").exists, "their socket")
            refused = until(lambda: by_code(ctl(llmbatch, open_to_all / "theirs.jsonl"), 6), "that it listens")
            assert "belongs to a run of another user" in refused.err
        finally:
            theirs.communicate()
        assert status(llmbatch, open_to_all / "out.jsonl")["state"] == "running"
        running.signal(signal.SIGINT)
        assert running.end().code == 130


def by_code(done: Any, code: int) -> Any:
    return done if done.code == code else None


def as_nobody(path: Path, line: bytes) -> str:
    """What another user gets: the answer, or why none."""
    script = (
        f"{AS_NOBODY}s.settimeout(10)\n"
        "try:\n"
        "    s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode()); print(s.recv(1000).decode())\n"
        "except (ConnectionResetError, BrokenPipeError):\n"
        "    pass\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), line.decode()], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "name", ["out.jsonl", "o" * 240, os.fsdecode(b"\xff.jsonl")], ids=["deep", "deep_and_long", "deep_and_no_utf_8"]
)
def test_a_path_longer_than_the_address_of_a_socket(llmbatch: Llmbatch, sim: StartSim, name: str) -> None:
    server = sim("--latency", "0.2")
    folder = llmbatch.directory.joinpath(*["directory" * 10] * 3)
    folder.mkdir(parents=True)
    write_rows(llmbatch.directory / "in.jsonl", prompts(40))
    running = llmbatch.start(*flags(server, "-c", "4", "-o", str(folder / name)))
    until(lambda: server.ledger()["received"] >= 4, "requests")
    assert status(llmbatch, folder / name)["socket"] == f"{folder / name}.ctl"
    assert running.end().code == 0
    assert [path.name for path in folder.iterdir()] == [name]


def test_a_socket_that_a_kill_left_is_no_run_and_the_next_run_replaces_it(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.2")
    running = started(llmbatch, server, 60, "-c", "3")
    running.signal(signal.SIGKILL)
    running.end()
    path = llmbatch.directory / f"{OUT}.ctl"
    stale = path.lstat().st_ino
    none = ctl(llmbatch, OUT)
    assert none.code == 1
    assert "unfinished" in none.err
    again = started(llmbatch, server, 60, "-c", "3")
    assert path.lstat().st_ino != stale
    assert status(llmbatch)["pid"] == again.process.pid
    assert again.end().code == 0
    assert not path.exists()


def test_what_is_no_socket_is_left_alone_and_the_run_is_found_all_the_same(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.2")
    theirs = llmbatch.directory / f"{OUT}.ctl"
    theirs.write_text("somebody's notes")
    running = started(llmbatch, server, 40, "-c", "4")
    found = status(llmbatch)
    assert Path(found["socket"]).parent == llmbatch.state
    done = running.end()
    assert done.code == 0
    assert f"{theirs} is not a socket, and was left alone; llmbatch ctl finds this run at " in done.err
    assert theirs.read_text() == "somebody's notes"
    assert list(llmbatch.state.iterdir()) == []


def test_a_run_that_can_have_no_socket_runs_and_says_so_with_v(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.2")
    (llmbatch.directory / f"{OUT}.ctl").mkdir()
    (llmbatch.directory / "state").write_text("no directory")
    running = started(llmbatch, server, 40, "-c", "4", "-v")
    none = ctl(llmbatch, OUT)
    assert none.code == 6
    assert f"(pid {running.process.pid} on " in none.err
    done = running.end()
    assert done.code == 0, done.err
    assert f"no llmbatch ctl for this run: {llmbatch.directory / OUT}.ctl is not a socket" in done.err


def test_clients_that_misbehave_do_not_hold_up_a_run(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.05")
    running = started(llmbatch, server, 400, "-c", "5")
    path = str(llmbatch.directory / f"{OUT}.ctl")
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(100)]
        for client in silent:
            client.connect(path)
        for number, data in enumerate(
            (b"garbage\n", b'{"action":"pau', b"x" * 10_000 + b"\n", b"\0" * 5000, b"\n" * 9)
        ):
            with contextlib.suppress(BrokenPipeError):
                silent[-1 - number].sendall(data)
        assert status(llmbatch)["state"] == "running"
        done = running.end()
    assert done.code == 0, done.err
    assert "rror" not in done.err
    assert_answers(read_lines(llmbatch.directory / OUT), prompts(400))


def test_two_runs_in_one_directory_are_steered_apart(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.2")
    write_rows(llmbatch.directory / "in.jsonl", prompts(40))
    first, second = (llmbatch.start(*flags(server, "-c", "2", "-o", name)) for name in ("a.jsonl", "b.jsonl"))
    for name in ("a.jsonl", "b.jsonl"):
        until((llmbatch.directory / f"{name}.ctl").exists, "its socket")
    assert ctl(llmbatch, "a.jsonl", "pause").code == 0
    assert (status(llmbatch, "a.jsonl")["paused"], status(llmbatch, "b.jsonl")["state"]) == (True, "running")
    assert second.end().code == 0
    assert status(llmbatch, "a.jsonl")["paused"]
    assert ctl(llmbatch, "a.jsonl", "resume").code == 0
    assert first.end().code == 0


def test_a_run_to_standard_output_is_found_by_its_socket_which_it_tells(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.2")
    running = started(llmbatch, server, 60, "-c", "2", "-o", "-", "-v")
    (path,) = llmbatch.state.glob("*.ctl")
    listed = ctl(llmbatch, "-")
    assert listed.code == 2
    assert str(path) in listed.err
    for name in (path, path.with_suffix(""), path.with_suffix(".partial")):
        assert status(llmbatch, name)["output"] == "standard output"
    running.signal(signal.SIGUSR1)
    done_soon = ctl(llmbatch, path, "set", "concurrency=50")
    assert done_soon.code == 0
    done = running.end()
    assert done.code == 0
    assert f"asked and steered with: llmbatch ctl {path}" in done.err
    assert re.search(rf"requests/s, .*; llmbatch ctl {re.escape(str(path))}\n", done.err)  # for SIGUSR1
    assert len(done.lines) == 60
    assert list(llmbatch.state.iterdir()) == []


def test_no_journal_keeps_no_socket(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    done = llmbatch("run", "-", "-m", "m", "--base-url", server.base_url, "--no-journal", "-v", stdin=b'"prompt 1"\n')
    assert done.code == 0
    assert "no llmbatch ctl for this run: --no-journal keeps nothing on disk" in done.err
    assert not llmbatch.state.exists()


def test_a_run_that_makes_a_table_is_asked_by_the_name_of_the_table(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.2")
    running = started(llmbatch, server, 30, "-c", "3", "-o", "labels.csv")
    assert status(llmbatch, "labels.csv")["output"] == str(llmbatch.directory / "labels.csv")
    assert running.end().code == 0
    none = ctl(llmbatch, "labels.csv")
    assert none.code == 1
    assert "labels.csv.jsonl is complete" in none.err


def test_a_run_that_is_stopped_is_given_up_on(
    llmbatch: Llmbatch, sim: StartSim, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = sim("--latency", "0.2")
    running = started(llmbatch, server, 30, "-c", "3")
    monkeypatch.setattr(ctl_command, "ANSWER_S", 0.3)
    running.signal(signal.SIGSTOP)
    given_up = CliRunner().invoke(app, ["ctl", str(llmbatch.directory / OUT)])
    running.signal(signal.SIGCONT)
    assert given_up.exit_code == 6
    assert "does not answer within 0.3 s" in given_up.output
    assert running.end().code == 0


def test_an_output_that_nobody_knows(llmbatch: Llmbatch) -> None:
    done = llmbatch("ctl", "nothing.jsonl")
    assert done.code == 1
    assert "no run of nothing.jsonl: nothing is known of it; looked for " in done.err
    assert f"{llmbatch.directory / 'nothing.jsonl.ctl'}" in done.err
    assert not llmbatch.state.exists()
