"""``llmbatch compare`` from outside: what it refuses, what it sends, what it writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmbatch.cli.app import app
from llmbatch.compare.server import served
from llmbatch.rules.comparison import Server, comparison_from

SMALL = ["--threads", "2", "--processes", "1", "--loop", "3"]
START = "from llmbatch.__main__ import main; main()"
KEY = "sk-a-key-that-is-made-up-0123456789"


def compared(*args: object, cwd: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "llmbatch", "compare", *map(str, args)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "row {number}"}}\n' for number in range(6)))
    return path


def test_a_small_comparison_from_file_to_table_and_json(rows: Path) -> None:
    done = compared(
        rows.name,
        "--part",
        "drivers",
        "--limit",
        "6",
        "--latency",
        "50ms",
        *SMALL,
        "--json",
        "all.json",
        cwd=rows.parent,
    )
    assert done.stdout.startswith("The same rows under each driver, calls of 50 ms\n")
    assert done.stderr == ""
    record = json.loads((rows.parent / "all.json").read_text())
    found = comparison_from(record)
    assert [one.case.driver.name for one in found.compared] == ["sequential", "threads(2)", "processes(1)", "loop(3)"]
    assert all(one.runs[0].ok == 6 for one in found.compared)
    assert found.differing == []
    assert found.made_by.startswith("llmbatch compare rows.jsonl --part drivers")
    assert set(record) == {"version", "endpoint", "made_by", "date", "machine", "compared", "notes"}


def test_json_on_standard_output_stands_alone_and_failures_are_exit_code_1(rows: Path) -> None:
    few = ["--limit", "4", "--latency", "0.01", "--threads", "1", "--processes", "1", "--loop", "2"]
    done = compared(
        rows.name,
        "--part",
        "drivers",
        *few,
        "--sim",
        "fault=503=1",
        "--json",
        "-",
        "--runs",
        "2",
        cwd=rows.parent,
        code=1,
    )
    found = comparison_from(json.loads(done.stdout))
    assert all([run.failures for run in one.runs] == [{"server_is_overloaded": 4}] * 2 for one in found.compared)


def test_rows_are_repeated_where_more_are_needed_and_it_is_said(rows: Path) -> None:
    done = compared(rows.name, "--part", "memory", "--in-flight", "20", "-q", cwd=rows.parent)
    assert "the 6 rows of the input were sent again and again" in done.stdout
    assert done.stdout.count("http ") >= 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-m", "openai/gpt-4.1-mini", "--yes"], "say how many with --limit N"),
        (["--base-url", "http://127.0.0.1:9/v1", "--yes"], "say how many with --limit N"),
        (
            ["-m", "openai/gpt-4.1-mini", "--limit", "3", *SMALL],
            "this sends 12 requests to https://api.openai.com/v1/chat",
        ),
        (["-m", "openai/gpt-4.1-mini", "--limit", "3", "--runs", "2", *SMALL], "this sends 24 requests"),
        (
            ["-m", "openai/gpt-4.1-mini", "--limit", "3", "--yes", "--part", "memory"],
            "--part memory needs the simulated",
        ),
        (["-m", "openai/gpt-4.1-mini", "--limit", "3", "--yes"], "no key for https://api.openai.com/v1"),
        (["--part", "speed"], "there are drivers, overhead, short"),
        (["--threads", "ten"], "--threads 'ten': give whole numbers"),
        (["--loop", "0"], "--loop counts from 1"),
        (["--part", "memory", "--in-flight", "0"], "--in-flight counts from 1"),
        (
            ["--part", "memory", "--in-flight", "1000000000"],
            "nothing can be compared here; more than",
        ),
        (["--latency", "0"], "--latency must be above 0"),
        (["--sim", "latency=3"], "compare sets it itself"),
        (["--sim", "port=3"], "--sim port: compare takes a free one"),
        (["--sim", "mode=threads"], "--sim mode: compare asks a server on an event loop"),
        (["--part", "tasks", "--plot", "x.svg"], "--plot shows the parts drivers, overhead, cpu, memory"),
        (["--sim", "fault=fire=1"], "no fault is called 'fire'"),
        (["--plot", "x.pdf"], "--plot x.pdf: give it a name in .svg or .png"),
        (["--json", "rows.jsonl"], "--json rows.jsonl is the input"),
        (["--json", "nowhere/x.json"], "--json nowhere/x.json: name a file in a directory that exists"),
        (["--part", "cpu", "--before", "asyncio:sleep"], "is async, and only one of the drivers could await it"),
        (["--part", "cpu", "--before", "nowhere:f"], "there is no module 'nowhere'"),
    ],
)
def test_refused_before_anything_is_sent(
    flags: list[str], words: str, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.parent)
    monkeypatch.setenv("OPENAI_API_KEY", "")
    done = CliRunner().invoke(app, ["compare", rows.name, *flags])
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no rows"),
        ('{"prompt": "a"}\n{"question": "b"}\n', "line 2: no 'prompt' or 'messages'"),
        ('{"tasks": {"a": "b"}}\n', "line 1 has tasks"),
    ],
)
def test_input_that_can_not_be_sent_as_it_is(text: str, words: str, rows: Path) -> None:
    rows.write_text(text)
    assert words in compared(rows.name, cwd=rows.parent, code=2).stderr


def test_a_real_provider_gets_what_was_said_and_no_more_with_the_key_in_no_other_place(rows: Path) -> None:
    with served(Server(0.0), {"api-key": KEY}, None) as server:
        done = compared(
            rows.name, "--base-url", server.url, "-m", "any", "--limit", "3", "--yes", *SMALL, "--key-env", "OWN_KEY",
            "--json", "all.json", cwd=rows.parent, OWN_KEY=KEY,
        )  # fmt: skip
        with urllib.request.urlopen(server.url.removesuffix("/v1") + "/ledger") as response:
            assert json.load(response)["received"] == 4 * 3
    assert "calls to a real provider" in done.stdout
    assert "openssl" not in done.stdout
    assert KEY not in done.stdout + done.stderr + (rows.parent / "all.json").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="takes away open files for one process")
def test_what_this_machine_can_not_do_is_left_out_and_said(rows: Path) -> None:
    """There are no more than 256 open files, and no openssl."""
    limited = f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (256, 256)); {START}"
    command = [sys.executable, "-c", limited, "compare", rows.name, "--part", "memory", "--in-flight", "3,1000"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PATH": str(rows.parent)}
    done = subprocess.run(command, cwd=rows.parent, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "requests in flight are left out: no more files" in done.stdout
    assert "nothing over https: it needs the openssl command" in done.stdout
    assert "loop(3)" in done.stdout and "loop(1,000)" not in done.stdout


def test_the_tables_are_shown_though_the_record_can_not_be_written(rows: Path) -> None:
    few = ["--part", "tasks", "--latency", "0.01", "--limit", "2"]
    done = compared(rows.name, *few, "--json", "/proc/x.json", cwd=rows.parent, code=5)
    assert "Several tasks per row" in done.stdout
    assert "--json /proc/x.json" in done.stderr


def test_a_refused_key_is_a_failure_that_does_not_repeat_it(rows: Path) -> None:
    with served(Server(0.0), {"api-key": "another"}, None) as server:
        done = compared(
            rows.name, "--base-url", server.url, "-m", "any", "--limit", "2", "--yes", "--threads", "1", "--processes",
            "1", "--loop", "1", "--key-env", "OWN_KEY", cwd=rows.parent, code=1, OWN_KEY=KEY,
        )  # fmt: skip
    assert done.stdout.count("2 rows failed: invalid_api_key") == 4
    assert KEY not in done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="finds its processes in /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_drivers_and_the_server_too(number: int, code: int, rows: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "llmbatch", "compare", rows.name, "--part", "drivers", "--latency", "50"]
    process = subprocess.Popen(command, cwd=rows.parent, env=environment, stderr=subprocess.PIPE)
    try:
        started = _until(lambda: len(found := _children(process.pid)) == 2 and found)
        process.send_signal(number)
        assert process.wait(30) == code
        _until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
        process.stderr.close()


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _until(what: Callable[[], Any]) -> Any:
    """Processes start and end in their own time."""
    for _ in range(300):
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come to that in 30 s")
