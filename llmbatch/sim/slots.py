"""A server with so many places and a queue, as vLLM is: nobody is refused, who comes too late waits.

Continuous batching gives every request in work the same share of the machine, so tokens come slower the more are in
work (Yu et al., "Orca", OSDI 2022). Times of work are told on a clock of their own, which runs as fast as tokens come.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable


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
    """``count`` places; owned by the running event loop.

    With ``slowdown`` F a request that is alone takes its own time, and with all places taken (1 + F) times that,
    linearly in between. A request that is in work when places are taken away keeps its own.
    """

    def __init__(self, count: int, slowdown: float = 0.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._count = count
        self._slowdown = slowdown
        self._waiting: deque[Place] = deque()
        self._timers: list[WorkTimer] = []
        self._numbers = itertools.count()
        self._work_s = 0.0
        self._looked_s = self._loop.time()
        self._slowness = 1.0
        self._alarm: asyncio.TimerHandle | None = None
        self.busy = 0

    @property
    def queued(self) -> int:
        """Requests that wait for a place."""
        return sum(1 for place in self._waiting if place.begin is not None)

    def enter(self, begin: Callable[[], None]) -> Place:
        """Calls ``begin`` when there is a place: before it returns if there is one now."""
        place = Place(self, begin)
        self._waiting.append(place)
        self._fill()
        return place

    def resize(self, count: int) -> None:
        """So many places from now on."""
        self._change(count, self.busy)
        self._fill()

    def call_after(self, work_s: float, callback: Callable[[], None]) -> WorkTimer | asyncio.TimerHandle:
        """Call back after ``work_s`` seconds of undisturbed work. For who has a place."""
        if not self._slowdown:
            return self._loop.call_later(work_s, callback)
        self._look()
        timer = WorkTimer(self._work_s + work_s, next(self._numbers), callback)
        heapq.heappush(self._timers, timer)
        if self._timers[0] is timer:
            self._set_alarm()
        return timer

    def now_s(self) -> float:
        """The time of work."""
        if not self._slowdown:
            return self._loop.time()
        self._look()
        return self._work_s

    def _leave(self, had_place: bool) -> None:
        if had_place:
            self._change(self._count, self.busy - 1)
            self._fill()

    def _fill(self) -> None:
        while self._waiting and self.busy < self._count:
            place = self._waiting.popleft()
            begin, place.begin = place.begin, None
            if begin is not None:
                self._change(self._count, self.busy + 1)
                begin()

    def _change(self, count: int, busy: int) -> None:
        if not self._slowdown:
            self._count, self.busy = count, busy
            return
        self._look()
        self._count, self.busy = count, busy
        self._slowness = 1.0 + self._slowdown * max(0, busy - 1) / max(1, count - 1)
        self._set_alarm()

    def _look(self) -> None:
        """Bring the time of work up to now."""
        now_s = self._loop.time()
        self._work_s += (now_s - self._looked_s) / self._slowness
        self._looked_s = now_s

    def _set_alarm(self) -> None:
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
        while self._timers and self._timers[0].at_work_s <= self._work_s + 1e-9:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                callback()
        self._set_alarm()


class Place:
    """A request's place among the slots, or in their queue."""

    __slots__ = ("_left", "_slots", "begin")

    def __init__(self, slots: Slots, begin: Callable[[], None]) -> None:
        self._slots = slots
        self._left = False
        self.begin: Callable[[], None] | None = begin

    def leave(self) -> None:
        """Give the place back, or leave the queue."""
        if not self._left:
            self._left = True
            had_place = self.begin is None
            self.begin = None
            self._slots._leave(had_place)
