"""How soon llmbatch is there: ``--version``, ``--help``, and the first request of a run.

Process start to exit for the first two (targets 0.15 s and 0.25 s), process start to the first bytes of a
request at a server for the third, with 10 rows and with 1,000,000 rows of input. Warm: one run before
those that count.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import clients
from measure import arguments, keep, kill_group, run_child, table, verdict
from rows import write_rows

TARGETS_S = {"--version": 0.15, "--help": 0.25}
TIMEOUT_S = 60.0


def main() -> int:
    parser = arguments(__doc__, runs=11)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the large input")
    options = parser.parse_args()
    names = clients.present(["floor", "llmbatch"])
    times: dict[str, list[float]] = {}
    if "llmbatch" in names:
        for flag in TARGETS_S:
            times[f"llmbatch {flag}"] = [exit_time([*clients.LLMBATCH, flag]) for _ in range(options.runs + 1)][1:]
    with tempfile.TemporaryDirectory() as folder:
        for rows in (10, options.rows):
            source = write_rows(Path(folder, f"{rows}.jsonl"), rows)
            for name in names:
                samples = [first_request_s(name, source) for _ in range(options.runs + 1)]
                times[f"{name}, first of {rows:,} rows"] = samples[1:]
    keep(options.json, "startup", times)
    print(table(["what", "median s", "worst s", "target"], [line(what, of_what) for what, of_what in times.items()]))
    return 0


def line(what: str, samples_s: list[float]) -> list[str]:
    median_s = statistics.median(samples_s)
    target_s = TARGETS_S.get(what.removeprefix("llmbatch "))
    goal = "" if target_s is None else verdict(median_s, target_s)
    return [what, f"{median_s:.3f}", f"{max(samples_s):.3f}", goal]


def exit_time(command: list[str]) -> float:
    """Seconds from start to exit; RuntimeError if it fails, for then the time means nothing."""
    cost = run_child(command, TIMEOUT_S)
    if cost.exit_code:
        raise RuntimeError(f"{' '.join(command)}: exit {cost.exit_code}: {cost.stderr}")
    return cost.wall_s


def first_request_s(name: str, source: Path) -> float:
    """Seconds from the client's start until the first bytes of a request are here; it is killed then."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT_S)
        base_url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        command = clients.command(name, source, Path(folder, "out.jsonl"), base_url, 4)
        start_s = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(TIMEOUT_S)
                connection.recv(1)
                return time.perf_counter() - start_s
        finally:
            kill_group(child.pid)
            child.wait()
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
