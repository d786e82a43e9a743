"""Waiting for many at once: 100 rows of 4 s, one after the other, 10 at once and 100 at once, process start included.

One at a time is measured with a tenth of the delay, and the rest of its waiting is added by arithmetic.
Targets: 0.6 s above the ideal at 10 in flight (40.6 s) and 0.5 s above it at 100 in flight (4.5 s).
``--delay 0.4`` scales the waiting, not the allowance.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import clients
from measure import Cost, arguments, interleaved, keep, medians, table, verdict
from nginx_echo import EchoServer, nginx_echo
from rows import write_rows

ROWS = 100
ALLOWANCE_S = {10: 0.6, 100: 0.5}
SEQUENTIAL_SCALE = 0.1


def main() -> int:
    parser = arguments(__doc__, runs=3)
    parser.add_argument("--delay", type=float, default=4.0, metavar="SECONDS")
    options = parser.parse_args()
    cases = {
        f"{client} -c {count}": (client, count)
        for count in ALLOWANCE_S
        for client in clients.present(["floor", "llmbatch"])
    }
    with tempfile.TemporaryDirectory() as folder:
        source = write_rows(Path(folder, "in.jsonl"), ROWS)
        with nginx_echo(options.delay * SEQUENTIAL_SCALE) as server:
            sequential = send(source, server, "floor", 1, options.delay)
        with nginx_echo(options.delay) as server:
            costs = interleaved(
                list(cases), options.runs, lambda case: send(source, server, *cases[case], options.delay)
            )
    keep(options.json, "waiting", {"delay_s": options.delay, "sequential_scaled": sequential, "costs": costs})
    sequential_s = sequential.wall_s + ROWS * options.delay * (1 - SEQUENTIAL_SCALE)
    lines = [
        ["one at a time", f"{sequential_s:.1f}*", f"{ROWS * options.delay:.1f}", "1.0", "", str(sequential.errors)]
    ]
    for case, of_case in costs.items():
        cost = medians(of_case)
        ideal_s = ROWS / cases[case][1] * options.delay
        goal = verdict(round(cost.wall_s, 2), round(ideal_s + ALLOWANCE_S[cases[case][1]], 2), cost.errors)
        speed = f"{sequential_s / cost.wall_s:.1f}"
        lines.append([case, f"{cost.wall_s:.2f}", f"{ideal_s:.1f}", speed, goal, str(cost.errors)])
    print(table([f"{ROWS} rows of {options.delay:g} s", "wall s", "ideal s", "x faster", "target s", "errors"], lines))
    scaled_s = options.delay * SEQUENTIAL_SCALE
    print(f"* {sequential.wall_s:.1f} s measured with {scaled_s:g} s a row, the rest is arithmetic")
    return 1 if sequential.errors or any(cost.errors for of_case in costs.values() for cost in of_case) else 0


def send(source: Path, server: EchoServer, client: str, concurrency: int, delay_s: float) -> Cost:
    return clients.send_all(client, source, ROWS, server.base_url, concurrency, ROWS * delay_s + 60)


if __name__ == "__main__":
    sys.exit(main())
