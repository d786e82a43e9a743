"""The window: a fixed number, or found by what more in flight brings."""

from __future__ import annotations

import heapq
import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbatch.rules.window import ASSUMED_LATENCY_S, HEADROOM, AutoWindow, FixedWindow, window_for


def test_a_fixed_window_never_moves() -> None:
    window = FixedWindow(7)
    for latency_s in (0.0, 1.0, 1e6):
        window.answered(latency_s, 0.0, 5, 7)
    window.refused(1.0, 0.0, 7)
    window.paced(0.1)
    assert window.size == 7


class Server:
    """A closed system: the window is always full. ``slots`` requests are worked on at once, others wait their turn.

    Each answer takes 0.2 s and 10 ms a token, of which there are few or many (lognormal); ``slowdown`` is how much
    slower a token comes with all slots busy.
    """

    def __init__(self, slots: int, *, slowdown: float = 0.0, seed: int = 1) -> None:
        self.slots, self.slowdown, self.chance = slots, slowdown, Random(seed)
        self.now_s = 0.0
        self.ends: list[tuple[float, float, int]] = []  # when, sent, tokens
        self.queue: list[tuple[float, int]] = []
        self.answered = 0
        self.tokens = 0

    def run(self, window: AutoWindow | FixedWindow, seconds: float) -> float:
        """Tokens per second."""
        until_s, before, began_s = self.now_s + seconds, self.tokens, self.now_s
        while self.now_s < until_s:
            while len(self.ends) + len(self.queue) < window.size:
                tokens = max(1, round(150 * math.exp(self.chance.gauss(0, 0.8))))
                self.queue.append((self.now_s, tokens))
            while self.queue and len(self.ends) < self.slots:
                sent_s, tokens = self.queue.pop(0)
                busy = (len(self.ends) + 1) / self.slots
                takes_s = 0.2 + 0.01 * tokens * (1 + self.slowdown * busy)
                heapq.heappush(self.ends, (self.now_s + takes_s, sent_s, tokens))
            self.now_s, sent_s, tokens = heapq.heappop(self.ends)
            self.tokens += tokens
            window.answered(self.now_s, sent_s, tokens, len(self.ends) + len(self.queue) + 1)
        return (self.tokens - before) / (self.now_s - began_s)


@pytest.mark.parametrize("slots", [4, 32, 64, 100, 256])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_finds_the_places_of_a_server_that_queues(slots: int, seed: int) -> None:
    window, server = AutoWindow(10_000), Server(slots, seed=seed)
    server.run(window, 120.0)
    sizes: list[float] = []
    for _ in range(30):
        before = window.size
        server.run(window, 4.0)
        sizes.append((before + window.size) / 2)
    reached = server.run(window, 120.0)
    peak = Server(slots, seed=seed).run(FixedWindow(4 * slots), 400.0)
    # Of one run; the medians of several are what benchmarks/PACING.md holds them to.
    assert reached >= 0.9 * peak
    assert sum(sizes) / len(sizes) <= max(1.7 * slots, slots + 3)


def test_goes_on_while_batching_makes_all_together_quicker() -> None:
    """With all slots busy a token takes twice as long as alone, and yet most come then."""
    window, server = AutoWindow(10_000), Server(64, slowdown=1.0)
    server.run(window, 400.0)
    assert window.size >= 0.7 * 64
    assert server.run(window, 200.0) >= 0.9 * Server(64, slowdown=1.0).run(FixedWindow(64), 400.0)


def test_doubles_while_it_helps() -> None:
    window, server = AutoWindow(400), Server(10_000)
    server.run(window, 60.0)
    assert window.size == 400


def test_without_demand_it_does_not_grow() -> None:
    window = AutoWindow(1000)
    for number in range(2000):
        window.answered(number * 0.1, number * 0.1 - 0.5, 10, 5)
    assert window.size == 16


def test_overload_cuts_it_once_for_all_that_were_in_flight() -> None:
    window = AutoWindow(1000)
    for _ in range(16):
        window.refused(10.0, 9.0, 16)
    assert window.size == 11
    window.refused(20.0, 19.0, 11)
    assert window.size == 7


def test_after_a_cut_it_grows_by_little() -> None:
    window, server = AutoWindow(1000), Server(10_000)
    window.refused(0.0, 0.0, 10)
    server.run(window, 30.0)
    assert 7 < window.size < 30


@pytest.mark.parametrize(
    ("per_s", "ceiling", "latencies_s", "least", "most"),
    [
        (1, 1000, [], 16, 40),
        (10, 1000, [], 10 * ASSUMED_LATENCY_S, 10 * ASSUMED_LATENCY_S * HEADROOM + 45),
        (10, 1000, [2.0], 20, 20 * HEADROOM + 20),  # the first answer replaces the assumption
        (10, 1000, [1.0, 3.0], 20, 20 * HEADROOM + 20),
        (10, 20, [], 20, 20),
        (1, 1000, [0.001], 2, 3),
        (1000, 1, [100.0], 1, 1),
    ],
)
def test_size_by_littles_law(per_s: float, ceiling: int, latencies_s: list[float], least: float, most: float) -> None:
    window = AutoWindow(ceiling, per_s)
    for latency_s in latencies_s:
        window.answered(latency_s, 0.0, None, 1)
    assert least <= window.size <= most


def test_a_rate_that_is_learnt_bounds_it() -> None:
    window, server = AutoWindow(10_000), Server(10_000)
    server.run(window, 60.0)
    assert window.size > 500
    window.paced(10.0)
    assert 20 <= window.size <= 60
    window.paced(None)
    server.run(window, 10.0)
    assert window.size > 500


@given(
    per_s=st.none() | st.floats(0.01, 1e5),
    ceiling=st.integers(1, 10_000),
    answers=st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e3), st.none() | st.integers(0, 10**6)), max_size=300),
)
def test_always_between_one_and_the_ceiling(
    per_s: float | None, ceiling: int, answers: list[tuple[float, float, int | None]]
) -> None:
    window, now_s = AutoWindow(ceiling, per_s), 0.0
    for gap_s, latency_s, tokens in answers:
        now_s += gap_s
        window.answered(now_s, now_s - latency_s, tokens, window.size)
        if tokens == 0:
            window.refused(now_s, now_s, window.size)
        assert 1 <= window.size <= ceiling


@pytest.mark.parametrize(
    ("concurrency", "per_s", "ceiling", "kind", "size"),
    [
        (None, None, 1000, AutoWindow, 16),
        (None, None, 8, AutoWindow, 8),
        (50, None, 1000, FixedWindow, 50),
        (50, 10, 1000, FixedWindow, 50),  # what the user said wins
        (5000, 10, 1000, FixedWindow, 1000),
        (None, 10, 20, AutoWindow, 20),
    ],
)
def test_which_window(concurrency: int | None, per_s: float | None, ceiling: int, kind: type, size: int) -> None:
    window = window_for(concurrency, per_s, ceiling)
    assert type(window) is kind and window.size == size
