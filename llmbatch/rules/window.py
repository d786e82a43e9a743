"""How many requests may be in flight at once?

A fixed concurrency is a plain number. ``auto`` with a known rate follows Little's law: what is in flight equals
rate times average time, so the window is RPM / 60 x measured average seconds, with headroom so that the pace,
not the window, decides when latency varies.
"""

from __future__ import annotations

import math

# Before the first answer: long enough for most models, so that a known rate is used from the start.
ASSUMED_LATENCY_S = 10.0
# Latency varies; a window of exactly rate x mean would bind half the time.
HEADROOM = 1.5
# The average is over about this many of the last answers.
MEMORY = 64


class FixedWindow:
    """``--concurrency N``: a plain semaphore of N."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size

    def answered(self, latency_s: float) -> bool:
        """An answer came after ``latency_s``. True if the size changed."""
        return False


class LittleWindow:
    """``--concurrency auto`` with ``--rpm``: sized from the rate and the latency as it is learnt."""

    __slots__ = ("_answers", "_rate_per_s", "average_s", "ceiling", "size")

    def __init__(self, rpm: float, ceiling: int) -> None:
        self._rate_per_s = rpm / 60.0
        self._answers = 0
        self.ceiling = ceiling
        self.average_s = ASSUMED_LATENCY_S
        self.size = self._fit()

    def answered(self, latency_s: float) -> bool:
        """An answer came after ``latency_s``. True if the size changed."""
        self._answers += 1
        weight = max(1.0 / self._answers, 1.0 / MEMORY)
        self.average_s += weight * (latency_s - self.average_s)
        before, self.size = self.size, self._fit()
        return self.size != before

    def _fit(self) -> int:
        wanted = math.ceil(self._rate_per_s * self.average_s * HEADROOM) + 1
        return max(1, min(self.ceiling, wanted))


Window = FixedWindow | LittleWindow


def window_for(concurrency: int | None, rpm: float | None, default: int, ceiling: int) -> Window:
    """The number given; else by Little's law from the rate; else the default. Never above ``ceiling``."""
    if concurrency is not None:
        return FixedWindow(min(concurrency, ceiling))
    if rpm is not None:
        return LittleWindow(rpm, ceiling)
    return FixedWindow(min(default, ceiling))
