"""The commands that look after a results file, on real files of real runs."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmbatch.cli.app import app

from .processes import Llmbatch, StartSim, assert_answers, prompts, read_lines, until, whole_lines, write_rows

RUN = ("run", "in.jsonl", "-m", "sim/x")


def call(*args: str | Path) -> Any:
    """The command in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def out(llmbatch: Llmbatch, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(llmbatch.directory)
    monkeypatch.setenv("XDG_STATE_HOME", str(llmbatch.directory / "state"))
    write_rows(llmbatch.directory / "in.jsonl", prompts(20))
    assert call(*RUN).exit_code == 0
    return llmbatch.directory / "in.results.jsonl"


def damage(path: Path, number: int, data: bytes) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = data
    path.write_bytes(b"".join(lines))


def test_damage_is_found_repaired_and_only_its_rows_are_sent_again(out: Path) -> None:
    assert call("verify", out, "--input", "in.jsonl").exit_code == 0
    before = out.read_bytes().splitlines()
    damage(out, 7, before[6][:90] + b"\n")
    damage(out, 12, b"\0" * 200 + b"\n")
    found = call("verify", out)
    assert found.exit_code == 1
    assert f"damaged: line 7, byte {sum(map(len, before[:6])) + 6:,} (row 7): not JSON\n" in found.stdout
    assert "damaged: line 12, byte " in found.stdout
    assert found.stdout.endswith(
        f"20 lines: 18 good, 2 damaged, 0 changed, 0 doubled; 2 rows missing\nllmbatch repair {out}\n"
    )
    refused = call(*RUN)
    assert refused.exit_code == 5
    assert f"llmbatch repair {out}" in refused.stderr
    repaired = call("repair", out)
    assert repaired.exit_code == 0
    assert "will be sent again: row 7\nwill be sent again: row 12\n" in repaired.stdout
    assert call("verify", out, "-i", "in.jsonl").stdout.startswith("2 rows of the input not done yet\n")
    done = call(*RUN)
    assert done.exit_code == 0
    assert "18 rows done before, not sent again" in done.stderr
    after = out.read_bytes().splitlines()
    assert [line for row, line in enumerate(after, 1) if row not in (7, 12)] == [
        line for row, line in enumerate(before, 1) if row not in (7, 12)
    ]
    assert_answers(read_lines(out), prompts(20))
    assert call("verify", out, "-i", "in.jsonl").exit_code == 0


def test_every_line_of_a_run_ends_with_its_checksum(out: Path) -> None:
    damage(out, 3, out.read_bytes().splitlines(keepends=True)[2].replace(b"prompt 3", b"prompt 4"))
    found = call("verify", "in.results.jsonl", "--json")
    assert found.exit_code == 1
    report = json.loads(found.stdout)
    assert (report["good"], report["changed"], report["without_checksum"], report["exit_code"]) == (19, 1, 0, 1)
    (finding,) = report["findings"]
    assert (finding["kind"], finding["line"], finding["row"]) == ("changed", 3, 3)
    assert call("repair", out).stdout.startswith(f"{out}: nothing to repair")
    assert "will be sent again: row 3\n" in call("repair", out, "--drop-changed").stdout
    assert call(*RUN).exit_code == 0
    assert_answers(read_lines(out), prompts(20))


def test_running_and_killed_runs_can_be_verified(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.05")
    write_rows(llmbatch.directory / "in.jsonl", prompts(2000))
    out, journal = (llmbatch.directory / name for name in ("in.results.jsonl", "in.results.jsonl.partial"))
    running = llmbatch.start("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "4")
    until(lambda: len(whole_lines(journal)) >= 5, "5 results")
    beside = call("verify", out)
    assert beside.exit_code == 0, beside.stdout
    assert f"a run is writing it: pid {running.process.pid} on " in beside.stdout
    assert call("repair", out).exit_code == 6
    running.signal(signal.SIGKILL)
    running.end()
    with journal.open("ab") as file:
        file.write(b'{"id":null,"row":333,"sta')
    killed = call("verify", journal, "--input", llmbatch.directory / "in.jsonl")
    assert killed.exit_code == 1
    assert "torn: the file ends in the middle of it" in killed.stdout
    assert killed.stdout.endswith("run the same command again: it sends what is missing\n")


def test_terminal_that_knows_no_such_letters_is_no_error(llmbatch: Llmbatch, out: Path) -> None:
    out.write_text('{"id":"\u65e5","row":1,"status":"ok","key":"k","crc":"00000000"}\n')
    done = llmbatch("verify", out, env={"PYTHONIOENCODING": "latin-1"})
    assert done.code == 1
    assert b"(row 1, id '\\u65e5'): changed" in done.out
    report = json.loads(llmbatch("verify", out, "--json", env={"PYTHONIOENCODING": "latin-1"}).out)
    assert report["findings"][0]["id"] == "\u65e5"


@pytest.mark.parametrize("command", ["verify", "repair"])
def test_each_way_to_end_has_its_code(out: Path, command: str) -> None:
    assert call(command, out).exit_code == 0
    assert call(command, "nothing.jsonl").exit_code == 2
    assert call(command, "in.jsonl").exit_code == 6
    assert call(command, ".").exit_code == 2
    assert call(command).exit_code == 2


def test_input_that_is_not_there_ends_with_2(out: Path) -> None:
    done = call("verify", out, "--input", "nothing.jsonl")
    assert (done.exit_code, done.stderr) == (2, "llmbatch: no such file: nothing.jsonl\n")


def test_reader_that_leaves_is_no_error(llmbatch: Llmbatch, out: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = llmbatch("verify", out, stdout=writing)
    finally:
        os.close(writing)
    assert (done.code, done.err) == (0, "")


def test_the_command_that_is_named_can_be_pasted(llmbatch: Llmbatch, out: Path) -> None:
    odd = out.with_name("it's a $(name).jsonl")
    out.rename(odd)
    damage(odd, 4, b"x\n")
    refused = call(*RUN, "-o", odd.name)
    assert refused.exit_code == 5
    command = refused.stderr.split("nothing was sent. ", 1)[1].split(" moves it aside")[0]
    assert command == f"llmbatch repair {shlex.quote(str(odd))}"
    assert llmbatch.shell(command).code == 0
    assert call(*RUN, "-o", odd.name).exit_code == 0
