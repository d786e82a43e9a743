"""Several questions about each row: at the same time, each kept as it comes, only what is missing asked again."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from llmbatch.sim.answers import expected_answer

from .processes import Llmbatch, Sim, StartSim, read_lines, until, write_rows

ROWS = [{"id": f"r{number}", "text": f"text {number}"} for number in range(1, 13)]
SUM, LABEL = "sum=Summarise {{ text }}", "label=Label {{ text }}"


def flags(server: Sim, *more: str, tasks: tuple[str, ...] = (SUM, LABEL)) -> tuple[str, ...]:
    asked = [word for task in tasks for word in ("--task", task)]
    return ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, *asked, *more)


def output(llmbatch: Llmbatch) -> Path:
    return llmbatch.directory / "in.results.jsonl"


def expected(row: dict[str, str], *, label: str = "Label") -> dict[str, str]:
    said = {"sum": f"Summarise {row['text']}", "label": f"{label} {row['text']}"}
    return {name: expected_answer(prompt) for name, prompt in said.items()}


def parts_in(journal: Path) -> list[dict[str, Any]]:
    if not journal.exists():
        return []
    lines = [json.loads(line) for line in journal.read_bytes().split(b"\n")[:-1]]
    return [line for line in lines if "part" in line]


def test_the_output_has_an_answer_for_each_task(llmbatch: Llmbatch, plain_sim: Sim) -> None:
    write_rows(llmbatch.directory / "in.jsonl", ROWS)
    done = llmbatch(*flags(plain_sim, "--summary-json", "summary.json"))
    assert done.code == 0, done.err
    lines = read_lines(output(llmbatch))
    assert [line["output"] for line in lines] == [expected(row) for row in ROWS]
    assert all(line["usage"]["output_tokens"] == _tokens(line) for line in lines)
    summary = json.loads((llmbatch.directory / "summary.json").read_text())
    assert (summary["rows"], summary["ok"], summary["requests"]) == (12, 12, 24)
    assert llmbatch("verify", "in.results.jsonl").code == 0


def _tokens(line: dict[str, Any]) -> int:
    return sum(task["usage"]["output_tokens"] for task in line["tasks"].values())


def test_tasks_of_a_row_run_at_the_same_time(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.5")
    write_rows(llmbatch.directory / "in.jsonl", ROWS[:1])
    tasks = tuple(f"t{number}=Ask {number} {{{{ text }}}}" for number in range(6))
    assert llmbatch(*flags(server, tasks=tasks)).code == 0
    assert server.ledger()["peak_in_flight"] == 6


def test_a_failing_task_fails_in_its_member_only_and_alone_is_asked_again(llmbatch: Llmbatch, sim: StartSim) -> None:
    script = llmbatch.directory / "script.jsonl"
    script.write_text('{"prompt": "Label text 3", "fault": "400", "times": 1}\n')
    server = sim("--script", str(script))
    write_rows(llmbatch.directory / "in.jsonl", ROWS[:5])
    assert llmbatch(*flags(server)).code == 1
    failed = read_lines(output(llmbatch))[2]
    assert failed["status"] == "error" and failed["error"]["type"] == "task_failed"
    assert "1 of 2 tasks failed: label" in failed["error"]["message"]
    assert failed["output"] == {"sum": expected(ROWS[2])["sum"]}
    assert failed["tasks"]["label"]["error"]["http_status"] == 400
    received = server.ledger()["received"]
    assert llmbatch(*flags(server)).code == 0
    assert server.ledger()["received"] == received + 1
    assert [line["output"] for line in read_lines(output(llmbatch))] == [expected(row) for row in ROWS[:5]]


def test_a_changed_task_alone_is_asked_again(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--seed", "1")
    write_rows(llmbatch.directory / "in.jsonl", ROWS)
    assert llmbatch(*flags(server)).code == 0
    changed = ("sum=Summarise {{ text }}", "label=Name {{ text }}")
    refused = llmbatch(*flags(server, tasks=changed))
    assert refused.code == 2 and "12 finished rows changed" in refused.err
    assert llmbatch(*flags(server, "--on-change", "rerun", tasks=changed)).code == 0
    assert server.ledger()["received"] == 36
    assert [line["output"] for line in read_lines(output(llmbatch))] == [expected(row, label="Name") for row in ROWS]


def test_after_a_kill_no_answer_in_the_journal_is_asked_again(llmbatch: Llmbatch, sim: StartSim) -> None:
    script = llmbatch.directory / "script.jsonl"
    script.write_text('{"prompt": "Label", "fault": "stall", "times": 1}\n')
    server = sim("--script", str(script))
    write_rows(llmbatch.directory / "in.jsonl", ROWS)
    journal = llmbatch.directory / "in.results.jsonl.partial"
    running = llmbatch.start(*flags(server, "-c", "64"))
    until(lambda: len(parts_in(journal)) == 12, "one answer of each row is kept")
    running.signal(signal.SIGKILL)
    running.end()
    done = llmbatch(*flags(server))
    assert done.code == 0, done.err
    assert [line["output"] for line in read_lines(output(llmbatch))] == [expected(row) for row in ROWS]
    assert server.times_billed("Summarise text 4") == 1
    assert server.ledger()["billed"] == 24


def test_a_row_may_have_tasks_of_its_own(llmbatch: Llmbatch, plain_sim: Sim) -> None:
    rows = [
        {"tasks": {"a": "one", "b": {"messages": [{"role": "user", "content": "two"}], "max_tokens": 1}}},
        {"prompt": "three"},
        {"tasks": {"a": 5}},
        {"tasks": []},
    ]
    write_rows(llmbatch.directory / "in.jsonl", rows)
    done = llmbatch("run", "in.jsonl", "-m", "m", "--base-url", plain_sim.base_url)
    assert done.code == 1
    first, second, third, fourth = read_lines(output(llmbatch))
    assert first["output"] == {"a": expected_answer("one"), "b": expected_answer("two")[:4]}
    assert second["output"] == expected_answer("three")
    assert "a task must be a prompt or an object, not a number" in third["error"]["message"]
    assert "'tasks' must be an object" in fourth["error"]["message"]


def test_to_standard_output_goes_one_line_a_row(llmbatch: Llmbatch, plain_sim: Sim) -> None:
    write_rows(llmbatch.directory / "in.jsonl", ROWS)
    done = llmbatch(*flags(plain_sim, "-o", "-"))
    assert done.code == 0
    assert {line["id"]: line["output"] for line in done.lines} == {row["id"]: expected(row) for row in ROWS}


def test_task_and_template_exclude_each_other(llmbatch: Llmbatch, plain_sim: Sim) -> None:
    write_rows(llmbatch.directory / "in.jsonl", ROWS)
    for more in (("-t", "{{ text }}"), ("--task", "sum=x"), ("--task", "no template"), ("--task", "a b=x")):
        done = llmbatch(*flags(plain_sim, *more))
        assert done.code == 2 and "--task" in done.err, more
