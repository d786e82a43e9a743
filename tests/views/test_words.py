from typing import get_args

import pytest

from llmbatch.events import Binding
from llmbatch.views import words


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1000, "1,000 rows"), (10_000_000, "10,000,000 rows")]
)
def test_count(n: int, text: str) -> None:
    assert words.count(n, "row") == text


def test_an_irregular_plural() -> None:
    assert [words.count(n, "retry", "retries") for n in (1, 2)] == ["1 retry", "2 retries"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.0841, "84 ms"),
        (0.0996, "0.10 s"),
        (2.1, "2.10 s"),
        (9.999, "10.0 s"),
        (59.94, "59.9 s"),
        (59.99, "1 min 00 s"),
        (123.4, "2 min 03 s"),
        (3599.7, "1 h 00 min"),
        (11_220, "3 h 07 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(7.9, "0:07"), (82, "1:22"), (3600, "1:00:00"), (11_229, "3:07:09")])
def test_stopwatch(seconds: float, text: str) -> None:
    assert words.stopwatch(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0k"),
        (9_949, "9.9k"),
        (9_951, "10k"),
        (999_499, "999k"),
        (999_500, "1.0M"),
        (3 * 10**15, "3000T"),
    ],
)
def test_short(n: int, text: str) -> None:
    assert words.short(n) == text


@pytest.mark.parametrize(("usd", "text"), [(0, "$0.00"), (0.0042, "$0.0042"), (0.0999, "$0.10"), (1204.5, "$1,204.50")])
def test_money(usd: float, text: str) -> None:
    assert words.money(usd) == text


@pytest.mark.parametrize(
    ("per_s", "text"), [(0.254, "0.25"), (0.999, "1.0"), (8.06, "8.1"), (99.96, "100"), (1234, "1,234")]
)
def test_rate(per_s: float, text: str) -> None:
    assert words.rate(per_s) == text


def test_all_is_said_only_when_all_is_done() -> None:
    assert [words.percent(f) for f in (0.0, 0.999999, 1.0)] == ["0%", "99%", "100%"]


def test_everything_that_binds_has_a_name() -> None:
    assert set(words.BINDING) == set(get_args(Binding))


@pytest.mark.parametrize(
    ("binding", "text"),
    [
        ("requests", "limited by the request rate"),
        ("hooks", "limited by the hooks"),
        ("tail", "waiting for the last answers"),
        ("paused", "paused"),
        ("idle", ""),
    ],
)
def test_limited_by(binding: str, text: str) -> None:
    assert words.limited_by(binding) == text
