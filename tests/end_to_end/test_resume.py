"""The same command again: killed, torn, edited, grown, reordered; what is paid for is not sent again."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from .processes import (
    Llmbatch,
    Sim,
    StartSim,
    assert_answers,
    prompts,
    read_lines,
    until,
    whole_lines,
    write_rows,
)


def journal(llmbatch: Llmbatch) -> Path:
    return llmbatch.directory / "in.results.jsonl.partial"


def output(llmbatch: Llmbatch) -> Path:
    return llmbatch.directory / "in.results.jsonl"


def run_flags(server: Sim, *more: str) -> tuple[str, ...]:
    return ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, *more)


def finished_run(llmbatch: Llmbatch, server: Sim, rows: list[object], *more: str) -> None:
    write_rows(llmbatch.directory / "in.jsonl", rows)
    assert llmbatch(*run_flags(server, *more)).code == 0


def killed_run(llmbatch: Llmbatch, server: Sim, at_least: int, *more: str) -> list[dict[str, object]]:
    """Kill a run when its journal holds so many results; what it holds then."""
    running = llmbatch.start(*run_flags(server, *more))
    until(lambda: len(whole_lines(journal(llmbatch))) >= at_least, f"{at_least} results")
    running.signal(signal.SIGKILL)
    running.end()
    return whole_lines(journal(llmbatch))


def test_five_kills_at_random_lose_nothing_and_pay_twice_only_what_was_in_flight(
    llmbatch: Llmbatch, sim: StartSim
) -> None:
    server, chance, in_flight = sim("--latency", "uniform:low=0.005,high=0.03"), random.Random(7), 8
    asked = prompts(1500)
    write_rows(llmbatch.directory / "in.jsonl", asked)
    flags = run_flags(server, "-c", str(in_flight))
    for _ in range(5):
        recorded = {line["row"] for line in whole_lines(journal(llmbatch))}
        running = llmbatch.start(*flags)
        grown = partial(lambda known: len(whole_lines(journal(llmbatch))) > known, len(recorded))
        until(grown, "the run goes on")
        time.sleep(chance.uniform(0, 0.15))
        running.signal(signal.SIGKILL)
        running.end()
        assert not output(llmbatch).exists()
        assert recorded <= {line["row"] for line in whole_lines(journal(llmbatch))}
    assert llmbatch(*flags).code == 0
    assert_answers(read_lines(output(llmbatch)), asked)
    ledger = server.ledger()
    assert ledger["billed_twice"] <= 5 * in_flight
    assert not journal(llmbatch).exists()


def test_rows_in_the_journal_at_the_kill_are_not_sent_again(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.05")
    write_rows(llmbatch.directory / "in.jsonl", prompts(60))
    recorded = killed_run(llmbatch, server, 20, "-c", "4")
    before = server.ledger(full=True)["billed_by_prompt"]
    done = llmbatch(*run_flags(server, "-c", "4"))
    assert done.code == 0
    assert f"{len(recorded)} rows done before, not sent again" in done.err
    after = server.ledger(full=True)["billed_by_prompt"]
    hashes = {str(line["output"]).split()[0] for line in recorded}
    assert {one: after[one] for one in hashes} == {one: before[one] for one in hashes}
    assert_answers(read_lines(output(llmbatch)), prompts(60))


@pytest.mark.parametrize("tail", [b'{"id":null,"row":7,"status":"ok","outp', b"\x00" * 300, b"\xff\xfe half"])
def test_torn_tail_is_moved_aside_and_said(llmbatch: Llmbatch, sim: StartSim, tail: bytes) -> None:
    server = sim("--latency", "0.05")
    write_rows(llmbatch.directory / "in.jsonl", prompts(40))
    killed_run(llmbatch, server, 10, "-c", "4")
    with journal(llmbatch).open("ab") as file:
        file.write(tail)
    done = llmbatch(*run_flags(server))
    assert done.code == 0
    assert "in.results.jsonl.torn" in done.err
    assert (llmbatch.directory / "in.results.jsonl.torn").read_bytes().endswith(tail)
    assert_answers(read_lines(output(llmbatch)), prompts(40))


def test_last_record_without_its_newline_is_kept(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.05")
    write_rows(llmbatch.directory / "in.jsonl", prompts(20))
    recorded = killed_run(llmbatch, server, 5, "-c", "1")
    data = journal(llmbatch).read_bytes()
    journal(llmbatch).write_bytes(data[: data.rindex(b"\n")])
    assert f"{len(recorded)} rows done before" in llmbatch(*run_flags(server)).err
    assert_answers(read_lines(output(llmbatch)), prompts(20))


def test_damage_in_the_middle_is_refused_naming_the_line(llmbatch: Llmbatch, plain_sim: Sim) -> None:
    finished_run(llmbatch, plain_sim, list(prompts(5)))
    lines = output(llmbatch).read_bytes().splitlines(keepends=True)
    output(llmbatch).write_bytes(b"".join([lines[0], b"garbage\n", *lines[2:]]))
    done = llmbatch(*run_flags(plain_sim))
    assert done.code == 5
    assert "line 2" in done.err


def test_failed_rows_and_only_these_are_sent_again(llmbatch: Llmbatch, sim: StartSim) -> None:
    script = llmbatch.directory / "script.jsonl"
    script.write_text('{"prompt": "prompt 3", "fault": "400", "times": 1}\n{"prompt": "prompt 9", "fault": "400"}\n')
    server = sim("--script", str(script))
    write_rows(llmbatch.directory / "in.jsonl", prompts(9))
    assert llmbatch(*run_flags(server)).code == 1
    assert [line["status"] for line in read_lines(output(llmbatch))].count("error") == 2
    again = llmbatch(*run_flags(server))
    assert again.code == 1
    assert server.ledger()["received"] == 9 + 2
    lines = read_lines(output(llmbatch))
    assert [line["row"] for line in lines if line["status"] == "error"] == [9]
    assert "9 rows = 8 ok + 1 failed" in again.err


def test_complete_run_again_says_so_and_sends_nothing(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    finished_run(llmbatch, server, list(prompts(12)))
    before = output(llmbatch).read_bytes(), output(llmbatch).stat().st_mtime_ns
    done = llmbatch(*run_flags(server))
    assert done.code == 0
    assert "nothing was sent" in done.err
    assert (output(llmbatch).read_bytes(), output(llmbatch).stat().st_mtime_ns) == before
    assert server.ledger()["received"] == 12


def edited(number: int) -> list[object]:
    return [f"prompt {n}{'!' if n <= number else ''}" for n in range(1, 11)]


def test_edited_rows_are_refused_with_their_number(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    finished_run(llmbatch, server, edited(0))
    before = output(llmbatch).read_bytes()
    write_rows(llmbatch.directory / "in.jsonl", edited(3))
    done = llmbatch(*run_flags(server))
    assert done.code == 2
    for words in ("3 finished rows changed", "--on-change rerun", "keep"):
        assert words in done.err
    assert output(llmbatch).read_bytes() == before
    assert server.ledger()["received"] == 10


@pytest.mark.parametrize(("choice", "sent", "changed"), [("rerun", 13, 3), ("keep", 10, 0)])
def test_on_change_says_what_happens_to_edited_rows(
    llmbatch: Llmbatch, sim: StartSim, choice: str, sent: int, changed: int
) -> None:
    server = sim()
    finished_run(llmbatch, server, edited(0))
    write_rows(llmbatch.directory / "in.jsonl", edited(3))
    done = llmbatch(*run_flags(server, "--on-change", choice))
    assert done.code == 0, done.err
    assert_answers(read_lines(output(llmbatch)), [str(prompt) for prompt in edited(changed)])
    assert server.ledger()["received"] == sent


def test_appended_rows_are_run_alone(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    finished_run(llmbatch, server, list(prompts(10)))
    write_rows(llmbatch.directory / "in.jsonl", prompts(15))
    assert llmbatch(*run_flags(server)).code == 0
    assert_answers(read_lines(output(llmbatch)), prompts(15))
    assert server.ledger()["received"] == 15


def with_ids(numbers: list[int]) -> list[object]:
    return [{"id": f"r{n}", "prompt": f"prompt {n}"} for n in numbers]


def test_reordered_rows_with_ids_are_not_sent_again(llmbatch: Llmbatch, sim: StartSim) -> None:
    server, order = sim(), [5, 3, 1, 2, 4, 6]
    finished_run(llmbatch, server, with_ids([1, 2, 3, 4, 5]))
    write_rows(llmbatch.directory / "in.jsonl", with_ids(order))
    done = llmbatch(*run_flags(server))
    assert done.code == 0, done.err
    assert_answers(read_lines(output(llmbatch)), [f"prompt {n}" for n in order])
    assert [line["id"] for line in read_lines(output(llmbatch))] == [f"r{n}" for n in order]
    assert server.ledger()["received"] == 6


def test_reordered_rows_without_ids_are_refused(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    finished_run(llmbatch, server, list(prompts(5)))
    write_rows(llmbatch.directory / "in.jsonl", list(reversed(prompts(5))))
    done = llmbatch(*run_flags(server))
    assert done.code == 2
    assert "no ids" in done.err
    assert server.ledger()["received"] == 5


def test_results_of_removed_rows_stand_after_the_others(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    finished_run(llmbatch, server, with_ids([1, 2, 3, 4]))
    write_rows(llmbatch.directory / "in.jsonl", with_ids([4, 2, 9]))
    done = llmbatch(*run_flags(server))
    assert done.code == 0, done.err
    assert "2 rows no longer in the input, results kept" in done.err
    lines = read_lines(output(llmbatch))
    assert [line["id"] for line in lines[:3]] == ["r4", "r2", "r9"]
    assert sorted(line["id"] for line in lines[3:]) == ["r1", "r3"]
    assert server.ledger()["received"] == 5
    write_rows(llmbatch.directory / "in.jsonl", with_ids([1, 2, 3, 4, 9]))  # and back again
    assert llmbatch(*run_flags(server)).code == 0
    assert [line["id"] for line in read_lines(output(llmbatch))] == ["r1", "r2", "r3", "r4", "r9"]
    assert server.ledger()["received"] == 5


CHANGES = {
    "model": (["-m", "other"], "model: m -> other"),
    "template": (["-t", "Say {{ prompt }}"], "template changed"),
    "system": (["-s", "Be brief"], "system prompt changed"),
    "param": (["-p", "temperature=0.5"], "temperature: not set -> 0.5"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changed_settings_are_refused_by_name(llmbatch: Llmbatch, sim: StartSim, case: str) -> None:
    flags, words = CHANGES[case]
    server = sim("--latency", "0.05")
    write_rows(llmbatch.directory / "in.jsonl", [{"prompt": prompt} for prompt in prompts(30)])
    recorded = killed_run(llmbatch, server, 5, "-c", "2")
    received = server.ledger()["received"]
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, *flags)
    assert done.code == 2, done.err
    assert words in done.err
    assert f"{len(recorded)} finished rows changed" in done.err
    assert server.ledger()["received"] == received
    assert llmbatch(*run_flags(server)).code == 0  # refusing broke nothing


def test_settings_that_do_not_change_the_request_resume(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    finished_run(llmbatch, server, list(prompts(5)))
    done = llmbatch(*run_flags(server, "-c", "2", "--timeout", "9s", "--max-attempts", "2", "--rpm", "6000"))
    assert done.code == 0
    assert server.ledger()["received"] == 5


def test_restart_moves_the_results_aside_and_pays_again(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim()
    finished_run(llmbatch, server, list(prompts(4)))
    old = output(llmbatch).read_bytes()
    assert llmbatch(*run_flags(server, "--restart")).code == 0
    assert server.ledger()["received"] == 8
    (aside,) = llmbatch.directory.glob("*.bak-*")
    assert aside.read_bytes() == old


def test_killed_while_rows_wait_to_be_retried(llmbatch: Llmbatch, sim: StartSim) -> None:
    """An ok line of a row stands before its later error, and the other way round: each row has one line."""
    server = sim("--latency", "0.02", "--fault", "500=0.4")
    asked = prompts(80)
    write_rows(llmbatch.directory / "in.jsonl", asked)
    killed_run(llmbatch, server, 20, "-c", "10", "--max-attempts", "2")
    for _ in range(8):
        code = llmbatch(*run_flags(server, "-c", "10", "--max-attempts", "3")).code
        assert [line["row"] for line in read_lines(output(llmbatch))] == list(range(1, 81))
        if code == 0:
            break
    assert_answers(read_lines(output(llmbatch)), asked)


def test_a_pipe_is_continued_too(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.05")
    rows = "".join(f'"prompt {n}"\n' for n in range(1, 41)).encode()
    flags = ("run", "-", "-o", "in.results.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "4")
    running = llmbatch.start(*flags)
    assert running.process.stdin is not None
    running.process.stdin.write(rows)
    running.process.stdin.flush()
    until(lambda: len(whole_lines(journal(llmbatch))) >= 10, "10 results")
    running.signal(signal.SIGKILL)
    running.end()
    recorded = len(whole_lines(journal(llmbatch)))
    done = llmbatch(*flags, stdin=rows)
    assert done.code == 0, done.err
    assert f"{recorded} rows done before" in done.err
    assert_answers(read_lines(output(llmbatch)), prompts(40))
