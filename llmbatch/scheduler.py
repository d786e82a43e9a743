"""Rows in flight: a crew of workers takes jobs from a feed, calls, and hands the outcome over.

A worker whose row rests before its next try does not count, so another one takes its place; when it has rested it waits
for a place of its own. The scheduler knows ``Call``; it does not know what a provider is, what a file is, or what a
limit is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from llmbatch.records import Attempt, Call, CallFailed, Failure, Reply, Request, Result, Skipped, Stopped, Trace

# Rows that rest between tries cost some kilobytes each; beyond this many no further row is taken.
MAX_RESTING = 5_000
# Ten thousand workers started at once would all open their connections before the first request leaves.
START_TOGETHER = 50


@dataclass(frozen=True, slots=True)
class Job:
    """A row that is to be sent; ``input`` is what is shown of it beside its result.

    ``failed_before`` says that an earlier run has sent it in vain. Of a row that asks several things ``part`` is the
    name of this one, and ``group`` (parts.Group) what joins them. ``prepare``, if there is one, makes the request when
    it is to be sent. ``tenant`` is whose row it is. ``began``, if there is one, is called when its answer begins.
    ``kept_bytes`` is the size of what is kept of the row besides its request.
    """

    row: int
    id: str | int | float | None
    key: str
    request: Request
    input: Any = None
    failed_before: bool = False
    part: str | None = None
    group: Any = None
    prepare: Callable[[], Awaitable[Request]] | None = None
    tenant: str | None = None
    began: Callable[[], None] | None = None
    kept_bytes: int = 0


Outcome = Reply | Failure | None
"""How a job ended; None if a hook left its row out."""


def folded(job: Job, outcome: Outcome, trace: Trace) -> Result:
    """A job, how it ended and the diary of its tries, as the Result that is written."""
    last = trace.attempts[-1] if trace.attempts else _NEVER_SENT
    return Result(
        row=job.row,
        id=job.id,
        key=job.key,
        reply=outcome if isinstance(outcome, Reply) else None,
        failure=outcome if isinstance(outcome, Failure) else None,
        attempts=len(trace.attempts),
        latency_s=last.latency_s if trace.attempts else None,
        first_token_s=last.first_token_s,
        request_id=last.request_id,
        ambiguous=trace.ambiguous,
        cost_usd=trace.cost_usd,
        input=job.input,
        request_ids=_request_ids(trace),
        skipped=outcome is None,
        cache_saved_usd=trace.cache_saved_usd,
    )


_NEVER_SENT = Attempt(sent_s=0.0)


def _request_ids(trace: Trace) -> tuple[str, ...]:
    """Of every try that had one: in a dispute over the bill, that of a failed try counts as much."""
    return tuple(attempt.request_id for attempt in trace.attempts if attempt.request_id is not None)


class Feed(Protocol):
    """Where jobs come from."""

    def take(self) -> Job | None:
        """The next job, or None if none is at hand."""
        ...

    async def refill(self) -> bool:
        """Wait for more; False at the end. Called by one worker at a time, when none is at hand."""
        ...


Finish = Callable[[Job, Outcome, Trace], Awaitable[None] | None]
"""Takes the outcome of a job without waiting. What it returns is awaited before the worker takes its next row, so
that rows under way and rows not yet written are together never more than the capacity."""


class Scheduler:
    """Runs the crew. ``capacity`` says how many rows may be under way now; ``finish`` must not wait.

    ``preparing`` rows wait for their request to be made.
    """

    def __init__(
        self,
        feed: Feed,
        finish: Finish,
    ) -> None:
        self._feed = feed
        self._finish = finish
        self._call: Call
        self._capacity: Callable[[], int]
        self._refilling = asyncio.Lock()
        self._idle = 0
        self._reader: asyncio.Task[Any] | None = None
        self.preparing = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._resters: set[asyncio.Future[None]] = set()
        self._ripe: deque[asyncio.Future[None]] = deque()
        self._stopping = False
        self._exhausted = False
        self._mistake: Exception | None = None
        self._group: asyncio.TaskGroup

    @property
    def resting(self) -> int:
        """Rows that wait for their next try."""
        return len(self._resters)

    @property
    def reading(self) -> bool:
        """Whether it waits for further rows."""
        return self._reader is not None

    @property
    def taking(self) -> bool:
        """Whether further rows will be taken."""
        return not self._done

    async def run(self, call: Call, capacity: Callable[[], int]) -> None:
        """Until the feed is at its end, or until stopped and drained.

        Raises what a worker raised by mistake, after what else is in flight has been waited for: it is paid.
        """
        self._call, self._capacity = call, capacity
        async with asyncio.TaskGroup() as self._group:
            while (room := self._room()) > 0:
                for _ in range(min(room, START_TOGETHER)):
                    self._spawn()
                await asyncio.sleep(0)
        if self._mistake is not None:
            raise self._mistake

    def grow(self) -> None:
        """The capacity may have grown: do not wait for the next answer to use it."""
        self._top_up()

    def stop(self) -> None:
        """Take no further row and send none again; what is in flight goes on."""
        self._stopping = True
        if self._reader is not None:
            self._reader.cancel()  # its feed may be a terminal that never gives another line
        for rester in self._resters:
            if not rester.done():
                rester.set_exception(Stopped())

    def abandon(self) -> None:
        """Cancel what is in flight."""
        self.stop()
        for worker in self._workers:
            worker.cancel()

    async def rest(self, delay_s: float) -> None:
        """Sleep before a row's next try, in nobody's way. Raises Stopped when the run ends meanwhile."""
        if self._stopping:
            raise Stopped
        if delay_s <= 0:
            return
        loop = asyncio.get_running_loop()
        rester: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(delay_s, self._rested, rester)
        self._resters.add(rester)
        self._top_up()
        try:
            await rester
        finally:
            timer.cancel()
            self._resters.discard(rester)

    def _rested(self, rester: asyncio.Future[None]) -> None:
        """Its time has come; it goes on as soon as it has a place."""
        self._ripe.append(rester)
        self._wake()

    def _wake(self, leaving: int = 0) -> None:
        """Give the free places, and those of workers that are ``leaving`` theirs or have no row, to rows that have
        rested."""
        while self._ripe and self._free() + self._idle + leaving > 0:
            rester = self._ripe.popleft()
            self._resters.discard(rester)
            if not rester.done():
                rester.set_result(None)

    @property
    def _done(self) -> bool:
        return self._stopping or self._exhausted

    def _room(self) -> int:
        """How many workers may still be added."""
        if self._done or self.resting >= MAX_RESTING:
            return 0
        return self._free()

    def _free(self) -> int:
        """How many more rows may be under way."""
        return self._capacity() - (len(self._workers) - self.resting)

    def _top_up(self) -> None:
        self._wake()
        for _ in range(self._room()):
            self._spawn()

    def _spawn(self) -> None:
        worker = self._group.create_task(self._work())
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        has_worked = False  # the crew grows by those that have: at the start ``run`` adds a few at a time
        try:
            while not self._done:
                self._wake(leaving=1)
                room = self._room()
                if room < 0:
                    return
                if room > 0 and has_worked:
                    self._top_up()
                has_worked = True
                job = self._feed.take()
                if job is not None:
                    await self._do(job)
                elif not await self._refill():
                    return
        except Exception as error:
            self._mistake = self._mistake or error
            self.stop()
        finally:
            # At once, not when the task is done: workers that end in one turn of the loop would all count as surplus.
            self._workers.discard(_this_task())
            self._wake()

    async def _refill(self) -> bool:
        """Get more into the feed, one worker at a time. False at the end, or if rested rows have taken its place."""
        self._idle += 1
        try:
            self._wake()
            async with self._refilling:
                if self._done or self._free() < 0:
                    return False
                job = self._feed.take()
                if job is None:
                    self._exhausted = not await self._read() or self._exhausted
                    return not self._done
        finally:
            self._idle -= 1
        await self._do(job)
        return True

    async def _read(self) -> bool:
        self._reader = _this_task()
        try:
            return await self._feed.refill()
        finally:
            self._reader = None

    async def _do(self, job: Job) -> None:
        trace = Trace(failed_before=job.failed_before, began=job.began)
        try:
            if job.prepare is not None:
                job = replace(job, request=await self._prepared(job.prepare))
            outcome: Outcome = await self._call(job.request, trace)
        except CallFailed as failed:
            outcome = failed.failure
        except Skipped:
            outcome = None
        except Stopped:
            return
        written = self._finish(job, outcome, trace)
        if written is not None:
            await written

    async def _prepared(self, prepare: Callable[[], Awaitable[Request]]) -> Request:
        self.preparing += 1
        try:
            return await prepare()
        finally:
            self.preparing -= 1


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "workers are tasks"
    return task
