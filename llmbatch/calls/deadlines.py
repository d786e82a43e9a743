"""Time limits that never throw away an answer that is already here.

``asyncio.timeout``, ``wait_for`` and aiohttp's ``total=`` fire as soon as a stalled loop wakes (a slow disk, Ctrl-Z,
a closed lid), before it has read what waits in the socket: the answer is paid and lost. Here one watch looks at all
attempts a few times a second, by a clock that stands still while the loop does not turn; what is overdue gets one
more look, so that the selector is polled in between; and a task whose answer has just been delivered is left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Literal

from llmbatch.records import Failure, FailureClass

Limit = Literal["total", "first_token", "idle"]

TICK_S = 0.25
# An answer that has just come is read within one turn of the loop; more looks than this only spare a server that
# never stops to send, and never ends.
SPARED_LOOKS = 4
# A loop that is this late was not busy: the machine slept, the process was stopped, or the disk hung.
STANDSTILL_S = 5.0

_TEXT: Mapping[Limit, str] = {
    "total": "no complete answer within {:g} s (--timeout)",
    "first_token": "no first token within {:g} s (--first-token-timeout)",
    "idle": "the answer stood still for {:g} s (--idle-timeout)",
}


def timed_out(limit: Limit, seconds: float, request_id: str | None) -> Failure:
    """The server may have done, and billed, the work."""
    word = "timeout" if limit == "total" else f"{limit}_timeout"
    return Failure("ambiguous", word, _TEXT[limit].format(seconds), retryable=True, request_id=request_id)


def row_deadline(kind: FailureClass, request_id: str | None) -> Failure:
    """The time for all attempts of a row is over; ``kind`` says whether this one was sent."""
    return Failure(
        kind, "row_deadline", "the row's time was over (--row-deadline)", retryable=True, request_id=request_id
    )


class Guard:
    """The limits of one attempt; seconds of the watch's clock. Owned by the task it guards."""

    __slots__ = ("_heard_s", "_idle_s", "_task", "_total_s", "_watch", "expired", "overdue", "quiet_limit", "spared")

    def __init__(self, watch: Watch, task: asyncio.Task[Any], total_s: float, first_token_s: float | None) -> None:
        self._watch = watch
        self._task = task
        self._total_s = watch.attended_s + total_s
        self._idle_s = first_token_s
        self._heard_s = watch.attended_s
        self.quiet_limit: Limit = "first_token"
        self.expired: Limit | None = None
        self.overdue = False
        self.spared = 0

    def __enter__(self) -> Guard:
        self._watch.guards[self] = None
        return self

    def __exit__(self, *_: object) -> None:
        del self._watch.guards[self]

    def heard(self, idle_s: float) -> None:
        """A part of the answer came; from now on ``idle_s`` may pass without one."""
        self._heard_s = self._watch.attended_s
        self._idle_s = idle_s
        self.quiet_limit = "idle"

    def over(self, now_s: float) -> Limit | None:
        """Which limit has passed, if any."""
        if now_s >= self._total_s:
            return "total"
        if self._idle_s is not None and now_s >= self._heard_s + self._idle_s:
            return self.quiet_limit
        return None

    def end(self, limit: Limit) -> None:
        """Cancel the task, unless what it waits for has just come: then it is spared a few times."""
        waiter = getattr(self._task, "_fut_waiter", None)
        if (waiter is None or waiter.done()) and self.spared < SPARED_LOOKS:
            self.spared += 1
            return
        self.expired = limit
        self._task.cancel()


class Watch:
    """All running attempts of a run. ``attended_s`` counts only time in which the loop turned.

    ``stood_still`` is called with the seconds of each time in which it did not, if these are many; by ``clock``, which
    should go on while the machine sleeps (the loop's does not on Linux). Without one, by the loop's.
    """

    def __init__(
        self,
        shortest_s: float,
        stood_still: Callable[[float], None] = lambda seconds: None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._stood_still = stood_still
        self._clock = clock
        self.tick_s = min(TICK_S, shortest_s / 4)
        self.attended_s = 0.0
        self.guards: dict[Guard, None] = {}

    def guard(self, total_s: float, first_token_s: float | None) -> Guard:
        """Limits for the current task, to be entered around one exchange."""
        task = asyncio.current_task()
        assert task is not None, "attempts run in tasks"
        return Guard(self, task, total_s, first_token_s)

    async def run(self) -> None:
        """Look, tick by tick, until cancelled."""
        loop_time = asyncio.get_running_loop().time
        clock = self._clock or loop_time
        last_s, looked_s = loop_time(), clock()
        while True:
            await asyncio.sleep(self.tick_s)
            now_s = loop_time()
            self.attended_s += min(now_s - last_s, 2 * self.tick_s)
            last_s = now_s
            late_s, looked_s = clock() - looked_s - self.tick_s, clock()
            if late_s > STANDSTILL_S:
                self._stood_still(late_s)
            self.look()

    def look(self) -> None:
        """End what was overdue at the last look already, and mark what is now."""
        for guard in list(self.guards):
            limit = guard.over(self.attended_s)
            if limit is None:
                guard.overdue, guard.spared = False, 0
            elif guard.overdue:
                guard.end(limit)
            else:
                guard.overdue = True
