import math
import random

import pytest

from llmbatch.meters import Histogram, RecentRate


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_within_three_percent(seed: int) -> None:
    rng = random.Random(seed)
    values = [rng.lognormvariate(-0.5, 1.5) for _ in range(5000)]
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    values.sort()
    for percent in (1, 50, 90, 95, 99, 99.9):
        true = values[math.ceil(len(values) * percent / 100) - 1]
        assert histogram.percentile(percent) == pytest.approx(true, rel=0.03)
    assert histogram.max_s == values[-1]


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e-4, 1.0, 86_000.0, 1e9])
def test_one_duration_is_every_percentile_exactly(seconds: float) -> None:
    histogram = Histogram()
    histogram.add(seconds)
    assert [histogram.percentile(p) for p in (0, 50, 100)] == [seconds] * 3


def test_neighbouring_buckets_are_close_enough_over_the_whole_range() -> None:
    seconds = 0.0002
    while seconds < 80_000:
        histogram = Histogram()
        for value in (seconds / 2, seconds, seconds * 2):
            histogram.add(value)
        assert histogram.percentile(50) == pytest.approx(seconds, rel=0.03)
        seconds *= 1.013


def test_a_steady_rate_is_seen_as_it_is() -> None:
    rate = RecentRate(0.0)
    for i in range(3000):
        rate.add(i / 50)
    assert rate.per_s(60.0, 10.0) == pytest.approx(50, rel=0.06)


def test_the_recent_rate_forgets_what_is_older() -> None:
    rate = RecentRate(100.0)
    for i in range(100):
        rate.add(100 + i / 100)
    assert rate.per_s(105.0, 10.0) == pytest.approx(20)
    assert rate.per_s(112.0, 10.0) == 0.0
    assert rate.per_s(112.0, 60.0) > 0
    assert rate.per_s(10_000.0, 60.0) == 0.0


def test_the_first_answers_are_no_burst() -> None:
    rate = RecentRate(0.0)
    for _ in range(3):
        rate.add(0.001)
    assert rate.per_s(0.002, 10.0) == 3.0


def test_a_rate_after_a_long_silence_counts_only_what_is_new() -> None:
    rate = RecentRate(0.0)
    for _ in range(500):
        rate.add(1.0)
    rate.add(1000.0)
    assert rate.per_s(1000.0, 60.0) == pytest.approx(1 / 60)


def test_joined_is_as_if_all_had_been_added_to_one() -> None:
    rng = random.Random(7)
    values = [rng.lognormvariate(0.0, 1.0) for _ in range(500)]
    one, first, second = Histogram(), Histogram(), Histogram()
    for index, value in enumerate(values):
        one.add(value)
        (first if index % 3 else second).add(value)
    both = first.joined(second)
    assert both.count == one.count
    assert [both.percentile(p) for p in (0, 10, 50, 95, 100)] == [one.percentile(p) for p in (0, 10, 50, 95, 100)]
    assert first.joined(Histogram()).percentile(95) == first.percentile(95)
