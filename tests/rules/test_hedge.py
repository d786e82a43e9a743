"""When a request is slow, and whether a second one may be sent."""

from __future__ import annotations

import math
import random

import pytest

from llmbatch.rules.hedge import AT_START, COST, ENOUGH, MEMORY, MOST_SAVED, Hedging


def learnt(policy: Hedging, values: list[float]) -> Hedging:
    for value in values:
        policy.answered(value)
    return policy


def rich(policy: Hedging) -> Hedging:
    for _ in range(AT_START + MOST_SAVED):
        policy.begun()
    return policy


def spent_down_to(policy: Hedging, points: int) -> Hedging:
    for _ in range((MOST_SAVED - points) // COST):
        assert policy.take()
    return policy


@pytest.mark.parametrize(
    ("answers", "after_s", "threshold_s"),
    [
        (0, None, math.inf),
        (ENOUGH - 1, None, math.inf),
        (ENOUGH, None, 2.0),
        (0, 10.0, 10.0),
        (ENOUGH, 10.0, 10.0),
        (ENOUGH, 0.5, 0.5),  # with budget to spare a given time is what was given, however many are slower
    ],
)
def test_threshold_is_known_after_enough_answers_or_at_once_if_it_was_given(
    answers: int, after_s: float | None, threshold_s: float
) -> None:
    policy = learnt(rich(Hedging(after_s)), [2.0] * answers)
    assert policy.threshold_s == pytest.approx(threshold_s, rel=0.03)


@pytest.mark.parametrize(
    ("points", "percent"), [(MOST_SAVED, 95), (MOST_SAVED // 2, 95), (MOST_SAVED // 4, 97), (0, 99)]
)
@pytest.mark.parametrize("after_s", [None, 0.001])
def test_what_is_slow_grows_to_the_99th_percentile_as_the_budget_runs_short(
    points: int, percent: int, after_s: float | None
) -> None:
    values = [float(number) for number in range(1, 1001)]
    random.Random(1).shuffle(values)
    policy = spent_down_to(learnt(rich(Hedging(after_s)), values), points)
    given = after_s is not None and points >= MOST_SAVED // 2
    assert policy.threshold_s == pytest.approx(after_s if given else 10.0 * percent, rel=0.03)


def test_a_given_time_is_never_shortened() -> None:
    policy = spent_down_to(learnt(rich(Hedging(60.0)), [1.0] * 200), 0)
    assert policy.threshold_s == 60.0


def test_a_server_that_became_slower_is_a_straggler_no_longer() -> None:
    policy = learnt(rich(Hedging()), [1.0] * 5 * MEMORY)
    assert policy.threshold_s == pytest.approx(1.0, rel=0.03)
    learnt(policy, [3.0] * (MEMORY // 5))  # a tenth of what is remembered at most, at least
    assert policy.threshold_s == pytest.approx(3.0, rel=0.03)


def test_a_server_that_became_quicker_is_believed_after_a_while() -> None:
    policy = learnt(learnt(rich(Hedging()), [3.0] * 5 * MEMORY), [1.0] * 2 * MEMORY)
    assert policy.threshold_s == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize(
    ("begun", "allowed"),
    [(0, 5), (1, 5), (100, 5), (119, 5), (120, 6), (200, 10), (899, 44), (900, 45), (100_000, MOST_SAVED // COST)],
)
def test_five_at_the_start_then_one_of_twenty_and_no_endless_savings(begun: int, allowed: int) -> None:
    policy = Hedging()
    for _ in range(begun):
        policy.begun()
    sent = 0
    while policy.take():
        sent += 1
    assert sent == min(allowed, MOST_SAVED // COST)
    assert not policy.room(1_000, 0)


@pytest.mark.parametrize("seed", range(5))
def test_never_more_than_one_of_twenty_however_they_are_asked_for(seed: int) -> None:
    policy, chance, sent = Hedging(), random.Random(seed), 0
    for begun in range(1, 10_001):
        policy.begun()
        for _ in range(chance.choice([0, 0, 0, 1, 30])):
            if policy.take():
                sent += 1
                if chance.random() < 0.1:
                    policy.give_back()
                    sent -= 1
        assert sent <= max(5, begun / 20)
    assert sent > 10_000 / 20 - MOST_SAVED / COST  # and what may be sent is


@pytest.mark.parametrize(
    ("rows", "twice", "room"),
    [(1, 0, True), (9, 1, False), (10, 1, False), (11, 1, True), (100, 9, True), (100, 10, False)],
)
def test_a_tenth_of_the_rows_at_one_time(rows: int, twice: int, room: bool) -> None:
    assert rich(Hedging()).room(rows, twice) is room


@pytest.mark.parametrize("seed", range(3))
def test_percentiles_do_not_sink_when_those_given_up_count(seed: int) -> None:
    """The feedback that would send everything twice: what is slower than the 95th percentile is never seen whole."""
    chance, policy = random.Random(seed), rich(Hedging())
    threshold_s, slow = math.inf, 0
    for _ in range(20_000):
        first, second = (chance.lognormvariate(0.0, 0.6) for _ in range(2))
        slow += first > threshold_s
        policy.answered(first if first <= threshold_s else min(first, threshold_s + second))
        threshold_s = policy.threshold_s
    assert slow / 20_000 == pytest.approx(0.05, abs=0.006)
