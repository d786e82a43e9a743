"""Where results go: files and standard output, each with its journal."""

from __future__ import annotations

import asyncio
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from llmbatch.errors import OptionsError, OutputRefused, StorageError
from llmbatch.files.journal import DiskListener
from llmbatch.files.stdout import StdoutWriter
from llmbatch.opening import open_file_output, open_stdout_output
from llmbatch.options import RunOptions
from llmbatch.output import FileOutput, StdoutOutput

Stdout = pytest.CaptureFixture[bytes]


def result(row: int, status: str = "ok") -> bytes:
    line = {"id": None, "row": row, "status": status, "output": f"answer {row}", "key": f"fp1:{row:032x}"}
    return json.dumps(line).encode() + b"\n"


def fail(error: Any) -> None:
    raise AssertionError(error)


LISTENER = DiskListener(fail, fail, fail)


def file_output(folder: Path, **settings: Any) -> FileOutput:
    options = RunOptions(str(folder / "in.jsonl"), output=str(folder / "out.jsonl"), model="m", **settings)
    return open_file_output(options, LISTENER, "then")


async def write(output: FileOutput | StdoutOutput, rows: list[int]) -> list[int]:
    done: list[int] = []
    await output.begin({"model": "m"})
    for row in rows:
        output.put(row, result(row), lambda row=row: done.append(row))  # type: ignore[misc]
    await output.close()
    return done


async def test_file_appears_only_when_complete_and_in_input_order(tmp_path: Path) -> None:
    output = file_output(tmp_path)
    assert await write(output, [3, 1, 2]) == [3, 1, 2]
    assert not (tmp_path / "out.jsonl").exists()
    await output.complete(3, 0)
    output.release()
    assert (tmp_path / "out.jsonl").read_bytes() == result(1) + result(2) + result(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl"]


async def test_order_completion_keeps_the_order_of_the_answers(tmp_path: Path) -> None:
    output = file_output(tmp_path, order="completion")
    await write(output, [3, 1, 2])
    await output.complete(3, 0)
    output.release()
    assert (tmp_path / "out.jsonl").read_bytes() == result(3) + result(1) + result(2)


async def test_output_is_held_while_open_and_free_after(tmp_path: Path) -> None:
    output = file_output(tmp_path)
    with pytest.raises(OutputRefused, match=f"pid {os.getpid()}"):
        file_output(tmp_path)
    output.release()
    file_output(tmp_path).release()


async def test_what_was_written_is_recovered(tmp_path: Path) -> None:
    output = file_output(tmp_path)
    await write(output, [2])
    output.release()
    again = file_output(tmp_path)
    assert again.recovered is not None
    assert again.recovered.ok == 1
    again.release()


def test_refusing_a_foreign_file_lets_go_of_the_lock(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine\n")
    with pytest.raises(OutputRefused, match="not a results file"):
        file_output(tmp_path)
    assert not (tmp_path / "out.jsonl.lock").exists()
    file_output(tmp_path, restart=True).release()
    assert (tmp_path / "out.jsonl.bak-then").read_text() == "mine\n"


@pytest.mark.parametrize("name", ["in.jsonl", "link.jsonl", "hard.jsonl"])
def test_input_is_never_the_output_by_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "in.jsonl").write_text('"a"\n')
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "in.jsonl")
    with pytest.raises(OptionsError, match="is the input itself"):
        open_file_output(
            RunOptions(str(tmp_path / "in.jsonl"), output=str(tmp_path / name), model="m"), LISTENER, "then"
        )


def stdout_output(folder: Path, **settings: Any) -> StdoutOutput:
    options = RunOptions("-", model="m", **settings)
    return open_stdout_output(options, folder / "state", {"words": "the same"}, LISTENER, fail, "then")


async def test_stdout_in_input_order_waits_for_the_slow_row_only(tmp_path: Path, capfdbinary: Stdout) -> None:
    output = stdout_output(tmp_path, order="input")
    assert await write(output, [2, 4, 1, 3]) == [2, 4, 1, 3]
    assert capfdbinary.readouterr().out == b"".join(map(result, (1, 2, 3, 4)))
    await output.complete(4, 0)
    output.release()
    assert list((tmp_path / "state").iterdir()) == []


async def test_kept_rows_that_wait_for_their_turn_are_not_held_in_memory(tmp_path: Path, capfdbinary: Stdout) -> None:
    """Row 1 is still to be asked, all others are in the journal of an earlier run."""
    rows, filler = 400, "x" * 20_000
    lines = {row: json.dumps({**json.loads(result(row)), "output": filler}).encode() + b"\n" for row in range(1, rows)}
    first = stdout_output(tmp_path)
    await first.begin({"model": "m"})
    for row in range(2, rows):
        first.put(row, lines[row], lambda: None)
    await first.close()
    first.release()
    capfdbinary.readouterr()
    again = stdout_output(tmp_path, order="input")
    await again.begin({"model": "m"})
    tracemalloc.start()
    for row in range(2, rows):
        found = again.recovered.find(None, row)  # type: ignore[union-attr]
        assert found is not None
        again.keep(row, found.line, reappend=False)
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held_bytes < 1_000_000 < sum(map(len, lines.values()))
    again.put(1, lines[1], lambda: None)
    await again.close()
    again.release()
    assert [json.loads(line)["row"] for line in capfdbinary.readouterr().out.splitlines()] == list(range(1, rows))


async def test_stdout_journal_stays_if_a_row_failed(tmp_path: Path, capfdbinary: Stdout) -> None:
    output = stdout_output(tmp_path)
    await write(output, [1, 2])
    await output.complete(2, 1)
    output.release()
    again = stdout_output(tmp_path)
    assert again.recovered is not None
    assert len(again.recovered) == 2
    again.abandon()
    await again.close()
    again.release()


async def test_same_words_at_the_same_time_get_a_journal_each(tmp_path: Path, capfdbinary: Stdout) -> None:
    outputs = [stdout_output(tmp_path), stdout_output(tmp_path)]
    for output in outputs:
        await write(output, [1])
        await output.complete(1, 0)
    for output in outputs:
        output.release()
    assert capfdbinary.readouterr().out == result(1) * 2


async def test_writer_reports_its_first_error_once() -> None:
    errors: list[OSError] = []
    fd = os.open("/dev/full", os.O_WRONLY)
    writer = StdoutWriter(errors.append, fd)
    for _ in range(3):
        writer.put(b"line\n")
    await asyncio.wait_for(writer.close(), 5)
    os.close(fd)
    assert len(errors) == 1
    assert not writer.delivered


async def test_abandoned_writer_waits_for_nobody_and_says_what_is_missing() -> None:
    read, write_end = os.pipe()
    writer = StdoutWriter(fail, write_end)
    writer.put(b"x" * 2**20)
    writer.put(b"y" * 9 * 2**20)
    waiting = asyncio.create_task(writer.room())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    writer.abandon()
    await asyncio.wait_for(waiting, 5)
    await asyncio.wait_for(writer.close(), 5)
    assert not writer.delivered
    left = 10 * 2**20
    while left:  # lets the thread end
        left -= len(await asyncio.to_thread(os.read, read, 2**20))
    os.close(read)
    os.close(write_end)


def test_storage_error_says_5() -> None:
    assert StorageError.exit_code == 5
