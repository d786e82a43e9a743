"""What held up a run is said at its end: each cause is made, and the summary names it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from llmbatch.files.journal import Journal
from llmbatch.options import RunOptions
from llmbatch.runner import Run
from llmbatch.sampler import TICK_S
from llmbatch.summary import Summary

from .processes import Done, Llmbatch, StartSim, prompts, until, write_rows

HOOKS = """
import asyncio
import time

async def waits(row):
    await asyncio.sleep(0.3)
    return row

async def computes(row):
    end = time.thread_time() + 0.01
    while time.thread_time() < end:
        pass
    return row

async def sleeps(row):
    time.sleep(0.08)
    return row
"""


class Case:
    """A provider and rows; the run's shares of time and what it said of them."""

    def __init__(self, llmbatch: Llmbatch, sim: StartSim) -> None:
        self.llmbatch = llmbatch
        self.sim = sim
        (llmbatch.directory / "hooks.py").write_text(HOOKS)

    def __call__(self, rows: int, *flags: str, sim: tuple[str, ...] = ("--latency", "0.01")) -> dict[str, Any]:
        write_rows(self.llmbatch.directory / "in.jsonl", [{"prompt": prompt} for prompt in prompts(rows)])
        server = self.sim(*sim)
        done = self.llmbatch(
            *("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "--summary-json", "sum.json", *flags)
        )
        return self.said(done)

    def said(self, done: Done) -> dict[str, Any]:
        assert done.code == 0, done.err
        summary = json.loads((self.llmbatch.directory / "sum.json").read_text())
        assert sum(summary["binding_shares"].values()) == pytest.approx(1.0, abs=0.001)
        assert "\nlimited by  " in done.err
        return {**summary, "text": done.err}


@pytest.fixture
def case(llmbatch: Llmbatch, sim: StartSim) -> Case:
    return Case(llmbatch, sim)


def most_of(summary: dict[str, Any]) -> str:
    """What held at least half of the time."""
    name, share = next(iter(summary["binding_shares"].items()))
    assert share > 0.5, summary["binding_shares"]
    return str(name)


def test_a_pace(case: Case) -> None:
    """A run of some seconds ends with a sentence."""
    summary = case(65, "--rpm", "600")
    assert most_of(summary) == "requests"
    assert summary["advice"].startswith("request-bound ") and "--rpm above 600" in summary["advice"]
    assert f"\nadvice      {summary['advice']}\n" in summary["text"]


def test_a_short_run_has_shares_and_no_advice(case: Case) -> None:
    summary = case(20, "-c", "2", sim=("--latency", "0.1"))
    assert most_of(summary) == "concurrency" and summary["advice"] is None
    assert "\nadvice" not in summary["text"]


def test_as_many_rows_as_places(case: Case) -> None:
    assert most_of(case(4, "-c", "16", sim=("--latency", "1"))) == "tail"


def test_a_pause_of_the_provider(case: Case) -> None:
    """It refuses everybody; a single refusal would be a matter of the rate."""
    script = case.llmbatch.directory / "script.jsonl"
    script.write_text("".join(f'{{"n": {n}, "fault": "429"}}\n' for n in (1, 2, 3, 4)))
    summary = case(40, "-c", "4", sim=("--latency", "0.02", "--script", str(script), "--retry-after", "2"))
    assert most_of(summary) == "provider"


def test_rows_that_rest_before_another_try(case: Case) -> None:
    script = case.llmbatch.directory / "script.jsonl"
    script.write_text("".join(f'{{"n": {n}, "fault": "500"}}\n' for n in (1, 2, 3)))
    summary = case(1, sim=("--latency", "0.01", "--script", str(script)))
    assert summary["retries"] == 3 and most_of(summary) == "retries"


@pytest.mark.parametrize(
    ("flag", "hook", "rows", "name"),
    [
        ("--before", "waits", 24, "hooks"),
        ("--after", "waits", 24, "hooks"),
        ("--before", "computes", 150, "cpu"),
        ("--before", "sleeps", 20, "cpu"),
    ],
)
def test_hooks_that_wait_and_hooks_that_hold_up_the_loop(
    case: Case, flag: str, hook: str, rows: int, name: str
) -> None:
    assert most_of(case(rows, "-c", "4", flag, f"hooks:{hook}")) == name


def test_a_server_without_latency_leaves_it_to_the_cpu(case: Case) -> None:
    assert most_of(case(3000, "-c", "32", sim=("--latency", "0"))) == "cpu"


def test_a_slow_pipe(case: Case) -> None:
    server = case.sim("--latency", "0.01")
    running = case.llmbatch.start(
        *("run", "-", "-m", "m", "--base-url", server.base_url, "--summary-json", "sum.json", "-o", "out.jsonl")
    )
    assert running.process.stdin is not None
    for number, prompt in enumerate(prompts(25), 1):
        running.process.stdin.write(json.dumps(prompt).encode() + b"\n")
        running.process.stdin.flush()
        until(lambda number=number: server.ledger()["received"] >= number, "its request")
        time.sleep(0.1)
    assert most_of(case.said(running.end())) == "input"


def test_a_reader_of_standard_output_who_is_slow(case: Case) -> None:
    """More than 8 MB wait for it, and then no row is read; the display says so meanwhile."""
    write_rows(case.llmbatch.directory / "in.jsonl", [{"prompt": f"{n} " + "x" * 500_000} for n in range(40)])
    server, log = case.sim("--latency", "0"), case.llmbatch.directory / "log"
    with log.open("w") as stderr:
        running = case.llmbatch.start(
            *("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "2", "-o", "-", "--include-input"),
            *("--progress", "json"),
            stderr=stderr,
        )
    until(lambda: '"binding":"disk"' in log.read_text(), "the output")
    done = running.end()
    assert done.code == 0 and len(done.lines) == 40
    assert "the output" in log.read_text().partition("\nlimited by  ")[2].partition("\n")[0]


# In this process


def run_here(directory: Path, base_url: str, rows: int) -> tuple[Run, Summary]:
    source = str(write_rows(directory / "in.jsonl", prompts(rows)))
    run = Run(RunOptions(source, str(directory / "out.jsonl"), model="m", base_url=base_url, concurrency=4))
    return run, asyncio.run(run.execute())


def test_a_slow_disk(tmp_path: Path, sim: StartSim, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Journal._write

    async def slowly(self: Journal, batch: Any) -> Any:
        await asyncio.sleep(0.1)
        return await write(self, batch)

    monkeypatch.setattr(Journal, "_write", slowly)
    _, summary = run_here(tmp_path, sim("--latency", "0.01").base_url, 60)
    assert summary.binding_shares is not None and summary.binding_shares["disk"] > 0.6


def test_shares_are_of_the_whole_run(tmp_path: Path, sim: StartSim) -> None:
    """From the first word to the last: reading, sending, and putting the results in order."""
    run, summary = run_here(tmp_path, sim("--latency", "0.1").base_url, 40)
    assert summary.binding_shares is not None
    assert sum(summary.binding_shares.values()) == pytest.approx(1.0)
    assert run._sampler.shares.total_s == pytest.approx(summary.seconds, abs=TICK_S)


def test_the_bar_and_the_progress_lines_get_it_while_it_runs(case: Case) -> None:
    write_rows(case.llmbatch.directory / "in.jsonl", prompts(30))
    server = case.sim("--latency", "0.2")
    done = case.llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "2", "--progress", "json")
    told = [json.loads(line) for line in done.err.splitlines() if line.startswith('{"event":"progress"')]
    assert [line["binding"] for line in told[1:]] == ["concurrency"] * (len(told) - 1) and len(told) > 2
