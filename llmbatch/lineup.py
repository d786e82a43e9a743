"""The rows at hand, in the order in which they are sent; between a feed and the scheduler.

Most runs have nothing to order, and their rows pass through as they come. With the first row that has a tenant, or a
long beginning that others may share (rules/prefix.py), a reader of its own reads ahead, within bounds, and the rows
at hand take turns (rules/fair.py).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from sys import getsizeof
from types import TracebackType
from typing import Any

from llmbatch.records import Request, Trace
from llmbatch.rules.fair import Turns
from llmbatch.rules.prefix import prefix_of
from llmbatch.scheduler import Feed, Finish, Job, Outcome

# How much is read ahead. Tenants want much of it: one whose rows stand further down waits until they are near.
AHEAD_FOR_TENANTS_BYTES = 64 * 2**20
AHEAD_FOR_PREFIXES_BYTES = 16 * 2**20
# What a row takes besides its texts.
ROW_BYTES = 1_024
# Rows that are read before others have their turn on the loop: some milliseconds.
READ_TOGETHER = 50
# A clock that goes on by less between two looks would be asked for ever.
SHORTEST_WAIT_S = 0.001


class Lineup:
    """A feed that gives the jobs of another in a better order. To be entered; leaving it ends the reading ahead.

    ``tenant_rpm`` and ``tenant_concurrency`` hold for each tenant. ``clock`` is the run's. Owned by the run's loop.
    """

    def __init__(
        self, feed: Feed, tenant_rpm: float | None, tenant_concurrency: int | None, clock: Callable[[], float]
    ) -> None:
        self._feed = feed
        self._clock = clock
        self._turns: Turns[tuple[Job, int]] = Turns(tenant_rpm, tenant_concurrency)
        self._limited = tenant_rpm is not None or tenant_concurrency is not None
        self._ahead_bytes = AHEAD_FOR_TENANTS_BYTES if self._limited else AHEAD_FOR_PREFIXES_BYTES
        self._held_bytes = 0
        self._reading: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()

    async def __aenter__(self) -> Lineup:
        if self._limited:
            self._read_ahead()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        if self._reading is None:
            return
        self.stop()
        await asyncio.wait([self._reading])
        if not self._reading.cancelled() and (mistake := self._reading.exception()) is not None and error is None:
            raise mistake

    @property
    def at_hand(self) -> int:
        """Rows that were read and not yet sent."""
        return len(self._turns)

    @property
    def limited(self) -> bool:
        """Rows at hand may not go because their tenants are at their limits."""
        return self._turns.limited

    def take(self) -> Job | None:
        """The next job, or None if none is at hand that may go."""
        if self._reading is not None:
            return self._next()
        job = self._feed.take()
        if job is None or (job.tenant is None and _prefix_of(job) is None):
            return job
        self._add(job)
        self._read_ahead()
        return self._next()

    async def refill(self) -> bool:
        """Wait until another job may go, or for further rows. False at the end.

        Raises what the feed has raised, once the rows before it were taken.
        """
        if self._reading is None:
            return await self._feed.refill()  # meanwhile it gives none, so nobody begins to read ahead
        if self._reading.done() and not self._turns:
            if not self._reading.cancelled():
                self._reading.result()
            return False
        self._changed.clear()
        wait_s = self._turns.wait_s(self._clock())
        timer = None
        if not math.isinf(wait_s):
            timer = asyncio.get_running_loop().call_later(max(wait_s, SHORTEST_WAIT_S), self._changed.set)
        try:
            await self._changed.wait()
        finally:
            if timer is not None:
                timer.cancel()
        return True

    def watching(self, finish: Finish) -> Finish:
        """``finish``, and the places of its rows are free again."""

        def ended(job: Job, outcome: Outcome, trace: Trace) -> Awaitable[None] | None:
            if self._reading is not None:
                if job.began is not None:
                    job.began()
                self._turns.ended(job.tenant, len(trace.attempts), self._clock())
                self._changed.set()
            return finish(job, outcome, trace)

        return ended

    def stop(self) -> None:
        """Read no further."""
        if self._reading is not None:
            self._reading.cancel()

    def _next(self) -> Job | None:
        found = self._turns.next(self._clock())
        if found is None:
            return None
        (job, size), led = found
        self._held_bytes -= size
        if self._held_bytes < self._ahead_bytes * 7 // 8:  # the reader is not woken for every row
            self._has_room.set()
        return job if led is None else replace(job, began=partial(self._began, led))

    def _began(self, prefix: int) -> None:
        self._turns.began(prefix, self._clock())
        self._changed.set()

    def _add(self, job: Job) -> None:
        if job.tenant is not None:
            self._ahead_bytes = AHEAD_FOR_TENANTS_BYTES
        size = ROW_BYTES + job.kept_bytes + _size_of(job.request)
        self._held_bytes += size
        self._turns.add((job, size), job.tenant, _prefix_of(job), self._clock())

    def _read_ahead(self) -> None:
        self._reading = asyncio.create_task(self._read())
        self._reading.add_done_callback(lambda reading: self._changed.set())

    async def _read(self) -> None:
        """Until the end of the input, waiting while as much is at hand as may be."""
        count = 0
        while True:
            while (job := self._feed.take()) is not None:
                self._add(job)
                self._changed.set()
                count += 1
                while self._held_bytes >= self._ahead_bytes:
                    self._has_room.clear()
                    await self._has_room.wait()
                if count % READ_TOGETHER == 0:
                    await asyncio.sleep(0)
            if not await self._feed.refill():
                return


def _prefix_of(job: Job) -> int | None:
    """What is made only when it is sent has no prefix that is known."""
    return None if job.prepare is not None else prefix_of(job.request)


def _size_of(request: Request) -> int:
    """Bytes of its texts; of a prepared one, of what stands for it."""
    size = _text_bytes(request.body) if request.body is not None else 0
    for message in request.messages:
        content = message.get("content")
        size += getsizeof(content) if type(content) is str and len(message) == 2 else _text_bytes(message)
    return size + _text_bytes(request.params) if request.params else size


def _text_bytes(value: Any) -> int:
    if type(value) is str:
        return getsizeof(value)
    if type(value) is dict:
        return sum(map(_text_bytes, value.values()))
    return sum(map(_text_bytes, value)) if type(value) is list else 0
