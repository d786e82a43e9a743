"""A comparison as tables and bars: for the terminal, and for pages in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap

from llmbatch.rules.comparison import PARTS, TASKS, Compared, Comparison, Part, Server, Spread
from llmbatch.views.safe import safe
from llmbatch.views.words import count, duration, rate

_BAR_CELLS = 40
_COLUMNS = 80
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Table:
    """Columns under ``heads``; the first is of words, the others of numbers."""

    title: str
    says: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def render_comparison(found: Comparison) -> str:
    """Everything, ending in a newline."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Comparison) -> Iterator[str]:
    for part, table in tables(found):
        yield table.title
        yield from wrap(f"({table.says})", _COLUMNS)
        yield ""
        yield plain(table)
        if part == "drivers":
            yield ""
            yield from bars(found.of(part))
        yield ""
    machine = found.machine
    yield f"On {machine['system']}, {count(int(machine['cores']), 'core')}, Python {machine['python']}, {found.date}."
    yield f"Asked: {safe(found.endpoint)}"
    for note in found.notes:
        yield from wrap(f"note: {note}", _COLUMNS)
    yield from (f"warning: {text}" for text in went_wrong(found))


def went_wrong(found: Comparison) -> Iterator[str]:
    """What the tables do not show: other answers, cases that could not be measured, failures."""
    for one in found.differing:
        yield f"{_label(one)} got other answers than the others"
    for one in found.compared:
        if one.problem is not None:
            yield f"{_label(one)} could not be measured: {safe(one.problem, 300)}"
        for name, n in sorted(_failures(one).items()):
            yield f"{_label(one)}: {count(n, 'row')} failed: {safe(name, 60)}"


def tables(found: Comparison) -> list[tuple[Part, Table]]:
    """One for each part that was measured, in the order of PARTS."""
    made = []
    for part in PARTS:
        compared = [one for one in found.of(part) if one.runs]
        if compared:
            made.append((part, _MAKERS[part](compared)))
    return made


def plain(table: Table) -> str:
    """Columns that line up, for a terminal of 80 if their cells allow it: heads take more lines then, gaps less."""
    cells = [[len(row[column]) for row in table.rows] for column in range(len(table.heads))]
    roomy = [max(len(head), *widths) for head, widths in zip(table.heads, cells, strict=True)]
    tight = [max(*map(len, head.split()), *widths) for head, widths in zip(table.heads, cells, strict=True)]
    widths = roomy if _width(roomy, "  ") <= _COLUMNS else tight
    gap = "  " if _width(widths, "  ") <= _COLUMNS else " "
    ruled = [*_broken(table.heads, widths), tuple("-" * width for width in widths), *table.rows]
    return "\n".join(_aligned(line, widths, gap) for line in ruled)


def _width(widths: Sequence[int], gap: str) -> int:
    return sum(widths) + len(gap) * (len(widths) - 1)


def _broken(heads: Sequence[str], widths: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """The heads on as many lines as the longest of them takes, all ending on the last."""
    broken = [wrap(head, width) for head, width in zip(heads, widths, strict=True)]
    lines = max(map(len, broken))
    return zip(*([""] * (lines - len(head)) + head for head in broken), strict=True)


def _aligned(line: Sequence[str], widths: Sequence[int], gap: str) -> str:
    first, *others = zip(line, widths, strict=True)
    return gap.join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])


def markdown(table: Table) -> str:
    """The same as a table of Markdown, without its title."""
    lines = [table.heads, ("---", *("---:" for _ in table.heads[1:])), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bars(compared: Sequence[Compared]) -> Iterator[str]:
    """Requests per second, as lengths."""
    shown = [one for one in compared if one.runs]
    most = max((one.per_s.median for one in shown), default=0.0)
    width = max((len(_label(one)) for one in shown), default=0)
    for one in shown:
        per_s = one.per_s.median
        yield f"{_label(one):<{width}}  {_bar(per_s / most)} {rate(per_s)}/s"


def _bar(share: float) -> str:
    whole, part = divmod(max(1, round(share * _BAR_CELLS * 8)), 8)
    return ("█" * whole + _EIGHTHS[part]).rstrip()


# The tables


def _drivers(title: str, says: str) -> Callable[[Sequence[Compared]], Table]:
    def made(compared: Sequence[Compared]) -> Table:
        alone = next((one for one in compared if one.case.driver.kind == "sequential"), None)
        heads = (
            "driver",
            "rows",
            "seconds",
            "ideal",
            "requests/s",
            "faster",
            "CPU ms/request",
            "MB",
            "threads",
            "files",
        )
        rows = tuple(
            (
                _label(one),
                f"{one.case.rows:,}",
                _spread(one.wall_s, _seconds),
                _seconds(one.case.ideal_s) if one.case.ideal_s else "-",
                rate(one.per_s.median),
                _times(one.times_faster(alone)),
                _spread(one.cpu_ms_per_request, _ms),
                _known(one.peak_mb, _mb),
                _number(one.most("peak_threads")),
                _number(one.most("peak_files")),
            )
            for one in compared
        )
        return Table(title.format(_call(compared[0].case.server)), says, heads, rows)

    return made


def _cpu(compared: Sequence[Compared]) -> Table:
    heads = ("driver", "rows", "seconds", "faster", "CPU ms/row", "MB", "threads", "processes")
    alone = compared[0]
    rows = tuple(
        (
            _label(one),
            f"{one.case.rows:,}",
            _spread(one.wall_s, _seconds),
            _times(one.times_faster(alone)),
            _spread(one.cpu_ms_per_request, _ms),
            _known(one.peak_mb, _mb),
            _number(one.most("peak_threads")),
            _number(one.most("peak_processes")),
        )
        for one in compared
    )
    says = "Python computes in one thread at a time, whatever the driver; only processes use further cores"
    return Table("Rows that compute before they are sent", says, heads, rows)


def _session(compared: Sequence[Compared]) -> Table:
    heads = (
        "one request at a time",
        "rows",
        "shared ms",
        "new ms",
        "saved",
        "CPU shared ms",
        "CPU new ms",
        "CPU saved",
    )
    pairs = _pairs(compared)
    rows = tuple(
        (
            _place(shared.case.server),
            f"{shared.case.rows:,}",
            _spread(shared.latency_p50_s, _latency),
            _spread(new.latency_p50_s, _latency),
            _saved(shared.latency_p50_s, new.latency_p50_s),
            _spread(shared.cpu_ms_per_request, _ms),
            _spread(new.cpu_ms_per_request, _ms),
            _saved(shared.cpu_ms_per_request, new.cpu_ms_per_request),
        )
        for shared, new in pairs
    )
    says = "a new session opens a connection for each request: a round trip for TCP, one more for TLS"
    return Table("One session for all requests, or a new one for each (median latency)", says, heads, rows)


def _pairs(compared: Sequence[Compared]) -> list[tuple[Compared, Compared]]:
    new = {one.case.server: one for one in compared if one.case.variant == "new session"}
    return [(one, new[one.case.server]) for one in compared if one.case.variant == "" and one.case.server in new]


def _blocking(compared: Sequence[Compared]) -> Table:
    words = {
        "": "nothing blocks",
        "blocked thread": "a call of 1 s blocks a thread",
        "blocked loop": "the same call blocks the loop",
    }
    heads = ("10 requests at a time", "rows", "seconds", "median latency", "longest")
    rows = tuple(
        (
            words[one.case.variant],
            f"{one.case.rows:,}",
            _spread(one.wall_s, _seconds),
            _spread(one.latency_p50_s, _seconds),
            _spread(one.latency_max_s, _seconds),
        )
        for one in compared
    )
    says = "one call that blocks, and what it does to all others"
    return Table(f"The blocking-call trap, {_call(compared[0].case.server)}", says, heads, rows)


def _tasks(compared: Sequence[Compared]) -> Table:
    words = {"tasks in turn": "one after the other", "tasks together": "together"}
    heads = (f"{TASKS} tasks of each row", "rows", "seconds", "ideal", "a row takes")
    rows = tuple(
        (
            words[one.case.variant],
            f"{one.case.rows:,}",
            _spread(one.wall_s, _seconds),
            _seconds(one.case.ideal_s) if one.case.ideal_s else "-",
            _spread(one.latency_p50_s, _seconds),
        )
        for one in compared
    )
    says = "questions about one row that do not need each other's answers"
    return Table(f"Several tasks per row, {_call(compared[0].case.server)}", says, heads, rows)


def _memory(compared: Sequence[Compared]) -> Table:
    heads = ("driver", "over", "in flight", "MB before", "MB", "KB per call", "CPU ms/request", "threads", "files")
    rows = tuple(
        (
            _label(one),
            "https" if one.case.server.tls else "http",
            _number(one.most("in_flight")),
            _known(one.start_mb, _mb),
            _known(one.peak_mb, _mb),
            _known(one.kb_per_call, lambda kb: f"{kb:.1f}"),
            _spread(one.cpu_ms_per_request, _ms),
            _number(one.most("peak_threads")),
            _number(one.most("peak_files")),
        )
        for one in compared
    )
    says = "as many requests at once as there are threads, or places on the loop; in flight is what the server saw"
    return Table("Memory of waiting requests", says, heads, rows)


_MAKERS: dict[Part, Callable[[Sequence[Compared]], Table]] = {
    "drivers": _drivers("The same rows under each driver, {}", "ideal: N/C x latency, what the waiting alone takes"),
    "overhead": _drivers("What the driver itself costs, {}", "no waiting at all: the rest is the client's own work"),
    "short": _drivers("Short calls, {}", "where threads are enough"),
    "cpu": _cpu,
    "session": _session,
    "blocking": _blocking,
    "tasks": _tasks,
    "memory": _memory,
}


# Words


def _label(one: Compared) -> str:
    name = one.case.driver.name
    return f"{name} + processes" if one.case.variant == "hook in processes" else name


def _call(server: Server) -> str:
    if server.latency_s is None:
        return "calls to a real provider"
    return "calls without delay" if server.latency_s == 0 else f"calls of {duration(server.latency_s)}"


def _place(server: Server) -> str:
    if server.latency_s is None:
        return "a real provider"
    scheme = "https" if server.tls else "http"
    where = f"{duration(server.rtt_s)} away" if server.rtt_s else "on this machine"
    return f"{scheme}, {where}" + (f", answers in {duration(server.latency_s)}" if server.latency_s else "")


def _failures(one: Compared) -> dict[str, int]:
    found: dict[str, int] = {}
    for run in one.runs:
        for name, n in run.failures.items():
            found[name] = found.get(name, 0) + n
    return found


def _spread(values: Spread, said: Callable[[float], str]) -> str:
    """The median, and the range where there is one."""
    low, high = said(values.low), said(values.high)
    return said(values.median) if low == high else f"{said(values.median)} ({low}–{high})"


def _known(values: Spread | None, said: Callable[[float], str]) -> str:
    return "-" if values is None else _spread(values, said)


def _saved(shared: Spread, new: Spread) -> str:
    return f"{1 - shared.median / new.median:.0%}" if new.median else "-"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{rate(value)} x"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


def _latency(value_s: float) -> str:
    return _ms(value_s * 1000)


def _mb(value: float) -> str:
    return f"{value:,.0f}"
