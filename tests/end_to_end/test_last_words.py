"""What a run says is what happened: nothing left to do, rows missing, no rows at all, a drain told once."""

from __future__ import annotations

import gzip
import os
import pty
import signal
from pathlib import Path

import pytest

from .processes import Llmbatch, Sim, StartSim, assert_answers, prompts, read_lines, until, whole_lines, write_rows


def run_flags(server: Sim, *more: str) -> tuple[str, ...]:
    return ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, *more)


def test_rows_that_still_can_not_be_sent_are_no_work(llmbatch: Llmbatch, sim: StartSim) -> None:
    server, out = sim(), llmbatch.directory / "in.results.jsonl"
    write_rows(llmbatch.directory / "in.jsonl", [*prompts(3), {"prompt": ""}, {"question": "x"}])
    assert llmbatch(*run_flags(server)).code == 1
    before = out.read_bytes(), out.stat().st_mtime_ns, out.stat().st_ino
    again = llmbatch(*run_flags(server))
    assert again.code == 1, again.err
    assert "2 rows can still not be sent" in again.err
    assert "sent again" not in again.err.replace("not sent again", "")
    assert "5 rows = 3 ok + 2 failed" in again.err
    assert (out.read_bytes(), out.stat().st_mtime_ns, out.stat().st_ino) == before
    write_rows(llmbatch.directory / "in.jsonl", [*prompts(3), "mended", {"question": "x"}])
    mended = llmbatch(*run_flags(server))
    assert "1 row failed before, sent again" in mended.err
    assert "1 row can still not be sent" in mended.err
    assert server.ledger()["received"] == 4


def test_killed_between_the_last_row_and_the_seal_is_sealed_by_the_next_run(llmbatch: Llmbatch, sim: StartSim) -> None:
    server, out = sim(), llmbatch.directory / "in.results.jsonl"
    write_rows(llmbatch.directory / "in.jsonl", prompts(5))
    assert llmbatch(*run_flags(server)).code == 0
    out.rename(out.with_name("in.results.jsonl.partial"))
    assert llmbatch(*run_flags(server)).code == 0
    assert_answers(read_lines(out), prompts(5))
    assert server.ledger()["received"] == 5


def test_cut_gzip_is_told_at_every_repeat(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    text = "".join(f'"prompt {number} {os.urandom(20).hex()}"\n' for number in range(2000))
    (llmbatch.directory / "in.jsonl.gz").write_bytes(gzip.compress(text.encode())[:-2000])
    for _ in range(2):
        done = llmbatch("run", "in.jsonl.gz", "-m", "m", "--base-url", server.base_url)
        assert done.code == 1, done.err
        assert "is cut short" in done.err
        assert "rows are missing" in done.err
        assert "some rows failed" not in done.err


def test_no_rows_are_said(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    (llmbatch.directory / "in.jsonl").write_text("\n\n")
    for _ in range(2):
        done = llmbatch(*run_flags(server))
        assert done.code == 0
        assert "0 rows: the input was empty" in done.err
        assert "every row is ok" not in done.err


def test_draining_is_told_once(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.6")
    write_rows(llmbatch.directory / "in.jsonl", prompts(100))
    running = llmbatch.start(*run_flags(server, "-c", "10", "--progress", "plain"))
    until(lambda: server.ledger()["received"] >= 10, "10 requests")
    running.signal(signal.SIGINT)
    told = [line for line in running.end().err.splitlines() if "in flight" in line]
    assert len(told) == 1, told
    assert "10 in flight" in told[0]


@pytest.mark.parametrize("tail", [b'{"id":null,"row":7,"status":"ok","outp', b""])
def test_dry_run_changes_no_file_of_an_unfinished_run(llmbatch: Llmbatch, sim: StartSim, tail: bytes) -> None:
    server = sim("--latency", "0.05")
    write_rows(llmbatch.directory / "in.jsonl", prompts(40))
    journal = llmbatch.directory / "in.results.jsonl.partial"
    running = llmbatch.start(*run_flags(server, "-c", "4"))
    until(lambda: len(whole_lines(journal)) >= 10, "10 results")
    running.signal(signal.SIGKILL)
    running.end()
    with journal.open("ab") as file:
        file.write(tail)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files(llmbatch)}
    done = llmbatch(*run_flags(server, "--dry-run"))
    assert done.code == 0, done.err
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files(llmbatch)} == before
    assert ("torn record" in done.err) == bool(tail)
    assert "done before" in done.err


def files(llmbatch: Llmbatch) -> list[Path]:
    return [path for path in llmbatch.directory.rglob("*") if path.is_file()]


def test_reading_a_whole_pipe_before_sending_is_said(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.05")
    rows = "".join(f'"{prompt}"\n' for prompt in prompts(40)).encode()
    flags = ("run", "-", "-o", "out.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "4")
    running = llmbatch.start(*flags)
    assert running.process.stdin is not None
    running.process.stdin.write(rows)
    running.process.stdin.flush()
    until(lambda: len(whole_lines(llmbatch.directory / "out.jsonl.partial")) >= 5, "5 results")
    running.signal(signal.SIGKILL)
    assert "reading all of standard input first" not in running.end().err
    assert "reading all of standard input first" in llmbatch(*flags, stdin=rows).err


def test_reading_from_a_terminal_says_how_to_end(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    ours, theirs = pty.openpty()
    running = llmbatch.start("run", "-", "-m", "m", "--base-url", server.base_url, stdin=theirs)
    os.close(theirs)
    os.write(ours, b'"prompt 1"\n\x04')
    done = running.end()
    os.close(ours)
    assert done.code == 0, done.err
    assert "reading from the terminal; end with Ctrl-D" in done.err
    assert len(done.lines) == 1


def test_blank_first_line_does_not_hide_the_models_of_the_rows(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    (llmbatch.directory / "in.jsonl").write_text('\n \n{"prompt": "prompt 1", "model": "m"}\n')
    done = llmbatch("run", "in.jsonl", "--base-url", server.base_url)
    assert done.code == 0, done.err
