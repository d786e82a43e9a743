"""Three fatal failures in a row stop the run; a good answer between them does not let it come so far."""

from __future__ import annotations

import pytest

from llmbatch.records import Failure
from llmbatch.rules.fuse import Fuse, Outage

FATAL = Failure("permanent", "invalid_api_key", "m", http_status=401, fatal=True)
ROW = Failure("permanent", "bad_request", "m", http_status=400)


@pytest.mark.parametrize(
    ("story", "blown_at"),
    [
        ("FFF", 3),
        ("FF", None),
        ("FFgFF", None),
        ("FFgFFF", 6),
        ("FrFrF", 5),  # another row's own fault says nothing about the key
        ("rrrrrr", None),
        ("FFFF", 3),
    ],
)
def test_blows(story: str, blown_at: int | None) -> None:
    fuse, first = Fuse(), None
    for step, what in enumerate(story, 1):
        if what == "g":
            fuse.good()
        elif fuse.blows(FATAL if what == "F" else ROW) and first is None:
            first = step
    assert first == blown_at


def test_a_short_input_that_met_only_fatal_answers_is_hopeless() -> None:
    fuse = Fuse()
    assert fuse.hopeless() is None, "nothing was sent"
    fuse.blows(FATAL)
    assert fuse.hopeless() is FATAL
    fuse.good()
    assert fuse.hopeless() is None


def test_one_row_that_fails_on_its_own_account_leaves_hope() -> None:
    fuse = Fuse()
    fuse.blows(ROW)
    fuse.blows(FATAL)
    assert fuse.hopeless() is None


@pytest.mark.parametrize(
    ("answered", "now_s", "strikes", "given_up"),
    [
        (False, 0.0, 3, False),
        (False, 0.0, 4, True),  # the wrong address: do not wait for a restart
        (True, 0.0, 4, False),
        (True, 899.0, 40, False),
        (True, 901.0, 2, True),
    ],
)
def test_outage(answered: bool, now_s: float, strikes: int, given_up: bool) -> None:
    outage = Outage()
    if answered:
        outage.answered()
    outage.too_long(0.0, 1, 900.0)
    assert outage.too_long(now_s, strikes, 900.0) is given_up


def test_an_answer_ends_the_outage() -> None:
    outage = Outage()
    outage.answered()
    outage.too_long(0.0, 1, 900.0)
    outage.answered()
    assert not outage.too_long(1000.0, 1, 900.0)
