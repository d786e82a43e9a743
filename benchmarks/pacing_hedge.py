"""Stragglers: what `--hedge p95` makes of the slowest rows, and what it costs in requests.

A server whose answers take a lognormal time, and 1 % (or 2 %) of them 20 times that. First in virtual time, with the
real scheduler, retry, hedge and limiter before a script of answers; then a short real run against `llmbatch sim`.

With 1 % of slow answers the p99 stands at their edge, and is another one in each small sample: all seeds count as one.
`true` is the p99 of the distribution itself, `floor` what it is when a second request for each of the slowest 5 % is
sent in the moment in which it is known to be one of them. A row is then later than x if its first request is and the
second one, too. Where the floor is above a half, no 5 % can halve the p99.

    python benchmarks/pacing_hedge.py [--rows 20000] [--seeds 5] [--no-real]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clients import LLMBATCH
from measure import keep, table
from pacing_virtual import run_virtually
from rows import write_rows

from llmbatch.calls.lane import Account
from llmbatch.calls.limit import ABANDONED
from llmbatch.calls.stack import build
from llmbatch.events import Event, Hedged
from llmbatch.options import RetryLimits
from llmbatch.records import Attempt, Reply, Request, Trace, Usage
from llmbatch.rules.hedge import Hedging
from llmbatch.rules.window import FixedWindow
from llmbatch.scheduler import Job, Outcome, Scheduler
from llmbatch.sim.distributions import Distribution, parse_distribution

MOST_EXTRA = 0.05
SHAPES = ("sigma=0.6,tail=0.01x20", "sigma=0.6,tail=0.02x20", "sigma=1.2,tail=0.01x20", "sigma=1.2,tail=0.02x20")
REAL_MEDIAN_S = 0.05
REAL_ROWS = 4_000


@dataclass(frozen=True, slots=True)
class Run:
    """The seconds of each row, the second requests as a share of the rows, and the time of the whole."""

    rows_s: list[float]
    extra: float
    wall_s: float


def percentile(runs: list[Run], percent: float) -> float:
    """Of the rows of all ``runs`` (nearest rank)."""
    ordered = sorted(seconds for run in runs for seconds in run.rows_s)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


class Server:
    """In the place of the wire: answers after a time that is drawn."""

    def __init__(self, latency: Distribution, seed: int) -> None:
        self._latency = latency
        self._chance = random.Random(seed)
        self.received = 0

    async def __call__(self, request: Request, trace: Trace, /) -> Reply:
        self.received += 1
        loop = asyncio.get_running_loop()
        attempt = Attempt(loop.time())
        trace.attempts.append(attempt)
        try:
            await asyncio.sleep(self._latency.at(self._chance.random() or 0.5, self._chance.random()))
        except asyncio.CancelledError:
            attempt.failure = ABANDONED
            raise
        attempt.latency_s = loop.time() - attempt.sent_s
        return Reply("", "stop", "m", Usage())


class Rows:
    """A feed of so many rows, and where they end."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.seconds: list[float] = []

    def take(self) -> Job | None:
        if not self._left:
            return None
        self._left -= 1
        return Job(self._left, None, "", Request("m"))

    async def refill(self) -> bool:
        return False

    def finish(self, job: Job, outcome: Outcome, trace: Trace) -> Awaitable[None] | None:
        assert isinstance(outcome, Reply), "nothing fails here"
        self.seconds.append(trace.attempts[-1].latency_s)
        return None


async def sent(latency: Distribution, count: int, concurrency: int, seed: int, *, hedge: bool) -> Run:
    """All rows, with so many in flight at all times."""
    server, rows, events = Server(latency, seed), Rows(count), list[Event]()
    clock = asyncio.get_running_loop().time
    scheduler = Scheduler(rows, rows.finish)
    stack = build(
        [Account("virtual", server)],
        window=lambda: FixedWindow(concurrency),
        retry=RetryLimits(),
        rest=scheduler.rest,
        clock=clock,
        chance=random.random,
        listen=events.append,
        hedging=Hedging() if hedge else None,
    )
    await scheduler.run(stack.call, stack.capacity)
    await stack.settled()
    twice = sum(isinstance(event, Hedged) for event in events)
    assert server.received == count + twice, "every second request is told"
    return Run(rows.seconds, twice / count, clock())


def virtual(shape: str, count: int, concurrency: int, seed: int, *, hedge: bool) -> Run:
    latency = parse_distribution(f"lognormal:median=1,{shape}")
    return run_virtually(sent(latency, count, concurrency, seed, hedge=hedge))


def floor_p99(shape: str) -> tuple[float, float]:
    """The p99 of the distribution with a median of 1 s, and with a second request for each of the slowest 5 %."""
    latency = parse_distribution(f"lognormal:median=1,{shape}")
    sigma, normal = latency.values[1], statistics.NormalDist()

    def later(seconds: float) -> float:
        if seconds <= 0:
            return 1.0
        usual, slow = (1 - normal.cdf(math.log(seconds / factor) / sigma) for factor in (1.0, latency.tail_factor))
        return (1 - latency.tail_rate) * usual + latency.tail_rate * slow

    p95 = _where(later, 0.05)
    return _where(later, 0.01), _where(lambda seconds: later(seconds) * later(seconds - p95), 0.01)


def _where(falling: Callable[[float], float], value: float) -> float:
    low, high = 1e-3, 1e4
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if falling(middle) > value else (low, middle)
    return low


def line(name: str, true_p99: float, floor: float, without: list[Run], hedged: list[Run]) -> list[str]:
    p99, p995 = ([percentile(runs, percent) for runs in (without, hedged)] for percent in (99, 99.5))
    wall = [statistics.median(run.wall_s for run in runs) for runs in (without, hedged)]
    extra = max(run.extra for run in hedged)
    return [
        name,
        f"{true_p99:.2f}",
        f"{p99[0]:.2f} > {p99[1]:.2f}",
        f"{p99[1] / true_p99:.2f}",
        f"{floor / true_p99:.2f}",
        f"{p995[1] / p995[0]:.2f}",
        f"{wall[1] / wall[0]:.2f}",
        f"{extra:.1%}",
        _goal(p99[1] / true_p99, floor / true_p99, extra),
    ]


def _goal(ratio: float, floor: float, extra: float) -> str:
    if ratio <= 0.5 and extra <= MOST_EXTRA:
        return "met"
    return "MISSED" if floor <= 0.5 or extra > MOST_EXTRA else "out of reach"


@contextmanager
def simulator(shape: str) -> Iterator[str]:
    """A running `llmbatch sim`; gives its base URL."""
    command = [*LLMBATCH, "sim", "--port", "0", "--latency", f"lognormal:median={REAL_MEDIAN_S},{shape}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield next(word for word in process.stdout.readline().split() if word.startswith("http"))
    finally:
        process.kill()
        process.wait()


def real(shape: str, count: int, concurrency: int, *, hedge: bool) -> Run:
    """The command itself against the simulated provider, whose ledger says how many requests it saw."""
    with tempfile.TemporaryDirectory() as folder, simulator(shape) as base_url:
        output, summary = Path(folder, "out.jsonl"), Path(folder, "summary.json")
        source = write_rows(Path(folder, "in.jsonl"), count)
        flags = ["-m", "m", "--base-url", base_url, "-c", str(concurrency), "--progress", "none"]
        files = [str(source), "-o", str(output), "--summary-json", str(summary)]
        subprocess.run(
            [*LLMBATCH, "run", *files, *flags, *(["--hedge", "p95"] if hedge else [])],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        lines = [json.loads(text) for text in output.read_bytes().splitlines()]
        with urllib.request.urlopen(f"{base_url}/ledger", timeout=10) as answer:
            received = json.load(answer)["received"]
        rows_s = [row["latency_s"] for row in lines if "latency_s" in row]
        return Run(rows_s, received / count - 1, json.loads(summary.read_text())["wall_s"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="of each virtual run")
    parser.add_argument("--seeds", type=int, default=5, help="take the median of this many")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--no-real", action="store_true", help="virtual time only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every measurement in FILE")
    options = parser.parse_args()
    lines = []
    for shape in SHAPES:
        pair = [
            [virtual(shape, options.rows, options.concurrency, seed, hedge=hedge) for seed in range(options.seeds)]
            for hedge in (False, True)
        ]
        lines.append(line(shape, *floor_p99(shape), *pair))
    for shape in () if options.no_real else SHAPES:
        pair = [[real(shape, REAL_ROWS, options.concurrency, hedge=hedge)] for hedge in (False, True)]
        lines.append(line(f"real, {shape}", *(p99 * REAL_MEDIAN_S for p99 in floor_p99(shape)), *pair))
    head = [
        "latency",
        "true p99",
        "p99, without > with",
        "with / true",
        "floor",
        "p99.5",
        "wall",
        "extra",
        "p99 halved",
    ]
    keep(options.json, "pacing_hedge", {"head": head, "lines": lines})
    print(table(head, lines))
    print(f"median 1 s, real {REAL_MEDIAN_S:g} s; p99.5 and wall: with / without; extra: second requests, target 5 %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
