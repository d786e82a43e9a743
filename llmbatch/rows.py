"""Rows from Python, results to Python: the same path as a file's, without the files."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

from llmbatch.errors import InputError, ProviderStopped
from llmbatch.events import Event, Listener
from llmbatch.identity import Identity, targets_of
from llmbatch.options import RunOptions
from llmbatch.parts import Part, prepared_job, split, unsent, whole_of
from llmbatch.prepare import ANSWER, Images, builder_of
from llmbatch.providers.target import Target
from llmbatch.records import BadRow, Request, Result, Row, Trace
from llmbatch.rules.fair import tenant_of
from llmbatch.rules.fingerprint import Unwritable
from llmbatch.rules.reasons import RowError
from llmbatch.scheduler import Job, Outcome, folded
from llmbatch.sender import Sender
from llmbatch.stopping import Stop, StopReason

# Results that wait for a slow consumer before no further row is sent.
MAX_WAITING_RESULTS = 1_000


async def stream_rows(
    rows: Iterable[Mapping[str, Any] | str] | AsyncIterable[Mapping[str, Any] | str],
    options: RunOptions,
    listen: Listener | None,
    stop: Stop,
) -> AsyncIterator[Result]:
    """Yield the Result of each row as it comes. Leaving the loop early drains nothing: what is in flight is dropped.

    Raises ProviderStopped, after the last Result, if the provider refuses everything.
    """
    targets = targets_of(options)
    target = targets[0]
    sender = Sender(options, targets, listen or _nobody, stop)
    results = _Results()
    rows_jobs = _Jobs(options, target, results)
    sending = asyncio.create_task(sender.send(_Feed(rows, rows_jobs.of, results.room), results.finish))
    sending.add_done_callback(results.end)
    try:
        async for result in results:
            yield result
        await sending
        if sender.stopped_because is not None:
            raise ProviderStopped(sender.stopped_because)
    finally:
        stop.request(StopReason("the consumer left", 130))
        sending.cancel()


class _Jobs:
    """From a row to the requests that it asks for."""

    def __init__(self, options: RunOptions, target: Target, results: _Results) -> None:
        self._builder = builder_of(options, target)
        self._key_of = Identity(target, options.generation)
        self._images = Images(options, target)
        self._tenant_field = options.tenant_column
        self._results = results

    def of(self, row: Row) -> list[Job]:
        """None of them if the row can not be sent: its Result says so."""
        built = self._builder.parts(row)
        if built is None:
            whole = self._keyed(row, self._builder.build(row))
        else:
            parts = {name: self._keyed(row, request) for name, request in built.items()}
            whole = whole_of(parts)
        if isinstance(whole.request, BadRow):
            self._results.add(unsent(whole.request))
            return []
        assert whole.key is not None, "what can be sent has a key"
        tenant = tenant_of(row.fields, self._tenant_field)
        job = Job(row.index, row.id, whole.key, whole.request, tenant=tenant)
        if built is None:
            return [prepared_job(job, None, self._images, ANSWER)]
        return split(job, parts, row.fields, {}, None, self._images, tasks=True)[1]

    def _keyed(self, row: Row, request: Request | BadRow) -> Part:
        if isinstance(request, BadRow):
            return Part(request, None)
        try:
            request = self._images.stamped(request)
            return Part(request, self._key_of(request))
        except (RowError, Unwritable) as error:
            return Part(BadRow(row.index, row.line, 0, f"row {row.index}: {error}", row.id), None)


def _nobody(event: Event) -> None:
    """Nobody listens."""


class _Results:
    """Results on their way to the consumer."""

    def __init__(self) -> None:
        self._waiting: deque[Result] = deque()
        self._moved = asyncio.Event()
        self._taken = asyncio.Event()
        self._ended = False

    def finish(self, job: Job, outcome: Outcome, trace: Trace) -> Awaitable[None] | None:
        """What it returns is awaited: rows that were read ahead must not be sent for a consumer that is far behind."""
        result = folded(job, outcome, trace)
        if job.group is None:
            self.add(result)
        else:
            assert job.part is not None, "a job of a group is one of its parts"
            job.group.end(job.part, result)
            if job.group.complete:
                self.add(job.group.result())
        return self.room() if len(self._waiting) >= MAX_WAITING_RESULTS else None

    def add(self, result: Result) -> None:
        self._waiting.append(result)
        self._moved.set()

    def end(self, sending: asyncio.Task[None]) -> None:
        self._ended = True
        self._moved.set()

    async def room(self) -> None:
        while len(self._waiting) >= MAX_WAITING_RESULTS:
            self._taken.clear()
            await self._taken.wait()

    def __aiter__(self) -> _Results:
        return self

    async def __anext__(self) -> Result:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._moved.clear()
            await self._moved.wait()
        self._taken.set()
        return self._waiting.popleft()


class _Feed:
    """Jobs from an iterable, one at a time: what a generator has not yet given is not waited for by others."""

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any] | str] | AsyncIterable[Mapping[str, Any] | str],
        jobs: Callable[[Row], list[Job]],
        room: Callable[[], Any],
    ) -> None:
        self._rows = _each(rows)
        self._jobs = jobs
        self._room = room
        self._next: deque[Job] = deque()
        self._index = 0

    def take(self) -> Job | None:
        return self._next.popleft() if self._next else None

    async def refill(self) -> bool:
        while True:
            await self._room()
            fields = await anext(self._rows, _END)
            if fields is _END:
                return False
            self._index += 1
            self._next.extend(self._jobs(_row(fields, self._index)))
            if self._next:
                return True


# None may be a row, though a bad one.
_END: Any = object()


async def _each(
    rows: Iterable[Mapping[str, Any] | str] | AsyncIterable[Mapping[str, Any] | str],
) -> AsyncIterator[Mapping[str, Any] | str]:
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield row
    else:
        for row in rows:
            yield row


def _row(fields: Mapping[str, Any] | str, index: int) -> Row:
    if isinstance(fields, str):
        return Row(index, index, None, {"prompt": fields})
    if not isinstance(fields, Mapping):
        raise InputError(f"row {index} is a {type(fields).__name__}; give a mapping or a string")
    return Row(index, index, fields.get("id", fields.get("custom_id")), fields)
