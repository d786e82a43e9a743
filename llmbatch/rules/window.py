"""How many requests may be in flight at once?

A fixed concurrency is a plain number. ``auto`` follows Little's law where the rate is known: what is in flight equals
rate times average time, with headroom so that the pace, not the window, decides when latency varies. Where it is not,
the window doubles while throughput follows, and stops where it does not: a server with a fixed number of places queues
what is beyond them and never says 429 (vLLM), so that more in flight only makes every answer slower.

Throughput is compared over epochs, in which the window stands still, and in work instead of answers: an answer counts
as long as answers of its length took when the server was at its quickest (a line fitted through latency and length).
Netflix' concurrency-limits compares latencies instead, and so stops where batching makes each answer slower although
all together come sooner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmbatch.options import DEFAULT_CONCURRENCY

# Before the first answer: long enough for most models, so that a known rate is used from the start.
ASSUMED_LATENCY_S = 10.0
# Latency varies; a window of exactly rate x mean would bind half the time.
HEADROOM = 1.5
# And with few in flight it varies more: so many standard deviations of a Poisson number.
DEVIATIONS = 4.0
# The average is over about this many of the last answers.
MEMORY = 64
# An epoch has so many answers, or so many times the window.
MIN_ANSWERS, MIN_ROUNDS = 64, 1.5
STEADY_ANSWERS, STEADY_ROUNDS = 256, 6.0
# Less in flight than this share of the window: something else binds, and the epoch says nothing.
USED_SHARE = 0.8
# Of what more in flight should bring (1 is all of it): the window doubles on, keeps a step up, takes a step down.
DOUBLING, WORTH_IT, WORTHLESS = 0.35, 0.35, 0.3
# Twice as many were answered in hardly more time each: nothing queued.
UNQUEUED = 0.8
# A step up that brings more than the noise of so many answers (this over their root) was too long, not in vain.
NOISE = 2.0
# A step down by half is taken sooner.
WORTHLESS_HALF = 0.35
# Long steps are seen through the noise; where one brings only a part, the size goes to where that part ends.
STEP_UP, STEP_DOWN, HALF = 1.4, 0.88, 0.5
# A little above the knee, so that no place is ever empty.
ABOVE_KNEE = 1.08
# Epochs without a step, once neither up nor down is better; fewer at first.
REST_EPOCHS = 14
CUT = 0.7
# With each answer the window comes by so many nearer to the size that was found for it.
GROWTH = 2


class FixedWindow:
    """``--concurrency N``: a plain semaphore of N."""

    __slots__ = ("size",)

    grows = False

    def __init__(self, size: int) -> None:
        self.size = size

    def answered(self, now_s: float, sent_s: float, output_tokens: int | None, in_flight: int) -> None:
        """An answer came for what was sent at ``sent_s``."""

    def refused(self, now_s: float, sent_s: float, in_flight: int) -> None:
        """The server was overloaded."""

    def paced(self, per_s: float | None) -> None:
        """So many requests per second are allowed; None if nobody knows."""

    def replaced(self, other: Window) -> Window:
        """What takes its place when the user says so."""
        return other


@dataclass(slots=True)
class _Epoch:
    """What came while the window stood still. ``area`` is in flight times seconds."""

    size: int
    began_s: float
    measured_from_s: float
    looked_s: float
    answers: int = 0
    tokens: float = 0.0
    area: float = 0.0

    def add(self, now_s: float, output_tokens: int | None, in_flight: int) -> None:
        if now_s >= self.measured_from_s:
            self.area += in_flight * (now_s - max(self.looked_s, self.measured_from_s))
            self.answers += 1
            self.tokens += output_tokens or 0
        self.looked_s = now_s

    def seconds(self) -> float:
        return max(self.looked_s - self.measured_from_s, 1e-9)

    @property
    def mean_in_flight(self) -> float:
        return self.area / self.seconds()


class _LatencyLine:
    """Latency as a line over output tokens, fitted to the answers of quick times by least squares."""

    __slots__ = ("_n", "_t", "_tt", "_y", "_yt")

    def __init__(self) -> None:
        self._n = self._t = self._tt = self._y = self._yt = 0.0

    def add(self, tokens: float, latency_s: float) -> None:
        self._n += 1.0
        self._t += tokens
        self._tt += tokens * tokens
        self._y += latency_s
        self._yt += tokens * latency_s

    def merge(self, other: _LatencyLine) -> None:
        """Add what the other one has seen."""
        self._n += other._n
        self._t += other._t
        self._tt += other._tt
        self._y += other._y
        self._yt += other._yt

    def work_s(self, answers: float, tokens: float) -> float:
        """How long so many answers with so many tokens in all took together, each on its own."""
        if self._n == 0:
            return float(answers)
        spread = self._n * self._tt - self._t * self._t
        slope = (self._n * self._yt - self._t * self._y) / spread if spread > 1e-9 * (1.0 + self._tt * self._n) else 0.0
        slope = max(slope, 0.0)
        fixed = (self._y - slope * self._t) / self._n
        if fixed < 0:
            fixed, slope = 0.0, self._y / self._t
        return fixed * answers + slope * tokens


@dataclass(frozen=True, slots=True)
class _Measured:
    """What came per second with so many in flight."""

    in_flight: float
    answers: int
    answers_per_s: float
    tokens_per_s: float


class AutoWindow:
    """``--concurrency auto``. ``per_s`` is the rate that the user names, from which the window then begins.

    Owned by one lane; times are of the run's clock.
    """

    def __init__(self, ceiling: int, per_s: float | None = None) -> None:
        self.ceiling = max(1, ceiling)
        self.average_s = ASSUMED_LATENCY_S
        self._per_s = per_s
        self._answers = 0
        self._line = _LatencyLine()
        self._quick = _LatencyLine()  # of the present epoch, for as long as nothing queues
        start = DEFAULT_CONCURRENCY if per_s is None else max(DEFAULT_CONCURRENCY, _little(per_s, ASSUMED_LATENCY_S))
        self._found = min(start, self.ceiling)
        self.size = self._found  # grows with answers to what was found since
        self._doubling = True
        self._recovering = False
        self._best: list[_Measured] = []
        self._base: _Measured | None = None
        self._trial: int | None = None  # the size from which a step is being tried
        self._rest = 0
        self._stays = 0
        self._cut_s = -math.inf
        self._epoch: _Epoch | None = None
        self._fit()

    @property
    def grows(self) -> bool:
        """Whether it is still looking for its size."""
        return self._doubling and self.size < self.ceiling

    def paced(self, per_s: float | None) -> None:
        """So many requests per second are allowed; None if nobody knows."""
        if per_s != self._per_s:
            self._per_s = per_s
            self._fit()

    def replaced(self, other: Window) -> Window:
        """What takes its place when the user says so: of another one that finds its size only the bounds."""
        if isinstance(other, FixedWindow):
            return other
        self.ceiling, self._per_s = other.ceiling, other._per_s
        if self._per_s is not None:
            self._found = max(self._found, _little(self._per_s, self.average_s))
        self._fit(self.ceiling)
        return self

    def answered(self, now_s: float, sent_s: float, output_tokens: int | None, in_flight: int) -> None:
        """An answer came for what was sent at ``sent_s``; ``in_flight`` counts it."""
        latency_s = now_s - sent_s
        self._answers += 1
        weight = max(1.0 / self._answers, 1.0 / MEMORY)
        self.average_s += weight * (latency_s - self.average_s)
        if self._doubling:
            self._quick.add(output_tokens or 0, latency_s)
        self._measure(now_s, output_tokens, in_flight)
        self._fit(GROWTH)

    def refused(self, now_s: float, sent_s: float, in_flight: int) -> None:
        """The server was overloaded (503, 529): fewer, once for all that were in flight together."""
        if sent_s < self._cut_s:
            return
        self._cut_s = now_s
        self._doubling, self._recovering, self._trial = False, True, None
        self._found = max(1, int(CUT * min(self._found, max(in_flight, 1))))
        self._epoch = None
        self._fit()

    def _fit(self, growth: int = 0) -> None:
        """Smaller at once, larger by a few with each answer: what is sent together is refused together."""
        bound = self.ceiling if self._per_s is None else _little(self._per_s, self.average_s)
        self.size = max(1, min(self.ceiling, self._found, bound, self.size + growth))

    def _measure(self, now_s: float, output_tokens: int | None, in_flight: int) -> None:
        epoch = self._epoch
        if epoch is None or (epoch.size != self.size and not self._nearly(epoch.size)):
            # What is in flight then was sent under the old size; it takes about one answer's time to leave.
            self._epoch = _Epoch(self.size, now_s, now_s + self.average_s, now_s)
            return
        epoch.add(now_s, output_tokens, in_flight)
        if epoch.answers >= self._enough(epoch.size):
            self._epoch = None
            self._conclude(epoch)

    def _nearly(self, size: int) -> bool:
        """Little's law moves the size by a little all the time."""
        return self.size < self._found and abs(self.size - size) <= 0.2 * size

    def _enough(self, size: int) -> float:
        if self._doubling or self._recovering or (self._trial is not None and self._found <= self._trial // 2):
            return max(MIN_ANSWERS, MIN_ROUNDS * size)
        return max(STEADY_ANSWERS, STEADY_ROUNDS * size)

    def _conclude(self, epoch: _Epoch) -> None:
        in_flight = epoch.mean_in_flight
        if in_flight < USED_SHARE * epoch.size or epoch.size < self._found:
            return
        if self._recovering:
            self._found = min(self.ceiling, self._found + max(1, epoch.size // 20))
            return
        seconds = epoch.seconds()
        measured = _Measured(in_flight, epoch.answers, epoch.answers / seconds, epoch.tokens / seconds)
        if self._doubling:
            self._double(measured)
        else:
            self._step(measured)

    def _double(self, now: _Measured) -> None:
        before = self._best[-1] if self._best else None
        self._best.append(now)
        if self._found >= self.ceiling:
            self._doubling, self._rest = False, REST_EPOCHS
            return
        worth = 1.0 if before is None else self._worth(before, now)
        if worth >= UNQUEUED:
            self._line.merge(self._quick)
        self._quick = _LatencyLine()
        if before is None or worth >= DOUBLING:
            self._found = min(self.ceiling, 2 * self._found)
            return
        self._doubling = False
        if len(self._best) == 2:
            # Even the first size may have been too large: down by halves from there.
            self._base = before
            self._try(max(1, self._found // 2), HALF)
            return
        self._found = self._knee(self._best[-2], now, max(1, self._found // 2), self._found)

    def _step(self, now: _Measured) -> None:
        """A step up, or one down, is kept when it is better; otherwise the size rests."""
        if self._trial is None or self._base is None:
            self._base = now
            if self._rest > 0:
                self._rest -= 1
            else:
                self._try(self._found, STEP_UP)
            return
        stood, worth = self._trial, self._worth(self._base, now)
        if self._found > stood:
            if worth >= WORTH_IT:
                self._base = now
                self._try(self._found, STEP_UP)
            elif worth > NOISE / math.sqrt(now.answers):
                self._stay(self._knee(self._base, now, stood, self._found))
            else:
                self._try(stood, STEP_DOWN)
        elif worth < (WORTHLESS_HALF if self._found <= stood // 2 else WORTHLESS):
            # Far above the knee, as after a wrong guess of the rate: further down at once.
            self._base = now
            self._try(self._found, HALF if self._found <= stood // 2 else STEP_DOWN * STEP_DOWN)
        else:
            self._stay(stood)

    def _try(self, stood: int, step: float) -> None:
        """Measure another size next, beside that at which it stands."""
        size = max(stood + 1, round(stood * step)) if step > 1 else min(stood - 1, round(stood * step))
        self._trial, self._found = stood, max(1, min(self.ceiling, size))
        if self._found == stood:
            self._stay(stood)

    def _stay(self, size: int) -> None:
        self._stays += 1
        self._found, self._trial, self._base = max(1, size), None, None
        self._rest = min(REST_EPOCHS, 2 * self._stays)

    def _knee(self, before: _Measured, now: _Measured, size: int, larger: int) -> int:
        """Between two sizes: where the throughput of the larger is reached if it grows with the size until there."""
        return min(larger, math.ceil(ABOVE_KNEE * size * max(1.0, self._gain(before, now))))

    def _worth(self, before: _Measured, now: _Measured) -> float:
        """How much of the change in flight became throughput: 1 all of it, 0 nothing (the elasticity)."""
        change = math.log(max(now.in_flight, 1e-9) / max(before.in_flight, 1e-9))
        gain = self._gain(before, now)
        return 0.0 if abs(change) < 1e-3 or gain <= 0 else math.log(gain) / change

    def _gain(self, before: _Measured, now: _Measured) -> float:
        """By how much there was more work done per second."""
        done = [self._line.work_s(one.answers_per_s, one.tokens_per_s) for one in (before, now)]
        return done[1] / done[0] if done[0] > 0 else 1.0


def _little(per_s: float, latency_s: float) -> int:
    mean = per_s * latency_s
    return math.ceil(HEADROOM * mean + DEVIATIONS * math.sqrt(mean)) + 1


Window = FixedWindow | AutoWindow


def window_for(concurrency: int | None, per_s: float | None, ceiling: int) -> Window:
    """The number given; else one that finds its size, from the rate if the user names it. Never above ``ceiling``."""
    if concurrency is not None:
        return FixedWindow(min(concurrency, ceiling))
    return AutoWindow(ceiling, per_s)
