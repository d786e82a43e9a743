"""One gate for all rows of an endpoint: what concerns all closes it, and it reopens with a ramp, not a stampede.

The first 429 pauses everybody: unsuccessful requests count against the limit too. Answers to requests that
left before the gate closed say nothing new, unless they ask for a pause when it has long reopened. After the
pause one request goes; each good answer lets one more be in flight, which doubles the flow every round trip.
Requests from before the pause do not count in the ramp: one that takes minutes must not hold up all others.
"""

from __future__ import annotations

from llmbatch.rules.retry import backoff_s

BASE_S = 1.0
CAP_S = 30.0


class Gate:
    """The state of one gate. Times are of the run's clock; owned by one limiter.

    ``closings`` counts how often it closed anew: what was admitted under another count is from before the pause.
    """

    __slots__ = ("_closed_at_s", "closed_until_s", "closings", "ramp", "strikes")

    def __init__(self) -> None:
        self.closed_until_s = float("-inf")
        self.closings = 0
        self.ramp: int | None = None
        self._closed_at_s = float("-inf")
        self.strikes = 0

    def wait_s(self, now_s: float) -> float:
        """Seconds until the gate opens; 0 if it is open."""
        return max(0.0, self.closed_until_s - now_s)

    def allowed(self, window: int, old: int) -> int:
        """How many may be in flight, of the ``window`` that else holds, with ``old`` ones from before the pause."""
        return window if self.ramp is None else min(window, self.ramp + old)

    def limited(self, now_s: float, sent_s: float, retry_after_s: float | None, chance: float) -> float:
        """A request sent at ``sent_s`` met what concerns all; ``chance`` is uniform in [0, 1).

        Returns for how many seconds from now the gate is closed.
        """
        news = sent_s >= self._closed_at_s or (self.ramp is None and retry_after_s is not None)
        if news:
            self.strikes += 1
            self._close(now_s)
        if retry_after_s is not None:
            pause_s = retry_after_s
        elif news:
            # Half fixed, half chance: several processes on one key must not come back together.
            full_s = backoff_s(self.strikes, 1.0, BASE_S, CAP_S)
            pause_s = full_s * (0.5 + 0.5 * chance)
        else:
            pause_s = 0.0
        self.closed_until_s = max(self.closed_until_s, now_s + pause_s)
        return self.wait_s(now_s)

    def spent(self, now_s: float, sent_s: float, pause_s: float) -> bool:
        """A request sent at ``sent_s`` failed, and the retry quota is empty. True if that closed the gate anew.

        What was sent before the gate last closed says nothing new while it is closed or ramps.
        """
        if sent_s < self._closed_at_s and self.ramp is not None:
            return False
        self._close(now_s)
        self.closed_until_s = max(self.closed_until_s, now_s + pause_s)
        return True

    def answered(self, sent_s: float, window: int) -> None:
        """A good answer came for a request sent at ``sent_s``."""
        if self.ramp is None or sent_s < self._closed_at_s:
            return
        self.strikes = 0
        self.ramp += 1
        if self.ramp >= window:
            self.ramp = None

    def _close(self, now_s: float) -> None:
        self.closings += 1
        self._closed_at_s = now_s
        self.ramp = 1
