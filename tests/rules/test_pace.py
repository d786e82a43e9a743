"""The pace never exceeds the limit in any sliding minute, and hardly stays below it."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmbatch.rules.pace import (
    MINUTE_S,
    MOST_CREDIT_S,
    NO_TOKENS,
    TOKEN_SHARE,
    TOLERANCE_S,
    Cost,
    Kind,
    Meters,
    Pace,
    TokenPace,
)

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


# Changes, and tokens


def test_never_more_than_the_limit_in_a_minute_when_some_is_settled_or_held() -> None:
    pace, chance, now_s, sent = Pace(60), Random(3), 0.0, []
    while now_s < 600.0:
        if (wait_s := pace.wait_s(now_s)) > 0:
            now_s += wait_s + chance.uniform(0, 0.01)
            continue
        pace.take(now_s)
        sent.append(now_s)
        if chance.random() < 0.05:
            pace.settle(now_s, chance.choice([-5.0, 0.0, 1.0]))  # of requests nothing is given back
        if chance.random() < 0.05:
            pace.hold(now_s + chance.uniform(0, 3))
    assert most_in_a_minute(sent) <= 60


@pytest.mark.parametrize(("before", "after"), [(60, 600), (600, 60)])
def test_another_limit_holds_from_the_next_request_on(before: float, after: float) -> None:
    pace = Pace(before)
    pace.take(0.0)
    pace.change(after)
    assert pace.wait_s(0.0) == pytest.approx(60.05 / before - TOLERANCE_S)
    pace.take(10.0)
    assert pace.wait_s(10.0) == pytest.approx(60.05 / after - TOLERANCE_S)


@pytest.mark.parametrize("pace", [Pace(600), TokenPace(600)])
def test_a_hold_is_never_cut_short(pace: Pace) -> None:
    pace.hold(5.0)
    pace.hold(3.0)
    assert pace.wait_s(0.0) == pytest.approx(5.0)
    assert pace.wait_s(4.999) > 0 and pace.wait_s(5.0) == 0.0


TOKENS_PER_S = 60_000 * TOKEN_SHARE / MINUTE_S


def test_tokens_are_waited_for_behind_who_took_them() -> None:
    pace = TokenPace(60_000)
    assert pace.wait_s(0.0, 1e9) == 0.0  # however large: else it would wait for ever
    pace.take(0.0, 990.0)
    assert pace.wait_s(0.0) == pytest.approx(990.0 / TOKENS_PER_S - TOLERANCE_S)


@pytest.mark.parametrize(
    ("settled", "wait_s"),
    [
        (0.0, 10.0),
        (9_900.0, 20.0),  # a debt
        (-4_950.0, 5.0),  # a credit
        (-9_900.0, 0.0),
    ],
)
def test_the_next_waits_for_what_was_really_used(settled: float, wait_s: float) -> None:
    pace = TokenPace(60_000)
    pace.take(0.0, 9_900.0)
    pace.settle(1.0, settled)
    assert pace.wait_s(0.0) == pytest.approx(max(0.0, wait_s - TOLERANCE_S), abs=1e-9)


def test_a_debt_is_paid_from_the_credit_first() -> None:
    pace = TokenPace(60_000)
    pace.take(0.0, 9_900.0)
    pace.settle(0.0, -4_950.0)
    pace.settle(0.0, 4_950.0)
    assert pace.wait_s(0.0) == pytest.approx(10.0 - TOLERANCE_S)


def test_credit_has_an_end_and_idle_time_gives_none() -> None:
    pace = TokenPace(60_000)
    pace.take(0.0, 100 * 9_900.0)
    pace.settle(0.0, -100 * 9_900.0)
    at_once = 0.0
    while pace.wait_s(2000.0) == 0.0:
        pace.take(2000.0, 99.0)
        at_once += 99.0
    assert at_once <= (MOST_CREDIT_S + 0.3) * TOKENS_PER_S


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_lengths_of_heavy_tail_use_the_limit_and_hardly_more(seed: int) -> None:
    """What is taken is the mean; what was really used is known ten seconds later."""
    pace, chance, now_s = TokenPace(60_000), Random(seed), 0.0
    owed: deque[tuple[float, float]] = deque()
    used: list[tuple[float, float]] = []
    while now_s < 600.0:
        while owed and owed[0][0] <= now_s:
            pace.settle(now_s, owed.popleft()[1])
        if (wait_s := pace.wait_s(now_s, 400.0)) > 0:
            now_s += min(wait_s, 0.1)
            continue
        pace.take(now_s, 400.0)
        tokens = min(chance.lognormvariate(5.0, 1.5), 8_000.0)
        owed.append((now_s + 10.0, tokens - 400.0))
        used.append((now_s, tokens))
    assert 0.97 * 600_000 <= sum(tokens for _, tokens in used) <= 1.02 * 600_000


def test_of_several_limits_the_longest_wait_counts_and_has_its_name() -> None:
    meters = Meters({"requests": Pace(60), "tokens": TokenPace(60_000)})
    assert meters.wait(0.0, Cost(10, 10)) == (0.0, None)
    meters.take(0.0, Cost(4_950, 4_950))
    assert meters.wait(0.0, Cost(10, 10)) == (pytest.approx(10.0 - TOLERANCE_S), "tokens")
    meters.settle(0.0, Cost(4_950, 4_950), Cost(0, 0))
    assert meters.wait(0.0, Cost(10, 10)) == (pytest.approx(60.05 / 60 - TOLERANCE_S), "requests")
    meters.put("requests", None)
    assert (meters.wait(0.0, NO_TOKENS), meters.kinds, meters.counts_tokens) == ((0.0, None), ("tokens",), True)


@pytest.mark.parametrize(
    ("kind", "amount"), [("requests", 1.0), ("tokens", 30.0), ("input_tokens", 10.0), ("output_tokens", 20.0)]
)
def test_what_counts_for_each_kind(kind: Kind, amount: float) -> None:
    assert Cost(10.0, 20.0).of(kind) == amount


def test_tokens_given_back_do_not_outlive_an_idle_time() -> None:
    pace = TokenPace(60_000)
    pace.take(0.0, 15_000)
    pace.settle(1.0, -15_000)
    now_s, taken = 100.0, 0.0
    while now_s < 110.0:
        if pace.wait_s(now_s) == 0:
            pace.take(now_s, 1_000)
            taken += 1_000
        now_s += 0.1
    assert taken <= 11_000
