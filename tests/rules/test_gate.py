"""The gate: one rate-limit answer pauses everybody, and it reopens with a ramp."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbatch.rules.gate import RAMP_S, Gate


def test_open_and_without_ramp_at_first() -> None:
    gate = Gate()
    assert gate.wait_s(0.0) == 0.0
    assert gate.allowed(50, 0, 0.0) == 50


@pytest.mark.parametrize(
    ("retry_after_s", "chance", "closed_s"),
    [
        (2.0, 0.0, 2.0),
        (2.0, 0.99, 2.0),  # told exactly: no chance in it, and never earlier
        (0.001, 0.5, 0.001),
        (86_400.0, 0.0, 86_400.0),
        (None, 0.0, 0.5),
        (None, 0.5, 0.75),
    ],
)
def test_closed_for(retry_after_s: float | None, chance: float, closed_s: float) -> None:
    gate = Gate()
    assert gate.limited(100.0, 99.0, retry_after_s, chance) == pytest.approx(closed_s)
    assert gate.wait_s(100.0 + closed_s / 2) == pytest.approx(closed_s / 2)
    assert gate.wait_s(100.0 + closed_s + 1e-9) == 0.0


def test_a_later_shorter_word_does_not_open_it_earlier() -> None:
    gate = Gate()
    gate.limited(0.0, -1.0, 30.0, 0.0)
    assert gate.limited(1.0, -1.0, 5.0, 0.0) == 29.0
    assert gate.limited(2.0, -1.0, None, 0.99) == 28.0


def test_a_later_longer_word_closes_it_longer() -> None:
    gate = Gate()
    gate.limited(0.0, -1.0, 5.0, 0.0)
    assert gate.limited(1.0, -1.0, 30.0, 0.0) == 30.0


def test_answers_to_requests_sent_before_it_closed_are_one_strike() -> None:
    """A hundred requests in flight get a hundred 429s: that is one piece of news, not a hundred."""
    gate = Gate()
    for late in range(100):
        gate.limited(10.0 + late / 1000, 9.0, None, 0.999)
    assert gate.wait_s(10.1) < 1.0


def test_each_probe_that_fails_makes_the_pause_longer_up_to_half_a_minute() -> None:
    gate, now_s, pauses = Gate(), 0.0, []
    for _ in range(10):
        pauses.append(gate.limited(now_s, now_s, None, 0.0))
        now_s += pauses[-1]
    assert pauses[:4] == pytest.approx([0.5, 2.0, 8.0, 30.0])
    assert set(pauses[3:]) == {30.0}


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.999])
def test_ten_minutes_of_outage_see_twenty_probes(chance: float) -> None:
    gate, now_s, probes = Gate(), 0.0, 0
    while now_s < 600.0:
        now_s += gate.limited(now_s, now_s, None, chance)
        probes += 1
    assert probes <= 600 / 30 + 3


def test_a_good_probe_forgets_the_strikes() -> None:
    gate = Gate()
    for at_s in (0.0, 10.0, 20.0):
        gate.limited(at_s, at_s, None, 0.0)
    gate.answered(30.0, 30.0, 100)
    assert gate.limited(40.0, 40.0, None, 0.0) == 0.5


def test_ramp_one_then_one_more_for_each_good_answer_until_the_window() -> None:
    gate = Gate()
    gate.limited(0.0, -1.0, 1.0, 0.0)
    allowed = [gate.allowed(5, 0, 0.0)]
    for _ in range(5):
        gate.answered(2.0, 2.0, 5)
        allowed.append(gate.allowed(5, 0, 0.0))
    assert allowed == [1, 2, 3, 4, 5, 5]
    assert gate.ramp is None
    assert gate.allowed(500, 0, 0.0) == 500


def test_after_the_first_good_answer_it_opens_with_time_too() -> None:
    """Where an answer takes minutes, doubling by answers would take half an hour."""
    gate = Gate()
    gate.limited(0.0, -1.0, 1.0, 0.0)
    assert gate.allowed(1000, 0, 50.0) == 1
    gate.answered(60.0, 2.0, 1000)
    assert [gate.allowed(1000, 0, 60.0 + RAMP_S * share) for share in (0.0, 0.1, 0.5, 1.0)] == [2, 10, 250, 1000]
    gate.answered(60.0 + RAMP_S, 3.0, 1000)
    assert gate.ramp is None


def test_a_hold_has_no_ramp() -> None:
    gate = Gate()
    gate.hold(5.0)
    assert gate.wait_s(3.0) == 2.0 and gate.allowed(50, 0, 3.0) == 50


def test_requests_from_before_the_pause_do_not_count_in_the_ramp() -> None:
    gate = Gate()
    gate.limited(0.0, -1.0, 1.0, 0.0)
    assert [gate.allowed(10, old, 0.0) for old in (0, 3, 9, 10)] == [1, 4, 10, 10]


def test_a_window_of_one_has_no_ramp_to_be_stuck_in() -> None:
    gate = Gate()
    gate.limited(0.0, -1.0, 1.0, 0.0)
    assert gate.allowed(1, 0, 0.0) == 1
    gate.answered(2.0, 2.0, 1)
    assert gate.ramp is None


def test_answers_to_requests_sent_before_it_closed_do_not_ramp() -> None:
    gate = Gate()
    gate.limited(10.0, 9.0, 1.0, 0.0)
    gate.answered(11.0, 9.5, 100)
    assert gate.allowed(100, 0, 0.0) == 1


def test_a_late_answer_that_closes_it_again_ramps_again() -> None:
    """An old request may be told to wait after the gate has reopened; then all rows wait, and must not stampede."""
    gate = Gate()
    gate.limited(1.0, 0.0, 1.0, 0.0)
    for _ in range(10):
        gate.answered(3.0, 3.0, 4)
    assert gate.limited(6.0, 0.5, 30.0, 0.0) == 30.0
    assert gate.allowed(4, 0, 0.0) == 1


# The retry quota is spent


def test_a_spent_quota_closes_it_and_one_request_tries() -> None:
    gate = Gate()
    assert gate.spent(100.0, 99.0, 30.0)
    assert gate.wait_s(100.0) == 30.0 and gate.allowed(50, 0, 0.0) == 1 and gate.closings == 1


@pytest.mark.parametrize(
    ("sent_s", "closed_anew", "wait_s"),
    [
        (99.0, False, 10.0),  # it was in flight when the gate closed: no news, and no longer pause
        (120.0, True, 30.0),  # a probe
    ],
)
def test_only_a_probe_that_fails_closes_it_again(sent_s: float, closed_anew: bool, wait_s: float) -> None:
    gate = Gate()
    gate.spent(100.0, 99.0, 30.0)
    assert gate.spent(120.0, sent_s, 30.0) is closed_anew
    assert gate.wait_s(120.0) == wait_s


def test_a_spent_quota_never_shortens_what_the_provider_asked_for() -> None:
    gate = Gate()
    gate.limited(0.0, -1.0, 600.0, 0.0)
    gate.spent(1.0, 0.5, 30.0)
    assert gate.wait_s(1.0) == 599.0


def test_an_old_request_that_fails_when_the_ramp_is_over_closes_it_anew() -> None:
    gate = Gate()
    gate.spent(100.0, 99.0, 30.0)
    gate.answered(131.0, 131.0, 1)
    assert gate.ramp is None and gate.spent(140.0, 98.0, 30.0)


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 50), st.none() | st.floats(0.001, 1e9), st.floats(0, 0.999)),
        min_size=1,
        max_size=30,
    )
)
def test_never_open_before_any_server_said(answers: list[tuple[float, float, float | None, float]]) -> None:
    gate, now_s, told_s = Gate(), 0.0, 0.0
    for gap_s, age_s, retry_after_s, chance in answers:
        now_s += gap_s
        gate.limited(now_s, now_s - age_s, retry_after_s, chance)
        told_s = max(told_s, now_s + (retry_after_s or 0.0))
        assert now_s + gate.wait_s(now_s) >= told_s - 1e-6
