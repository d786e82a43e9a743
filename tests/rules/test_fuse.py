"""Three fatal failures in a row stop the run; a good answer between them does not let it come so far."""

from __future__ import annotations

import pytest

from llmbatch.errors import OptionsError
from llmbatch.options import FailureLimit
from llmbatch.records import Failure
from llmbatch.rules.fuse import FailureFuse, Fuse, Outage

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
        (False, 0.0, 2, False),
        (False, 0.0, 3, True),  # the wrong address: do not wait for a restart
        (True, 0.0, 4, False),
        (True, 899.0, 40, False),
        (True, 900.0, 40, False),
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


# How many rows may fail

OTHER = Failure("permanent", "context_length_exceeded", "too long", http_status=400)
BUSY = Failure("rejected", "overloaded", "busy", http_status=503, retryable=True)
ROWS = {"g": None, "r": ROW, "o": OTHER, "b": BUSY}


def stopped_at(story: str, limit: str | int | None = None) -> int | None:
    """After which row of ``story``; in capitals: failed in an earlier run, and x: a bad row of the input."""
    fuse = FailureFuse(None if limit is None else FailureLimit.of(limit))
    for step, what in enumerate(story, 1):
        failure = ROW if what == "x" else ROWS[what.lower()]
        if fuse.ended(failure, fresh=what.islower(), sent=what != "x") is not None:
            return step
    return None


@pytest.mark.parametrize(
    ("story", "stopped"),
    [
        ("r" * 19, None),
        ("r" * 20, 20),
        ("g" + "r" * 150, None),
        ("r" * 19 + "g" + "r" * 150, None),
        ("o" + "r" * 150, None),  # not the same error
        ("b" * 150, None),  # not a permanent one
        ("x" * 15 + "r" * 19, None),
        ("x" * 15 + "r" * 20, 35),  # bad rows of the input do not count
        ("R" * 300, None),  # nor rows that failed before
        ("R" * 15 + "r" * 20, 35),
        ("R" * 300 + "g" * 100, None),
        ("gr" * 100, None),  # half is not more than half
        ("gr" * 100 + "r", 201),
        ("g" + "b" * 199, 200),
        ("g" * 1000 + "r" * 101, 1101),
        ("g" * 1000 + "r" * 100 + "g", None),
        ("g" + "r" * 198, None),  # not yet 200
        ("g" + "r" * 90 + "g" * 200 + "r" * 90, None),  # only the last 200 say how it is now
    ],
)
def test_without_a_limit(story: str, stopped: int | None) -> None:
    assert stopped_at(story) == stopped


@pytest.mark.parametrize(
    ("limit", "story", "stopped"),
    [
        ("0", "gggr", 4),
        ("10", "r" * 10 + "g" * 50, None),
        ("10", "r" * 11, 11),
        (10, "r" * 11, 11),
        ("2", "xxgR", 4),  # bad rows and those that failed before count, too
        ("5%", "r" * 199, None),
        ("5%", "r" * 200, 200),
        ("5%", "r" * 10 + "g" * 190, None),
        ("5%", "r" * 11 + "g" * 189, 200),
        ("5%", "g" * 190 + "r" * 10 + "r", 201),
        ("0%", "g" * 199 + "r", 200),
        ("100%", "r" * 500, None),
        ("1000", "r" * 500, None),  # a limit takes the place of the default
    ],
)
def test_with_a_limit(limit: str | int, story: str, stopped: int | None) -> None:
    assert stopped_at(story, limit) == stopped


def test_the_words_name_error_numbers_example_and_the_ways_on() -> None:
    alike, mixed, counted = FailureFuse(None), FailureFuse(None), FailureFuse(FailureLimit.of("1"))
    first = [alike.ended(OTHER) for _ in range(20)][-1]
    assert first is not None
    for word in ("first 20", "context_length_exceeded (HTTP 400): too long", "same command", "--max-failures 100%"):
        assert word in first
    half = [mixed.ended(failure) for failure in [None] * 80 + [BUSY] * 70 + [ROW] * 50][-1]
    assert half is not None and "120 of the last 200 rows failed, 70 with overloaded (HTTP 503): busy" in half
    assert [counted.ended(ROW) for _ in range(2)][-1] == "2 of 2 rows failed, more than --max-failures 1 allows"
    shared = FailureFuse(FailureLimit.of("2.5%"))
    shares = [shared.ended(failure) for failure in [ROW] * 6 + [None] * 194]
    assert shares[-1] == "6 of 200 rows failed, more than --max-failures 2.5% allows"


@pytest.mark.parametrize(
    ("failure", "named"),
    [
        (Failure("permanent", "bad", "It is so.", http_status=400), "bad (HTTP 400): It is so"),
        (Failure("permanent", "bad", "...X"), "bad: ...X"),
        (Failure("permanent", "b" * 61, "m" * 201), f"{'b' * 59}…: {'m' * 199}…"),
    ],
)
def test_the_error_is_named_with_status_and_message(failure: Failure, named: str) -> None:
    fuse = FailureFuse(None)
    said = [fuse.ended(failure) for _ in range(20)][-1]
    assert said == (
        f"the first 20 answers are all the same error, {named}. "
        "Mend it and run the same command again, or add --max-failures 100% to go on regardless"
    )


def test_what_a_server_says_is_cut_and_escaped() -> None:
    fuse = FailureFuse(None)
    nasty = Failure("permanent", "t" * 999, "\x1b[2J" + "m" * 9999)
    said = [fuse.ended(nasty) for _ in range(20)][-1]
    assert said is not None and len(said) < 600 and "\x1b" not in said


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("10", FailureLimit(rows=10)),
        (0, FailureLimit(rows=0)),
        (" 5% ", FailureLimit(share=0.05)),
        ("2.5%", FailureLimit(share=0.025)),
        ("100%", FailureLimit(share=1.0)),
    ],
)
def test_max_failures_is_read(text: str | int, limit: FailureLimit) -> None:
    assert FailureLimit.of(text) == limit


@pytest.mark.parametrize(
    "text", ["", "%", "-1", "1.5", "101%", "100.001%", "ten", "1e3", "٣", "5 %%", "nan%", -1, True]
)
def test_max_failures_is_refused(text: str | int) -> None:
    with pytest.raises(OptionsError, match="--max-failures"):
        FailureLimit.of(text)
