"""The pass over the input before a run continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmbatch.errors import ChangedRows
from llmbatch.options import RunOptions
from llmbatch.runner import Run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


async def run(folder: Path, rows: list[Any], **settings: Any) -> Any:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return await Run(RunOptions(str(path), **{"model": "sim/x", **settings})).execute()


async def rehearsed(folder: Path, rows: list[Any], **settings: Any) -> Any:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    planned, _ = await Run(RunOptions(str(path), **{"model": "sim/x", **settings})).rehearse()
    return planned


async def test_without_earlier_results_everything_is_to_be_sent(folder: Path) -> None:
    planned = await rehearsed(folder, ["a", "b", {"prompt": ""}])
    assert (planned.rows, planned.to_send, planned.bad, planned.resume.done) == (3, 2, 1, 0)
    assert not planned.nothing_to_do
    assert "line 3" in planned.bad_examples[0]


async def test_finished_rows_are_not_to_be_sent(folder: Path) -> None:
    await run(folder, ["a", "b"])
    planned = await rehearsed(folder, ["a", "b"])
    assert planned.nothing_to_do
    assert (planned.rows, planned.to_send, planned.resume.done) == (2, 0, 2)


async def test_new_failed_and_changed_rows_are_told_apart(folder: Path) -> None:
    await run(folder, ["a", {"prompt": ""}, "c"])
    planned = await rehearsed(folder, ["a", {"prompt": "mended"}, "C", "new"])
    assert planned.resume.done == 1
    assert planned.resume.failed_again == 1
    assert planned.resume.refused == 1
    assert planned.resume.new == 1
    assert planned.to_send == 2


async def test_a_bad_row_that_stays_bad_is_no_work_left_unsaid(folder: Path) -> None:
    await run(folder, ["a", {"prompt": ""}])
    planned = await rehearsed(folder, ["a", {"prompt": ""}])
    assert (planned.to_send, planned.bad) == (0, 1)


async def test_changes_are_refused_with_their_number_and_reason(folder: Path) -> None:
    await run(folder, [{"prompt": "a"}, {"prompt": "b"}])
    with pytest.raises(ChangedRows, match=r"2 finished rows changed.*on-change rerun"):
        await run(folder, [{"prompt": "a"}, {"prompt": "b"}], template="T {{ prompt }}")


async def test_limit_bounds_the_plan(folder: Path) -> None:
    assert (await rehearsed(folder, list("abcdef"), limit=4)).rows == 4
