"""Retry-After in all its forms; garbage says nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from llmbatch.rules.headers import retry_after_s

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [
        ("2", 2.0),
        (" 2 ", 2.0),
        ("0.5", 0.5),
        ("007", 7.0),
        ("1000000000", 1e9),  # absurd, and said so: who waits decides
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30.0),
        ("Wednesday, 21-Oct-26 07:29:00 GMT", 60.0),  # RFC 850, allowed by RFC 9110
        ("Wed Oct 21 07:29:00 2026", 60.0),  # asctime, likewise
        ("Fri, 31 Dec 9999 23:59:59 GMT", 251_609_733_119.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),  # now
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),  # the past
        ("0", None),
        ("0.0", None),
        ("", None),
        (" ", None),
        ("1e9", None),
        ("-5", None),
        ("+5", None),
        ("nan", None),
        ("inf", None),
        ("Infinity", None),
        ("1_000", None),
        ("٣", None),
        ("３", None),
        ("0x10", None),
        ("5 seconds", None),
        (".5", None),
        ("5.", None),
        ("99999999999999999999", None),
        ("Wed, 99 Oct 2026 07:28:30 GMT", None),
        ("soon", None),
        ("5\x00", None),
        ("5\n6", None),
    ],
)
def test_retry_after(value: str, expected_s: float | None) -> None:
    assert retry_after_s({"retry-after": value, "date": DATE}) == expected_s


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ([], None),
        ([("Retry-After", "3")], 3.0),
        ([("Retry-After", "3"), ("Retry-After", "7")], 7.0),  # the longest
        ([("Retry-After", "7"), ("Retry-After", "nan")], 7.0),
        ([("Retry-After-Ms", "1935"), ("Retry-After", "2")], 2.0),
        ([("Retry-After-Ms", "2500"), ("Retry-After", "2")], 2.5),
        ([("Retry-After-Ms", "1935.5")], 1.9355),
        ([("Retry-After-Ms", "-1"), ("Retry-After", "2")], 2.0),
        ([("Retry-After-Ms", "0"), ("Retry-After", "0")], None),
        ([("Retry-After", "Wed, 21 Oct 2026 07:28:30 GMT")], None),  # no Date to measure it against
        ([("Retry-After", "Wed, 21 Oct 2026 07:28:30 GMT"), ("Date", "garbage")], None),
        ([("Retry-After", "Wed, 21 Oct 2026 07:28:30 GMT"), ("Date", DATE)], 30.0),
        ([("Retry-After", "Wed, 21 Oct 2026 08:28:30 +0100"), ("Date", DATE)], 30.0),
        ([("Retry-After", "Wed, 21 Oct 2026 07:28:30 -0000"), ("Date", DATE)], 30.0),  # a zone that says nothing
    ],
)
def test_several_headers(headers: list[tuple[str, str]], expected_s: float | None) -> None:
    assert retry_after_s(CIMultiDictProxy(CIMultiDict(headers))) == expected_s


@given(value=st.text(max_size=40), date=st.text(max_size=40))
@example(value="Mon, 01 Jan 0001 00:00:00 +2359", date="Fri, 31 Dec 9999 23:59:59 -2359")
@example(value="Fri, 31 Dec 9999 23:59:59 -2359", date="Mon, 01 Jan 0001 00:00:00 +2359")
@example(value="1 Jan 99999999999 00:00:00", date=DATE)
@example(value="1 Jan 2026 00:00:00 +99999999999999", date=DATE)
def test_never_raises_and_never_says_nonsense(value: str, date: str) -> None:
    seconds = retry_after_s({"retry-after": value, "retry-after-ms": date, "date": date})
    assert seconds is None or (math.isfinite(seconds) and seconds > 0)


@given(st.from_regex(r"[0-9A-Za-z,:+\- ]{0,40}", fullmatch=True))
def test_never_raises_on_what_looks_like_a_date(value: str) -> None:
    seconds = retry_after_s({"retry-after": value, "date": DATE})
    assert seconds is None or (math.isfinite(seconds) and seconds > 0)
