from dataclasses import replace
from typing import Any

import pytest

from llmbatch.events import (
    AttemptFailed,
    Draining,
    GateClosed,
    Hedged,
    LimitSet,
    Notice,
    RowEnded,
    RowKept,
    RunEnded,
    RunStarted,
    Status,
)
from llmbatch.records import Failure, Reply, Result, TokenBound, Usage
from llmbatch.summary import Exposure
from llmbatch.tally import Tally

STATUS = Status(in_flight=0, allowed=4, waiting_retry=0, gate_closed_s=0.0, binding="requests")
STARTED = RunStarted("sim/fast", "http://127.0.0.1", "out.jsonl", rows=100)
ANSWER = Result(1, None, "fp1:a", Reply("x", "stop", "m", Usage(30, 2, 10, 1)), None, 1, 0.8, 0.1, None)
TIMEOUT = Failure("ambiguous", "timeout", "no answer in 30 s")
TOO_LONG = Failure("permanent", "context_length_exceeded", "too long", http_status=400)
LIMITED = Failure("rejected", "rate_limit_exceeded", "slow down", rate_limited=True)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tally(clock: Clock) -> Tally:
    tally = Tally(clock)
    tally(STARTED)
    return tally


def failed(failure: Failure) -> Result:
    return replace(ANSWER, reply=None, failure=failure)


def answers(tally: Tally, n: int, **changes: Any) -> None:
    for _ in range(n):
        tally(RowEnded(replace(ANSWER, **changes)))


def test_what_the_cache_saved_is_summed_up_and_not_known_without_a_price(tally: Tally) -> None:
    answers(tally, 2)
    assert tally.summary(rows=2, pending=0, exit_code=0).to_json()["cache_saved_usd"] is None
    answers(tally, 1, cache_saved_usd=0.5)
    answers(tally, 1, cache_saved_usd=-0.125)
    said = tally.summary(rows=4, pending=0, exit_code=0).to_json()
    assert (said["cached_input_share"], said["cache_saved_usd"]) == (round(1 / 3, 4), 0.375)


def test_rows_that_were_read_and_not_sent_are_no_progress(tally: Tally) -> None:
    """All of the input is read, and 10 of its 100 rows are done."""
    tally(replace(STARTED, rows=None, input_bytes=1000))
    for _ in range(10):
        tally(RowEnded(ANSWER, input_offset=1000))
    shown = tally.snapshot(replace(STATUS, in_flight=4, at_hand=86))
    assert shown.fraction == pytest.approx(0.1)


def test_rows_of_this_run_and_of_earlier_ones_are_counted_apart(tally: Tally) -> None:
    answers(tally, 3)
    tally(RowEnded(failed(TOO_LONG)))
    tally(RowKept(ok=True))
    tally(RowKept(ok=True))
    tally(RowKept(ok=False))
    shown = tally.snapshot(STATUS)
    assert (shown.ok, shown.failed, shown.kept_ok, shown.kept_failed, shown.done) == (3, 1, 2, 1, 7)
    summary = tally.summary(rows=10, pending=3, exit_code=130)
    assert (summary.ok, summary.failed, summary.ok_before, summary.failed_before) == (5, 2, 2, 1)
    assert summary.adds_up


@pytest.mark.parametrize(
    ("rows", "skipped", "pending", "adds_up"), [(3, 0, 0, True), (4, 1, 0, True), (4, 0, 0, False)]
)
def test_a_lost_row_does_not_add_up(tally: Tally, rows: int, skipped: int, pending: int, adds_up: bool) -> None:
    answers(tally, 3)
    for _ in range(skipped):
        tally(RowKept(ok=False, skipped=True))
    summary = tally.summary(rows=rows, pending=pending, exit_code=0)
    assert summary.adds_up is adds_up
    assert summary.to_json()["adds_up"] is adds_up


def test_an_ambiguous_attempt_is_a_double_payment_only_if_sent_again(tally: Tally) -> None:
    tally(AttemptFailed(TIMEOUT, 1.0))
    tally(AttemptFailed(TIMEOUT, None))
    tally(AttemptFailed(LIMITED, 1.0))
    tally(AttemptFailed(replace(LIMITED, kind="never_sent", rate_limited=False), 1.0))
    summary = tally.summary(rows=0, pending=0, exit_code=1)
    assert (summary.ambiguous, summary.maybe_billed_twice) == (2, 1)
    assert (summary.retries, summary.rate_limited) == (3, 1)
    assert summary.requests == 3, "what was never sent is no request"


def test_one_of_two_that_was_given_up_may_have_been_paid_twice_and_is_no_retry(tally: Tally) -> None:
    answers(tally, 2)
    tally(AttemptFailed(TIMEOUT, None, hedged=True, at_most_usd=0.5))
    tally(Hedged(won=True))
    tally(AttemptFailed(LIMITED, None, hedged=True))
    tally(Hedged(won=False))
    summary = tally.summary(rows=2, pending=0, exit_code=0)
    assert (summary.hedges, summary.hedges_won) == (2, 1)
    assert (summary.ambiguous, summary.maybe_billed_twice, summary.retries) == (1, 1, 0)
    assert summary.maybe_billed_twice_bound.usd == 0.5
    assert summary.requests == 4


def test_tokens_add_up_and_missing_usage_is_counted_not_guessed(tally: Tally) -> None:
    answers(tally, 2)
    answers(tally, 1, reply=replace(ANSWER.reply, usage=Usage()))  # type: ignore[type-var]
    answers(tally, 1, reply=replace(ANSWER.reply, usage=Usage(input_tokens=5)))  # type: ignore[type-var]
    tokens = tally.tokens
    assert (tokens.input, tokens.output, tokens.cached_input, tokens.reasoning) == (65, 4, 20, 2)
    assert tokens.answers_without_usage == 1


def test_unknown_cost_is_not_zero(tally: Tally) -> None:
    answers(tally, 2)
    assert tally.snapshot(STATUS).cost_usd is None
    answers(tally, 2, cost_usd=0.25)
    shown = tally.snapshot(STATUS)
    assert shown.cost_usd == 0.5
    assert shown.projected_cost_usd == pytest.approx(0.5 * 100 / 4)
    assert tally.summary(rows=4, pending=0, exit_code=0).answers_without_price == 2


def test_errors_come_most_frequent_first_with_one_bounded_example(tally: Tally) -> None:
    tally(RowEnded(failed(TIMEOUT)))
    for message in ("first" + "x" * 10_000, "second"):
        tally(RowEnded(failed(replace(TOO_LONG, message=message))))
    top, other = tally.summary(rows=3, pending=0, exit_code=1).errors
    assert (top.type, top.count, other.type, other.count) == ("context_length_exceeded", 2, "timeout", 1)
    assert top.example.startswith("first")
    assert len(top.example) <= 300


def test_a_server_that_invents_words_does_not_fill_the_memory(tally: Tally) -> None:
    for i in range(1000):
        tally(RowEnded(failed(replace(TOO_LONG, type=f"error {i}"))))
        tally(Notice("warning", f"notice {i}"))
    summary = tally.summary(rows=1000, pending=0, exit_code=1)
    assert len(summary.errors) <= 101
    assert sum(error.count for error in summary.errors) == 1000
    assert len(summary.notices) <= 20


def test_latencies_are_of_answers_only(tally: Tally) -> None:
    answers(tally, 99)
    answers(tally, 1, latency_s=9.0)
    tally(RowEnded(replace(failed(TIMEOUT), latency_s=600.0)))
    latency = tally.summary(rows=101, pending=0, exit_code=1).latency_s
    assert latency is not None
    assert latency.p50 == pytest.approx(0.8, rel=0.03)
    assert latency.max == 9.0


def test_the_mean_latency_is_exact(tally: Tally) -> None:
    assert tally.mean_latency_s is None
    answers(tally, 3, latency_s=1.0)
    answers(tally, 1, latency_s=9.0)
    assert tally.mean_latency_s == 3.0


def test_shares_of_time_are_rounded_for_programs(tally: Tally) -> None:
    summary = tally.summary(rows=0, pending=0, exit_code=0, binding_shares={"requests": 2 / 3, "tail": 1 / 3})
    assert summary.to_json()["binding_shares"] == {"requests": 0.6667, "tail": 0.3333}
    assert tally.summary(rows=0, pending=0, exit_code=0).to_json()["binding_shares"] is None


def test_no_answer_means_no_percentiles(tally: Tally) -> None:
    assert tally.summary(rows=0, pending=0, exit_code=0).latency_s is None


def test_rate_and_eta_of_a_steady_run(tally: Tally, clock: Clock) -> None:
    for _ in range(40):
        clock.now += 0.5
        answers(tally, 1)
    shown = tally.snapshot(STATUS)
    assert shown.rate_per_s == pytest.approx(2.0, rel=0.06)
    assert shown.eta_s == pytest.approx(30, rel=0.06)
    assert shown.fraction == 0.4


def test_the_limit_of_requests_is_that_of_all_keys_together(clock: Clock) -> None:
    tally = Tally(clock, 300.0, accounts=2)
    tally(STARTED)
    assert tally.snapshot(STATUS).rpm == 600.0
    tally(LimitSet("rpm", 300.0, 100.0))
    assert tally.snapshot(STATUS).rpm == 200.0
    tally(LimitSet("rpm", 100.0, None))
    assert tally.snapshot(STATUS).rpm is None


def test_eta_leaves_out_rows_that_earlier_runs_finished(clock: Clock) -> None:
    tally = Tally(clock)
    tally(replace(STARTED, done_before=50))
    clock.now += 10
    answers(tally, 10)
    assert tally.snapshot(STATUS).eta_s == pytest.approx(40, rel=0.06)


def test_an_unknown_total_is_told_from_the_bytes_read(clock: Clock) -> None:
    tally = Tally(clock)
    tally(replace(STARTED, rows=None, input_bytes=1000))
    assert tally.snapshot(STATUS).fraction is None
    clock.now += 10
    tally(RowEnded(ANSWER, input_offset=300))
    answers(tally, 19)
    shown = tally.snapshot(replace(STATUS, in_flight=8, waiting_retry=2))
    assert shown.fraction == pytest.approx(0.2), "30 rows begun in 300 of 1000 bytes: 100 rows, 20 of them done"
    assert shown.eta_s == pytest.approx(40)


def test_nothing_is_guessed_when_rows_and_bytes_are_unknown(clock: Clock) -> None:
    tally = Tally(clock)
    tally(replace(STARTED, rows=None))
    tally(RowEnded(ANSWER, input_offset=300))
    shown = tally.snapshot(STATUS)
    assert (shown.fraction, shown.eta_s) == (None, None)


def test_an_empty_input_is_complete(clock: Clock) -> None:
    tally = Tally(clock)
    tally(replace(STARTED, rows=0))
    assert tally.snapshot(STATUS).eta_s is None
    assert tally.summary(rows=0, pending=0, exit_code=0).adds_up


def test_draining_counts_its_grace_down_to_zero(tally: Tally, clock: Clock) -> None:
    assert tally.snapshot(STATUS).drain_left_s is None
    tally(Draining(87, 60.0, "interrupted"))
    clock.now += 20
    assert tally.snapshot(STATUS).drain_left_s == 40
    clock.now += 100
    assert tally.snapshot(STATUS).drain_left_s == 0


def test_the_clock_of_the_summary_stops_with_the_run(tally: Tally, clock: Clock) -> None:
    clock.now += 5
    tally(RunEnded(0))
    clock.now += 100
    assert tally.summary(rows=0, pending=0, exit_code=0).seconds == 5


def test_events_it_does_not_count_are_no_error(tally: Tally) -> None:
    tally(GateClosed(12.0, LIMITED, 1))
    tally(Notice("info", "hello"))
    assert tally.summary(rows=0, pending=0, exit_code=0).notices == ()


def test_a_paused_run_has_no_time_left_that_anybody_knows(tally: Tally, clock: Clock) -> None:
    answers(tally, 10)
    clock.now += 10
    assert tally.snapshot(STATUS).eta_s is not None
    assert tally.snapshot(replace(STATUS, paused=True)).eta_s is None


def test_a_changed_request_limit_is_the_one_that_is_shown(tally: Tally) -> None:
    tally(LimitSet("tpm", None, 9000.0))
    before = tally.snapshot(STATUS).rpm
    tally(LimitSet("rpm", before, 1234.0))
    assert (tally.snapshot(STATUS).rpm, before) == (1234.0, None)


def test_names_of_the_json_summary_are_stable(tally: Tally) -> None:
    answers(tally, 1)
    names = tally.summary(rows=1, pending=0, exit_code=0).to_json()
    assert " ".join(names) == (
        "exit_code rows ok failed skipped pending ok_before failed_before input_complete input_truncated"
        " requests retries rate_limited ambiguous maybe_billed_twice hedges hedges_won"
        " in_flight_at_kill adds_up wall_s rows_per_s latency_s first_token_s input_tokens"
        " output_tokens cached_input_tokens reasoning_tokens answers_without_usage cost_usd"
        " cached_input_share cache_saved_usd ambiguous_usd ambiguous_input_tokens ambiguous_output_tokens"
        " maybe_billed_twice_usd maybe_billed_twice_input_tokens"
        " maybe_billed_twice_output_tokens empty model_mismatch choices_mismatch answers_without_price errors"
        " finish_reasons binding_shares advice output next_command notices hooks"
    )
    assert list(names["latency_s"]) == ["p50", "p90", "p95", "p99", "max"]


def maybe_billed(tally: Tally, bound: TokenBound | None, usd: float | None, retry_in_s: float | None) -> None:
    tally(AttemptFailed(replace(TIMEOUT, bound=bound), retry_in_s, at_most_usd=usd))


def test_what_may_have_been_billed_is_summed_and_one_unknown_makes_the_sum_unknown(tally: Tally) -> None:
    maybe_billed(tally, TokenBound("m", 100, 20), 0.5, 1.0)
    maybe_billed(tally, TokenBound("m", 200, 30), 0.25, None)
    tally(AttemptFailed(LIMITED, 1.0))
    summary = tally.summary(rows=0, pending=0, exit_code=0)
    assert summary.ambiguous_bound == Exposure(2, 300, 50, 0.75)
    assert summary.maybe_billed_twice_bound == Exposure(1, 100, 20, 0.5)
    assert summary.ambiguous_bound.without(summary.maybe_billed_twice_bound) == Exposure(1, 200, 30, 0.25)
    maybe_billed(tally, TokenBound("m", 7, None), None, None)
    maybe_billed(tally, None, None, 1.0)
    summary = tally.summary(rows=0, pending=0, exit_code=0)
    assert summary.ambiguous_bound == Exposure(4, None, None, None)
    assert summary.maybe_billed_twice_bound == Exposure(2, None, None, None)
    shown = summary.to_json()
    assert shown["maybe_billed_twice_usd"] is None and shown["ambiguous_usd"] is None


def test_nothing_that_may_have_been_billed_costs_nothing(tally: Tally) -> None:
    shown = tally.summary(rows=0, pending=0, exit_code=0).to_json()
    assert (shown["ambiguous_usd"], shown["maybe_billed_twice_usd"]) == (0.0, 0.0)


def test_odd_answers_are_counted(tally: Tally) -> None:
    answers(tally, 2, reply=Reply("", "stop", "m", Usage(), flags=("empty", "model_mismatch")))
    answers(tally, 1, reply=Reply("", "stop", "m", Usage(), flags=("empty",)))
    shown = tally.summary(rows=3, pending=0, exit_code=0).to_json()
    assert (shown["empty"], shown["model_mismatch"], shown["choices_mismatch"]) == (3, 2, 0)
