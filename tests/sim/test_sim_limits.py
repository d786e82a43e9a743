"""The limiter as arithmetic: the clock is an argument."""

import pytest

from llmbatch.sim.limits import Limiter, go_duration
from llmbatch.sim.openai import OPENAI


def test_full_bucket_lets_a_minute_of_requests_through_and_then_one_at_a_time():
    limiter = Limiter(rpm=600, tpm=None, burst_s=60)
    assert [limiter.admit(0.0, 1, 0) for _ in range(600)] == [None] * 600
    refusal = limiter.admit(0.0, 1, 0)
    assert refusal is not None and refusal.unit == "requests"
    assert refusal.wait_s == pytest.approx(0.1)
    assert limiter.admit(0.1, 1, 0) is None
    assert limiter.admit(0.1, 1, 0) is not None


@pytest.mark.parametrize("step_s", [0.001, 0.013, 0.37])
def test_never_more_than_bucket_and_refill_in_any_window(step_s: float):
    limiter = Limiter(rpm=120, tpm=None, burst_s=5)
    times = [i * step_s for i in range(4000)]
    admitted = [now_s for now_s in times if limiter.admit(now_s, 1, 0) is None]
    for first, start_s in enumerate(admitted[::7]):
        window_s = 10.0
        count = sum(start_s <= at_s < start_s + window_s for at_s in admitted[first * 7 :])
        assert count <= 10 + 2 * window_s + 1


def test_who_obeys_the_wait_is_let_in():
    limiter = Limiter(rpm=None, tpm=1000, burst_s=60)
    assert limiter.admit(5.0, 900, 0) is None
    refusal = limiter.admit(5.0, 300, 0)
    assert refusal is not None and refusal.wait_s == pytest.approx(12.0)
    assert limiter.admit(5.0 + refusal.wait_s - 0.01, 300, 0) is not None
    assert limiter.admit(5.0 + refusal.wait_s, 300, 0) is None


def test_a_refused_request_takes_nothing_from_either_limit():
    limiter = Limiter(rpm=100, tpm=100, burst_s=60)
    assert limiter.admit(0.0, 90, 0) is None
    before = limiter.readings(0.0)
    assert limiter.admit(0.0, 20, 0) is not None
    assert limiter.readings(0.0) == before


def test_a_request_that_never_fits_is_told_no_time():
    refusal = Limiter(rpm=None, tpm=100, burst_s=60).admit(0.0, 101, 0)
    assert refusal is not None and refusal.wait_s is None


def test_a_small_bucket_still_lets_single_requests_through():
    limiter = Limiter(rpm=60, tpm=None, burst_s=0.1)
    assert limiter.admit(0.0, 1, 0) is None
    assert limiter.admit(0.5, 1, 0) is not None
    assert limiter.admit(1.0, 1, 0) is None


def test_headers_read_as_the_documented_example():
    """10,000 per minute with 9,998 left resets in 12 ms."""
    limiter = Limiter(rpm=10_000, tpm=4_000_000, burst_s=60)
    limiter.admit(0.0, 100, 0)
    limiter.admit(0.0, 29, 0)
    assert dict(OPENAI.limit_headers(limiter.readings(0.0), 0.0)) == {
        "x-ratelimit-limit-requests": "10000",
        "x-ratelimit-remaining-requests": "9998",
        "x-ratelimit-reset-requests": "12ms",
        "x-ratelimit-limit-tokens": "4000000",
        "x-ratelimit-remaining-tokens": "3999871",
        "x-ratelimit-reset-tokens": "2ms",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.012, "12ms"), (1, "1s"), (1.935, "1.935s"), (59.56, "59.56s"), (360, "6m0s"), (3723, "1h2m3s")],
)
def test_durations_are_written_as_go_does(seconds: float, text: str):
    assert go_duration(seconds) == text
