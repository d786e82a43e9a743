"""The pace never exceeds the limit in any sliding minute, and hardly stays below it."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmbatch.rules.pace import MINUTE_S, TOLERANCE_S, Pace

# Sums of floats: a window counts as a full minute if it is short by less than this.
ROUNDING_S = 1e-6


def most_in_a_minute(times: list[float]) -> int:
    """The largest number of ``times`` (sorted) in any window [t, t + 60 s)."""
    most, first = 0, 0
    for last, time_s in enumerate(times):
        while time_s - times[first] >= MINUTE_S - ROUNDING_S:
            first += 1
        most = max(most, last - first + 1)
    return most


def drive(pace: Pace, gaps_s: list[float]) -> list[float]:
    """Calls at adversarial moments: after each gap as many requests as the pace allows right then."""
    now_s, sent = 0.0, []
    for gap_s in gaps_s:
        now_s += gap_s
        while pace.wait_s(now_s) == 0 and len(sent) < 20_000:
            pace.take(now_s)
            sent.append(now_s)
    return sent


@pytest.mark.parametrize(
    ("rpm", "first_gap_s", "expected_s"),
    [
        (60, 0.0, 60.05 / 60 - TOLERANCE_S),
        (60, 0.5, 60.05 / 60 - TOLERANCE_S - 0.5),
        (60, 5.0, 0.0),  # nothing is owed after an idle time
        (1, 0.0, MINUTE_S),
        (0.5, 0.0, 120.1 - TOLERANCE_S),
        (60_000, 0.0, 0.0),  # shorter than the tolerance: may follow at once
    ],
)
def test_wait_after_one_request(rpm: float, first_gap_s: float, expected_s: float) -> None:
    pace = Pace(rpm)
    assert pace.wait_s(0.0) == 0.0
    pace.take(0.0)
    assert pace.wait_s(first_gap_s) == pytest.approx(expected_s)


def test_idle_time_is_not_saved_up() -> None:
    pace = Pace(60)
    pace.take(0.0)
    sent = drive(pace, [600.0, 0.0, 0.0])
    assert len(sent) == 1


@settings(max_examples=60, deadline=None)
@given(
    rpm=st.sampled_from([1, 7, 60, 600, 6000]),
    gaps_s=st.lists(
        st.one_of(st.floats(0, 0.2), st.floats(0, 3), st.sampled_from([0.0, 0.049, 0.05, 0.051, 59.95, 60.0, 300.0])),
        max_size=400,
    ),
)
def test_never_more_than_the_limit_in_any_sliding_minute(rpm: int, gaps_s: list[float]) -> None:
    assert most_in_a_minute(drive(Pace(rpm), gaps_s)) <= rpm


@pytest.mark.parametrize("rpm", [60, 600, 6000, 60_000])
def test_unlimited_demand_with_late_timers_uses_99_percent_and_never_more(rpm: int) -> None:
    pace, chance = Pace(rpm), Random(7)
    now_s, sent, minutes = 0.0, [], 3 if rpm < 60_000 else 1.5
    while now_s < minutes * MINUTE_S:
        if (wait_s := pace.wait_s(now_s)) > 0:
            now_s += wait_s + chance.uniform(0, 0.002)
        else:
            pace.take(now_s)
            sent.append(now_s)
    assert most_in_a_minute(sent) <= rpm
    assert len(sent) >= 0.99 * rpm * minutes


def test_a_stall_of_the_loop_is_not_made_up_by_a_burst() -> None:
    pace = Pace(600)
    drive(pace, [0.0])
    assert len(drive(pace, [30.0, 0.001, 0.001])) == 1


@pytest.mark.parametrize("rpm", [60, 600])
def test_evenly_spaced(rpm: int) -> None:
    pace, now_s, sent = Pace(rpm), 0.0, []
    for _ in range(100):
        now_s += pace.wait_s(now_s)
        pace.take(now_s)
        sent.append(now_s)
    gaps = [later - sooner for sooner, later in pairwise(sent[1:])]  # the first gap may use the tolerance
    assert min(gaps) >= 0.99 * MINUTE_S / rpm and max(gaps) <= 1.01 * MINUTE_S / rpm
