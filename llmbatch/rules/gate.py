"""One gate for an endpoint, key and model: what concerns all its rows closes it; it reopens with a ramp, no stampede.

The first 429 pauses everybody: unsuccessful requests count against the limit too. Answers to requests that
left before the gate closed say nothing new, unless they ask for a pause when it has long reopened. After the
pause one request goes; each good answer lets one more be in flight, which doubles the flow every round trip. Answers
may take minutes, so that after the first of them the gate also opens with time, whole after ten seconds.
Requests from before the pause do not count in the ramp: one that takes minutes must not hold up all others.
"""

from __future__ import annotations

import math

# The pauses of an outage: a second, four, sixteen, then half a minute each. A short restart is met at once, and ten
# minutes of nobody there see twenty requests.
PAUSES_S = (1.0, 4.0, 16.0, 30.0)
# Of the pauses so much is chance: several processes on one key must not come back together.
JITTER = 0.5
# The last pause only grows by it: at most one request in so long.
LAST_JITTER = 0.2
RAMP_S = 10.0
# The ramp is not looked at more often than this.
SHORTEST_S = 0.01


class Gate:
    """The state of one gate. Times are of the run's clock; owned by one limiter.

    ``closings`` counts how often it closed anew: what was admitted under another count is from before the pause.
    """

    __slots__ = ("_answered_s", "_closed_at_s", "closed_until_s", "closings", "ramp", "strikes")

    def __init__(self) -> None:
        self.closed_until_s = float("-inf")
        self.closings = 0
        self.ramp: int | None = None
        self._closed_at_s = float("-inf")
        self._answered_s: float | None = None
        self.strikes = 0

    def wait_s(self, now_s: float) -> float:
        """Seconds until the gate opens; 0 if it is open."""
        return max(0.0, self.closed_until_s - now_s)

    def allowed(self, window: int, old: int, now_s: float) -> int:
        """How many may be in flight, of the ``window`` that else holds, with ``old`` ones from before the pause."""
        if self.ramp is None:
            return window
        open_ = self.ramp
        if self._answered_s is not None:
            open_ = max(open_, int(window * ((now_s - self._answered_s) / RAMP_S) ** 2))
        return min(window, open_ + old)

    def widens_s(self, window: int, old: int, in_flight: int, now_s: float) -> float:
        """Seconds until time alone allows more than ``in_flight``, as many as are; infinite if only an answer can."""
        if self._answered_s is None or in_flight >= window:
            return math.inf
        enough_s = self._answered_s + RAMP_S * math.sqrt((in_flight + 1 - old) / window)
        return max(enough_s - now_s, SHORTEST_S)

    def hold(self, until_s: float) -> None:
        """Let nothing go before ``until_s``: the server is well, it was only asked too quickly. No ramp follows."""
        self.closed_until_s = max(self.closed_until_s, until_s)

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
            pause_s = _pause_s(self.strikes, chance)
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

    def answered(self, now_s: float, sent_s: float, window: int) -> None:
        """A good answer came for a request sent at ``sent_s``."""
        if self.ramp is None or sent_s < self._closed_at_s:
            return
        self.strikes = 0
        self.ramp += 1
        if self._answered_s is None:
            self._answered_s = now_s
        if self.ramp >= window or now_s >= self._answered_s + RAMP_S:
            self.ramp = None

    def _close(self, now_s: float) -> None:
        self.closings += 1
        self._closed_at_s = now_s
        self._answered_s = None
        self.ramp = 1


def _pause_s(strikes: int, chance: float) -> float:
    if strikes >= len(PAUSES_S):
        return PAUSES_S[-1] * (1 + LAST_JITTER * chance)
    return PAUSES_S[strikes - 1] * (1 - JITTER * (1 - chance))
