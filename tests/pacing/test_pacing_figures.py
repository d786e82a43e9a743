"""The figures of the bench of pacing, as arithmetic over times."""

from __future__ import annotations

import math
from array import array

import pytest
from pacing_figures import (
    mean_in_flight,
    most_in_window,
    most_tokens_in_window,
    recovery_s,
    refused_share,
    settled_s,
    used_share,
    work_per_s,
)
from pacing_virtual import Case, Diary


def even(start_s: float, stop_s: float, per_s: float) -> list[float]:
    return [start_s + number / per_s for number in range(round((stop_s - start_s) * per_s))]


def diary(**lists: list[float]) -> Diary:
    return Diary(**{name: array("d", values) for name, values in lists.items()})


@pytest.mark.parametrize(
    ("times", "most"),
    [
        ([], 0),
        ([5.0], 1),
        ([0.0, 60.0], 1),  # half open: what is a window apart is not in it
        ([0.0, 59.999], 2),
        ([0.0, 1.0, 2.0, 61.0, 61.5, 61.9], 4),
        (even(0, 600, 1), 60),
        (even(0, 600, 10), 600),
    ],
)
def test_the_most_in_any_minute(times: list[float], most: int) -> None:
    assert most_in_window(times) == most


def test_the_most_tokens_in_any_minute() -> None:
    assert most_tokens_in_window([0.0, 30.0, 70.0], [100.0, 50.0, 70.0]) == 150.0
    assert most_tokens_in_window([0.0, 30.0, 70.0], [10.0, 50.0, 70.0]) == 120.0


def test_the_share_that_is_used_is_of_the_limit_that_binds() -> None:
    half = diary(accepted=even(0, 100, 5), tokens=[10.0] * 500)
    assert used_share(Case(100.0, rpm=600.0), half, 10.0) == pytest.approx(0.5)
    assert used_share(Case(100.0, rpm=60_000.0, tpm=4000.0), half, 10.0) == pytest.approx(0.75)


def test_the_share_that_was_refused() -> None:
    seen = diary(accepted=[1.0, 2.0, 3.0], refused=[9.0])
    assert (refused_share(seen), refused_share(seen, 3.0), refused_share(Diary())) == (0.25, 0.5, 0.0)


@pytest.mark.parametrize(
    ("accepted", "found_s"),
    [
        (even(0, 300, 5), 0.0),
        (even(0, 112, 10) + even(112, 300, 5), 12.0),
        (even(0, 120, 5) + even(120, 150, 10) + even(150, 300, 5), 50.0),  # found, and lost again
        (even(0, 300, 10), math.inf),
        (even(0, 100, 10), math.inf),
    ],
)
def test_a_new_rate_is_found_when_it_is_kept(accepted: list[float], found_s: float) -> None:
    assert settled_s(diary(accepted=accepted), 100.0, 300.0, 300.0, 0.05) == pytest.approx(found_s, abs=1.01)


def test_recovery_counts_from_the_first_good_answer() -> None:
    slow_then_fast = even(110, 120, 2) + even(120, 200, 10)
    seen = diary(accepted=slow_then_fast, answered=[at_s + 1 for at_s in slow_then_fast])
    assert recovery_s(seen, 100.0, 600.0) == pytest.approx(9.0, abs=1.0)
    assert recovery_s(diary(accepted=[1.0], answered=[2.0]), 100.0, 600.0) == math.inf


def test_work_and_in_flight_are_means_over_the_time_that_counts() -> None:
    case = Case(20.0, slots=4)
    seen = diary(
        answered=[5.0, 12.0, 18.0],
        work=[9.0, 2.0, 3.0],
        in_flight_at=[0.0, 8.0, 15.0],
        in_flight=[1.0, 2.0, 4.0],
    )
    assert work_per_s(case, seen, 10.0) == pytest.approx(0.5)
    assert mean_in_flight(case, seen, 10.0) == pytest.approx(3.0)
