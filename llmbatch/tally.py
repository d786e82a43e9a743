"""Events in, numbers out: what the progress displays and the summary have in common. No clock of its own, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmbatch.events import (
    AttemptFailed,
    CutOff,
    Draining,
    Event,
    Hedged,
    LimitSet,
    Notice,
    RowEnded,
    RowKept,
    RunEnded,
    RunStarted,
    Status,
)
from llmbatch.meters import Histogram, RecentRate
from llmbatch.records import Failure, Reply, Result, Usage
from llmbatch.summary import ErrorCount, Exposure, HookTime, Percentiles, Snapshot, Summary, Tokens

__all__ = ["Snapshot", "Summary", "Tally"]

# Error types and finish reasons are the server's words; a server that makes up new ones must not fill the memory.
_MAX_WORDS = 100
_MAX_EXAMPLE_CHARS = 300
_MAX_NOTICES = 20
_NOW_S = 10.0
_LATELY_S = 60.0
# With fewer rows than this in the last minute the mean of the whole run is the better guess.
_ENOUGH_ROWS = 10


class Tally:
    """Listens to a run and counts. ``clock`` gives monotonic seconds; ``rpm`` is the request limit, if one is set, of
    each of the ``accounts`` (endpoint and key).

    Owned by the run's event loop; not for several threads.
    """

    def __init__(self, clock: Callable[[], float], rpm: float | None = None, accounts: int = 1) -> None:
        self._clock = clock
        self._rpm = rpm
        self._accounts = accounts
        self._run: RunStarted | None = None
        self._begin()
        self.ok = self.failed = self.kept_ok = self.kept_failed = self.skipped = 0
        self._answers = 0
        self.retries = self.rate_limited = self.ambiguous = self.maybe_billed_twice = 0
        self.hedges = self.hedges_won = 0
        self.in_flight_at_kill = 0
        self._ambiguous_bound = self._twice_bound = Exposure()
        self._flags: dict[str, int] = {}
        self._failed_attempts = 0
        self._input_tokens = self._output_tokens = self._cached_tokens = self._reasoning_tokens = 0
        self._without_usage = 0
        self._cost_usd: float | None = None
        self._cache_saved_usd: float | None = None
        self._without_price = 0
        self._latency = Histogram()
        self._first_token = Histogram()
        self._errors: dict[str, int] = {}
        self._examples: dict[str, str] = {}
        self._finish_reasons: dict[str, int] = {}
        self._notices: dict[str, None] = {}
        self._offset = 0
        self._draining: tuple[Draining, float] | None = None
        self._ended_s: float | None = None

    def __call__(self, event: Event) -> None:
        hear = _HEARD.get(type(event))
        if hear is not None:
            hear(self, event)

    def snapshot(self, status: Status) -> Snapshot:
        """The numbers of this moment, for the printers."""
        now = self._now()
        left = self._rows_left(status)
        eta_rate = self._lately_per_s(now)
        done = self.ok + self.failed + self.kept_ok + self.kept_failed + self.skipped
        return Snapshot(
            status=status,
            elapsed_s=now - self._started_s,
            rows=self._run.rows if self._run else None,
            ok=self.ok,
            failed=self.failed,
            kept_ok=self.kept_ok,
            kept_failed=self.kept_failed,
            fraction=None if left is None else done / max(done + left, 1),
            eta_s=self._to_send(left) / eta_rate if left is not None and eta_rate and not status.paused else None,
            rate_per_s=self._requests_rate.per_s(now, _NOW_S),
            rpm=None if self._rpm is None else self._rpm * self._accounts,
            requests=self.requests,
            retries=self.retries,
            rate_limited=self.rate_limited,
            maybe_billed_twice=self.maybe_billed_twice,
            tokens=self.tokens,
            cost_usd=self._cost_usd,
            projected_cost_usd=self._projected_cost_usd(left),
            drain_left_s=self._drain_left_s(now),
            drain_why=self._draining[0].why if self._draining else None,
        )

    def summary(
        self,
        *,
        rows: int,
        pending: int,
        exit_code: int,
        input_complete: bool = True,
        input_truncated: bool = False,
        output: str | None = None,
        lines: str | None = None,
        next_command: str | None = None,
        binding_shares: Mapping[str, float] | None = None,
        hooks: Mapping[str, HookTime] | None = None,
    ) -> Summary:
        """The end of the run. ``rows`` and ``pending`` come from the reader and the journal, not from here:
        that is what makes ``Summary.adds_up`` a check."""
        seconds = self._now() - self._started_s
        return Summary(
            rows=rows,
            ok=self.ok + self.kept_ok,
            failed=self.failed + self.kept_failed,
            skipped=self.skipped,
            pending=pending,
            exit_code=exit_code,
            seconds=seconds,
            rows_per_s=(self.ok + self.failed) / seconds if seconds > 0 else 0.0,
            ok_before=self.kept_ok,
            failed_before=self.kept_failed,
            input_complete=input_complete,
            input_truncated=input_truncated,
            requests=self.requests,
            retries=self.retries,
            rate_limited=self.rate_limited,
            ambiguous=self.ambiguous,
            maybe_billed_twice=self.maybe_billed_twice,
            hedges=self.hedges,
            hedges_won=self.hedges_won,
            ambiguous_bound=self._ambiguous_bound,
            maybe_billed_twice_bound=self._twice_bound,
            flags=dict(self._flags),
            in_flight_at_kill=self.in_flight_at_kill,
            latency_s=_percentiles(self._latency),
            first_token_s=_percentiles(self._first_token),
            tokens=self.tokens,
            cost_usd=self._cost_usd,
            cache_saved_usd=self._cache_saved_usd,
            answers_without_price=self._without_price,
            errors=tuple(ErrorCount(word, n, self._examples[word]) for word, n in _most_first(self._errors)),
            finish_reasons=dict(_most_first(self._finish_reasons)),
            binding_shares=binding_shares,
            output=output,
            lines=lines or output,
            next_command=next_command,
            notices=tuple(self._notices),
            hooks=hooks or {},
        )

    @property
    def requests(self) -> int:
        return self._answers + self._failed_attempts

    @property
    def mean_latency_s(self) -> float | None:
        """Of the good answers; None if there is none."""
        return self._latency.mean_s

    @property
    def tokens(self) -> Tokens:
        return Tokens(
            self._input_tokens, self._output_tokens, self._cached_tokens, self._reasoning_tokens, self._without_usage
        )

    def _begin(self) -> None:
        self._started_s = self._clock()
        self._rows_rate = RecentRate(self._started_s)
        self._requests_rate = RecentRate(self._started_s)

    def _run_started(self, event: RunStarted) -> None:
        self._run = event
        self._begin()

    def _row_kept(self, event: RowKept) -> None:
        self._offset = max(self._offset, event.input_offset)
        if event.skipped:
            self.skipped += 1
        elif event.ok:
            self.kept_ok += 1
        else:
            self.kept_failed += 1

    def _row_ended(self, event: RowEnded) -> None:
        now = self._clock()
        self._rows_rate.add(now)
        if event.input_offset > self._offset:
            self._offset = event.input_offset
        result = event.result
        if result.skipped:
            self.skipped += 1
            return
        if result.reply is None:
            self._row_failed(result.failure)
        else:
            self.ok += 1
        for answer in (result,) if result.parts is None else result.parts:
            self._count_answer(answer, now)

    def _count_answer(self, result: Result, now: float) -> None:
        """What one request of a row cost and brought; a bad answer may have been paid for too."""
        if result.cost_usd is not None:
            self._cost_usd = (self._cost_usd or 0.0) + result.cost_usd
        if result.cache_saved_usd is not None:
            self._cache_saved_usd = (self._cache_saved_usd or 0.0) + result.cache_saved_usd
        if result.reply is None:
            if result.failure is not None and result.failure.usage is not None:
                self._count_tokens(result.failure.usage)
            return
        self._requests_rate.add(now)
        self._answered(result.reply)
        if result.cost_usd is None:
            self._without_price += 1
        if result.latency_s is not None:
            self._latency.add(result.latency_s)
        if result.first_token_s is not None:
            self._first_token.add(result.first_token_s)

    def _answered(self, reply: Reply) -> None:
        self._answers += 1
        self._count_tokens(reply.usage)
        _count(self._finish_reasons, reply.finish_reason or "none given")
        for flag in reply.flags:
            _count(self._flags, flag)

    def _count_tokens(self, usage: Usage) -> None:
        if usage.input_tokens is None and usage.output_tokens is None:
            self._without_usage += 1
            return
        self._input_tokens += usage.input_tokens or 0
        self._output_tokens += usage.output_tokens or 0
        self._cached_tokens += usage.cached_input_tokens or 0
        self._reasoning_tokens += usage.reasoning_tokens or 0

    def _row_failed(self, failure: Failure | None) -> None:
        assert failure is not None, "a Result has a reply or a failure"
        self.failed += 1
        word = _count(self._errors, failure.type)
        self._examples.setdefault(word, failure.message[:_MAX_EXAMPLE_CHARS])

    def _attempt_failed(self, event: AttemptFailed) -> None:
        failure = event.failure
        if failure.kind != "never_sent":
            self._failed_attempts += 1
            self._requests_rate.add(self._clock())
        again = event.retry_in_s is not None
        self.retries += again
        self.rate_limited += failure.rate_limited
        if failure.maybe_billed:
            self.ambiguous += 1
            self._ambiguous_bound = self._ambiguous_bound.with_one(failure.bound, event.at_most_usd)
            if again or event.hedged:
                self.maybe_billed_twice += 1
                self._twice_bound = self._twice_bound.with_one(failure.bound, event.at_most_usd)

    def _asked_twice(self, event: Hedged) -> None:
        self.hedges += 1
        self.hedges_won += event.won

    def _was_cut_off(self, event: CutOff) -> None:
        self.in_flight_at_kill = event.in_flight

    def _draining_began(self, event: Draining) -> None:
        self._draining = (event, self._clock())

    def _noticed(self, event: Notice) -> None:
        if event.level == "warning" and len(self._notices) < _MAX_NOTICES:
            self._notices[event.text] = None

    def _limit_set(self, event: LimitSet) -> None:
        if event.name == "rpm":
            self._rpm = event.new

    def _run_ended(self, event: RunEnded) -> None:
        self._ended_s = self._clock()

    def _now(self) -> float:
        return self._clock() if self._ended_s is None else self._ended_s

    def _rows_left(self, status: Status) -> float | None:
        """Rows not yet terminal; from the bytes not yet read if the total is unknown, None if those are too."""
        run = self._run
        if run is None:
            return None
        done = self.ok + self.failed + self.kept_ok + self.kept_failed + self.skipped
        if run.rows is not None:
            return max(run.rows - done, 0)
        if not run.input_bytes or not 0 < self._offset <= run.input_bytes:
            return None
        begun = status.in_flight + status.waiting_retry + status.at_hand
        return (done + begun) * run.input_bytes / self._offset - done

    def _to_send(self, left: float) -> float:
        """Of the rows left, those that no earlier run finished; the others take no time."""
        to_keep = max(self._run.done_before - self.kept_ok, 0) if self._run else 0
        return max(left - to_keep, 0)

    def _lately_per_s(self, now: float) -> float:
        lately = self._rows_rate.per_s(now, _LATELY_S)
        if lately * _LATELY_S >= _ENOUGH_ROWS:
            return lately
        return (self.ok + self.failed) / max(now - self._started_s, 1.0)

    def _projected_cost_usd(self, left: float | None) -> float | None:
        ended = self.ok + self.failed
        if self._cost_usd is None or left is None or not ended or self._draining:
            return None
        return self._cost_usd * (1 + self._to_send(left) / ended)

    def _drain_left_s(self, now: float) -> float | None:
        if self._draining is None:
            return None
        event, since_s = self._draining
        return max(event.grace_s - (now - since_s), 0.0)


_HEARD: dict[type, Callable[[Tally, Any], None]] = {
    RunStarted: Tally._run_started,
    RowEnded: Tally._row_ended,
    RowKept: Tally._row_kept,
    AttemptFailed: Tally._attempt_failed,
    Hedged: Tally._asked_twice,
    CutOff: Tally._was_cut_off,
    Draining: Tally._draining_began,
    Notice: Tally._noticed,
    LimitSet: Tally._limit_set,
    RunEnded: Tally._run_ended,
}


def _count(counts: dict[str, int], word: str) -> str:
    """Counts ``word``, or "other" once there are too many different ones; gives the word counted."""
    if word not in counts and len(counts) >= _MAX_WORDS:
        word = "other"
    counts[word] = counts.get(word, 0) + 1
    return word


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _percentiles(histogram: Histogram) -> Percentiles | None:
    if not histogram.count:
        return None
    at = histogram.percentile
    return Percentiles(at(50), at(90), at(95), at(99), histogram.max_s)
