"""The user's own functions before and after: what they change, leave out, break; nothing paid for is lost by them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmbatch.sim.answers import expected_answer

from .processes import Llmbatch, Sim, StartSim, read_lines, until, write_rows

ROWS = [{"id": number, "text": f"text {number}"} for number in range(1, 9)]
HOOKS = """
import asyncio
import pathlib
import time

async def conversation(row):
    await asyncio.sleep(0.01)
    return [{"role": "user", "content": "Said " + row["text"]}]

def field(row):
    row["text"] = row["text"].upper()
    return row

def prompt(row):
    return "Only " + row["text"]

def some(row):
    return row if row["id"] % 2 else None

def broken(row):
    return {"text": row["facts"]}

async def counted(row):
    with open("calls", "a") as file:
        file.write("x")
    return row

async def shout(result):
    await asyncio.sleep(0.01)
    result["output"] = result["output"].upper()
    result["words"] = len(result["input"]["text"].split())
    return result

def picky(result):
    if result["row"] == 3 and not pathlib.Path("fine").exists():
        raise ValueError("no number in it")
    return result

async def endless(result):
    await asyncio.sleep(3600)

def word(result):
    return {**result, "part": "noun"}

def taken(result):
    return {**result, "llmbatch": 1}

def framed(result):
    result["output"] = {name: f"<{text}>" for name, text in result["output"].items()}
    return result

def retold(result):
    return {**result, "tasks": {"a": 5}}
"""


@pytest.fixture
def hooked(llmbatch: Llmbatch) -> Llmbatch:
    (llmbatch.directory / "hooks.py").write_text(HOOKS)
    write_rows(llmbatch.directory / "in.jsonl", ROWS)
    return llmbatch


def flags(server: Sim, *more: str) -> tuple[str, ...]:
    return ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, *more)


def lines_of(llmbatch: Llmbatch) -> list[dict[str, Any]]:
    return read_lines(llmbatch.directory / "in.results.jsonl")


@pytest.mark.parametrize(
    ("hook", "template", "asked"),
    [
        ("conversation", (), "Said text {}"),
        ("conversation", ("-t", "not used"), "Said text {}"),
        ("field", ("-t", "Look: {{ text }}"), "Look: TEXT {}"),
        ("prompt", (), "Only text {}"),
    ],
)
def test_what_a_before_hook_gives_is_asked(
    hooked: Llmbatch, plain_sim: Sim, hook: str, template: tuple[str, ...], asked: str
) -> None:
    done = hooked(*flags(plain_sim, "--before", f"hooks:{hook}", *template))
    assert done.code == 0, done.err
    assert [line["output"] for line in lines_of(hooked)] == [expected_answer(asked.format(row["id"])) for row in ROWS]


def test_none_leaves_a_row_out_for_good(hooked: Llmbatch, sim: StartSim) -> None:
    server = sim("--seed", "2")
    command = flags(server, "--before", "hooks:some", "-t", "{{ text }}", "--summary-json", "summary.json")
    assert hooked(*command).code == 0
    assert [line["status"] for line in lines_of(hooked)] == ["ok", "skipped"] * 4
    summary = json.loads((hooked.directory / "summary.json").read_text())
    assert (summary["rows"], summary["ok"], summary["skipped"], summary["adds_up"]) == (8, 4, 4, True)
    again = hooked(*command)
    assert again.code == 0 and "nothing was sent" in again.err
    assert server.ledger()["received"] == 4


def test_an_exception_is_an_error_row_that_names_its_line(hooked: Llmbatch, sim: StartSim) -> None:
    server = sim("--seed", "3")
    done = hooked(*flags(server, "--before", "hooks:broken", "-t", "{{ text }}", "--max-failures", "100%"))
    assert done.code == 1
    assert {line["error"]["type"] for line in lines_of(hooked)} == {"hook_failed"}
    assert "hooks.py:21 in broken: KeyError: 'facts'" in lines_of(hooked)[0]["error"]["message"]
    assert server.ledger()["received"] == 0


def test_a_hook_runs_once_for_all_tasks_of_a_row_and_not_for_finished_rows(hooked: Llmbatch, plain_sim: Sim) -> None:
    tasks = ("--task", "a=A {{ text }}", "--task", "b=B {{ text }}")
    command = flags(plain_sim, "--before", "hooks:counted", *tasks)
    assert hooked(*command).code == 0
    assert hooked(*command).code == 0
    assert (hooked.directory / "calls").read_text() == "x" * len(ROWS)
    asked = [{"a": expected_answer(f"A {row['text']}"), "b": expected_answer(f"B {row['text']}")} for row in ROWS]
    assert [line["output"] for line in lines_of(hooked)] == asked


def test_an_after_hook_changes_the_line_but_not_whose_it_is(hooked: Llmbatch, plain_sim: Sim) -> None:
    assert hooked(*flags(plain_sim, "-t", "{{ text }}", "--after", "hooks:shout")).code == 0
    lines = lines_of(hooked)
    assert [line["output"] for line in lines] == [expected_answer(str(row["text"])).upper() for row in ROWS]
    assert all(line["words"] == 2 and "input" not in line and line["key"] for line in lines)
    assert [line["id"] for line in lines] == [row["id"] for row in ROWS]


@pytest.mark.parametrize("tasks", [("-t", "{{ text }}"), ("--task", "a=A {{ text }}", "--task", "b=B {{ text }}")])
def test_an_answer_whose_hook_failed_is_not_asked_for_again(
    hooked: Llmbatch, sim: StartSim, tasks: tuple[str, ...]
) -> None:
    server = sim("--seed", "4")
    command = flags(server, *tasks, "--after", "hooks:picky")
    assert hooked(*command).code == 1
    failed = lines_of(hooked)[2]
    assert failed["error"]["type"] == "hook_failed" and "no number in it" in failed["error"]["message"]
    received = server.ledger()["received"]
    (hooked.directory / "fine").touch()
    assert hooked(*command).code == 0
    assert server.ledger()["received"] == received
    assert [line["status"] for line in lines_of(hooked)] == ["ok"] * 8


def test_answers_that_a_hook_works_on_survive_a_kill(hooked: Llmbatch, sim: StartSim) -> None:
    server = sim("--seed", "5")
    journal = hooked.directory / "in.results.jsonl.partial"
    running = hooked.start(*flags(server, "-t", "{{ text }}", "--after", "hooks:endless"))
    until(lambda: journal.exists() and journal.read_bytes().count(b'"part":') == len(ROWS), "all answers are kept")
    running.signal(signal.SIGKILL)
    running.end()
    assert hooked(*flags(server, "-t", "{{ text }}", "--after", "hooks:shout")).code == 0
    assert server.ledger()["received"] == len(ROWS)


def test_ctrl_c_does_not_wait_for_an_endless_hook(hooked: Llmbatch, sim: StartSim) -> None:
    server = sim("--seed", "6")
    journal = hooked.directory / "in.results.jsonl.partial"
    running = hooked.start(*flags(server, "-t", "{{ text }}", "--after", "hooks:endless", "--drain", "0.1s"))
    until(lambda: journal.exists() and journal.read_bytes().count(b'"part":') == len(ROWS), "all answers are kept")
    running.signal(signal.SIGINT)
    done = running.end()
    assert done.code == 130 and "8 pending" in done.err, done.err


def test_processes_take_plain_hooks(hooked: Llmbatch, plain_sim: Sim) -> None:
    command = flags(plain_sim, "--before", "hooks:field", "-t", "{{ text }}", "--hook-processes", "2")
    done = hooked(*command)
    assert done.code == 0, done.err
    assert "leaked" not in done.err
    assert [line["output"] for line in lines_of(hooked)] == [expected_answer(f"TEXT {row['id']}") for row in ROWS]


def test_a_hook_that_is_none_is_refused_before_anything_is_sent(hooked: Llmbatch, sim: StartSim) -> None:
    server = sim("--seed", "7")
    for more in (
        ("--before", "hooks"),
        ("--after", "nowhere:f"),
        ("--before", "hooks:nothing"),
        ("--hook-processes", "2"),
    ):
        assert hooked(*flags(server, *more)).code == 2
    assert server.ledger()["received"] == 0
    assert not Path(hooked.directory / "in.results.jsonl").exists()


def test_a_member_that_a_hook_adds_may_have_nearly_any_name(hooked: Llmbatch, sim: StartSim) -> None:
    server = sim("--seed", "8")
    command = flags(server, "-t", "{{ text }}", "--after", "hooks:word")
    assert hooked(*command).code == 0
    assert all(line["part"] == "noun" for line in lines_of(hooked))
    write_rows(hooked.directory / "in.jsonl", [*ROWS, {"id": 9, "text": "new"}])
    assert hooked(*command).code == 0
    assert server.ledger()["received"] == 9


def test_a_member_of_llmbatch_s_own_name_fails_the_row_and_keeps_its_answer(hooked: Llmbatch, sim: StartSim) -> None:
    server = sim("--seed", "9")
    refused = hooked(*flags(server, "-t", "{{ text }}", "--after", "hooks:taken", "--max-failures", "100%"))
    assert refused.code == 1, refused.err
    assert "hooks:taken returned a member 'llmbatch'" in lines_of(hooked)[0]["error"]["message"]
    assert hooked(*flags(server, "-t", "{{ text }}", "--after", "hooks:shout")).code == 0
    assert server.ledger()["received"] == len(ROWS)


def test_without_its_hook_an_answer_that_is_here_is_written_and_not_asked_for(hooked: Llmbatch, sim: StartSim) -> None:
    server = sim("--seed", "10")
    assert hooked(*flags(server, "-t", "{{ text }}", "--after", "hooks:picky")).code == 1
    assert hooked(*flags(server, "-t", "{{ text }}")).code == 0
    assert server.ledger()["received"] == len(ROWS)
    assert [line["output"] for line in lines_of(hooked)] == [expected_answer(str(row["text"])) for row in ROWS]


@pytest.mark.parametrize("hook", ["framed", "retold"])
def test_a_hook_gets_each_answer_itself_though_another_task_changed(hooked: Llmbatch, sim: StartSim, hook: str) -> None:
    server = sim("--seed", "11")
    first = ("--task", "a=A {{ text }}", "--task", "b=B {{ text }}", "--after", f"hooks:{hook}")
    assert hooked(*flags(server, *first)).code == 0
    second = ("--task", "a=A {{ text }}", "--task", "b=C {{ text }}", "--after", "hooks:framed")
    assert hooked(*flags(server, *second, "--on-change", "rerun")).code == 0
    assert server.ledger()["received"] == 3 * len(ROWS)
    assert [line["output"] for line in lines_of(hooked)] == [
        {"a": f"<{expected_answer('A ' + str(row['text']))}>", "b": f"<{expected_answer('C ' + str(row['text']))}>"}
        for row in ROWS
    ]


def test_a_changed_task_is_seen_though_a_hook_prepares_it(hooked: Llmbatch, sim: StartSim) -> None:
    server = sim("--seed", "12")
    tasks = ("--before", "hooks:field", "--task", "a=A {{ text }}")
    assert hooked(*flags(server, *tasks, "--task", "b=B {{ text }}")).code == 0
    refused = hooked(*flags(server, *tasks, "--task", "b=C {{ text }}"))
    assert refused.code == 2 and "8 finished rows changed" in refused.err
    assert hooked(*flags(server, *tasks, "--task", "b=C {{ text }}", "--on-change", "rerun")).code == 0
    assert server.ledger()["received"] == 3 * len(ROWS)


def test_tasks_of_a_row_s_own_pass_a_before_hook(hooked: Llmbatch, plain_sim: Sim) -> None:
    write_rows(hooked.directory / "in.jsonl", [{"id": 1, "tasks": {"a": "one", "b": "two"}}, {"id": 2, "tasks": 5}])
    assert hooked(*flags(plain_sim, "--before", "hooks:counted")).code == 1
    first, second = lines_of(hooked)
    assert first["output"] == {"a": expected_answer("one"), "b": expected_answer("two")}
    assert "'tasks' must be an object" in second["error"]["message"]
    assert (hooked.directory / "calls").read_text() == "xx"


def test_a_mistake_of_ours_behind_a_hook_is_no_silent_end(hooked: Llmbatch, plain_sim: Sim) -> None:
    driver = hooked.directory / "driver.py"
    driver.write_text(
        "from llmbatch import __main__, desk\n"
        "def broken(line, changed):\n"
        "    raise TypeError('planted')\n"
        "desk._merged = broken\n"
        "__main__.main()\n"
    )
    command = flags(plain_sim, "-t", "{{ text }}", "--after", "hooks:shout")
    done = subprocess.run(
        [sys.executable, str(driver), *command], cwd=hooked.directory, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 70 and "planted" in done.stderr, done.stderr
    assert hooked(*command).code == 0
