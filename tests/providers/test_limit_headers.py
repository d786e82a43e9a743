"""What the headers of an answer say of the limits, in all families."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from llmbatch.providers.limit_headers import LONGEST_RESET_S, MOST, anthropic_limits, openai_limits, reset_s
from llmbatch.rules.limits import NO_LIMITS, Allowance, Limits

NOW_S = 1_800_000_000.0  # 2027-01-15T08:00:00Z


def openai(**headers: str) -> Limits:
    return openai_limits(CIMultiDict({f"x-{name.replace('_', '-')}": value for name, value in headers.items()}), NOW_S)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("12ms", 0.012),
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("1h2m3s", 3723.0),
        ("59.56s", 59.56),
        ("2m59.56s", 179.56),
        ("1µs", 1e-6),
        ("5ns", 5e-9),
        ("8", 8.0),
        (" 7.5 ", 7.5),
        ("0", 0.0),
        ("1800000060", 60.0),
        ("1800000060000", 60.0),
        ("1799999999", 0.0),  # past
        ("2027-01-15T08:01:00Z", 60.0),
        ("2027-01-15T09:01:00.5+01:00", 60.5),
        ("2020-01-01T00:00:00Z", 0.0),
        ("9999-12-31T23:59:59Z", LONGEST_RESET_S),
        ("999999999", LONGEST_RESET_S),
        ("999999999999h", LONGEST_RESET_S),
        ("2027-01-15T08:01:00", None),  # of no zone
        ("-1", None),
        ("1m1", None),
        ("5d", None),
        ("1_0", None),
        ("nan", None),
        ("inf", None),
        ("٣", None),
        ("9" * 400, None),
        ("soon", None),
        ("", None),
    ],
)
def test_when_a_limit_is_whole_again(value: str, seconds: float | None) -> None:
    assert reset_s(value, NOW_S) == (None if seconds is None else pytest.approx(seconds))


def test_openai() -> None:
    found = openai(
        ratelimit_limit_requests="5000",
        ratelimit_remaining_requests="4999",
        ratelimit_reset_requests="12ms",
        ratelimit_limit_tokens="160000",
        ratelimit_remaining_tokens="159976",
        ratelimit_reset_tokens="6m0s",
        ratelimit_limit_tokens_usage_based="7",
        ratelimit_remaining_tokens_usage_based="7",
    )
    assert found == Limits(Allowance(5000, 4999, 0.012), Allowance(160_000, 159_976, 360.0))


def test_azure_says_plain_seconds_and_nothing_of_what_it_does_not_know() -> None:
    found = openai(ratelimit_remaining_requests="0", ratelimit_remaining_tokens="-1", ratelimit_reset_requests="8")
    assert found == Limits(Allowance(None, 0, 8.0))
    for unknown in ("-1", "0"):
        assert not openai(ratelimit_limit_tokens=unknown, ratelimit_remaining_tokens="0", ratelimit_reset_tokens="0")


def test_groq_counts_the_requests_of_a_day() -> None:
    headers = {
        "x-ratelimit-limit-requests": "14400",
        "x-ratelimit-remaining-requests": "14370",
        "x-ratelimit-reset-requests": "2m59.56s",
        "x-ratelimit-limit-tokens": "6000",
    }
    found = openai_limits(headers, NOW_S, requests_window_s=86_400.0)
    assert found == Limits(Allowance(14_400, 14_370, pytest.approx(179.56), 86_400.0), Allowance(6000))


def test_mistral() -> None:
    found = openai(
        ratelimit_limit_req_minute="60",
        ratelimit_remaining_req_minute="0",
        ratelimit_limit_tokens_minute="500000",
        ratelimit_remaining_tokens_minute="481220",
        ratelimit_limit_tokens_month="1000000000",
        ratelimit_tokens_query_cost="52",
    )
    assert found == Limits(Allowance(60, 0), Allowance(500_000, 481_220))


def test_a_limit_of_which_nobody_says_for_how_long_is_only_what_is_left_of_it() -> None:
    openrouter = openai(ratelimit_limit="20", ratelimit_remaining="0", ratelimit_reset="1800000030000")
    assert openrouter == Limits(Allowance(None, 0, 30.0))
    together = openai(ratelimit_remaining="5", ratelimit_reset="1", tokenlimit_limit="9", tokenlimit_remaining="3")
    assert together == Limits(Allowance(None, 5, 1.0), Allowance(None, 3))


def test_anthropic() -> None:
    headers = CIMultiDict(
        {
            "anthropic-ratelimit-requests-limit": "4000",
            "Anthropic-Ratelimit-Requests-Remaining": "3999",
            "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:01Z",
            "anthropic-ratelimit-input-tokens-limit": "2000000",
            "anthropic-ratelimit-input-tokens-remaining": "1999000",
            "anthropic-ratelimit-output-tokens-limit": "400000",
            "anthropic-ratelimit-tokens-limit": "2400000",
            "anthropic-priority-input-tokens-limit": "1",
        }
    )
    assert anthropic_limits(headers, NOW_S) == Limits(
        Allowance(4000, 3999, 1.0), Allowance(2_400_000), Allowance(2_000_000, 1_999_000), Allowance(400_000)
    )


def test_absurd_counts_are_cut_and_garbage_says_nothing() -> None:
    assert openai(ratelimit_limit_tokens="9" * 18) == Limits(tokens=Allowance(MOST))
    for garbage in ("", " ", "many", "1e9", "0x10", "9" * 400):
        assert openai(ratelimit_limit_requests=garbage, ratelimit_reset_tokens=garbage) == NO_LIMITS


@given(st.text(max_size=30), st.floats(0, 1e10))
def test_no_value_raises_and_none_is_negative_or_endless(value: str, time_s: float) -> None:
    headers = {f"x-ratelimit-{what}-tokens": value for what in ("limit", "remaining", "reset")}
    tokens = openai_limits(headers, time_s).tokens
    assert tokens.limit is None or 0 < tokens.limit <= MOST
    assert tokens.remaining is None or 0 <= tokens.remaining <= MOST
    assert tokens.reset_s is None or 0 <= tokens.reset_s <= LONGEST_RESET_S
