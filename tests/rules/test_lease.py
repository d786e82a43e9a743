"""Leases of a shared limit: turns for the hungry, nothing twice, and no sliding minute above the limit."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sliding import most_in_a_minute

from llmbatch.rules.lease import LEASE_S, Lease
from llmbatch.rules.pace import MINUTE_S, MOST_CREDIT_S, TOKEN_SHARE, TOLERANCE_S, Kind, unit_s


class Shared:
    """The one number, and several leases of it, as processes have them."""

    def __init__(self, leases: int, *, exact: bool = True) -> None:
        self.tail_s = 0.0
        self.leases = [Lease(exact=exact) for _ in range(leases)]
        self.renewed = 0

    def wait_s(self, which: int, now_s: float, cost_s: float) -> float:
        lease = self.leases[which]
        if (wait_s := lease.wait_s(now_s, cost_s)) is None:
            self.tail_s = lease.renew(self.tail_s, now_s, cost_s)
            self.renewed += 1
            wait_s = lease.wait_s(now_s, cost_s)
        assert wait_s is not None
        return wait_s


@pytest.mark.parametrize(
    ("kind", "per_minute", "expected_s"),
    [
        ("requests", 600, (MINUTE_S + TOLERANCE_S) / 600),
        ("tokens", 60_000, 0.001 / TOKEN_SHARE),
        ("input_tokens", 60, 1 / TOKEN_SHARE),
        ("output_tokens", 60, 1 / TOKEN_SHARE),
    ],
)
def test_what_one_costs(kind: Kind, per_minute: float, expected_s: float) -> None:
    assert unit_s(kind, per_minute) == pytest.approx(expected_s)


def test_the_first_stretch_is_one_request_and_those_used_up_double_to_50_ms() -> None:
    shared, now_s, leased = Shared(1), 100.0, []
    for _ in range(7):
        before_s = max(shared.tail_s, now_s)
        shared.wait_s(0, now_s, 0.001)
        leased.append(round((shared.tail_s - before_s) / 0.001))
        while (wait_s := shared.leases[0].wait_s(now_s, 0.001)) is not None:
            now_s += wait_s
            shared.leases[0].take(now_s, 0.001)
    assert leased == [1, 2, 4, 8, 16, 32, round(LEASE_S / 0.001)]


def test_a_stretch_that_was_not_used_up_is_followed_by_what_was_used() -> None:
    lease = Lease(exact=True)
    tail_s = lease.renew(0.0, 100.0, 0.01)
    lease.take(100.0, 0.01)
    tail_s = lease.renew(tail_s, 100.0, 0.01)
    lease.take(100.0, 0.01)
    tail_s = lease.renew(tail_s + 0.01, 101.0, 0.01)  # another has leased since; one of two was used
    assert tail_s == pytest.approx(101.01)


def test_a_stretch_that_was_used_up_slowly_is_not_doubled() -> None:
    """Who asks as seldom as that by himself needs no more; the rest of it would be lost for the others."""
    lease, tail_s, ends_s = Lease(exact=True), 0.0, []
    for now_s in (100.0, 100.1, 100.2):
        tail_s = lease.renew(tail_s, now_s, 0.01)
        lease.take(now_s, 0.01)
        ends_s.append(tail_s - now_s)
    assert ends_s == pytest.approx([0.01] * 3)


@pytest.mark.parametrize(
    ("late_s", "begins_s"),
    [(0.001, 101.0), (0.024, 101.0), (0.026, 101.026), (3.0, 104.0)],
)
def test_a_late_timer_is_made_up_for_and_idle_time_is_not(late_s: float, begins_s: float) -> None:
    lease = Lease(exact=True)
    tail_s = lease.renew(0.0, 100.0, 1.0)
    lease.take(100.0, 1.0)
    assert lease.renew(tail_s, 101.0 + late_s, 1.0) == pytest.approx(begins_s + 1.0)


def test_who_comes_second_gets_his_part_behind() -> None:
    shared = Shared(2)
    assert shared.wait_s(0, 100.0, 1.0) == 0.0
    assert shared.wait_s(1, 100.0, 1.0) == pytest.approx(1.0)
    shared.leases[0].take(100.0, 1.0)
    assert shared.wait_s(0, 100.0, 1.0) == pytest.approx(2.0)
    assert shared.renewed == 3


def test_what_nobody_has_leased_behind_is_taken_up_again() -> None:
    lease = Lease(exact=True)
    tail_s = lease.renew(0.0, 100.0, 1.0)
    assert lease.wait_s(100.5, 1.0) is None  # too late for it
    assert lease.renew(tail_s, 100.5, 1.0) == pytest.approx(101.5)


def test_what_is_too_late_is_lost_when_others_have_leased_behind() -> None:
    shared = Shared(2)
    shared.wait_s(0, 100.0, 1.0)
    shared.wait_s(1, 100.0, 1.0)
    assert shared.wait_s(0, 100.5, 1.0) == pytest.approx(1.5)


def test_who_leaves_gives_back_what_he_did_not_use() -> None:
    lease = Lease(exact=True)
    tail_s = lease.renew(0.0, 100.0, 1.0)
    assert lease.leave(tail_s, 100.0) == pytest.approx(100.0)
    assert lease.wait_s(100.0, 1.0) is None
    assert lease.leave(tail_s, 100.0) == tail_s


@pytest.mark.parametrize("owed_s", [-0.5, 3.0])
def test_who_leaves_settles_what_he_owes(owed_s: float) -> None:
    lease = Lease(exact=False)
    tail_s = lease.renew(0.0, 100.0, 1.0)
    lease.take(100.0, 1.0)
    lease.settle(owed_s)
    assert lease.leave(tail_s, 100.0) == pytest.approx(tail_s + owed_s)


def test_who_leaves_behind_others_moves_nobody() -> None:
    shared = Shared(2)
    shared.wait_s(0, 100.0, 1.0)
    shared.wait_s(1, 100.0, 1.0)
    assert shared.leases[0].leave(shared.tail_s, 100.0) == shared.tail_s


def test_a_request_more_than_the_lease_holds_is_owed() -> None:
    lease = Lease(exact=True)
    tail_s = lease.renew(0.0, 100.0, 1.0)
    lease.take(100.0, 1.0)
    lease.take(100.0, 1.0)
    assert lease.renew(tail_s, 100.0, 1.0) == pytest.approx(tail_s + 2.0)
    assert lease.wait_s(100.0, 1.0) == pytest.approx(2.0)


def test_a_request_that_was_taken_stays_taken() -> None:
    lease = Lease(exact=True)
    tail_s = lease.renew(0.0, 100.0, 1.0)
    lease.take(100.0, 1.0)
    lease.settle(-1.0)
    assert lease.renew(tail_s, 100.0, 1.0) == pytest.approx(tail_s + 1.0)


@pytest.mark.parametrize(
    ("difference_s", "wait_s", "further_s"),
    [
        (0.0, 2.0, 2.0),
        (1.5, 3.5, 3.5),  # a debt is waited for
        (-0.5, 1.5, 1.5),  # what was not used is there for the next
        (-2.0, 0.0, 0.0),
        (-5.0, 0.0, 0.0),  # and for those after it
    ],
)
def test_tokens_are_settled_with_the_next_lease(difference_s: float, wait_s: float, further_s: float) -> None:
    lease = Lease(exact=False)
    tail_s = lease.renew(0.0, 100.0, 2.0)
    lease.take(100.0, 2.0)
    lease.settle(difference_s)
    assert lease.renew(tail_s, 100.0, 2.0) == pytest.approx(tail_s + further_s)
    assert lease.wait_s(100.0, 2.0) == pytest.approx(wait_s)


def test_credit_is_bounded() -> None:
    lease = Lease(exact=False)
    tail_s = lease.renew(0.0, 100.0, 2.0)
    lease.take(100.0, 2.0)
    lease.settle(-1e6)
    sent_s = 0.0
    while lease.wait_s(100.0, 2.0) == 0.0 or (tail_s := lease.renew(tail_s, 100.0, 2.0)) <= 102.0:
        lease.take(100.0, 2.0)
        sent_s += 2.0
    assert sent_s == pytest.approx(MOST_CREDIT_S, abs=2.1)


def test_a_begun_stretch_of_tokens_is_enough_and_what_is_missing_is_owed() -> None:
    lease = Lease(exact=False)
    tail_s = lease.renew(0.0, 100.0, 1.0)
    assert lease.wait_s(100.0, 4.0) == 0.0
    lease.take(100.0, 4.0)
    assert lease.renew(tail_s, 100.0, 1.0) == pytest.approx(tail_s + 4.0)
    assert lease.wait_s(100.0, 1.0) == pytest.approx(4.0)


def test_a_stretch_of_tokens_waits_for_its_request() -> None:
    shared = Shared(2, exact=False)
    shared.wait_s(0, 100.0, 1.0)
    shared.wait_s(1, 100.0, 1.0)
    assert shared.wait_s(0, 103.0, 1.0) == 0.0 and shared.renewed == 2


@settings(max_examples=80, deadline=None)
@given(
    per_minute=st.sampled_from([1, 7, 60, 600, 6000]),
    steps=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.one_of(st.floats(0, 0.2), st.sampled_from([0.0, 0.049, 0.05, 0.051, 1.0, 59.95, 60.0])),
            st.integers(1, 60),
        ),
        max_size=300,
    ),
)
def test_three_processes_never_exceed_the_limit_in_any_sliding_minute(
    per_minute: int, steps: list[tuple[int, float, int]]
) -> None:
    """At adversarial moments one of them sends as many as it may, up to a number, and leaves what it leased."""
    shared, now_s, sent = Shared(3), 1000.0, []
    cost_s = unit_s("requests", per_minute)
    for which, gap_s, most in steps:
        now_s += gap_s
        for _ in range(most):
            if shared.wait_s(which, now_s, cost_s) > 0:
                break
            shared.leases[which].take(now_s, cost_s)
            sent.append(now_s)
        if most % 7 == 0:
            shared.tail_s = shared.leases[which].leave(shared.tail_s, now_s)
    assert most_in_a_minute(sent) <= per_minute


def test_nothing_is_leased_at_first() -> None:
    assert Lease(exact=True).wait_s(0.0, 1.0) is None
    assert Lease(exact=False).wait_s(1e6, 1.0) is None
    assert Lease(exact=True).leave(-math.inf, 0.0) == -math.inf
