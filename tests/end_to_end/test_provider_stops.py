"""When every row will fail for the same reason the run stops with 3, and the same command goes on once it is mended."""

from __future__ import annotations

import socket
import time
from pathlib import Path

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


def test_row_that_no_server_takes_does_not_hold_up_the_others(llmbatch: Llmbatch, sim: StartSim) -> None:
    """Three rows that each name a model nobody has: they fail, OUT is sealed, and stays so when it is said again."""
    server = sim("--models", "m")
    rows = [{"prompt": f"p{n}", "model": "nobody-has-it"} for n in range(3)] + [
        {"prompt": f"p{n}"} for n in range(3, 9)
    ]
    write_rows(llmbatch.directory / "in.jsonl", rows)
    command = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "1")
    for _ in range(2):
        done = llmbatch(*command)
        assert done.code == 1, done.err
        lines = read_lines(llmbatch.directory / "in.results.jsonl")
        assert [line["status"] for line in lines] == ["error"] * 3 + ["ok"] * 6


def test_rows_that_failed_before_do_not_stop_the_run_before_it_comes_to_the_rest(
    llmbatch: Llmbatch, sim: StartSim, tmp_path: Path
) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text("".join(f'{{"prompt": "bad {n}", "fault": "401"}}\n' for n in range(3)))
    server = sim("--script", str(script))
    write_rows(llmbatch.directory / "in.jsonl", [{"prompt": f"bad {n}"} for n in range(3)] + prompts(6))
    command = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "1")
    assert llmbatch(*command).code == 3
    done = llmbatch(*command)
    assert done.code == 1, done.err
    assert sum(line["status"] == "ok" for line in read_lines(llmbatch.directory / "in.results.jsonl")) == 6


def test_complete_output_stays_when_its_failed_row_fails_again(
    llmbatch: Llmbatch, sim: StartSim, tmp_path: Path
) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text('{"prompt": "prompt 3", "fault": "401"}\n')
    server = sim("--script", str(script))
    write_rows(llmbatch.directory / "in.jsonl", prompts(6))
    command = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url)
    for _ in range(3):
        assert llmbatch(*command).code == 1
        assert len(read_lines(llmbatch.directory / "in.results.jsonl")) == 6
        assert not (llmbatch.directory / "in.results.jsonl.partial").exists()
