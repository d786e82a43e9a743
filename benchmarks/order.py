"""What the order of rows costs of one processor, in microseconds a row, beside the whole request's hundreds.

    python benchmarks/order.py

Rows that ask for no order (short ones) may cost 2 µs.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator

from llmbatch.lineup import Lineup
from llmbatch.records import Request, Trace
from llmbatch.scheduler import Job, Outcome

ROWS = 30_000
REPEATS = 7
LONG = "A long instruction. " * 250


class _Feed:
    """All rows at once."""

    def __init__(self, jobs: list[Job]) -> None:
        self._jobs = deque(jobs)

    def take(self) -> Job | None:
        return self._jobs.popleft() if self._jobs else None

    async def refill(self) -> bool:
        return False


def _row(number: int, text: str, tenant: str | None = None) -> Job:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    return Job(number, None, "key", Request("m", messages, {"temperature": 0.5}), tenant=tenant)


def _cases() -> Iterator[tuple[str, list[Job]]]:
    numbers = range(ROWS)
    yield "short", [_row(number, f"{number} {'x' * 200}") for number in numbers]
    yield "seven tenants", [_row(number, f"{number} {'x' * 200}", f"t{number % 7}") for number in numbers]
    yield "one long beginning", [_row(number, f"{LONG}{number}") for number in numbers]
    yield "all begin differently", [_row(number, f"{number} {LONG}") for number in numbers]


def _finish(job: Job, outcome: Outcome, trace: Trace) -> None:
    return None


async def _us_a_row(jobs: list[Job], *, ordered: bool) -> float:
    feed, trace, taken = _Feed(jobs), Trace(), 0
    async with Lineup(feed, None, None, time.monotonic) as lineup:
        take, finish = (lineup.take, lineup.watching(_finish)) if ordered else (feed.take, _finish)
        began_s = time.process_time()
        while taken < len(jobs):
            job = take()
            if job is None:
                await lineup.refill()
                continue
            finish(job, None, trace)
            taken += 1
        return (time.process_time() - began_s) / len(jobs) * 1e6


def main() -> None:
    """Print the table."""
    for name, jobs in _cases():
        plain, ordered = (
            min(asyncio.run(_us_a_row(jobs, ordered=ordered)) for _ in range(REPEATS)) for ordered in (False, True)
        )
        print(f"{name:<24}{ordered - plain:6.2f} µs a row")


if __name__ == "__main__":
    main()
