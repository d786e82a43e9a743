"""May a request go now, else in how many seconds? Evenly spaced, never above the limit in any sliding minute.

The generic cell rate algorithm (ITU-T I.371): one number, the theoretical arrival time of the next request,
says everything about the past. A tolerance lets a late timer catch up; the interval is stretched by it,
so that even with the catch-up no 60 s hold more than the limit.
"""

from __future__ import annotations

# Timers of an event loop come some milliseconds late; what they lost may be made up within this time.
TOLERANCE_S = 0.05
MINUTE_S = 60.0


class Pace:
    """Spacing of requests for one limit of ``rpm`` requests per minute. Owned by one limiter; not thread-safe."""

    __slots__ = ("_due_s", "interval_s")

    def __init__(self, rpm: float) -> None:
        self.interval_s = (MINUTE_S + TOLERANCE_S) / rpm
        self._due_s = float("-inf")

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next request may go; 0 if it may go now."""
        return max(0.0, self._due_s - TOLERANCE_S - now_s)

    def take(self, now_s: float) -> None:
        """Count one request that goes at ``now_s``. Call it only when ``wait_s`` was 0."""
        self._due_s = max(self._due_s, now_s) + self.interval_s
