"""Two processes in one limit group: do they use the whole budget, and is it shared evenly?

Two real processes spend one limit of requests per minute as fast as they may. Targets: together within 1 % of the
budget, each at least 40 % of it. The first second, in which they find each other, does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import table

from llmbatch.files.limit_group import LimitGroup

RATES = (600, 6000)
PROCESSES = 2
START_S = 1.0
WARM_UP_S = 1.0
WITHIN = 0.01
LEAST_SHARE = 0.4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each rate is measured (default 20)")
    parser.add_argument("--spend", nargs=3, metavar=("DIRECTORY", "PER_MINUTE", "BEGIN_S"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.spend:
        directory, per_minute, begin_s = options.spend
        print(json.dumps(asyncio.run(spend(Path(directory), float(per_minute), float(begin_s), options.seconds))))
        return 0
    headers = ["per minute", *(f"process {number}" for number in range(1, PROCESSES + 1)), "together", "target"]
    print(table(headers, [line(per_minute, measure(per_minute, options.seconds)) for per_minute in RATES]))
    return 0


def line(per_minute: int, shares: list[float]) -> list[str]:
    """``shares`` are the parts of the budget that each process used."""
    together = sum(shares)
    met = abs(together - 1) <= WITHIN and min(shares) >= LEAST_SHARE
    target = f"{'met' if met else 'MISSED'} (within {WITHIN:.0%}, each >= {LEAST_SHARE:.0%})"
    return [f"{per_minute:,}", *(f"{share:.1%}" for share in shares), f"{together:.2%}", target]


def measure(per_minute: int, seconds: float) -> list[float]:
    """What part of the budget each process used."""
    with tempfile.TemporaryDirectory() as directory:
        begin_s = time.monotonic() + START_S
        command = [sys.executable, __file__, "--seconds", str(seconds)]
        command += ["--spend", directory, str(per_minute), str(begin_s)]
        children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
        try:
            said = [child.communicate(timeout=seconds + 30)[0] for child in children]
        finally:
            for child in children:
                child.kill()
                child.wait()
    return [json.loads(text) / (per_minute / 60 * seconds) for text in said]


async def spend(directory: Path, per_minute: float, begin_s: float, seconds: float) -> int:
    """Requests that were taken in ``seconds`` after the first one from ``begin_s`` on (time.monotonic)."""
    group = LimitGroup.open("bench", directory, lambda text: print(text, file=sys.stderr))
    meter = group.meter("account", "requests", per_minute)
    loop = asyncio.get_running_loop()
    first_s, taken = begin_s + WARM_UP_S, 0
    await asyncio.sleep(max(0.0, begin_s - time.monotonic()))
    while (now_s := time.monotonic()) < first_s + seconds:
        if (wait_s := meter.wait_s(loop.time())) > 0:
            await asyncio.sleep(wait_s)
        else:
            meter.take(loop.time())
            taken += now_s >= first_s
    group.close()
    return taken


if __name__ == "__main__":
    sys.exit(main())
