"""What headers say becomes a pace; what they can not mean does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmbatch.rules.learnt import (
    LONGEST_MINUTE_S,
    MOST_TOKENS_PER_MINUTE,
    QUICKEST_PER_MINUTE,
    RESERVE_S,
    SLOWEST_PER_MINUTE,
    learn,
    per_minute_of,
)
from llmbatch.rules.limits import NO_LIMITS, Allowance, Limits
from llmbatch.rules.pace import NO_TOKENS, Cost, Kind, Meters, Pace, TokenPace


@pytest.mark.parametrize(
    ("kind", "allowance", "per_minute"),
    [
        ("requests", Allowance(600, 599, 0.1), 600.0),
        ("requests", Allowance(600), 600.0),
        ("requests", Allowance(10, window_s=1.0), 600.0),
        ("requests", Allowance(3, 0, 59.0), 3.0),
        ("requests", Allowance(None, 5, 1.0), None),
        ("requests", Allowance(), None),
        ("requests", Allowance(0, 0, 1.0), None),
        ("requests", Allowance(-1), None),
        ("requests", Allowance(10_000, 9_000, LONGEST_MINUTE_S + 1), None),  # a day's, not called so
        ("requests", Allowance(14_400, 14_000, 60.0, window_s=86_400.0), None),
        ("requests", Allowance(600, 601, 0.1), None),  # more left than there is
        ("requests", Allowance(600, 600, 0.0), 600.0),
        ("requests", Allowance(10**12), QUICKEST_PER_MINUTE),
        ("requests", Allowance(1, window_s=600.0), SLOWEST_PER_MINUTE),
        ("tokens", Allowance(10**12), MOST_TOKENS_PER_MINUTE),
        ("tokens", Allowance(200_000, 1, 59.0), 200_000.0),
    ],
)
def test_the_rate_of_a_limit(kind: Kind, allowance: Allowance, per_minute: float | None) -> None:
    assert per_minute_of(kind, allowance) == per_minute


def learnt(*said: Limits, now_s: float = 0.0) -> Meters:
    meters = Meters()
    for limits in said:
        learn(meters, limits, now_s)
    return meters


def test_each_limit_has_a_pace_of_its_kind() -> None:
    meters = learnt(Limits(requests=Allowance(60), output_tokens=Allowance(8000)))
    assert {kind: (type(meter), meter.per_minute) for kind, meter in meters} == {
        "requests": (Pace, 60.0),
        "output_tokens": (TokenPace, 8000.0),
    }
    assert meters.counts_tokens and meters.kinds == ("requests", "output_tokens")


@pytest.mark.parametrize("later", [NO_LIMITS, Limits(requests=Allowance(0)), Limits(requests=Allowance(60, 61))])
def test_what_is_not_said_or_is_garbage_leaves_what_was_learnt(later: Limits) -> None:
    assert [meter.per_minute for _, meter in learnt(Limits(requests=Allowance(60)), later)] == [60.0]


def test_a_new_limit_keeps_what_was_taken() -> None:
    meters = learnt(Limits(requests=Allowance(60)))
    meters.take(0.0, NO_TOKENS)
    learn(meters, Limits(requests=Allowance(600)), 0.0)
    assert meters.wait(0.0, NO_TOKENS)[0] == pytest.approx(1.0, abs=0.06)  # its price was that of the old limit
    meters.take(2.0, NO_TOKENS)
    assert meters.wait(2.0, NO_TOKENS)[0] == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(
    ("per_minute", "remaining", "wait_s"),
    [
        (6000, 0, RESERVE_S),
        (60, 0, 1.0),  # at least until there is one
        (6, 0, 10.0),
        (6000, 1, 0.0),
        (6000, None, 0.0),
    ],
)
def test_when_nothing_is_left_some_is_waited_for(per_minute: int, remaining: int | None, wait_s: float) -> None:
    meters = learnt(Limits(requests=Allowance(per_minute, remaining, 1.0)), now_s=100.0)
    assert meters.wait(100.0, NO_TOKENS)[0] == pytest.approx(wait_s, abs=1e-9)


def test_saying_it_again_does_not_make_the_wait_longer() -> None:
    said = Limits(tokens=Allowance(60_000, 0, 30.0))
    meters = learnt(*[said] * 50)
    assert meters.wait(0.0, Cost(10.0, 10.0)) == (pytest.approx(RESERVE_S), "tokens")
    learn(meters, replace(said, tokens=Allowance(60_000, 500, 30.0)), RESERVE_S)
    assert meters.wait(RESERVE_S, Cost(10.0, 10.0))[0] == 0.0
