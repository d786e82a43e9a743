"""Rows spread over several servers and keys: who is left out, what ends the run, and what is said of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .processes import GOOD_KEY, Llmbatch, Sim, StartSim, assert_answers, prompts, read_lines, write_rows


def at(*servers: Any) -> list[str]:
    return [word for server in servers for word in ("--base-url", server.base_url)]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--fault", "500=1"], "is set aside, others are asked"),
        (["--api-key", GOOD_KEY], "is not asked any more: Incorrect API key"),
        (["--models", "other"], "for m is not asked any more: "),
        (["--fault", "429=1", "--retry-after", "3600"], "asked for a pause of 3,600 s, others are asked"),
    ],
)
def test_one_that_is_of_no_use_is_said_and_costs_no_row(
    llmbatch: Llmbatch, sim: StartSim, flags: list[str], words: str
) -> None:
    good, bad = sim("--latency", "0.02"), sim("--latency", "0.02", *flags)
    asked = prompts(120)
    write_rows(llmbatch.directory / "in.jsonl", asked)
    tries = ["--max-attempts", "1"] if "500=1" not in flags else []  # what another endpoint mends costs no attempt
    command = ("run", "in.jsonl", "-m", "m", *at(bad, good), "-c", "6", *tries)
    done = llmbatch(*command, env={"OPENAI_API_KEY": "sk-wrong"})
    assert done.code == 0, done.err
    assert f"127.0.0.1:{bad.port} {words}" in done.err.replace(" with $OPENAI_API_KEY", "")
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), asked)
    assert good.ledger()["billed"] == 120 and bad.ledger()["received"] <= 20


def test_the_requests_of_a_day_hold_for_each_key_and_then_the_run_ends_at_once(
    llmbatch: Llmbatch, sim: StartSim
) -> None:
    server: Sim = sim("--latency", "0.02")  # type: ignore[assignment]
    keys = {"K1": "sk-one", "K2": "sk-two"}
    first = ("run", "first.jsonl", "-m", "m", *at(server), "--rpd", "12")
    write_rows(llmbatch.directory / "first.jsonl", prompts(12))
    assert llmbatch(*first, "--key-env", "K1", env=keys).code == 0
    asked = prompts(40, "another")
    write_rows(llmbatch.directory / "in.jsonl", asked)
    command = ("run", "in.jsonl", "-m", "m", *at(server), "--rpd", "12", "--key-env", "K1", "--key-env", "K2")
    for _ in range(2):  # the first key has none left; the second one's are used up, though it is only busy at first
        done = llmbatch(*command, "-c", "auto", "--summary-json", "sum.json", env=keys, within_s=20)
        assert done.code == 3, done.err
        assert "the 12 requests of --rpd are used up; the next may go at 20" in done.err
        assert json.loads((llmbatch.directory / "sum.json").read_text())["failed"] == 0
        assert server.ledger()["received"] == 24


def test_the_end_of_geminis_day_is_told_whatever_it_asks_to_wait(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--rpd", "5")
    write_rows(llmbatch.directory / "in.jsonl", prompts(30))
    gemini = server.base_url.removesuffix("/v1") + "/v1beta"
    command = ("run", "in.jsonl", "-m", "gemini-2.5-flash", "--api", "gemini", "--base-url", gemini, "-c", "2")
    done = llmbatch(*command, env={"TZ": "America/Los_Angeles"})
    assert done.code == 3, done.err
    assert "That is the quota of a day: it returns at 20" in done.err and " 00:00-0" in done.err


def test_when_a_long_pause_ends_is_told_once(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--rpd", "5", "--limit-headers", "groq")
    write_rows(llmbatch.directory / "in.jsonl", prompts(30))
    done = llmbatch("run", "in.jsonl", "-m", "m", *at(server), "-c", "2", "--progress", "json")
    assert done.code == 3, done.err
    assert "it may be asked again at 20" in done.err and "(in 4 h 4" in done.err
    assert "asked for a pause" not in done.err
