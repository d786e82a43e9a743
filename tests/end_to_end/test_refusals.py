"""What is refused before anything is sent: the exit code, and a message that names the thing and the way out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .processes import Llmbatch, StartSim, prompts, until, write_rows


@pytest.fixture
def rows(llmbatch: Llmbatch) -> Path:
    return write_rows(llmbatch.directory / "in.jsonl", prompts(3))


USAGE = {
    "output_is_input": (["in.jsonl", "-m", "sim/x", "-o", "in.jsonl"], "is the input itself"),
    "output_is_a_directory": (["in.jsonl", "-m", "sim/x", "-o", "."], "is a directory"),
    "output_directory_missing": (["in.jsonl", "-m", "sim/x", "-o", "no/out.jsonl"], "create the directory"),
    "input_missing": (["no.jsonl", "-m", "sim/x"], "no such file: no.jsonl"),
    "input_is_a_directory": ([".", "-m", "sim/x"], "is a directory"),
    "no_model": (["in.jsonl"], "no model: add -m"),
    "unknown_provider": (["in.jsonl", "-m", "nobody/x"], "--base-url"),
    "missing_key": (["in.jsonl", "-m", "openai/gpt-4.1-mini"], "OPENAI_API_KEY"),
    "named_key_missing": (["in.jsonl", "-m", "x", "--key-env", "MY_KEY"], "MY_KEY"),
    "bad_url": (["in.jsonl", "-m", "x", "--base-url", "localhost:8000"], "http://localhost:8000/v1"),
    "bad_param": (["in.jsonl", "-m", "sim/x", "-p", "temperature"], "name=value"),
    "reserved_param": (["in.jsonl", "-m", "sim/x", "-p", "model=y"], "use -m"),
    "bad_concurrency": (["in.jsonl", "-m", "sim/x", "-c", "0"], "--concurrency"),
    "bad_rpm": (["in.jsonl", "-m", "sim/x", "--rpm", "0"], "--rpm"),
    "bad_duration": (["in.jsonl", "-m", "sim/x", "--timeout", "soon"], "30s"),
    "bad_template": (["in.jsonl", "-m", "sim/x", "-t", "{{ open"], "--template"),
    "missing_template_file": (["in.jsonl", "-m", "sim/x", "-t", "@no.txt"], "no.txt"),
    "bad_sim_option": (["in.jsonl", "-m", "sim/x", "--sim", "speed=9"], "speed"),
    "unknown_flag": (["in.jsonl", "-m", "sim/x", "--fast"], "--fast"),
    "quiet_and_verbose": (["in.jsonl", "-m", "sim/x", "-q", "-v"], "-q and -v"),
}


@pytest.mark.parametrize("case", USAGE)
def test_bad_usage_ends_with_2_says_why_and_leaves_nothing(llmbatch: Llmbatch, rows: Path, case: str) -> None:
    flags, words = USAGE[case]
    done = llmbatch("run", *flags)
    assert done.code == 2, done.err
    assert words in done.err
    assert done.out == b""
    assert [path.name for path in llmbatch.directory.rglob("*") if path.is_file()] == ["in.jsonl"]


INPUTS = {
    "json_array": (b'[{"prompt": "a"},\n{"prompt": "b"}]\n', "jq -c '.[]'"),
    "utf16": ('{"prompt": "a"}\n'.encode("utf-16"), "iconv"),
    "binary": (b"\x7fELF\x02\x01\x01\x00\x00\x00\x00", ""),
    "pretty_printed": (b'{\n  "prompt": "a"\n}\n', "jq -c"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_file_of_the_wrong_kind_is_refused_with_the_command_that_helps(llmbatch: Llmbatch, case: str) -> None:
    content, words = INPUTS[case]
    (llmbatch.directory / "in.jsonl").write_bytes(content)
    done = llmbatch("run", "in.jsonl", "-m", "sim/x")
    assert done.code == 2, done.err
    assert words in done.err
    assert not (llmbatch.directory / "in.results.jsonl.partial").exists()


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
