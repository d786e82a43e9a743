"""Progress for a log file: one line every half minute, no escape codes, warnings at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TextIO

from llmbatch.events import Draining, RunStarted
from llmbatch.summary import Snapshot
from llmbatch.views.printer import Level, Sink, draining_words
from llmbatch.views.safe import safe
from llmbatch.views.words import PAUSED, count, limited_by, money, percent, rate, short, stopwatch

# Often enough to see it work, seldom enough for the log of a night.
INTERVAL_S = 30.0


def _local_time() -> datetime:
    return datetime.now().astimezone()


class PlainLines:
    """One line per event, each with the time of day: start, now and then, warnings, stopping, end."""

    def __init__(
        self,
        stream: TextIO,
        *,
        interval_s: float = INTERVAL_S,
        now: Callable[[], datetime] = _local_time,
    ) -> None:
        self._sink = Sink(stream)
        self._interval_s = interval_s
        self._due_s = interval_s
        self._now = now
        self._last: Snapshot | None = None

    def start(self, run: RunStarted) -> None:
        self._put("start: " + ", ".join(_start_words(run)))

    def refresh(self, snapshot: Snapshot) -> None:
        self._last = snapshot
        if snapshot.elapsed_s >= self._due_s:
            self._due_s = snapshot.elapsed_s + self._interval_s
            self._put(progress_line(snapshot))

    def note(self, text: str, level: Level = "info") -> None:
        self._put(f"warning: {text}" if level == "warning" else text)

    def draining(self, event: Draining) -> None:
        self.note(draining_words(event), "warning")

    def stop(self) -> None:
        if self._last is not None:
            self._put("end: " + ", ".join(_count_words(self._last)))
            self._last = None

    def _put(self, text: str) -> None:
        self._sink.line(f"{self._now().isoformat(' ', 'seconds')} llmbatch: {safe(text)}")


def _start_words(run: RunStarted) -> Iterator[str]:
    yield f"{run.model} at {run.endpoint}"
    if run.rows is not None:
        yield count(run.rows, "row")
    if run.done_before:
        yield f"{run.done_before:,} finished by earlier runs"
    if run.failed_before:
        yield f"{run.failed_before:,} failed in earlier runs"
    yield f"results to {'standard output' if run.output == '-' else run.output}"


def progress_line(snapshot: Snapshot) -> str:
    """How far the run is, how fast, and what holds it up."""
    return ", ".join(_progress_words(snapshot))


def _progress_words(snapshot: Snapshot) -> Iterator[str]:
    status = snapshot.status
    yield from _count_words(snapshot)
    yield f"{status.in_flight:,}/{status.allowed:,} in flight"
    if status.waiting_retry:
        yield f"{status.waiting_retry:,} waiting to retry"
    if status.paused:
        yield PAUSED
    elif status.gate_closed_s > 0:
        yield f"paused by the provider for {status.gate_closed_s:.0f} s"
    elif limited := limited_by(status.binding):
        yield limited
    if snapshot.eta_s is not None and snapshot.drain_why is None:
        yield f"about {stopwatch(snapshot.eta_s)} left"


def _count_words(snapshot: Snapshot) -> Iterator[str]:
    total = "" if snapshot.rows is None else f"/{snapshot.rows:,}"
    share = "" if snapshot.fraction is None else f" ({percent(snapshot.fraction)})"
    yield f"{snapshot.done:,}{total} rows{share} in {stopwatch(snapshot.elapsed_s)}"
    yield f"{snapshot.failed + snapshot.kept_failed:,} failed"
    yield count(snapshot.retries, "retry", "retries")
    yield f"{rate(snapshot.rate_per_s)} requests/s"
    yield f"{short(snapshot.tokens.input)} tokens in, {short(snapshot.tokens.output)} out"
    if snapshot.cost_usd is not None:
        yield money(snapshot.cost_usd)
