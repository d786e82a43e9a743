"""The window: a fixed number, or by Little's law from the rate and the latency as it is learnt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbatch.rules.window import ASSUMED_LATENCY_S, HEADROOM, FixedWindow, LittleWindow, window_for


def test_a_fixed_window_never_moves() -> None:
    window = FixedWindow(7)
    assert [window.answered(latency_s) for latency_s in (0.0, 1.0, 1e6)] == [False, False, False]
    assert window.size == 7


@pytest.mark.parametrize(
    ("rpm", "ceiling", "latencies_s", "size"),
    [
        (60, 1000, [], 1 * ASSUMED_LATENCY_S * HEADROOM + 1),
        (600, 1000, [], 10 * ASSUMED_LATENCY_S * HEADROOM + 1),
        (600, 1000, [2.0], 10 * 2 * HEADROOM + 1),  # the first answer replaces the assumption
        (600, 1000, [1.0, 3.0], 10 * 2 * HEADROOM + 1),
        (600, 20, [], 20),
        (60, 1000, [0.001], 2),
        (60, 1000, [0.0], 1),
        (0.1, 1000, [0.5], 2),
        (60_000, 1, [100.0], 1),
    ],
)
def test_size_by_littles_law(rpm: float, ceiling: int, latencies_s: list[float], size: int) -> None:
    window = LittleWindow(rpm, ceiling)
    for latency_s in latencies_s:
        window.answered(latency_s)
    assert window.size == size


def test_says_whether_the_size_changed() -> None:
    window = LittleWindow(600, 1000)
    assert window.answered(1.0) is True
    assert window.answered(1.0) is False


def test_slower_answers_are_learnt_within_some_hundred() -> None:
    window = LittleWindow(600, 10_000)
    for _ in range(1000):
        window.answered(0.5)
    for _ in range(400):
        window.answered(5.0)
    assert window.average_s == pytest.approx(5.0, rel=0.05)


@given(
    rpm=st.floats(0.01, 1e7),
    ceiling=st.integers(1, 10_000),
    latencies_s=st.lists(st.floats(0, 1e5), max_size=50),
)
def test_always_between_one_and_the_ceiling(rpm: float, ceiling: int, latencies_s: list[float]) -> None:
    window = LittleWindow(rpm, ceiling)
    for latency_s in latencies_s:
        window.answered(latency_s)
        assert 1 <= window.size <= ceiling


def test_has_room_for_the_whole_rate_at_the_mean_latency() -> None:
    window = LittleWindow(6000, 10_000)
    for latency_s in (0.2, 1.0, 3.0) * 100:
        window.answered(latency_s)
    assert window.size >= 100 * window.average_s


@pytest.mark.parametrize(
    ("concurrency", "rpm", "ceiling", "kind", "size"),
    [
        (None, None, 1000, FixedWindow, 16),
        (None, None, 8, FixedWindow, 8),
        (50, None, 1000, FixedWindow, 50),
        (50, 600, 1000, FixedWindow, 50),  # what the user said wins
        (5000, 600, 1000, FixedWindow, 1000),
        (None, 600, 1000, LittleWindow, 151),
        (None, 600, 20, LittleWindow, 20),
    ],
)
def test_which_window(concurrency: int | None, rpm: float | None, ceiling: int, kind: type, size: int) -> None:
    window = window_for(concurrency, rpm, 16, ceiling)
    assert type(window) is kind and window.size == size
