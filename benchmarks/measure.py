"""Run a child to its end and say what it cost; medians, ratios and one table for people, JSON for machines."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# ru_maxrss is in kilobytes on Linux and in bytes on macOS (getrusage(2) of each).
_RSS_UNITS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10
_STDERR_TAIL_BYTES = 400


@dataclass(frozen=True, slots=True)
class Cost:
    """What one child process cost, start and exit included. ``errors`` are rows without an answer."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    exit_code: int
    stderr: str
    errors: int = 0


def run_child(command: Sequence[str], timeout_s: float) -> Cost:
    """Run ``command``, killing its process group after ``timeout_s``.

    CPU and peak memory are the kernel's account of that one process and its reaped children (wait4).
    """
    with tempfile.TemporaryFile() as stderr:
        start_s = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)
        timer = threading.Timer(timeout_s, kill_group, [child.pid])
        timer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            kill_group(child.pid)
            raise
        finally:
            timer.cancel()
        wall_s = time.perf_counter() - start_s
        child.returncode = os.waitstatus_to_exitcode(status)
        size = stderr.seek(0, os.SEEK_END)
        stderr.seek(max(0, size - _STDERR_TAIL_BYTES))
        tail = stderr.read().decode(errors="replace")
    return Cost(
        wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / _RSS_UNITS_PER_MB, child.returncode, tail.strip()
    )


def kill_group(pid: int) -> None:
    """Kill the session a child was started in; a child that has just gone is fine."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def count_ok(path: Path) -> int:
    """Lines of ``path`` whose status is ok; 0 if it does not exist."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(b'"status":"ok"' in line for line in file)


def interleaved(names: Sequence[str], runs: int, once: Callable[[str], Cost]) -> dict[str, list[Cost]]:
    """Measure every name in turn, ``runs`` times, so that a slow minute of the machine meets them all."""
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for run in range(runs):
        for name in names:
            cost = once(name)
            costs[name].append(cost)
            note = f"run {run + 1}/{runs} {name}: {cost.wall_s:.2f} s, CPU {cost.cpu_s:.2f} s, {cost.peak_mb:.0f} MB"
            print(note, file=sys.stderr, flush=True)
    return costs


def medians(costs: Sequence[Cost]) -> Cost:
    """The median of each figure, the errors of all runs, and the worst exit code."""
    return Cost(
        wall_s=statistics.median(cost.wall_s for cost in costs),
        cpu_s=statistics.median(cost.cpu_s for cost in costs),
        peak_mb=statistics.median(cost.peak_mb for cost in costs),
        exit_code=max(abs(cost.exit_code) for cost in costs),
        stderr="",
        errors=sum(cost.errors for cost in costs),
    )


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain columns: the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in [headers, *rows]) for column in range(len(headers))]
    lines = [headers, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(_pad(cell, width, at) for at, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def verdict(measured: float, limit: float, errors: int = 0) -> str:
    """How a figure stands to its target; work that was not done has no figure."""
    if errors:
        return f"VOID ({errors} rows without an answer)"
    return f"{'met' if measured <= limit else 'MISSED'} (<= {limit:g})"


def arguments(description: str | None, runs: int = 5) -> argparse.ArgumentParser:
    """The options all benchmarks share. A SIGTERM becomes an exit, so that children are still ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs, help=f"take the median of this many (default {runs})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every measurement in FILE")
    return parser


def keep(path: Path | None, benchmark: str, results: Mapping[str, Any]) -> None:
    """Write the measurements of one benchmark, with the machine they are from, to ``path`` if it is given."""
    if path is None:
        return
    machine = {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    record = {"benchmark": benchmark, "machine": machine, "results": results}
    path.write_text(json.dumps(record, indent=1, default=asdict) + "\n", encoding="utf-8")
