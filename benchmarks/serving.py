"""A blocking server against one on an event loop, under the same clients: throughput, tails, health checks, memory.

    python benchmarks/serving.py [--write] [--runs 3] [--seconds 10] [--clients 10 100 1000]

10, 100 and 1,000 clients each keep one request in flight at `llmbatch sim` in mode async, in mode threads with pools of
16 and 100, and with 16 that refuse with 503 what comes while 32 are there. One load has answers of 0.5 s, the other has
5 s for one in 20. All servers at once for up to 100 clients, which together ask little of the machine; alone above.
Servers run on the first core, the clients on the last. ``--write`` keeps the figures in benchmarks/SERVING.md and
docs/serving.md, with a plot if matplotlib is there. It takes 7 minutes.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import uvloop
from floor import GC_THRESHOLDS, raise_file_limit
from measure import arguments, keep
from serving_load import LIMIT_S, WARM_UP_S, Load, put_under_load
from sim_load import ROOT, SERVE

REPORT = ROOT / "benchmarks" / "SERVING.md"
PAGE = ROOT / "docs" / "serving.md"
PLOT = ROOT / "docs" / "serving.svg"
BEGIN, END = "<!-- figures: made by `make bench-serving` -->", "<!-- end of figures -->"
SIDE_BY_SIDE = 100

# name -> settings, and how many requests it can have in work at once.
SERVERS: dict[str, tuple[dict[str, str], float]] = {
    "async": ({"mode": "async"}, math.inf),
    "100 threads": ({"mode": "threads", "threads": "100"}, 100),
    "16 threads": ({"mode": "threads", "threads": "16"}, 16),
    "16 threads, 503 above 32": ({"mode": "threads", "threads": "16", "max-inflight": "32"}, 16),
}
# title -> the distribution of latencies, and its mean. The spread keeps the clients from marching in step.
LOADS = {
    "Answers of 0.5 s": ("uniform:low=0.45,high=0.55", 0.5),
    "One answer in 20 takes 5 s": ("uniform:low=0.45,high=0.55,tail=0.05x10", 0.5 * 0.95 + 5 * 0.05),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One server under one load once. Seconds are ``inf`` above the clients' limit, and nan when nothing was answered.

    ``unread`` answers were worked for and billed after the client had given up.
    """

    answers_per_s: float
    p50_s: float
    p99_s: float
    max_s: float
    timeouts: int
    refused: int
    broken: int
    unread: int
    health_p50_s: float
    health_max_s: float
    threads: int
    peak_mb: float
    client_cpu: float


Cell = tuple[str, int, str]
"""A load, a number of clients, a server."""


class Server:
    """`llmbatch sim` as a process of its own on the first core."""

    def __init__(self, settings: dict[str, str]) -> None:
        command = [sys.executable, "-c", SERVE, *(f"{name}={value}" for name, value in settings.items())]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.port = int(self._process.stdout.readline().rstrip().removesuffix("/v1").rpartition(":")[2])

    def peak_mb(self) -> float:
        """Its own high-water mark: that of wait4 is never below that of the process which started it."""
        status = Path(f"/proc/{self._process.pid}/status")
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
        return int(match[1]) / 1024 if match else math.nan

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


async def measure(settings: dict[str, str], clients: int, servers: Iterable[str], seconds: float) -> dict[str, Run]:
    """Put servers under the same load at the same time."""
    with ExitStack() as stack:
        running: dict[str, Server] = {}
        for name in servers:
            running[name] = Server({**SERVERS[name][0], **settings})
            stack.callback(running[name].kill)
        loads = await asyncio.gather(*(put_under_load(server.port, clients, seconds) for server in running.values()))
        return {name: run_of(load, running[name], seconds) for name, load in zip(running, loads, strict=True)}


def run_of(load: Load, server: Server, seconds: float) -> Run:
    return Run(
        answers_per_s=sum(map(math.isfinite, load.latencies_s)) / seconds,
        p50_s=percentile(load.latencies_s, 0.5),
        p99_s=percentile(load.latencies_s, 0.99),
        max_s=percentile(load.latencies_s, 1),
        timeouts=load.timeouts,
        refused=load.refused,
        broken=load.broken,
        unread=metric(load, "unread_answers_total"),
        health_p50_s=percentile(load.health_s, 0.5),
        health_max_s=percentile(load.health_s, 1),
        threads=metric(load, "threads"),
        peak_mb=server.peak_mb(),
        client_cpu=load.client_cpu,
    )


def metric(load: Load, name: str) -> int:
    match = re.search(rf"(?m)^llmbatch_sim_{name} (\d+)$", load.metrics)
    assert match, f"no metric {name}"
    return int(match[1])


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of all do not exceed (nearest rank); nan of none."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else math.nan


def measure_all(clients: Sequence[int], runs: int, seconds: float) -> dict[Cell, list[Run]]:
    """Every cell in turn, ``runs`` times, so that a slow minute of the machine meets them all."""
    found: dict[Cell, list[Run]] = {
        (title, count, server): [] for title in LOADS for count in clients for server in SERVERS
    }
    for number in range(runs):
        for title, (latency, _) in LOADS.items():
            settings = {"latency": latency, "seed": str(number)}
            for count in clients:
                for group in [list(SERVERS)] if count <= SIDE_BY_SIDE else [[name] for name in SERVERS]:
                    for server, run in uvloop.run(measure(settings, count, group, seconds)).items():
                        found[title, count, server].append(run)
                print(f"run {number + 1}/{runs}, {title.lower()}, {count:,} clients", file=sys.stderr, flush=True)
    return found


def _seconds(value: float) -> str:
    if not math.isfinite(value):
        return "-" if math.isnan(value) else f"> {LIMIT_S:g}"
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _rate(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else _count(value)


# heading -> how it is read from a run, how it is printed, whether the page for newcomers has it.
COLUMNS: dict[str, tuple[Callable[[Run], float], Callable[[float], str], bool]] = {
    "answers/s": (lambda run: run.answers_per_s, _rate, True),
    "p50 s": (lambda run: run.p50_s, _seconds, True),
    "p99 s": (lambda run: run.p99_s, _seconds, True),
    "max s": (lambda run: run.max_s, _seconds, False),
    "given up": (lambda run: run.timeouts, _count, True),
    "503": (lambda run: run.refused, _count, True),
    "broken": (lambda run: run.broken, _count, False),
    "billed, unread": (lambda run: run.unread, _count, True),
    "health p50 s": (lambda run: run.health_p50_s, _seconds, True),
    "health max s": (lambda run: run.health_max_s, _seconds, False),
    "threads": (lambda run: run.threads, _count, False),
    "peak MB": (lambda run: run.peak_mb, _rate, True),
}


def table(title: str, found: dict[Cell, list[Run]], brief: bool) -> str:
    """Markdown: the median of every figure, with its range over the runs where they differ as printed."""
    columns = {name: column for name, column in COLUMNS.items() if column[2] or not brief}
    lines = [["clients", "server", "Little's law", *columns], ["---:", "---", *["---:"] * (len(columns) + 1)]]
    for (load, clients, server), runs in found.items():
        if load == title:
            ideal = min(clients, SERVERS[server][1]) / LOADS[title][1]
            figures = [spread([read(run) for run in runs], said) for read, said, _ in columns.values()]
            lines.append([f"{clients:,}", server, _rate(ideal), *figures])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float], said: Callable[[float], str]) -> str:
    middle, low, high = said(statistics.median(values)), said(min(values)), said(max(values))
    return middle if low == high else f"{middle} ({low} to {high})"


def tables(found: dict[Cell, list[Run]], brief: bool) -> str:
    return "\n\n".join(f"**{title}**\n\n{table(title, found, brief)}" for title in LOADS)


def conditions(runs: int, seconds: float, found: dict[Cell, list[Run]]) -> str:
    """Under what these figures hold."""
    busiest = max(run.client_cpu for cell in found.values() for run in cell)
    several = f"Medians (and ranges) of {runs} runs" if runs > 1 else "One run"
    machine = f"{date.today()}, {platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return (
        f"{several} of {seconds:g} s after {WARM_UP_S:g} s, {machine}. Clients give up after {LIMIT_S:g} s; "
        f"percentiles are of answers and of requests given up. The clients used at most {busiest:.0%} of their core."
    )


def write(found: dict[Cell, list[Run]], told: str) -> None:
    """The report with all columns, and the page for newcomers with some of them."""
    head = "# A blocking server and an event loop\n\nBy `make bench-serving`; docs/serving.md explains it."
    REPORT.write_text(f"{head} {told}\n\n{tables(found, brief=False)}\n", encoding="utf-8")
    picture = f"![The same in pictures]({PLOT.name})\n\n" if drawn(found) else ""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE} has lost its markers"
    PAGE.write_text(
        f"{before}{BEGIN}\n{told}\n\n{tables(found, brief=True)}\n\n{picture}{END}{after}", encoding="utf-8"
    )


def drawn(found: dict[Cell, list[Run]]) -> bool:
    """Whether the plot could be made: what the clients and the health check saw, by the number of clients."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot without matplotlib: pip install 'llmbatch[plot]'", file=sys.stderr)
        PLOT.unlink(missing_ok=True)  # an old one would contradict the new tables
        return False
    figure = Figure(figsize=(10, 9), layout="constrained")
    grid = figure.subplots(len(PANELS), len(LOADS), sharex=True, sharey="row", squeeze=False)
    sizes = sorted({clients for _, clients, _ in found})
    for title, panels in zip(LOADS, grid.T, strict=True):
        for (column, says), panel in zip(PANELS.items(), panels, strict=True):
            for server in SERVERS:
                # Above the clients' limit there is nothing to see: a line of seconds ends on it.
                values = [_middle(found[title, size, server], column) for size in sizes]
                values = [value if math.isfinite(value) else LIMIT_S for value in values]
                panel.plot(sizes, values, marker="o", label=server)
            panel.set(xscale="log", ylabel=says)
            panel.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        panels[0].set(title=title, yscale="log")
        panels[-1].set(xlabel="clients")
    grid[0][0].legend()
    with rc_context({"svg.hashsalt": "serving", "svg.fonttype": "none"}):
        figure.savefig(PLOT, metadata={"Date": None})
    return True


PANELS = {
    "answers/s": "answers per second",
    "p99 s": f"p99 of answers in s (clients give up at {LIMIT_S:g})",
    "health p50 s": "median health check in s",
}


def _middle(runs: Sequence[Run], column: str) -> float:
    read, _, _ = COLUMNS[column]
    return statistics.median(read(run) for run in runs)


def main() -> int:
    parser = arguments(__doc__, runs=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument(
        "--write", action="store_true", help="keep the figures in benchmarks/SERVING.md and docs/serving.md"
    )
    options = parser.parse_args()
    raise_file_limit()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found = measure_all(options.clients, options.runs, options.seconds)
    told = conditions(options.runs, options.seconds, found)
    print(f"{told}\n\n{tables(found, brief=False)}")
    keep(options.json, "serving", {" / ".join(map(str, cell)): runs for cell, runs in found.items()})
    if options.write:
        write(found, told)
    return 1 if any(run.broken for runs in found.values() for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
