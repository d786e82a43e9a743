"""Too many failed rows end the run with 4, a server that is ill for too long with 3; the same command goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .processes import Done, Llmbatch, Sim, StartSim, prompts, read_lines, whole_lines, write_rows

WIDTH = 4


def scripted(llmbatch: Llmbatch, sim: StartSim, *rules: dict[str, Any], flags: tuple[str, ...] = ()) -> Sim:
    script = llmbatch.directory / "script.jsonl"
    script.write_text("".join(json.dumps(rule) + "\n" for rule in rules))
    return sim("--script", str(script), *flags)  # type: ignore[no-any-return]


def send(llmbatch: Llmbatch, server: Sim, *flags: str) -> Done:
    return llmbatch(
        "run",
        "in.jsonl",
        "-m",
        "m",
        "--base-url",
        server.base_url,
        "-c",
        str(WIDTH),
        "--summary-json",
        "sum.json",
        *flags,
    )


def summary(llmbatch: Llmbatch) -> dict[str, Any]:
    return json.loads((llmbatch.directory / "sum.json").read_text())  # type: ignore[no-any-return]


def sealed(llmbatch: Llmbatch) -> Path:
    return llmbatch.directory / "in.results.jsonl"


def journal(llmbatch: Llmbatch) -> list[dict[str, Any]]:
    return whole_lines(llmbatch.directory / "in.results.jsonl.partial")


BAD_PROMPT = {"prompt": "bad", "fault": "400"}


def test_twenty_equal_permanent_errors_stop_the_run_and_the_words_say_how_to_go_on(
    llmbatch: Llmbatch, sim: StartSim
) -> None:
    server = scripted(llmbatch, sim, BAD_PROMPT)
    write_rows(llmbatch.directory / "in.jsonl", prompts(100, "bad"))
    done = send(llmbatch, server)
    assert done.code == 4, done.err
    for words in ("first 20 answers", "invalid_prompt (HTTP 400): Invalid prompt.", "--max-failures 100%"):
        assert words in done.err
    assert "Stopped at a limit" in done.err and "run the same command again" in done.err
    asked = server.ledger()["received"]
    assert 20 <= asked < 20 + WIDTH
    assert len(journal(llmbatch)) == asked and not sealed(llmbatch).exists()
    counts = summary(llmbatch)
    assert counts["adds_up"] and counts["failed"] == asked
    regardless = send(llmbatch, server, "--max-failures", "100%")
    assert regardless.code == 1, regardless.err
    assert [line["status"] for line in read_lines(sealed(llmbatch))] == ["error"] * 100


def test_stopped_run_continues_with_the_rows_it_had_not_come_to(llmbatch: Llmbatch, sim: StartSim) -> None:
    """The rows that failed are asked again, and count no more; the others are good."""
    server = scripted(llmbatch, sim, BAD_PROMPT)
    write_rows(llmbatch.directory / "in.jsonl", prompts(30, "bad") + prompts(30, "good"))
    assert send(llmbatch, server).code == 4
    done = send(llmbatch, server)
    assert done.code == 1, done.err
    assert [line["status"] for line in read_lines(sealed(llmbatch))] == ["error"] * 30 + ["ok"] * 30


def test_resume_of_rows_that_all_failed_before_is_not_stopped(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = scripted(llmbatch, sim, BAD_PROMPT)
    write_rows(llmbatch.directory / "in.jsonl", prompts(30, "bad"))
    assert send(llmbatch, server, "--max-failures", "100%").code == 1
    done = send(llmbatch, server)
    assert done.code == 1, done.err
    assert server.ledger()["received"] == 60
    assert len(read_lines(sealed(llmbatch))) == 30


def test_run_that_was_at_its_end_is_complete(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = scripted(llmbatch, sim, BAD_PROMPT)
    write_rows(llmbatch.directory / "in.jsonl", prompts(20, "bad"))
    done = send(llmbatch, server)
    assert done.code == 1, done.err
    assert "--max-failures" not in done.err
    assert len(read_lines(sealed(llmbatch))) == 20


def test_more_than_half_of_the_last_200_stop_the_run(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = scripted(llmbatch, sim, BAD_PROMPT)
    rows = prompts(60, "good") + [f"{'good' if n % 3 == 0 else 'bad'} row {n}" for n in range(300)]
    write_rows(llmbatch.directory / "in.jsonl", rows)
    done = send(llmbatch, server)
    assert done.code == 4, done.err
    assert "101 of the last 200 rows failed, 101 with invalid_prompt (HTTP 400)" in done.err
    assert 60 + 150 <= server.ledger()["received"] < 60 + 200
    assert summary(llmbatch)["adds_up"] and summary(llmbatch)["ok"] == server.ledger()["billed"]


@pytest.mark.parametrize(("limit", "least"), [("0", 1), ("3", 4)])
def test_max_failures_counts_rows(llmbatch: Llmbatch, sim: StartSim, limit: str, least: int) -> None:
    """What was in flight is waited for and written: it is paid."""
    server = scripted(llmbatch, sim, BAD_PROMPT, flags=("--latency", "0.1"))
    write_rows(llmbatch.directory / "in.jsonl", prompts(8, "good") + prompts(8, "bad") + prompts(40, "good"))
    done = send(llmbatch, server, "--max-failures", limit)
    assert done.code == 4, done.err
    assert f"more than --max-failures {limit} allows" in done.err
    lines = journal(llmbatch)
    assert least <= sum(line["status"] == "error" for line in lines) < least + WIDTH
    assert sum(line["status"] == "ok" for line in lines) == server.ledger()["billed"]
    assert summary(llmbatch)["adds_up"]


def test_max_failures_counts_bad_rows_of_the_input_too(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.01")
    text = "".join(json.dumps(prompt) + "\n" for prompt in prompts(120))
    (llmbatch.directory / "in.jsonl").write_text("{not json\n" * 3 + text)
    done = send(llmbatch, server, "--max-failures", "2")
    assert done.code == 4, done.err
    assert server.ledger()["received"] < 100
    assert send(llmbatch, server, "--max-failures", "3").code == 1


@pytest.mark.parametrize(("limit", "code"), [("5%", 4), ("30%", 1)])
def test_max_failures_as_a_share(llmbatch: Llmbatch, sim: StartSim, limit: str, code: int) -> None:
    server = scripted(llmbatch, sim, BAD_PROMPT)
    rows = [f"{'bad' if n % 10 == 0 else 'good'} {n}" for n in range(260)]
    write_rows(llmbatch.directory / "in.jsonl", rows)
    done = send(llmbatch, server, "--max-failures", limit)
    assert done.code == code, done.err
    if code == 4:
        assert 200 <= server.ledger()["received"] < 200 + WIDTH


@pytest.mark.parametrize("limit", ["-1", "ten", "101%", ""])
def test_max_failures_that_means_nothing_is_refused(llmbatch: Llmbatch, limit: str) -> None:
    write_rows(llmbatch.directory / "in.jsonl", prompts(2))
    done = llmbatch("run", "in.jsonl", "-m", "sim/demo", "--max-failures", limit)
    assert done.code == 2 and "--max-failures" in done.err


def test_server_that_is_ill_for_too_long_stops_with_3(llmbatch: Llmbatch, sim: StartSim) -> None:
    """A hundred retries, then the gate closes for longer than --max-wait allows; nobody is asked in vain for hours."""
    server = sim("--fault", "500=1")
    write_rows(llmbatch.directory / "in.jsonl", prompts(400))
    done = send(llmbatch, server, "--max-wait", "5s", "-c", "40")
    assert done.code == 3, done.err
    assert "100% of the last requests failed (500 server_error" in done.err
    assert "no good answer for longer than --max-wait allows" in done.err
    counts = summary(llmbatch)
    assert counts["adds_up"] and counts["failed"] == 0 and counts["pending"] == counts["rows"]
    assert server.ledger()["received"] < 400


def test_verbose_says_why_a_try_is_or_is_not_made_again(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = scripted(
        llmbatch, sim, {"prompt": "prompt 2", "fault": "500", "times": 1}, {"prompt": "prompt 3", "fault": "400"}
    )
    write_rows(llmbatch.directory / "in.jsonl", prompts(4))
    done = send(llmbatch, server, "-v")
    assert "attempt 2 of 5)" in done.err
    assert "(not again: invalid_prompt is not retryable)" in done.err
