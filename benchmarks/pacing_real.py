"""The same in real time, as a sample: `llmbatch run` against `llmbatch sim`, two processes over loopback.

The figures are the provider's own, from its ledger of each second (/ledger?times), from the tenth second on. The
throughput of a server that queues is compared with that of a fixed --concurrency of 1.1 times its slots.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients import LLMBATCH
from measure import table
from rows import write_rows

SECONDS = 45.0
FROM_S = 10
LATENCY = "lognormal:median=1.2,sigma=0.6"
SAMPLE_S = 0.5
_PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Limited:
    """A provider with a limit: ``used`` and ``refused`` are the bounds asked for."""

    name: str
    rpm: int
    run: tuple[str, ...]
    used: float
    refused: float
    sim: tuple[str, ...] = ()


LIMITED = (
    Limited("600 RPM known", 600, ("--rpm", "600"), 0.99, 0.001),
    Limited("6,000 RPM known", 6000, ("--rpm", "6000"), 0.99, 0.001),
    Limited("1,200 RPM from headers", 1200, (), 0.97, 0.005),
    Limited("1,200 RPM from 429s", 1200, (), 0.92, 0.02, ("--no-headers",)),
)
SLOTS = 64


@dataclass(frozen=True, slots=True)
class Seen:
    """What the ledger told at the end, and how many requests were in flight at each look."""

    times: Mapping[str, Sequence[int]]
    in_flight: Sequence[int]

    def per_s(self, name: str, seconds: float) -> float:
        """The mean over whole seconds from the tenth on."""
        counts = self.times[name][FROM_S : int(seconds)]
        return sum(counts) / max(1, int(seconds) - FROM_S)

    @property
    def refused_share(self) -> float:
        refused = sum(self.times["refused"])
        return refused / max(1, refused + sum(self.times["accepted"]))

    @property
    def mean_in_flight(self) -> float:
        looks = self.in_flight[int(FROM_S / SAMPLE_S) :]
        return sum(looks) / max(1, len(looks))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of each run (default {SECONDS:g})")
    seconds = parser.parse_args().seconds
    rows = [_limited(case, seconds) for case in LIMITED]
    print(table(["limits", "used after 10 s", "asked", "429", "asked"], rows))
    print()
    print(table(["a server that queues", "of fixed", "asked", "in flight", "asked"], [_queueing(seconds)]))
    return 0


def _limited(case: Limited, seconds: float) -> list[str]:
    flags = ["--rpm", str(case.rpm), "--burst", "1", "--latency", LATENCY, *case.sim]
    seen = _run(flags, case.run, int(case.rpm / 60 * seconds * 1.5) + 500, seconds)
    used = seen.per_s("accepted", seconds) / (case.rpm / 60)
    return [
        f"{case.name}, bucket of 1 s",
        f"{used:.1%}",
        f">= {case.used:.0%} {'met' if used >= case.used else 'MISSED'}",
        f"{seen.refused_share:.2%}",
        f"<= {case.refused:.1%} {'met' if seen.refused_share <= case.refused else 'MISSED'}",
    ]


def _queueing(seconds: float) -> list[str]:
    flags = ["--slots", str(SLOTS), "--output-tokens", "lognormal:median=100,sigma=0.6", "--tokens-per-s", "50"]
    count = int(SLOTS * seconds)
    fixed = _run(flags, ["-c", str(round(SLOTS * 1.1))], count, seconds)
    auto = _run(flags, [], count, seconds)
    share = auto.per_s("answered", seconds) / fixed.per_s("answered", seconds)
    times = auto.mean_in_flight / SLOTS
    return [
        f"{SLOTS} slots",
        f"{share:.1%}",
        f">= 97% {'met' if share >= 0.97 else 'MISSED'}",
        f"{times:.2f} x the slots",
        f"<= 1.3 {'met' if times <= 1.3 else 'MISSED'}",
    ]


def _run(sim_flags: Sequence[str], run_flags: Sequence[str], rows: int, seconds: float) -> Seen:
    with tempfile.TemporaryDirectory() as folder, _simulated(sim_flags) as base_url:
        source = write_rows(Path(folder, "in.jsonl"), rows)
        flags = ["--base-url", base_url, "-m", "bench", "--progress", "none", "-o", f"{folder}/out.jsonl", *run_flags]
        client = subprocess.Popen([*LLMBATCH, "run", str(source), *flags], stderr=subprocess.DEVNULL)
        try:
            return _watch(base_url, seconds)
        finally:
            client.send_signal(signal.SIGTERM)
            client.send_signal(signal.SIGTERM)  # what is in flight is of no interest any more
            try:
                client.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                client.kill()
                client.wait()


def _watch(base_url: str, seconds: float) -> Seen:
    """Look at the ledger from the first request on for so many seconds."""
    started_s = time.monotonic()
    while (first_s := _ledger(base_url)["times"]["first_time_s"]) is None:
        if time.monotonic() - started_s > _PATIENCE_S:
            raise RuntimeError("llmbatch has sent nothing")
        time.sleep(0.05)
    in_flight = []
    while time.time() - first_s < seconds + 1:
        in_flight.append(_ledger(base_url)["in_flight"])
        time.sleep(SAMPLE_S)
    return Seen(_ledger(base_url)["times"], in_flight)


def _ledger(base_url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{base_url}/ledger?times", timeout=_PATIENCE_S) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


@contextmanager
def _simulated(flags: Sequence[str]) -> Iterator[str]:
    """A running `llmbatch sim`; its base URL."""
    command = [*LLMBATCH, "sim", "--port", "0", "--drain", "0.2", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        match = re.search(r"http://\S+", server.stdout.readline())
        if match is None:
            raise RuntimeError(f"llmbatch sim did not start: {' '.join(command)}")
        yield match[0]
    finally:
        server.terminate()
        server.wait(_PATIENCE_S)


if __name__ == "__main__":
    sys.exit(main())
