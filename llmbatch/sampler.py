"""Looks ten times a second where rows wait, and keeps the time that each bottleneck held."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from llmbatch.events import Binding
from llmbatch.machine import ThreadTime
from llmbatch.rules.bottleneck import Moment, Shares, binding

# Ten looks a second cost less than a thousandth of a core.
TICK_S = 0.1
# What is shown is what held most of so many seconds: each look alone would flicker.
SHOWN_S = 2.0


class Sampler:
    """Asks ``moment`` where rows wait; measures itself what of ``cpu_share`` and ``late_s`` a Moment has.

    To be entered on the loop that it measures. ``shares`` has the whole time since then up to the last ``look``;
    ``binding`` is what held most of the last two seconds. ``clock`` and ``busy_s`` give seconds, the latter those in
    which the loop's thread had something to do.
    """

    def __init__(
        self,
        moment: Callable[[], Moment],
        clock: Callable[[], float] = time.monotonic,
        busy_s: Callable[[], float] | None = None,
    ) -> None:
        self.shares = Shares()
        self.binding: Binding = "idle"
        self._moment = moment
        self._clock = clock
        self._busy_s = busy_s
        self._lately: deque[tuple[Binding, float]] = deque()
        self._looked_s = self._busy_before_s = 0.0
        self._looking: asyncio.Task[None]

    async def __aenter__(self) -> Sampler:
        self._busy_s = self._busy_s or ThreadTime()
        self._looked_s, self._busy_before_s = self._clock(), self._busy_s()
        self._looking = asyncio.create_task(self._run(), name="sampler")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Raises what ``moment`` raised by mistake."""
        self._looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._looking

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.look()

    def look(self) -> None:
        """Count the time since the last look; on the loop's thread, as often as one likes."""
        assert self._busy_s is not None, "entered before the first look"
        now_s, busy_s = self._clock(), self._busy_s()
        passed_s, busy_for_s = now_s - self._looked_s, busy_s - self._busy_before_s
        if passed_s <= 0:
            return
        self._looked_s, self._busy_before_s = now_s, busy_s
        late_s = max(0.0, passed_s - TICK_S)
        found = binding(replace(self._moment(), cpu_share=busy_for_s / passed_s, late_s=late_s))
        self.shares.add(found, passed_s)
        self._show(found, passed_s)

    def _show(self, found: Binding, seconds: float) -> None:
        self._lately.append((found, seconds))
        lately_s = sum(s for _, s in self._lately)
        while lately_s - self._lately[0][1] >= SHOWN_S:
            lately_s -= self._lately.popleft()[1]
        held_s: dict[Binding, float] = {}
        for name, s in self._lately:
            held_s[name] = held_s.get(name, 0.0) + s
        self.binding = max(held_s, key=lambda name: held_s[name])
