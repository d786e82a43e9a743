"""A server with so many places and a queue, as vLLM is: nobody is refused, who comes too late waits.

Continuous batching gives all requests in work a share of the same machine, so tokens come slower the more there are
(Yu et al., "Orca", OSDI 2022). Times of work are told on a clock of their own, which runs as fast as tokens come.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable

# Float sums of many small steps must not leave a timer a moment before its time.
_SLACK_S = 1e-9


class WorkTimer:
    """Something that is due at a time of work."""

    __slots__ = ("at_work_s", "callback", "number")

    def __init__(self, at_work_s: float, number: int, callback: Callable[[], None]) -> None:
        self.at_work_s = at_work_s
        self.number = number
        self.callback: Callable[[], None] | None = callback

    def __lt__(self, other: WorkTimer) -> bool:
        return (self.at_work_s, self.number) < (other.at_work_s, other.number)

    def cancel(self) -> None:
        self.callback = None


class Slots:
    """``count`` places, first come, first served; owned by the running event loop.

    With a ``slowdown`` F a request that is alone takes its own time, and with all places taken (1 + F) times that,
    linearly in between. When places are taken away, who is in work stays.
    """

    def __init__(self, count: int, slowdown: float = 0.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._count = count
        self._busy = 0
        self._slowdown = slowdown
        self._slowness = 1.0
        self._waiting: deque[Place] = deque()
        self._filling = False
        self._work_s = 0.0
        self._looked_s = self._loop.time()
        self._timers: list[WorkTimer] = []
        self._numbers = itertools.count()
        self._alarm: asyncio.TimerHandle | None = None

    def place(self, begin: Callable[[], None]) -> Place:
        """A place that is still to be entered; ``begin`` is called when it is had."""
        return Place(self, begin)

    def resize(self, count: int) -> None:
        """So many places from now on."""
        self._change(count, self._busy)
        self._fill()

    def forget_queue(self) -> None:
        """Nobody who waits now gets a place."""
        self._waiting.clear()

    def now_s(self) -> float:
        """The time of work."""
        if not self._slowdown:
            return self._loop.time()
        self._look()
        return self._work_s

    def call_after(self, work_s: float, callback: Callable[[], None]) -> WorkTimer | asyncio.TimerHandle:
        """Call back when ``work_s`` seconds of work more are done."""
        if not self._slowdown:
            return self._loop.call_later(work_s, callback)
        self._look()
        timer = WorkTimer(self._work_s + work_s, next(self._numbers), callback)
        heapq.heappush(self._timers, timer)
        if self._timers[0] is timer:
            self._set_alarm()
        return timer

    def _enter(self, place: Place) -> None:
        self._waiting.append(place)
        self._fill()

    def _leave(self) -> None:
        self._change(self._count, self._busy - 1)
        self._fill()

    def _fill(self) -> None:
        """Not from within itself: who is done at once would be inside of whom he makes room for, without end."""
        if self._filling:
            return
        self._filling = True
        try:
            while self._waiting and self._busy < self._count:
                place = self._waiting.popleft()
                if place.begin is not None:
                    self._change(self._count, self._busy + 1)
                    begin, place.begin = place.begin, None
                    begin()
        finally:
            self._filling = False

    def _change(self, count: int, busy: int) -> None:
        if self._slowdown:
            self._look()
            self._slowness = 1.0 + self._slowdown * max(0, busy - 1) / max(1, count - 1)
        self._count, self._busy = count, busy
        if self._slowdown:
            self._set_alarm()

    def _look(self) -> None:
        """Bring the time of work up to now."""
        now_s = self._loop.time()
        self._work_s += (now_s - self._looked_s) / self._slowness
        self._looked_s = now_s

    def _set_alarm(self) -> None:
        """One timer of the loop, for the first of all: with every change of speed all of them move."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if self._timers:
            wait_s = (self._timers[0].at_work_s - self._work_s) * self._slowness
            self._alarm = self._loop.call_later(max(0.0, wait_s), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._look()
        while self._timers and self._timers[0].at_work_s <= self._work_s + _SLACK_S:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                callback()
        self._set_alarm()


class Place:
    """One request's place among the slots, or in their queue. ``begin`` is None once it is had, or left."""

    __slots__ = ("_left", "_slots", "begin")

    def __init__(self, slots: Slots, begin: Callable[[], None]) -> None:
        self._slots = slots
        self._left = False
        self.begin: Callable[[], None] | None = begin

    def enter(self) -> None:
        """Begins before this returns if a place is free."""
        self._slots._enter(self)

    def leave(self) -> None:
        """Give the place back, or leave the queue."""
        if self._left:
            return
        self._left = True
        if self.begin is None:
            self._slots._leave()
        self.begin = None
