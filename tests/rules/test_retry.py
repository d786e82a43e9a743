"""Again? When? Why? As tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbatch.options import RetryLimits
from llmbatch.records import Failure
from llmbatch.rules.retry import Verdict, backoff_s, decide

LIMITS = RetryLimits(attempts=5, ambiguous=1, base_s=0.5, cap_s=60.0, max_wait_s=900.0)

NEVER_SENT = Failure("never_sent", "row_deadline", "m", retryable=True)
REJECTED = Failure("rejected", "overloaded", "m", retryable=True)
UNREACHABLE = Failure("never_sent", "connection_refused", "m", retryable=True, unreachable=True)
LIMITED = Failure("rejected", "rate_limit_exceeded", "m", retryable=True, rate_limited=True)
AMBIGUOUS = Failure("ambiguous", "disconnected", "m", retryable=True)
UNUSABLE = Failure("unusable", "empty_answer", "m", retryable=True)
PERMANENT = Failure("permanent", "bad_request", "m")
ELSEWHERE = Failure("permanent", "invalid_api_key", "m", retryable=True, elsewhere=True)
WAIT_9 = Failure("rejected", "overloaded", "m", retryable=True, retry_after_s=9.0)


@pytest.mark.parametrize(
    ("past", "limited_s", "again"),
    [
        ([REJECTED], 0, True),
        ([REJECTED] * 4, 0, True),
        ([REJECTED] * 5, 0, False),
        ([NEVER_SENT] * 4, 0, True),
        ([NEVER_SENT] * 5, 0, False),
        ([NEVER_SENT, REJECTED] * 2 + [REJECTED], 0, False),  # one budget for both
        ([PERMANENT], 0, False),
        ([REJECTED, PERMANENT], 0, False),
        ([AMBIGUOUS], 0, True),
        ([AMBIGUOUS, AMBIGUOUS], 0, False),
        ([UNUSABLE], 0, True),
        ([UNUSABLE, AMBIGUOUS], 0, False),  # both may have been billed
        ([AMBIGUOUS, REJECTED], 0, True),
        ([AMBIGUOUS, REJECTED, AMBIGUOUS], 0, False),
        ([LIMITED], 0, True),
        ([UNREACHABLE] * 500, 800, True),  # a server that restarts costs no row
        ([UNREACHABLE] * 2, 900, True),
        ([UNREACHABLE] * 2, 901, False),
        ([UNREACHABLE] * 9 + [REJECTED] * 4, 0, True),
        ([LIMITED] * 500, 800, True),  # rate limits have a budget of their own
        ([LIMITED] * 2, 901, False),
        ([LIMITED] * 500 + [REJECTED] * 4, 800, True),  # and do not use up the attempts
        ([LIMITED] * 500 + [REJECTED] * 5, 800, False),
        ([REJECTED] * 4 + [LIMITED], 0, True),
        ([LIMITED] * 9 + [AMBIGUOUS], 0, True),
        ([ELSEWHERE] * 9, 0, True),  # once for each of the others
        ([ELSEWHERE] * 9 + [REJECTED] * 4, 0, True),
        ([ELSEWHERE] * 9 + [REJECTED] * 5, 0, False),
        ([REJECTED] * 5 + [ELSEWHERE], 0, True),
        ([ELSEWHERE, PERMANENT], 0, False),
    ],
)
def test_again(past: list[Failure], limited_s: float, again: bool) -> None:
    assert decide(past, limited_s, LIMITS, 0.5).again is again


@pytest.mark.parametrize(
    ("past", "chance", "delay_s"),
    [
        ([REJECTED], 0.0, 0.0),
        ([REJECTED], 0.999, 0.4995),
        ([REJECTED] * 2, 0.5, 0.5),
        ([REJECTED] * 4, 0.5, 2.0),
        ([LIMITED] * 40 + [REJECTED], 0.5, 0.25),  # rate limits do not lengthen the backoff
        ([LIMITED], 0.9, 0.0),  # waits at the gate
        ([WAIT_9], 0.0, 9.0),
        ([WAIT_9], 0.5, 9.25),  # never earlier than told
    ],
)
def test_delay(past: list[Failure], chance: float, delay_s: float) -> None:
    assert decide(past, 0.0, LIMITS, chance).delay_s == pytest.approx(delay_s)


@pytest.mark.parametrize(
    ("past", "limited_s", "paid", "verdict"),
    [
        ([PERMANENT], 0, True, Verdict(False, 0.0, "bad_request is not retryable")),
        ([REJECTED] * 5, 0, True, Verdict(False, 0.0, "5 attempts failed")),
        ([AMBIGUOUS] * 2, 0, True, Verdict(False, 0.0, "may have been billed 2 times")),
        ([LIMITED], 901.4, True, Verdict(False, 0.0, "rate_limit_exceeded for 901 s")),
        ([LIMITED], 1, True, Verdict(True, 0.0, "waits at the gate")),
        ([REJECTED], 0, False, Verdict(True, 0.0, "waits at the gate: the retry quota is spent")),
        ([REJECTED], 0, True, Verdict(True, 0.25, "overloaded, attempt 2 of 5")),
    ],
)
def test_the_verdict_says_why(past: list[Failure], limited_s: float, paid: bool, verdict: Verdict) -> None:
    assert decide(past, limited_s, LIMITS, 0.5, paid=paid) == verdict


@pytest.mark.parametrize(
    ("past", "unpaid", "paid", "again", "delay_s"),
    [
        ([REJECTED], 1, False, True, 0.0),
        ([REJECTED] * 5, 1, False, True, 0.0),  # an ill server costs no row
        ([REJECTED] * 30, 26, False, True, 0.0),
        ([REJECTED] * 5, 0, False, False, 0.0),  # others were answered meanwhile: it is the row
        ([REJECTED] * 30, 26, True, True, 4 * 0.5),  # and the backoff goes on where it was
        ([REJECTED] * 30, 25, True, False, 0.0),
        ([LIMITED] * 9 + [REJECTED] * 6, 2, True, True, 4 * 0.5),
        ([AMBIGUOUS], 1, False, True, 0.0),
        ([AMBIGUOUS] * 2, 2, False, False, 0.0),  # paying twice stays bounded
        ([PERMANENT], 0, False, False, 0.0),
    ],
)
def test_an_empty_quota(past: list[Failure], unpaid: int, paid: bool, again: bool, delay_s: float) -> None:
    verdict = decide(past, 0.0, LIMITS, 0.5, unpaid=unpaid, paid=paid)
    assert (verdict.again, verdict.delay_s) == (again, delay_s)


@pytest.mark.parametrize(
    ("limits", "past", "again"),
    [
        (RetryLimits(attempts=1), [REJECTED], False),
        (RetryLimits(attempts=1), [LIMITED], True),
        (RetryLimits(ambiguous=0), [AMBIGUOUS], False),
        (RetryLimits(ambiguous=3), [AMBIGUOUS] * 3, True),
        (RetryLimits(attempts=2, ambiguous=3), [AMBIGUOUS] * 2, False),
    ],
)
def test_the_limits_bind(limits: RetryLimits, past: list[Failure], again: bool) -> None:
    assert decide(past, 0.0, limits, 0.5).again is again


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.floats(0, 100), st.floats(0, 1000))
def test_backoff_stays_below_its_cap(tries: int, chance: float, base_s: float, cap_s: float) -> None:
    assert 0 <= backoff_s(tries, chance, base_s, cap_s) <= cap_s


@given(st.lists(st.sampled_from([NEVER_SENT, REJECTED, AMBIGUOUS, UNUSABLE, WAIT_9]), min_size=5, max_size=40))
def test_no_row_is_tried_more_often_than_its_attempts(past: list[Failure]) -> None:
    assert not decide(past, 0.0, LIMITS, 0.5).again
