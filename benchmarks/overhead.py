"""CPU per request: what llmbatch adds to the least that a run over aiohttp costs.

A server without delay, 64 in flight, 50,000 rows. The CPU is user and system time of the whole process, its
start included. Target: llmbatch at most 2.5 times the floor.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import clients
from measure import arguments, interleaved, keep, medians, table, verdict
from nginx_echo import nginx_echo
from rows import write_rows

TARGET_RATIO = 2.5
CONCURRENCY = 64
TIMEOUT_S = 120.0


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    options = parser.parse_args()
    names = clients.present(["floor", "gather", "llmbatch"])
    with tempfile.TemporaryDirectory() as folder, nginx_echo() as server:
        source = write_rows(Path(folder, "in.jsonl"), options.rows)
        costs = interleaved(
            names,
            options.runs,
            lambda name: clients.send_all(name, source, options.rows, server.base_url, CONCURRENCY, TIMEOUT_S),
        )
    keep(options.json, "overhead", costs)
    middle = {name: medians(of_name) for name, of_name in costs.items()}
    floor = middle["floor"]
    lines = [
        [
            name,
            f"{cost.cpu_s / options.rows * 1000:.4f}",
            f"{cost.cpu_s / floor.cpu_s:.2f}",
            f"{options.rows / cost.wall_s:,.0f}",
            f"{cost.peak_mb:.0f}",
            str(cost.errors),
        ]
        for name, cost in middle.items()
    ]
    print(table(["client", "CPU ms/request", "x floor", "requests/s", "peak MB", "errors"], lines))
    if "llmbatch" in middle:
        ours = middle["llmbatch"]
        print(f"CPU of llmbatch / floor: {verdict(ours.cpu_s / floor.cpu_s, TARGET_RATIO, ours.errors)}")
    return 1 if any(cost.errors for cost in middle.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
