"""`--hedge`: the real command asks slow rows twice, and the provider's books say how often it really did."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest

from .processes import Llmbatch, Sim, StartSim, assert_answers, prompts, read_lines, until, write_rows


def summary(llmbatch: Llmbatch) -> dict[str, Any]:
    return json.loads((llmbatch.directory / "sum.json").read_text())  # type: ignore[no-any-return]


def stalling(llmbatch: Llmbatch, sim: StartSim, *more: str) -> Sim:
    """The first request for each slow prompt is never answered."""
    script = llmbatch.directory / "script.jsonl"
    script.write_text('{"prompt": "slow", "fault": "stall", "times": 1}\n')
    return sim("--script", str(script), *more)


@pytest.mark.parametrize("stream", [[], ["--stream"]], ids=["whole", "stream"])
def test_rows_that_stall_are_answered_by_a_second_request(llmbatch: Llmbatch, sim: StartSim, stream: list[str]) -> None:
    server, asked = stalling(llmbatch, sim, "--latency", "0.02"), [*prompts(50), *prompts(3, "slow")]
    write_rows(llmbatch.directory / "in.jsonl", asked)
    flags = ["-c", "8", "--hedge", "800ms", "--summary-json", "sum.json", *stream]
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, *flags)
    assert done.code == 0, done.err
    lines = read_lines(llmbatch.directory / "in.results.jsonl")
    assert_answers(lines, asked)
    slow = lines[50:]
    assert [line["attempts"] for line in slow] == [2, 2, 2]
    assert [line["ambiguous"] for line in slow] == [1, 1, 1]
    assert all(line["latency_s"] >= 0.8 for line in slow)
    said = summary(llmbatch)
    assert (said["hedges"], said["hedges_won"]) == (3, 3)
    assert said["ambiguous"] == said["maybe_billed_twice"] == 3 and said["retries"] == 0
    assert said["requests"] == server.ledger()["received"] == 56
    assert "hedged      3 requests asked twice" in done.err
    assert "3 requests may have been billed twice" in done.err


def test_learnt_stragglers_are_cut_for_at_most_one_request_of_twenty(llmbatch: Llmbatch, sim: StartSim) -> None:
    server, asked = sim("--latency", "lognormal:median=0.03,sigma=0.3,tail=0.02x60"), prompts(600)
    write_rows(llmbatch.directory / "in.jsonl", asked)
    flags = ["-c", "20", "--hedge", "p95", "--summary-json", "sum.json"]
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, *flags)
    assert done.code == 0, done.err
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), asked)
    said, ledger = summary(llmbatch), server.ledger()
    assert ledger["received"] == said["requests"] == 600 + said["hedges"]
    assert 3 <= said["hedges"] <= 30 and said["hedges_won"] >= 2


def test_what_has_begun_to_answer_is_not_asked_twice(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "1.5", "--first-token", "0.02")
    write_rows(llmbatch.directory / "in.jsonl", prompts(3))
    flags = ["--stream", "--hedge", "700ms", "--summary-json", "sum.json"]
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, *flags)
    assert done.code == 0, done.err
    assert server.ledger()["received"] == 3 and summary(llmbatch)["hedges"] == 0
    assert "hedged" not in done.err


def test_giving_up_counts_both_requests(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "30")
    write_rows(llmbatch.directory / "in.jsonl", prompts(1))
    flags = ["-c", "2", "--hedge", "100ms", "--summary-json", "sum.json"]
    running = llmbatch.start("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, *flags)
    until(lambda: server.ledger()["in_flight"] == 2, "both in flight")
    running.signal(signal.SIGINT)
    time.sleep(0.2)
    running.signal(signal.SIGINT)
    done = running.end()
    assert done.code == 130, done.err
    said = summary(llmbatch)
    assert (said["ambiguous"], said["maybe_billed_twice"], said["requests"]) == (2, 1, 2)
    assert (said["hedges"], said["hedges_won"], said["pending"]) == (1, 0, 1)


def test_a_second_request_counts_against_the_limit_of_possible_cost(llmbatch: Llmbatch, sim: StartSim) -> None:
    """A model without a price: what the one that was given up has cost is any sum."""
    server = stalling(llmbatch, sim)
    write_rows(llmbatch.directory / "in.jsonl", prompts(1, "slow"))
    flags = ["-c", "2", "--hedge", "100ms", "--max-ambiguous-cost", "5"]
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, *flags)
    assert "--max-ambiguous-cost 5 is reached" in done.err
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), prompts(1, "slow"))
