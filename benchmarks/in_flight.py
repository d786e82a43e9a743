"""Ten thousand in flight: 20,000 rows of 4 s each, 10,000 at once (ideal: 8 s).

Wall time, CPU and peak memory of the floor and of llmbatch, and how many requests the server held at once.
Targets: wall and memory of llmbatch each at most 1.25 times the floor's, and no errors.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import clients
from measure import Cost, arguments, interleaved, keep, medians, table, verdict
from nginx_echo import EchoServer, nginx_echo
from rows import write_rows

TARGET_RATIO = 1.25
SAMPLE_S = 0.1


class Peak:
    """The most requests seen in flight at the server, sampled from a thread that lives as long as the block."""

    def __init__(self) -> None:
        self.requests = 0

    @contextmanager
    def watching(self, server: EchoServer) -> Iterator[None]:
        done = threading.Event()
        thread = threading.Thread(target=self._sample, args=[server, done], daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _sample(self, server: EchoServer, done: threading.Event) -> None:
        while not done.wait(SAMPLE_S):
            self.requests = max(self.requests, server.in_flight())


def main() -> int:
    parser = arguments(__doc__, runs=3)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("-c", "--concurrency", type=int, default=10_000)
    parser.add_argument("--delay", type=float, default=4.0, metavar="SECONDS")
    options = parser.parse_args()
    ideal_s = -(-options.rows // options.concurrency) * options.delay
    names = clients.present(["floor", "llmbatch"])
    peaks = {name: Peak() for name in names}
    with tempfile.TemporaryDirectory() as folder, nginx_echo(options.delay) as server:
        source = write_rows(Path(folder, "in.jsonl"), options.rows)

        def once(name: str) -> Cost:
            with peaks[name].watching(server):
                return clients.send_all(
                    name, source, options.rows, server.base_url, options.concurrency, ideal_s * 4 + 60
                )

        costs = interleaved(names, options.runs, once)
    middle = {name: medians(of_name) for name, of_name in costs.items()}
    peak_requests = {name: peak.requests for name, peak in peaks.items()}
    keep(options.json, "in_flight", {"ideal_s": ideal_s, "costs": costs, "peak_in_flight": peak_requests})
    show(middle, peak_requests, ideal_s)
    return 1 if any(cost.errors for cost in middle.values()) else 0


def show(middle: dict[str, Cost], peak_requests: dict[str, int], ideal_s: float) -> None:
    """The table, and how llmbatch stands to its targets."""
    floor = middle["floor"]
    lines = [
        [
            name,
            f"{cost.wall_s:.2f}",
            f"{cost.wall_s / floor.wall_s:.2f}",
            f"{cost.cpu_s:.2f}",
            f"{cost.cpu_s / floor.cpu_s:.2f}",
            f"{cost.peak_mb:.0f}",
            f"{cost.peak_mb / floor.peak_mb:.2f}",
            f"{peak_requests[name]:,}",
            str(cost.errors),
        ]
        for name, cost in middle.items()
    ]
    headers = ["client", "wall s", "x floor", "CPU s", "x floor", "peak MB", "x floor", "held by server", "errors"]
    print(table(headers, lines))
    print(f"ideal wall: {ideal_s:g} s")
    if "llmbatch" in middle:
        ours = middle["llmbatch"]
        print(f"wall of llmbatch / floor: {verdict(ours.wall_s / floor.wall_s, TARGET_RATIO, ours.errors)}")
        print(f"memory of llmbatch / floor: {verdict(ours.peak_mb / floor.peak_mb, TARGET_RATIO, ours.errors)}")


if __name__ == "__main__":
    sys.exit(main())
