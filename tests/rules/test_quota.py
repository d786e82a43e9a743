"""The purse of retry tokens: what a retry costs, what a good answer gives back, and what never empties it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbatch.records import Failure
from llmbatch.rules.quota import CAPACITY, Quota

BUSY = Failure("rejected", "overloaded", "m", retryable=True)
CUT = Failure("ambiguous", "disconnected", "m", retryable=True)
SPOILT = Failure("unusable", "empty_answer", "m", retryable=True)


def after(story: str, quota: Quota | None = None) -> Quota:
    """B, C, S: a failure that is retried, if that can be paid; b: that retry is answered; g: a good first try."""
    quota, paid = quota or Quota(), 0
    for what in story:
        if what == "g":
            quota.answered(0)
        elif what == "b":
            quota.answered(paid)
        else:
            failure = {"B": BUSY, "C": CUT, "S": SPOILT}[what]
            paid = quota.pay(failure) if quota.failed(failure) else 0
    return quota


@pytest.mark.parametrize(
    ("story", "tokens", "ill"),
    [
        ("", 500, False),
        ("B", 495, False),
        ("C", 490, False),
        ("S", 490, False),
        ("Bb", 500, False),  # a retry that was worth it costs nothing in the end
        ("BBb", 495, False),  # but the one that was not does
        ("Bg", 496, False),
        ("gggg", 500, False),
        ("B" * 100, 0, False),
        ("B" * 101, 0, True),
        ("C" * 50, 0, False),
        ("C" * 51, 0, True),
        ("B" * 99 + "C", 0, True),  # 5 are left, and lost
        ("B" * 101 + "g", 1, True),
        ("B" * 101 + "gggggB", 0, True),
        ("B" * 101 + "gggggBb", 1, True),  # while it is ill a good retry gives 1, too
        ("B" * 101 + "g" * 249, 249, True),
        ("B" * 101 + "g" * 250, 250, False),
        ("B" * 101 + "g" * 600, 500, False),
    ],
)
def test_tokens(story: str, tokens: int, ill: bool) -> None:
    quota = after(story)
    assert (quota.tokens, quota.ill) == (tokens, ill)


@pytest.mark.parametrize(("in_flight", "tokens"), [(1, 500), (50, 500), (51, 510), (500, 5000)])
def test_a_whole_window_that_is_cut_off_at_once_can_be_paid(in_flight: int, tokens: int) -> None:
    quota = Quota(in_flight)
    assert quota.tokens == tokens
    assert not after("C" * in_flight, quota).ill


@pytest.mark.parametrize(("story", "refund", "tokens"), [("BBBB", 20, 500), ("BB", 20, 500), ("B" * 101, 20, 0)])
def test_a_row_of_its_own_fault_gets_its_tokens_back_but_not_from_an_empty_purse(
    story: str, refund: int, tokens: int
) -> None:
    quota = after(story)
    quota.refund(refund)
    assert quota.tokens == tokens


def test_good_answers_are_counted() -> None:
    assert [after(story).answers for story in ("", "g", "gBbgC")] == [0, 1, 3]


def test_the_share_of_failures_is_of_the_last_hundred_answers() -> None:
    assert Quota().failed_share == 0.0
    assert after("gggB").failed_share == 0.25
    assert after("B" * 300 + "g" * 60).failed_share == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("busy", "cut", "binds"),
    [
        (0.01, 0.005, False),  # an ordinary day
        (0.1, 0.02, False),
        (0.25, 0.0, False),
        (0.0, 0.2, False),
        (0.35, 0.0, True),
        (0.5, 0.0, True),
        (0.0, 0.3, True),
    ],
)
def test_noise_never_empties_it(busy: float, cut: float, binds: bool) -> None:
    """By arithmetic: of tries that fail with chance p, each loses cost x p^2 and gains (1 - p)^2."""
    chance, quota, paid, lowest = random.Random(1), Quota(), 0, CAPACITY
    for _ in range(20_000):
        drawn = chance.random()
        if drawn < busy + cut:
            failure = BUSY if drawn < busy else CUT
            paid = quota.pay(failure) if quota.failed(failure) else 0
        else:
            quota.answered(paid)
            paid = 0
        lowest = min(lowest, quota.tokens)
    assert (lowest < 10) is binds
    if busy + cut < 0.02:
        assert lowest > 400


@given(st.text("BCSgb", max_size=400), st.integers(1, 200))
def test_never_below_zero_never_above_its_size(story: str, in_flight: int) -> None:
    quota = Quota(in_flight)
    most = quota.tokens
    for what in story:
        after(what, quota)
        assert 0 <= quota.tokens <= most
