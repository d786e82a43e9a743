"""From lines of the input to jobs."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llmbatch.errors import StorageError
from llmbatch.feed import Reading, Rendered, RowFeed
from llmbatch.files.readers import open_input
from llmbatch.identity import Identity
from llmbatch.options import RunOptions
from llmbatch.prepare import Images
from llmbatch.providers.target import resolve
from llmbatch.records import BadRow
from llmbatch.rules.request import RequestBuilder
from llmbatch.scheduler import Job

TARGET = resolve("m", "http://127.0.0.1/v1")


class Desk:
    """Remembers the rows that are not sent."""

    def __init__(self) -> None:
        self.refused: list[BadRow] = []
        self.shown: list[Mapping[str, Any] | None] = []
        self.errors: list[StorageError] = []

    def refuse(self, bad: BadRow, fields: Mapping[str, Any] | None) -> None:
        self.refused.append(bad)
        self.shown.append(fields)

    def keep(self, rendered: Rendered) -> None:
        raise AssertionError("there was no earlier run")

    def broken(self, error: StorageError) -> None:
        self.errors.append(error)


async def reading_of(path: str, limit: int | None = None) -> Reading:
    return Reading(
        await open_input(path),
        RequestBuilder(model="m"),
        Identity(TARGET),
        recovered=None,
        on_change="refuse",
        limit=limit,
        images=Images(RunOptions(path), TARGET),
    )


async def no_wait() -> None:
    """There is always room."""


async def jobs_of(feed: RowFeed) -> list[Job]:
    jobs: list[Job] = []
    while await feed.refill():
        while (job := feed.take()) is not None:
            jobs.append(job)
    return jobs


async def feed_of(folder: Path, text: str, **settings: Any) -> tuple[RowFeed, Desk, Reading]:
    path = folder / "in.jsonl"
    path.write_text(text)
    desk, reading = Desk(), await reading_of(str(path), settings.pop("limit", None))
    return RowFeed(reading, desk, include_input=settings.pop("include_input", False), ready=no_wait), desk, reading


async def test_good_rows_become_jobs_and_bad_ones_go_to_the_desk(tmp_path: Path) -> None:
    feed, desk, reading = await feed_of(tmp_path, '"a"\n{broken\n\n{"id": 7, "prompt": "b"}\n{"prompt": ""}\n')
    jobs = await jobs_of(feed)
    assert [(job.row, job.id) for job in jobs] == [(1, None), (3, 7)]
    assert [(bad.index, bad.line) for bad in desk.refused] == [(2, 2), (4, 5)]
    assert (reading.rows, reading.exhausted, feed.taken) == (4, True, 2)
    assert feed.offset == len(b'"a"\n{broken\n\n{"id": 7, "prompt": "b"}\n{"prompt": ""}\n')


async def test_the_same_request_has_the_same_key_and_another_one_another(tmp_path: Path) -> None:
    feed, _, _ = await feed_of(tmp_path, '"a"\n{"prompt": "a", "note": 1}\n"b"\n{"prompt": "a", "temperature": 0}\n')
    keys = [job.key for job in await jobs_of(feed)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


async def test_second_row_of_an_id_is_refused_by_type_and_text(tmp_path: Path) -> None:
    rows = [{"id": i, "prompt": "p"} for i in (1, "1", 1.0, 1, "1")]
    feed, desk, _ = await feed_of(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))
    assert len(await jobs_of(feed)) == 3
    assert [(bad.index, bad.type) for bad in desk.refused] == [(4, "duplicate_id"), (5, "duplicate_id")]


@pytest.mark.parametrize("limit", [1, 3, 5, 9])
async def test_limit_takes_only_the_first_rows(tmp_path: Path, limit: int) -> None:
    feed, _, reading = await feed_of(tmp_path, '"x"\n' * 5, limit=limit)
    assert len(await jobs_of(feed)) == min(5, limit)
    assert reading.exhausted


async def test_input_is_shown_only_when_asked_for(tmp_path: Path) -> None:
    text = '{"prompt": "a", "tag": 1}\n{"prompt": "", "tag": 2}\n'
    feed, desk, _ = await feed_of(tmp_path, text, include_input=True)
    assert [job.input for job in await jobs_of(feed)] == [{"prompt": "a", "tag": 1}]
    assert desk.shown == [{"prompt": "", "tag": 2}]
    feed, _, _ = await feed_of(tmp_path, text)
    assert [job.input for job in await jobs_of(feed)] == [None]


async def test_interrupted_reading_ends_and_is_not_complete() -> None:
    """A pipe that stays silent."""
    read, write = os.pipe()
    os.write(write, b'"a prompt"\n')
    try:
        reading = await reading_of(f"/dev/fd/{read}")
        feed = RowFeed(reading, Desk(), include_input=False, ready=no_wait)
        assert await feed.refill()
        assert feed.take() is not None
        waiting = asyncio.create_task(feed.refill())
        await asyncio.sleep(0.02)
        assert not waiting.done()
        reading.interrupt()
        assert await asyncio.wait_for(waiting, 5) is False
        assert not reading.exhausted
        assert await feed.refill() is False
    finally:
        os.close(write)
        os.close(read)


async def test_read_error_goes_to_the_desk_and_ends_the_feed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed, desk, reading = await feed_of(tmp_path, '"a"\n')

    async def fails() -> list[Any]:
        raise StorageError("cannot read on")

    monkeypatch.setattr(reading, "more", fails)
    assert await feed.refill() is False
    assert feed.take() is None
    assert [str(error) for error in desk.errors] == ["cannot read on"]
    assert not reading.exhausted
    reading.interrupt()


async def test_room_is_waited_for_before_further_lines(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('"a"\n')
    room = asyncio.Event()
    feed = RowFeed(await reading_of(str(path)), Desk(), include_input=False, ready=room.wait)
    waiting = asyncio.create_task(feed.refill())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    room.set()
    assert await waiting is True
    assert feed.take() is not None
    assert await feed.refill() is False


@pytest.mark.parametrize("include_input", [False, True])
async def test_a_row_says_whose_it_is_and_nobody_else_hears_of_it(tmp_path: Path, include_input: bool) -> None:
    lines = ['{"prompt": "a", "tenant": "x"}', '{"prompt": "a", "tenant": 7}', '{"prompt": "a", "team": "y"}', '"a"']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    reading = await reading_of(str(tmp_path / "in.jsonl"))
    jobs = await jobs_of(
        RowFeed(reading, Desk(), include_input=include_input, ready=no_wait, tenant_field="tenant")  # type: ignore[arg-type]
    )
    assert [job.tenant for job in jobs] == ["x", "7", None, None]
    assert len({job.key for job in jobs}) == 1 and all(job.request == jobs[0].request for job in jobs)
    assert reading.warnings == []
    assert [job.kept_bytes for job in jobs] == [len(line) if include_input else 0 for line in lines]


@pytest.mark.parametrize(("field", "warned"), [("tenant", 0), ("tennant", 1)])
async def test_a_tenant_field_that_rows_do_not_have_is_told_once(tmp_path: Path, field: str, warned: int) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "tenant": "x"}\n' * 3)
    reading = await reading_of(str(tmp_path / "in.jsonl"))
    feed = RowFeed(
        reading,
        Desk(),  # type: ignore[arg-type]
        include_input=False,
        ready=no_wait,
        tenant_field=field,
        tenant_expected=True,
    )
    assert len(await jobs_of(feed)) == 3
    assert len(reading.warnings) == warned and all("'tennant' (--tenant-field)" in one for one in reading.warnings)
