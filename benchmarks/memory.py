"""Memory must not grow with the file: peak of 1,000,000 rows against 10,000 rows, with and without ids.

A server without delay, 64 in flight. Target: llmbatch needs at most 15 MB more for the long file.
A million rows take minutes, so one run is the default.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import clients
from measure import Cost, arguments, interleaved, keep, medians, table, verdict
from nginx_echo import nginx_echo
from rows import write_rows

TARGET_MB = 15.0
CONCURRENCY = 64
# Far more than a row can take, so that only a run that hangs is killed.
TIMEOUT_PER_ROW_S = 0.002


def main() -> int:
    parser = arguments(__doc__, runs=1)
    parser.add_argument("--rows", type=int, nargs=2, default=(10_000, 1_000_000), metavar=("FEW", "MANY"))
    options = parser.parse_args()
    few, many = options.rows
    kinds = [(name, ids) for name in clients.present(["floor", "llmbatch"]) for ids in (False, True)]
    cases = {f"{name}, {_with(ids)}, {rows}": (name, ids, rows) for name, ids in kinds for rows in (few, many)}
    with tempfile.TemporaryDirectory() as folder, nginx_echo() as server:

        def once(case: str) -> Cost:
            name, ids, rows = cases[case]
            source = write_rows(Path(folder, "in.jsonl"), rows, ids=ids)
            return clients.send_all(name, source, rows, server.base_url, CONCURRENCY, 60 + rows * TIMEOUT_PER_ROW_S)

        costs = interleaved(list(cases), options.runs, once)
    keep(options.json, "memory", costs)
    middle = {cases[case]: medians(of_case) for case, of_case in costs.items()}
    lines = [line(name, ids, middle[name, ids, few], middle[name, ids, many]) for name, ids in kinds]
    headers = ["client", f"{few:,} rows MB", f"{many:,} rows MB", "difference MB", "target MB", "errors"]
    print(table(headers, lines))
    return 1 if any(cost.errors for cost in middle.values()) else 0


def _with(ids: bool) -> str:
    return "with ids" if ids else "without ids"


def line(name: str, ids: bool, small: Cost, large: Cost) -> list[str]:
    more_mb = large.peak_mb - small.peak_mb
    errors = small.errors + large.errors
    goal = verdict(more_mb, TARGET_MB, errors) if name == "llmbatch" else ""
    return [
        f"{name}, {_with(ids)}",
        f"{small.peak_mb:.1f}",
        f"{large.peak_mb:.1f}",
        f"{more_mb:.1f}",
        goal,
        str(errors),
    ]


if __name__ == "__main__":
    sys.exit(main())
