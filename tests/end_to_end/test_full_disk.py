"""The disk is full: what was paid for is saved elsewhere, and the same command takes it back."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from llmbatch.errors import StorageError
from llmbatch.events import Event, RowEnded
from llmbatch.files.space import Space
from llmbatch.options import RunOptions
from llmbatch.runner import Run

from .processes import Llmbatch, StartSim, assert_answers, prompts, read_lines, until, whole_lines, write_rows

LIMIT_BYTES = 30_000


def files_of_30_kilobytes_at_most() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, resource.RLIM_INFINITY))


def spills(llmbatch: Llmbatch) -> list[Path]:
    return sorted(llmbatch.state.glob("*.spill*"))


def filled_disk(llmbatch: Llmbatch, flags: tuple[str, ...]) -> None:
    done = llmbatch(*flags, preexec_fn=files_of_30_kilobytes_at_most)
    assert done.code == 5, done.err
    assert "add up" not in done.err  # answers saved elsewhere are still to come into the output: pending
    assert "File too large" in done.err
    assert len(spills(llmbatch)) == 1, done.err


def test_same_command_takes_back_what_was_saved_elsewhere(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.05")
    write_rows(llmbatch.directory / "in.jsonl", prompts(200))
    flags = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "30")
    filled_disk(llmbatch, flags)
    paid = server.ledger()["billed"]
    before = {path.name: path.read_bytes() for path in llmbatch.directory.iterdir() if path.is_file()}
    rehearsed = llmbatch(*flags, "--dry-run")
    assert "saved elsewhere" in rehearsed.err
    assert {path.name: path.read_bytes() for path in llmbatch.directory.iterdir() if path.is_file()} == before
    done = llmbatch(*flags)
    assert done.code == 0, done.err
    assert f"{paid} rows done before" in done.err
    assert "taken back" in done.err
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), prompts(200))
    assert server.ledger()["billed"] == 200
    assert server.ledger()["billed_twice"] == 0
    assert spills(llmbatch) == []


def test_rows_that_were_refused_are_counted_too_when_the_disk_is_full(llmbatch: Llmbatch, sim: StartSim) -> None:
    rows = [prompt for number in range(200) for prompt in (f"prompt {number}", {"neither": "prompt nor messages"})]
    write_rows(llmbatch.directory / "in.jsonl", rows)
    filled_disk(llmbatch, ("run", "in.jsonl", "-m", "m", "--base-url", sim("--latency", "0.05").base_url, "-c", "30"))


def test_answers_of_rows_with_tasks_are_taken_back_too(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "uniform:low=0.01,high=0.1")
    write_rows(llmbatch.directory / "in.jsonl", [{"text": f"text {number}"} for number in range(100)])
    tasks = ("--task", "a=A {{ text }}", "--task", "b=B {{ text }}")
    flags = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "30", *tasks)
    filled_disk(llmbatch, flags)
    done = llmbatch(*flags)
    assert done.code == 0, done.err
    assert len(read_lines(llmbatch.directory / "in.results.jsonl")) == 100
    assert (server.ledger()["billed"], server.ledger()["billed_twice"]) == (200, 0)


def test_pipeline_takes_back_what_was_saved_elsewhere(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.05")
    write_rows(llmbatch.directory / "in.jsonl", prompts(200))
    flags = ("run", "in.jsonl", "-o", "-", "--order", "input", "-m", "m", "--base-url", server.base_url, "-c", "30")
    filled_disk(llmbatch, flags)
    done = llmbatch(*flags)
    assert done.code == 0, done.err
    assert_answers(done.lines, prompts(200))
    assert server.ledger()["billed_twice"] == 0
    assert spills(llmbatch) == []


def test_saved_answers_of_another_output_are_left_alone(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.05")
    (llmbatch.directory / "other").mkdir()
    rows = write_rows(llmbatch.directory / "in.jsonl", prompts(200))
    common = ("run", rows, "-m", "m", "--base-url", server.base_url, "-c", "30")
    filled_disk(llmbatch, (*common, "-o", "out.jsonl"))  # type: ignore[arg-type]
    assert llmbatch(*common, "-o", "other/out.jsonl").code == 0
    assert len(spills(llmbatch)) == 1


def test_restart_moves_saved_answers_aside_too(llmbatch: Llmbatch, sim: StartSim) -> None:
    server = sim("--latency", "0.05")
    write_rows(llmbatch.directory / "in.jsonl", prompts(200))
    flags = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c", "30")
    filled_disk(llmbatch, flags)
    paid = server.ledger()["billed"]
    assert llmbatch(*flags, "--restart").code == 0
    assert server.ledger()["billed"] == paid + 200
    (aside,) = spills(llmbatch)
    assert ".spill.bak-" in aside.name


@pytest.mark.parametrize("act", [Path.unlink, lambda path: os.truncate(path, 0)], ids=["deleted", "truncated"])
def test_journal_taken_away_ends_the_run_and_the_same_command_mends_it(
    llmbatch: Llmbatch, sim: StartSim, act: Callable[[Path], None]
) -> None:
    server = sim("--latency", "0.1")
    write_rows(llmbatch.directory / "in.jsonl", prompts(800))
    flags = ("run", "in.jsonl", "-m", "m", "--base-url", server.base_url, "-c")
    journal = llmbatch.directory / "in.results.jsonl.partial"
    running = llmbatch.start(*flags, "40")
    until(lambda: len(whole_lines(journal)) >= 50, "50 answers")
    act(journal)
    done = running.end()
    assert done.code == 5, done.err
    assert "by someone while running" in done.err
    paid = server.ledger()["billed"]
    again = llmbatch(*flags, "300")
    assert again.code == 0, again.err
    assert_answers(read_lines(llmbatch.directory / "in.results.jsonl"), prompts(800))
    lost = server.ledger()["billed_twice"]
    assert lost == 0 if act is Path.unlink else lost < paid


class FillingDisk:
    """The room on a disk of 1 GB: enough, until ``full``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        monkeypatch.setattr(Space, "of", lambda file: Space(10**6 if self.full else 10**9, 10**9))
        monkeypatch.setattr("llmbatch.files.journal.SYNC_AFTER_S", 0.01)

    def fill_after(self, rows: int) -> Callable[[Event], None]:
        ended = iter(range(1, rows + 1))

        def hear(event: Event) -> None:
            if isinstance(event, RowEnded) and next(ended, rows) == rows:
                self.full = True

        return hear


def options(folder: Path, rows: int) -> RunOptions:
    write_rows(folder / "in.jsonl", prompts(rows))
    return RunOptions(str(folder / "in.jsonl"), model="sim/x", concurrency=10, sim={"latency": "0.02"})


async def test_disk_that_fills_ends_the_run_while_there_is_room_for_what_is_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, job = FillingDisk(monkeypatch), options(tmp_path, 300)
    stopped = await Run(job, listen=disk.fill_after(30)).execute()
    assert (stopped.exit_code, stopped.adds_up, stopped.failed) == (5, True, 0)
    assert len(whole_lines(tmp_path / "in.results.jsonl.partial")) == stopped.ok >= 30
    assert stopped.rows > stopped.ok or not stopped.input_complete
    assert any("1.0 MB are free, 20 MB are needed" in notice for notice in stopped.notices)
    with pytest.raises(StorageError, match="nothing was sent"):
        await Run(job).execute()
    disk.full = False
    done = await Run(job).execute()
    assert (done.exit_code, done.ok, done.ok_before) == (0, 300, stopped.ok)
    assert_answers(read_lines(tmp_path / "in.results.jsonl"), prompts(300))


async def test_disk_that_fills_at_the_very_end_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FillingDisk(monkeypatch)
    done = await Run(options(tmp_path, 10), listen=disk.fill_after(1)).execute()
    assert (done.exit_code, done.ok) == (0, 10)


async def test_complete_output_is_left_as_it_is_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, job = FillingDisk(monkeypatch), options(tmp_path, 10)
    await Run(job).execute()
    disk.full = True
    with pytest.raises(StorageError, match="nothing was sent"):
        await Run(options(tmp_path, 11)).execute()
    assert len(read_lines(tmp_path / "in.results.jsonl")) == 10


async def test_output_on_a_network_file_system_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "mountinfo"
    told.write_text("22 1 0:9 / / rw - nfs4 server:/ rw\n")
    monkeypatch.setattr("llmbatch.files.mounts._MOUNTINFO", told)
    done = await Run(options(tmp_path, 3)).execute()
    assert done.exit_code == 0
    assert ["(nfs4)" in notice for notice in done.notices] == [True]
