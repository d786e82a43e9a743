"""The order of rows, and what it is for: tenants that take turns, prompts that the provider finds in its cache."""

from __future__ import annotations

import json
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llmbatch.sim.answers import expected_answer, prompt_hash

from .processes import Llmbatch, Sim, StartSim, assert_answers, read_lines, until, whole_lines, write_rows

# What a signal that was not waited for takes at most.
PROMPT_S = 2.5
# 1,350 tokens, of which OpenAI's dialect caches the first 1,024.
LONG = "The same long instruction. " * 200


def of(tenant: str, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{tenant} {number}", "tenant": tenant} for number in range(1, count + 1)]


def asked(rows: list[dict[str, Any]]) -> list[str]:
    return [row["prompt"] for row in rows]


def flags(server: Sim, *more: str) -> tuple[str, ...]:
    return ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, *more)


def bills(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def places(path: Path, prompts: list[str]) -> list[int]:
    """Where in the ledger the prompts were billed."""
    numbers = {bill["prompt_hash"]: number for number, bill in enumerate(bills(path))}
    return [numbers[prompt_hash(prompt)] for prompt in prompts]


def summary_of(llmbatch: Llmbatch) -> dict[str, Any]:
    return json.loads((llmbatch.directory / "sum.json").read_text())  # type: ignore[no-any-return]


# Tenants


def test_a_small_tenant_behind_a_large_one_ends_early(llmbatch: Llmbatch, sim: StartSim) -> None:
    ledger = llmbatch.directory / "ledger.jsonl"
    server = sim("--latency", "0.005", "--ledger", str(ledger))
    rows = of("large", 1_500) + of("small", 10)
    write_rows(llmbatch.directory / "in.jsonl", rows)
    done = llmbatch(*flags(server, "-c", "4"))
    assert done.code == 0, done.err
    assert max(places(ledger, asked(of("small", 10)))) < 700
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), asked(rows))


def test_the_tenant_is_no_part_of_the_request_or_of_its_key(llmbatch: Llmbatch, sim: StartSim) -> None:
    """The provider refuses what it does not know; and rows that change hands are not paid again."""
    server = sim()
    write_rows(llmbatch.directory / "in.jsonl", of("a", 3))
    assert llmbatch(*flags(server)).code == 0
    write_rows(llmbatch.directory / "in.jsonl", [{**row, "tenant": "b"} for row in of("a", 3)])
    again = llmbatch(*flags(server, "--tenant-concurrency", "1"))
    assert again.code == 0 and "nothing was sent" in again.err
    assert server.ledger()["billed"] == 3


@pytest.mark.parametrize("kind", ["field", "column"])
def test_requests_per_minute_of_each_tenant(llmbatch: Llmbatch, sim: StartSim, kind: str) -> None:
    """Four of each at two a second: both are done after 1.5 s, and none comes early."""
    ledger = llmbatch.directory / "ledger.jsonl"
    server = sim("--ledger", str(ledger))
    rows = of("a", 4) + of("b", 4)
    if kind == "field":
        write_rows(llmbatch.directory / "in.jsonl", rows)
        how = flags(server)
    else:
        lines = ["text,team", *(f"{row['prompt']},{row['tenant']}" for row in rows)]
        (llmbatch.directory / "in.csv").write_text("\n".join(lines) + "\n")
        how = ("run", "in.csv", "-m", "m", "--base-url", server.base_url, "-t", "{{ text }}", "--tenant-field", "team")
    done = llmbatch(*how, "--tenant-rpm", "120", "--summary-json", "sum.json")
    assert done.code == 0, done.err
    assert next(iter(summary_of(llmbatch)["binding_shares"])) == "tenant"
    times = {bill["prompt_hash"]: bill["time_s"] for bill in bills(ledger)}
    for tenant in "ab":
        sent = sorted(times[prompt_hash(row["prompt"])] for row in of(tenant, 4))
        assert 1.4 < sent[-1] - sent[0] < 4.0
        assert min(later - sooner for sooner, later in pairwise(sent)) > 0.4


def test_ctrl_c_while_every_tenant_waits_and_the_command_continues(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    rows = of("a", 5) + of("b", 5)
    write_rows(llmbatch.directory / "in.jsonl", rows)
    running = llmbatch.start(*flags(server, "--tenant-rpm", "1"))
    journal = llmbatch.directory / "in.results.jsonl.partial"
    until(lambda: len(whole_lines(journal)) == 2, "one row of each")
    running.signal(signal.SIGINT)
    done = running.end(within_s=PROMPT_S)
    assert done.code == 130, done.err
    assert "10 rows = 2 ok + 0 failed + 0 skipped + 8 pending" in done.err
    assert llmbatch(*flags(server)).code == 0
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), asked(rows))
    assert server.ledger()["billed"] == 10


def test_after_a_kill_the_rest_is_sent_and_what_was_written_is_not_sent_again(
    llmbatch: Llmbatch, sim: StartSim
) -> None:
    server = sim("--latency", "0.02")
    rows = [row for pair in zip(of("a", 150), of("b", 150), strict=True) for row in pair]
    write_rows(llmbatch.directory / "in.jsonl", rows)
    running = llmbatch.start(*flags(server, "-c", "4"))
    journal = llmbatch.directory / "in.results.jsonl.partial"
    until(lambda: len(whole_lines(journal)) >= 30, "30 rows")
    running.signal(signal.SIGKILL)
    running.end()
    assert llmbatch(*flags(server, "-c", "20")).code == 0
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), asked(rows))
    assert server.ledger()["billed_twice"] <= 4


# The provider's cache


def questions(count: int, *documents: str) -> list[dict[str, Any]]:
    """About each document in turn, so that no two rows of one stand side by side."""
    return [
        {"system": f"{document} {LONG}", "prompt": f"{document} question {number}"}
        for number in range(1, count + 1)
        for document in documents
    ]


def test_rows_that_begin_alike_are_found_in_the_cache(llmbatch: Llmbatch, sim: StartSim) -> None:
    """All but the first of each document; sent as they stand, the first eight would find nothing."""
    server = sim("--latency", "0.15")
    rows = questions(12, "one", "two")
    write_rows(llmbatch.directory / "in.jsonl", rows)
    done = llmbatch(*flags(server, "-c", "8", "--summary-json", "sum.json"))
    assert done.code == 0, done.err
    said = summary_of(llmbatch)
    assert said["cached_input_tokens"] == (24 - 2) * 1024
    share = said["cached_input_share"]
    assert share == pytest.approx((24 - 2) * 1024 / said["input_tokens"], abs=1e-4)
    assert f"cached      {share:.0%} of input tokens\n" in done.err
    assert said["cache_saved_usd"] is None  # a server of one's own has no price
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), asked(rows))


def test_a_first_row_that_fails_for_good_holds_up_nobody(llmbatch: Llmbatch, sim: StartSim) -> None:
    script = llmbatch.directory / "script.jsonl"
    script.write_text('{"prompt": "one question 1", "fault": "400"}\n')
    server = sim("--latency", "0.05", "--script", str(script))
    write_rows(llmbatch.directory / "in.jsonl", questions(9, "one"))
    done = llmbatch(*flags(server, "-c", "3"))
    assert done.code == 1, done.err
    statuses = [line["status"] for line in read_lines(llmbatch.directory / "in.results.jsonl")]
    assert statuses == ["error", *["ok"] * 8]


def test_cache_prompt_marks_prompts_and_pays_for_no_row_again(llmbatch: Llmbatch, sim: StartSim) -> None:
    """Anthropic caches what is marked: nothing in the first run, and the system prompt in that of the other rows."""
    server = sim("--latency", "0.02")
    claude = flags(server, "--api", "anthropic", "-c", "4", "--summary-json", "sum.json")
    write_rows(llmbatch.directory / "in.jsonl", questions(6, "one"))
    assert llmbatch(*claude).code == 0
    assert summary_of(llmbatch)["cached_input_tokens"] == 0
    again = llmbatch(*claude, "--cache-prompt")
    assert again.code == 0 and "nothing was sent" in again.err
    write_rows(llmbatch.directory / "in.jsonl", questions(16, "one"))
    more = llmbatch(*claude, "--cache-prompt")
    assert more.code == 0, more.err
    assert server.ledger()["billed"] == 16
    system_tokens = -(-len(f"one {LONG}") // 4)
    assert summary_of(llmbatch)["cached_input_tokens"] == (10 - 1) * system_tokens
    assert "marked" not in more.err


def test_cache_prompt_says_so_where_there_is_nothing_to_mark(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    write_rows(llmbatch.directory / "in.jsonl", ["a prompt"])
    done = llmbatch(*flags(server, "--cache-prompt"))
    assert done.code == 0
    assert done.err.count("nothing is marked, as servers of this dialect cache") == 1
    assert read_lines(llmbatch.directory / "in.results.jsonl")[0]["output"] == expected_answer("a prompt")
