"""What becomes of each row: its line is handed to the output, and when it is written there, the row is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from llmbatch.errors import StorageError
from llmbatch.events import Listener, Notice, RowEnded, RowKept
from llmbatch.feed import Rendered, RowFeed
from llmbatch.files.results import line_of, result_line, written
from llmbatch.hooks import HookError
from llmbatch.output import Output
from llmbatch.parts import Group, unsent
from llmbatch.records import BadRow, Failure, Result, Trace
from llmbatch.scheduler import Job, Outcome, folded
from llmbatch.stopping import Stop, StopReason

# A number that falls is noted this much later; a busy run, which fills what it frees, then notes next to nothing.
SETTLE_S = 0.05


# Results that hooks work on before no further line is read.
MOST_WORKING = 1_000
# What a hook can not change of a line.
_OURS = ("id", "row", "status", "attempts", "ambiguous", "request_id", "request_ids", "key")

After = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""A hook that gets the line of a good result, with the row under ``input``, and gives another. Raises HookError."""


class InFlight:
    """Keeps what is noted for the run after a kill at or above the truth: a rise at once, a fall a little later.

    ``count`` gives the number of this moment, ``note`` writes it: a system call, too dear for each change.
    """

    def __init__(self, count: Callable[[], int], note: Callable[[int], None]) -> None:
        self._count = count
        self._note = note
        self._noted = 0
        self._timer: asyncio.TimerHandle | None = None

    def changed(self) -> None:
        """The number may have changed. From the run's loop, before the bytes of a new request leave."""
        now = self._count()
        if now > self._noted:
            self._write(now)
        elif now < self._noted:
            self.fell()

    def fell(self) -> None:
        """The number can only have become smaller."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SETTLE_S, self._settle)

    def _settle(self) -> None:
        self._timer = None
        self._write(self._count())

    def _write(self, number: int) -> None:
        self._noted = number
        self._note(number)


class Desk:
    """Between the feed and the sender on one side and the output on the other. Owned by the run's loop.

    ``answered`` counts the rows that came to an end, ``unwritten`` those of them whose line is not in the journal
    (yet), ``unwritten_refusals`` the same of rows that can not be sent, ``unwritten_parts`` of answers whose row is not
    complete. ``waits_for_output``: it is so far behind that no further row is read. ``after`` is the hook that works on
    good results. ``disk_error`` is what made the output fail, if it did. ``in_flight`` hears when ``unwritten`` or
    ``unwritten_parts`` has changed.
    """

    def __init__(
        self,
        stop: Stop,
        tell: Listener,
        *,
        include_input: bool,
        in_flight: InFlight,
        after: After | None = None,
    ) -> None:
        self.answered = 0
        self.unwritten = 0
        self.unwritten_parts = 0
        self.unwritten_refusals = 0
        self.disk_error: StorageError | None = None
        self.waits_for_output = False
        self._stop = stop
        self._tell = tell
        self._include_input = include_input
        self._in_flight = in_flight
        self._unwritten: set[asyncio.Future[None]] = set()
        self._after = after
        self._working: set[asyncio.Task[None]] = set()
        self._mistake: BaseException | None = None
        self._output: Output
        self._feed: RowFeed

    @property
    def in_hooks(self) -> int:
        """Good results that ``after`` works on, or that wait to be written after it."""
        return len(self._working)

    def open(self, output: Output, feed: RowFeed) -> None:
        """Before the first row."""
        self._output, self._feed = output, feed

    def finish(self, job: Job, outcome: Outcome, trace: Trace) -> asyncio.Future[None] | None:
        """From here to the journal there is no await: an answer that is in memory is written. Done when it is."""
        result = folded(job, outcome, trace)
        if job.group is None:
            return self._write(result, result_line(result))
        assert job.part is not None, "a job of a group is one of its parts"
        group: Group = job.group
        group.end(job.part, result)
        kept = None
        if result.ok and (self._after is not None or not group.complete):
            kept = self._keep_part(group, job.part)
        return self.complete(group) if group.complete else kept

    def complete(self, group: Group) -> asyncio.Future[None]:
        """Every part of a row has ended."""
        result = group.result()
        if self._after is None or not result.ok:
            return self._write(result, result_line(result))
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        working = asyncio.create_task(self._work_on(group, result, self._after))
        self._working.add(working)
        working.add_done_callback(self._worked)
        working.add_done_callback(lambda task: _set(ended))
        return ended

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        if not task.cancelled() and (mistake := task.exception()) is not None:
            self._mistake = self._mistake or mistake

    async def _work_on(self, group: Group, result: Result, after: After) -> None:
        """The user's hook, then the line. Its answers are in the journal: whatever happens here, they are not lost."""
        line = {**line_of(result), "input": group.fields}
        try:
            changed = await after(line)
        except HookError as error:
            result = group.failed(Failure("permanent", "hook_failed", str(error)))
            await self._write(result, result_line(result))
            return
        if group.input is None:
            changed.pop("input", None)
        await self._write(result, written(_merged(line, changed)))

    def _keep_part(self, group: Group, name: str) -> asyncio.Future[None]:
        """An answer whose row is not complete, in the journal."""
        self.unwritten_parts += 1
        self._in_flight.changed()
        kept = self._promise()

        def done() -> None:
            self.unwritten_parts -= 1
            self._in_flight.fell()
            self._unwritten.discard(kept)
            _set(kept)

        self._output.keep_aside(group.part_line(name), done)
        if self.disk_error is not None:
            self._give_up_waiting()
        return kept

    def _write(self, result: Result, line: bytes) -> asyncio.Future[None]:
        self.answered += 1
        self.unwritten += 1
        self._in_flight.changed()
        promise = self._promise()
        self._put(result, line, promise)
        if self.disk_error is not None:
            self._give_up_waiting()
        return promise

    def _promise(self) -> asyncio.Future[None]:
        promise: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unwritten.add(promise)
        return promise

    async def room(self) -> None:
        """Wait while the output is far behind, or the hooks are: rows whose answers are all kept come without end."""
        self.waits_for_output = True
        try:
            await self._output.room()
        finally:
            self.waits_for_output = False
        while len(self._working) >= MOST_WORKING:
            await asyncio.wait(self._working, return_when=asyncio.FIRST_COMPLETED)

    async def settle(self) -> None:
        """Wait for the hooks that are still at work. Raises what one of them met by a mistake of ours."""
        while self._working:
            await asyncio.wait(self._working)
        if self._mistake is not None:
            raise self._mistake

    def abandon(self) -> None:
        """Wait for no hook any more; the rows stay pending, and their answers are kept."""
        for working in self._working:
            working.cancel()

    def refuse(self, bad: BadRow, fields: Mapping[str, Any] | None) -> None:
        """A row that can not be sent becomes an error line."""
        shown = fields if self._include_input else None
        self.unwritten_refusals += 1
        result = replace(unsent(bad), input=shown)
        self._put(result, result_line(result))

    def keep(self, rendered: Rendered) -> None:
        """A row that an earlier run finished."""
        assert rendered.recorded is not None, "only a recorded row is kept"
        self._output.keep(rendered.row.index, rendered.recorded, reappend=rendered.decision.reappend)
        skipped = rendered.recorded["status"] == "skipped"
        self._tell(RowKept(ok=not skipped, skipped=skipped, input_offset=self._feed.offset))

    def broken(self, error: StorageError) -> None:
        """The input can not be read on: what is in flight is waited for, and written."""
        self.disk_failed(error)

    def disk_failed(self, error: StorageError) -> None:
        """The output, or the input, can not be used any more."""
        if self.disk_error is None:
            self.disk_error = error
            self._give_up_waiting()
            self._tell(Notice("warning", str(error)))
            self._stop.request(StopReason("the disk failed", error.exit_code))

    def disk_low(self, error: StorageError) -> None:
        """There is room for what is in flight, and for little else."""
        self._tell(Notice("warning", str(error)))
        self._stop.request(StopReason("the disk is nearly full", error.exit_code))

    def disk_weak(self, what: str) -> None:
        """The disk can not promise all that is promised to the user."""
        self._tell(Notice("warning", what))

    def stdout_failed(self, error: OSError) -> None:
        """A reader that is gone is no fault of anybody; anything else is the disk's."""
        if isinstance(error, BrokenPipeError | ConnectionResetError):
            self._stop.request(StopReason("nobody reads standard output any more", 141))
        else:
            self.disk_failed(StorageError(f"cannot write standard output: {error.strerror}"))

    def _put(self, result: Result, line: bytes, written: asyncio.Future[None] | None = None) -> None:
        def done() -> None:
            self._tell(RowEnded(result, self._feed.offset))
            if written is None:
                self.unwritten_refusals -= 1
                return
            self.unwritten -= 1
            self._in_flight.fell()
            self._unwritten.discard(written)
            _set(written)

        self._output.put(result.row, line, done)

    def _give_up_waiting(self) -> None:
        """Nobody need wait for a disk that failed; the journal saves elsewhere what it was given."""
        while self._unwritten:
            _set(self._unwritten.pop())


def _merged(line: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """What the hook gave, in the order of our line, but for what it can not change.

    The answers of tasks that it did change are kept with them: the run after another task has changed needs them.
    """
    fixed = {name: line[name] for name in _OURS if name in line}
    if (tasks := line.get("tasks")) is not None:
        whole = changed.get("output") == line["output"]
        fixed["tasks"] = (
            tasks if whole else {name: {**task, "output": line["output"][name]} for name, task in tasks.items()}
        )
    ours = {name: fixed.get(name, changed.get(name)) for name in line if name in fixed or name in changed}
    return {**ours, **{name: value for name, value in changed.items() if name not in ours and name not in _OURS}}


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
