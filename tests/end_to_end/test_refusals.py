"""What is refused before anything is sent: the exit code, and a message that names the thing and the way out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .processes import Llmbatch, StartSim, prompts, until, write_rows


@pytest.fixture
def rows(llmbatch: Llmbatch) -> Path:
    return write_rows(llmbatch.directory / "in.jsonl", prompts(3))


@pytest.mark.parametrize(
    ("flags", "words"),
    [(["-m", "sim/x", "-o", "in.jsonl"], "is the input itself"), (["-m", "openai/gpt-4.1-mini"], "OPENAI_API_KEY")],
    ids=["output_is_input", "missing_key"],
)
def test_bad_usage_ends_with_2_and_says_why(llmbatch: Llmbatch, rows: Path, flags: list[str], words: str) -> None:
    done = llmbatch("run", "in.jsonl", *flags)
    assert done.code == 2, done.err
    assert words in done.err
    assert done.out == b""
    assert [path.name for path in llmbatch.directory.rglob("*") if path.is_file()] == ["in.jsonl"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_directory_is_refused(llmbatch: Llmbatch, rows: Path) -> None:
    folder = llmbatch.directory / "closed"
    folder.mkdir(mode=0o500)
    done = llmbatch("run", "in.jsonl", "-m", "sim/x", "-o", "closed/out.jsonl")
    assert done.code == 2
    assert "closed" in done.err


def test_file_of_someone_else_is_refused_and_restart_moves_it_aside(llmbatch: Llmbatch, rows: Path) -> None:
    foreign = llmbatch.directory / "in.results.jsonl"
    foreign.write_text("name,price\nbread,2\n")
    done = llmbatch("run", "in.jsonl", "-m", "sim/x")
    assert done.code == 6
    assert "is not a results file of llmbatch" in done.err
    assert foreign.read_text().startswith("name,price")
    assert llmbatch("run", "in.jsonl", "-m", "sim/x", "--restart").code == 0
    (aside,) = llmbatch.directory.glob("in.results.jsonl.bak-*")
    assert aside.read_text() == "name,price\nbread,2\n"


def test_second_run_on_one_output_is_refused_naming_the_first(llmbatch: Llmbatch, rows: Path, sim: StartSim) -> None:
    server = sim("--latency", "5")
    command = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url)
    first = llmbatch.start(*command)
    lock = llmbatch.directory / "in.results.jsonl.lock"
    until(lambda: lock.exists() and lock.read_text(), "the first run signs its lock")
    second = llmbatch(*command)
    assert second.code == 6
    assert f"pid {first.process.pid}" in second.err
    assert first.process.poll() is None


def test_lock_left_by_a_killed_run_holds_nobody_up(llmbatch: Llmbatch, rows: Path) -> None:
    (llmbatch.directory / "in.results.jsonl.lock").write_text('{"pid": 1, "host": "h", "started": "then"}\n')
    assert llmbatch("run", "in.jsonl", "-m", "sim/x").code == 0
    assert not (llmbatch.directory / "in.results.jsonl.lock").exists()


def test_append_of_the_shell_onto_the_input_is_refused(llmbatch: Llmbatch, rows: Path) -> None:
    before = rows.read_bytes()
    done = llmbatch.shell("llmbatch run in.jsonl -m sim/x -o - >> in.jsonl")
    assert done.code == 2, done.err
    assert rows.read_bytes() == before


def test_state_directory_that_others_can_write_gets_no_journal(llmbatch: Llmbatch, rows: Path) -> None:
    llmbatch.state.mkdir(parents=True)
    llmbatch.state.chmod(0o777)
    done = llmbatch("run", "in.jsonl", "-m", "sim/x", "-o", "-")
    assert (done.code, done.out) == (2, b"")
    assert "is not yours alone" in done.err
    assert not list(llmbatch.state.iterdir())
