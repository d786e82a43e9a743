"""The progress bar on a terminal: three quiet lines that never change their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from llmbatch.events import Draining, RunStarted
from llmbatch.summary import Snapshot
from llmbatch.views.printer import Level, Sink
from llmbatch.views.safe import safe
from llmbatch.views.words import PAUSED, count, limited_by, money, percent, rate, short, stopwatch

# Room for the ^C that the terminal itself prints, so that it does not break a line.
_MARGIN = 3
_MAX_BAR = 60
_MIN_BAR = 6


class _Terminal(Console):
    def show_cursor(self, show: bool = True) -> bool:
        """Leaves the cursor alone: what is never hidden is there even after ``kill -9``."""
        return False

    def on_broken_pipe(self) -> None:
        """Rich would end the process here; a run that is being paid for goes on without its display."""
        self.quiet = True


def can_draw(stream: TextIO) -> bool:
    """True if ``stream`` is a terminal whose lines can be drawn again (not with ``TERM=dumb``)."""
    console = _console(stream)
    return console.is_terminal and not console.is_dumb_terminal


class LiveBar:
    """Drawn only by ``refresh`` (no thread of its own); gone after ``stop``, which makes room for the summary.

    NO_COLOR is respected (by rich). A terminal that stands still (Ctrl-S) or went away does not hold up the run.
    """

    def __init__(self, stream: TextIO) -> None:
        self._sink = Sink(stream)
        self._console = _console(stream)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,  # results may go there
            redirect_stderr=True,  # a stray warning goes above the bar, not into it
            vertical_overflow="crop",
        )

    def __enter__(self) -> LiveBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self, run: RunStarted) -> None:
        before = f", {run.done_before:,} of them done before" if run.done_before else ""
        rows = "" if run.rows is None else f", {count(run.rows, 'row')}{before}"
        self.note(f"{run.model} at {run.endpoint}{rows}")
        self._live.start()

    def refresh(self, snapshot: Snapshot) -> None:
        if not self._sink.ready():
            return
        lines = frame(snapshot, self._console.width - _MARGIN, self._console.options.ascii_only)
        try:
            self._live.update(Group(*lines), refresh=True)
        except OSError:
            self._console.quiet = True

    def note(self, text: str, level: Level = "info") -> None:
        """One sentence that stays, above the bar."""
        if not self._sink.ready():
            return
        line = Text(f"warning: {safe(text)}", "yellow") if level == "warning" else Text(safe(text), "dim")
        try:
            self._console.print(line)
        except OSError:
            self._console.quiet = True

    def draining(self, event: Draining) -> None:
        """Nothing: the bar itself says it, with numbers that move."""

    def stop(self) -> None:
        self._console.quiet = self._console.quiet or not self._sink.ready()
        try:
            self._live.stop()
        except OSError:
            self._console.quiet = True


def _console(stream: TextIO) -> _Terminal:
    return _Terminal(file=stream, force_jupyter=False, highlight=False, markup=False, emoji=False)


@dataclass(frozen=True, slots=True)
class _Part:
    """One fact on a line. The lowest ``rank`` is the last to go when the terminal is narrow."""

    rank: int
    value: str
    label: str
    short_label: str
    style: str = ""

    def text(self, *, brief: bool) -> Text:
        return Text.assemble((self.value, self.style), (self.short_label if brief else self.label, self.style or "dim"))


def frame(snapshot: Snapshot, width: int, ascii_only: bool = False) -> list[Text]:
    """The three lines, each at most ``width`` cells: how far, how fast, what came of it."""
    gap = " | " if ascii_only else " · "
    lines = [
        _bar_line(snapshot, width, ascii_only),
        _fit(list(_pace(snapshot)), width, gap),
        _fit(list(_outcome(snapshot)), width, gap),
    ]
    for line in lines:
        line.no_wrap = True
        line.truncate(max(width, 1), overflow="crop")
    return lines


def _fit(parts: list[_Part], width: int, gap: str) -> Text:
    """As many facts as fit: the least important are shortened first, then left out."""
    by_rank = sorted((part.rank for part in parts), reverse=True)
    for brief_from in [by_rank[0] + 1, *by_rank]:
        line = _joined(parts, gap, brief_from)
        if line.cell_len <= width:
            return line
    while len(parts) > 1 and line.cell_len > width:
        parts.remove(max(parts, key=lambda part: part.rank))
        line = _joined(parts, gap, brief_from)
    return line


def _joined(parts: list[_Part], gap: str, brief_from: int) -> Text:
    return Text(gap, style="dim").join(part.text(brief=part.rank >= brief_from) for part in parts)


def _bar_line(snapshot: Snapshot, width: int, ascii_only: bool) -> Text:
    head, tails = _head(snapshot), _tails(snapshot)
    for tail in tails:
        room = width - len(head) - len(tail) - 4
        if room >= (_MIN_BAR if tail is tails[-1] else 3 * _MIN_BAR):
            break
    if snapshot.fraction is None or room < _MIN_BAR:
        return Text.assemble((head, "bold"), "  ", (tail, "dim"))
    bar = _bar(snapshot.fraction, min(room, _MAX_BAR), ascii_only)
    return Text.assemble((head, "bold"), "  ", bar, "  ", (tail, "dim"))


def _head(snapshot: Snapshot) -> str:
    total = f"{snapshot.rows:,}" if snapshot.rows is not None else ""
    done = f"{snapshot.done:>{len(total)},}" + (f"/{total}" if total else " rows")
    return done if snapshot.fraction is None else f"{done} {percent(snapshot.fraction):>4}"


def _tails(snapshot: Snapshot) -> list[str]:
    """The times, from the wordy to the bare."""
    elapsed = stopwatch(snapshot.elapsed_s)
    if snapshot.eta_s is None or snapshot.drain_why is not None:
        return [f"{elapsed} elapsed", elapsed]
    eta = stopwatch(snapshot.eta_s)
    return [f"{elapsed} elapsed, about {eta} left", f"{elapsed}, {eta} left", f"{eta} left"]


def _bar(fraction: float, width: int, ascii_only: bool) -> Text:
    """Heavy on light, so that it reads without colour."""
    heavy, light = ("#", "-") if ascii_only else ("━", "─")
    full = int(min(max(fraction, 0.0), 1.0) * width)
    return Text.assemble((heavy * full, "green" if full == width else "cyan"), (light * (width - full), "dim"))


def _pace(snapshot: Snapshot) -> Iterator[_Part]:
    status = snapshot.status
    if snapshot.drain_why is not None:
        stopping = f"stopping: {status.in_flight:,} in flight"
        yield _Part(0, stopping, ", Ctrl-C abandons them", ", ^C abandons", "bold yellow")
        yield _Part(2, stopwatch(snapshot.drain_left_s or 0), " at most", " at most")
        return
    if status.paused:
        yield _Part(0, PAUSED, "", "", "bold yellow")
    elif status.gate_closed_s > 0:
        yield _Part(0, f"paused by the provider, {status.gate_closed_s:.0f} s", "", "", "bold yellow")
    yield _rate(snapshot)
    yield _Part(2, f"{status.in_flight:,}/{status.allowed:,}", " in flight", " in flight")
    if status.waiting_retry:
        yield _Part(4, f"{status.waiting_retry:,}", " waiting to retry", " waiting")
    if status.gate_closed_s <= 0 and not status.paused and (limited := limited_by(status.binding)):
        yield _Part(3, "", limited, limited.replace("limited by", "limit:").replace(" the ", " "))


def _rate(snapshot: Snapshot) -> _Part:
    if snapshot.rpm is None:
        return _Part(1, rate(snapshot.rate_per_s), " requests/s", "/s")
    return _Part(1, f"{snapshot.rate_per_s * 60:,.0f}/{snapshot.rpm:,.0f}", " requests/min", " RPM")


def _outcome(snapshot: Snapshot) -> Iterator[_Part]:
    failed = snapshot.failed + snapshot.kept_failed
    yield _Part(3, f"{snapshot.ok + snapshot.kept_ok:,}", " ok", " ok")
    if failed:
        yield _Part(0, f"{failed:,}", " failed", " failed", "red")
    if snapshot.retries:
        label = " retry" if snapshot.retries == 1 else " retries"
        yield _Part(4, f"{snapshot.retries:,}", label, label)
    if snapshot.maybe_billed_twice:
        yield _Part(2, f"{snapshot.maybe_billed_twice:,}", " maybe billed twice", " billed twice?", "yellow")
    tokens = snapshot.tokens
    if tokens.input or tokens.output:
        out = short(tokens.output)
        yield _Part(5, short(tokens.input), f" tokens in, {out} out", f"/{out} tok")
    if snapshot.cost_usd is not None:
        projected = snapshot.projected_cost_usd
        label = "" if projected is None else f" of about {money(projected)}"
        yield _Part(1, money(snapshot.cost_usd), label, "")
