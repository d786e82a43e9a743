"""The Python interface: the same rows and results as the command line, inside and outside a running loop."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import llmbatch
from llmbatch.errors import LlmbatchError
from llmbatch.events import RowEnded
from llmbatch.sim.answers import expected_answer
from llmbatch.sim.options import sim_options_from
from llmbatch.sim.server import SimServer
from llmbatch.stopping import Stop, StopReason

PROMPTS = [f"prompt {number}" for number in range(1, 31)]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return str(path)


def outputs(path: str | None) -> list[str]:
    assert path is not None
    return [json.loads(line)["output"] for line in Path(path).read_text().splitlines()]


def test_run_outside_a_loop(rows: str) -> None:
    summary = llmbatch.run(rows, model="sim/x", concurrency=5)
    assert (summary.rows, summary.ok, summary.exit_code) == (30, 30, 0)
    assert outputs(summary.output) == [expected_answer(prompt) for prompt in PROMPTS]
    assert llmbatch.run(rows, model="sim/x").requests == 0


async def test_run_inside_a_loop_as_in_a_notebook(rows: str) -> None:
    assert llmbatch.run(rows, model="sim/x").ok == 30


async def test_arun_tells_its_listener(rows: str) -> None:
    heard: list[Any] = []
    summary = await llmbatch.arun(rows, model="sim/x", listen=heard.append)
    assert summary.ok == 30
    assert sorted(event.result.row for event in heard if isinstance(event, RowEnded)) == list(range(1, 31))


async def test_arun_drains_when_asked_and_continues(rows: str) -> None:
    stop, answered = Stop(), 0

    def listen(event: Any) -> None:
        nonlocal answered
        answered += isinstance(event, RowEnded)
        if answered == 5:
            stop.request(StopReason("enough", 130))

    settings = {"model": "sim/x", "sim": {"latency": "0.02"}, "concurrency": 2}
    first = await llmbatch.arun(rows, listen=listen, stop=stop, **settings)
    assert first.exit_code == 130
    assert 5 <= first.ok <= 8
    second = await llmbatch.arun(rows, **settings)
    assert (second.ok, second.ok_before) == (30, first.ok)


async def test_cancelled_arun_leaves_nothing_running_and_its_answers_on_disk(rows: str) -> None:
    some = asyncio.Event()
    settings = {"model": "sim/x", "sim": {"latency": "0.05"}, "concurrency": 2}
    task = asyncio.create_task(
        llmbatch.arun(rows, listen=lambda event: some.set() if isinstance(event, RowEnded) else None, **settings)
    )
    await some.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await nothing_else_runs()
    summary = await llmbatch.arun(rows, **settings)
    assert summary.ok == 30
    assert summary.ok_before >= 1


async def nothing_else_runs() -> None:
    for _ in range(100):
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if not others:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(others)


def test_wrong_settings_are_named(rows: str) -> None:
    with pytest.raises(llmbatch.LlmbatchError, match="no model"):
        llmbatch.run(rows)
    with pytest.raises(llmbatch.LlmbatchError, match="--rpm"):
        llmbatch.run(rows, model="sim/x", rpm=-1)
    with pytest.raises(llmbatch.LlmbatchError, match="give p95, or a time such as 10s"):
        llmbatch.run(rows, model="sim/x", hedge="p99")
    with pytest.raises(llmbatch.LlmbatchError, match="'output'"):
        llmbatch.stream(["a"], model="sim/x", output="x.jsonl")


async def test_stream_yields_a_result_for_every_row() -> None:
    mixed = [*PROMPTS[:10], {"id": "x", "prompt": PROMPTS[10]}, {"prompt": ""}, {"messages": []}]
    found = {result.row: result async for result in llmbatch.stream(mixed, model="sim/x")}
    assert sorted(found) == list(range(1, 14))
    assert [found[row].output for row in range(1, 12)] == [expected_answer(prompt) for prompt in PROMPTS[:11]]
    assert found[11].id == "x"
    assert not found[12].ok
    assert not found[13].ok


def test_stream_in_a_loop_of_its_own() -> None:
    async def collect() -> list[Any]:
        return [result.output async for result in llmbatch.stream(iter(PROMPTS), model="sim/x")]

    assert sorted(asyncio.run(collect())) == sorted(expected_answer(prompt) for prompt in PROMPTS)


async def test_stream_takes_rows_as_they_come() -> None:
    """A row is sent before the next one is there."""
    answered = asyncio.Event()

    async def rows_one_by_one() -> AsyncIterator[str]:
        yield "first"
        await answered.wait()
        yield "second"

    seen = []
    async for result in llmbatch.stream(rows_one_by_one(), model="sim/x"):
        seen.append(result.output)
        answered.set()
    assert seen == [expected_answer("first"), expected_answer("second")]


async def test_stream_lets_tenants_take_turns() -> None:
    """A generator is read ahead, and one that ends behind a large tenant ends early."""
    rows = [{"prompt": f"large {number}", "tenant": "large"} for number in range(200)]
    rows += [{"prompt": f"small {number}", "tenant": "small"} for number in range(5)]
    seen = [
        str(result.output).split()[1]
        async for result in llmbatch.stream(iter(rows), model="sim/x", concurrency=2, sim={"latency": "0.01"})
    ]
    assert len(seen) == 205 and max(place for place, tenant in enumerate(seen) if tenant == "small") < 100


async def test_rows_that_were_read_ahead_wait_for_a_slow_consumer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmbatch.rows.MAX_WAITING_RESULTS", 50)
    ledger = tmp_path / "ledger.jsonl"

    def billed() -> int:
        return len(ledger.read_text().splitlines())

    rows = [{"prompt": f"prompt {number}", "tenant": f"t{number % 3}"} for number in range(300)]
    results = llmbatch.stream(rows, model="sim/x", concurrency=4, sim={"ledger": str(ledger)})
    await anext(results)
    while billed() < 50:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    assert billed() <= 50 + 1 + 4
    assert len([result async for result in results]) == 299


@pytest.mark.parametrize("leave", ["break", "error"])
async def test_leaving_a_stream_early_leaves_nothing_running(leave: str) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield f"prompt {taken}"

    with pytest.raises(ZeroDivisionError) if leave == "error" else nullcontext():
        async for _ in llmbatch.stream(endless(), model="sim/x", concurrency=4, sim={"latency": "0.01"}):
            if leave == "error":
                raise ZeroDivisionError
            break
    await nothing_else_runs()
    before = taken
    await nothing_else_runs()
    assert taken == before
    assert [thread for thread in threading.enumerate() if thread.name.startswith("llmbatch-")] == []


async def test_slow_consumer_slows_the_sending_down() -> None:
    async with SimServer(sim_options_from({})) as server:
        stream = llmbatch.stream(
            (f"prompt {number}" for number in range(100_000)), model="m", base_url=server.base_url, concurrency=16
        )
        await anext(stream)
        for _ in range(300):  # until it stands still
            before = server.ledger.received
            await asyncio.sleep(0.02)
            if before > 16 and server.ledger.received == before:
                break
        assert server.ledger.received < 1_200
        await stream.aclose()  # type: ignore[attr-defined]
        await nothing_of_the_stream_runs()


async def nothing_of_the_stream_runs() -> None:
    for _ in range(100):
        if not [task for task in asyncio.all_tasks() if "Sender" in repr(task) or "Scheduler" in repr(task)]:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(asyncio.all_tasks())


async def test_error_of_the_rows_themselves_reaches_the_caller_as_it_is() -> None:
    def broken() -> Iterator[Any]:
        yield "prompt 1"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        async for _ in llmbatch.stream(broken(), model="sim/x"):
            pass
    with pytest.raises(llmbatch.LlmbatchError, match="row 2 is a int"):
        async for _ in llmbatch.stream(["a", 5], model="sim/x"):  # type: ignore[list-item]
            pass
    await nothing_else_runs()


async def test_stop_ends_a_stream_with_what_was_in_flight() -> None:
    stop, found = Stop(), []
    async for result in llmbatch.stream(PROMPTS, model="sim/x", stop=stop, concurrency=3, sim={"latency": "0.02"}):
        found.append(result)
        stop.request(StopReason("enough", 130))
    assert 1 <= len(found) <= 6


def test_what_is_exported_can_be_imported() -> None:
    for name in llmbatch.__all__:
        assert getattr(llmbatch, name) is not None


async def test_stream_says_when_the_provider_refuses_everything() -> None:
    async with SimServer(sim_options_from({"api-key": "right"})) as server:
        got = []
        with pytest.raises(LlmbatchError, match="Incorrect API key"):
            async for result in llmbatch.stream(PROMPTS, model="m", base_url=server.base_url, concurrency=2):
                got.append(result)
        assert got and all(result.failure is not None for result in got)


@pytest.mark.parametrize("notebook", [False, True], ids=["script", "notebook"])
def test_ctrl_c_in_run_loses_nothing_that_was_paid(rows: str, tmp_path: Path, notebook: bool) -> None:
    """In a process of its own, as a signal has no other place to go. A notebook's loop leaves SIGINT to Python."""
    ledger = tmp_path / "ledger.jsonl"
    call = f"llmbatch.run({rows!r}, model='sim/x', concurrency=5, sim={{'latency': '0.3', 'ledger': {str(ledger)!r}}})"
    inside = f"import asyncio\nasync def cell(): {call}\nasyncio.new_event_loop().run_until_complete(cell())"
    script = "import llmbatch\n" + (inside if notebook else call)
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    while not ledger.exists() or len(ledger.read_text().splitlines()) < 5:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in said
    saved = Path(rows.replace(".jsonl", ".results.jsonl.partial")).read_text().count('"status":"ok"')
    assert saved == len(ledger.read_text().splitlines()) < 30


async def test_row_that_json_can_not_hold_is_a_failed_row_and_the_others_go_on() -> None:
    rows: list[Any] = ["one", "\ud800", {"prompt": "three", "params": {"logit_bias": {1: 2}}}, {"prompt": "four"}]
    by_row = {result.row: result async for result in llmbatch.stream(rows, model="sim/x")}
    assert sorted(by_row) == [1, 2, 3, 4]
    assert by_row[1].ok and by_row[4].ok and not by_row[2].ok


async def test_row_that_is_none_does_not_pass_for_the_end() -> None:
    rows: list[Any] = ["one", None, "three"]
    with pytest.raises(LlmbatchError, match="row 2 is a NoneType"):
        async for _ in llmbatch.stream(rows, model="sim/x"):
            pass


def test_second_ctrl_c_does_not_wait_for_the_simulator(rows: str) -> None:
    stop = Stop()

    async def main() -> float:
        loop = asyncio.get_running_loop()
        running = asyncio.create_task(llmbatch.arun(rows, model="sim/x", sim={"latency": "30"}, stop=stop))
        await asyncio.sleep(0.1)
        stop.request(StopReason("once", 130))
        stop.abandon()
        began_s = loop.time()
        assert (await running).exit_code == 130
        return loop.time() - began_s

    assert asyncio.run(main()) < 1
