"""Two meters for a stream of events, cheap to feed and constant in memory: percentiles, and the rate of late."""

from __future__ import annotations

import math

# Neighbouring buckets differ by 5 %; a bucket's geometric middle is at most 2.5 % off its edges.
_GROWTH = 1.05
_SCALE = 1 / math.log(_GROWTH)
# From a tenth of a millisecond to more than a day; what lies outside counts in the first or last bucket.
_SHORTEST_S = 1e-4
_OFFSET = -math.log(_SHORTEST_S) * _SCALE
_BUCKETS = 430


class Histogram:
    """Durations in logarithmic buckets. Percentiles are within 2.5 % of the true ones, the maximum is exact."""

    __slots__ = ("_counts", "count", "max_s", "min_s", "total_s")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.count = 0
        self.total_s = 0.0
        self.max_s = 0.0
        self.min_s = math.inf

    def add(self, seconds: float) -> None:
        index = int(math.log(seconds) * _SCALE + _OFFSET) if seconds > _SHORTEST_S else 0
        self._counts[index if index < _BUCKETS else -1] += 1
        self.count += 1
        self.total_s += seconds
        if seconds > self.max_s:
            self.max_s = seconds
        if seconds < self.min_s:
            self.min_s = seconds

    @property
    def mean_s(self) -> float | None:
        """The exact mean; None if there is no duration."""
        return self.total_s / self.count if self.count else None

    def percentile(self, percent: float) -> float:
        """Seconds that ``percent`` of the durations do not exceed (nearest rank); at least one must be there."""
        rank = max(1, math.ceil(self.count * percent / 100))
        for index, n in enumerate(self._counts):
            rank -= n
            if rank <= 0:
                return min(max(_middle_s(index), self.min_s), self.max_s)
        return self.max_s

    def joined(self, other: Histogram) -> Histogram:
        """The durations of both."""
        both = Histogram()
        both._counts = [mine + theirs for mine, theirs in zip(self._counts, other._counts, strict=True)]
        both.count = self.count + other.count
        both.max_s, both.min_s = max(self.max_s, other.max_s), min(self.min_s, other.min_s)
        return both


def _middle_s(index: int) -> float:
    return _SHORTEST_S * math.exp((index + 0.5) / _SCALE)


_SLOT_S = 0.5
_SLOTS = 128


class RecentRate:
    """Events per second over up to the last minute, counted in half-second slots of a ring."""

    __slots__ = ("_counts", "_slot", "_start_s")

    def __init__(self, start_s: float) -> None:
        self._counts = [0] * _SLOTS
        self._slot = int(start_s / _SLOT_S)
        self._start_s = start_s

    def add(self, now_s: float) -> None:
        slot = int(now_s / _SLOT_S)
        if slot != self._slot:
            self._turn(slot)
        self._counts[slot % _SLOTS] += 1

    def per_s(self, now_s: float, over_s: float) -> float:
        """The rate over the last ``over_s`` seconds (at most 60), or since the start if that is shorter."""
        slot = int(now_s / _SLOT_S)
        self._turn(slot)
        oldest = slot - min(int(over_s / _SLOT_S), _SLOTS - 1)
        count = sum(self._counts[s % _SLOTS] for s in range(oldest, slot + 1))
        # Below one second a rate is noise: three answers in the first millisecond are not 3,000 per second.
        return count / max(now_s - max(oldest * _SLOT_S, self._start_s), 1.0)

    def _turn(self, slot: int) -> None:
        for s in range(max(self._slot + 1, slot - _SLOTS + 1), slot + 1):
            self._counts[s % _SLOTS] = 0
        self._slot = max(self._slot, slot)
