"""What a process and its children hold, seen from outside, so that looking costs them nothing. Linux only (proc(5))."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# What a driver holds it still holds at its last look, before anything is closed; those between are for peaks.
LOOK_S = 0.25
_KB_PER_MB = 1024


@dataclass(frozen=True, slots=True)
class Held:
    """At one moment, or at most; of a process and its children together. ``mb`` is resident memory."""

    mb: float = 0.0
    threads: int = 0
    files: int = 0
    processes: int = 0

    def at_least(self, other: Held) -> Held:
        """The higher of each."""
        return Held(
            max(self.mb, other.mb),
            max(self.threads, other.threads),
            max(self.files, other.files),
            max(self.processes, other.processes),
        )


def can_look() -> bool:
    return Path("/proc/self/status").exists()


def look(pid: int) -> Held:
    """Now. Memory of one process is its peak (VmHWM), of several the sum of now, with shared pages once (Pss)."""
    pids = [pid, *_descendants(pid)]
    mb, threads, files = 0.0, 0, 0
    for one in pids:
        with suppress(OSError):  # it has just ended
            status = _fields(Path(f"/proc/{one}/status"))
            threads += int(status["Threads"])
            files += len(_listed(f"/proc/{one}/fd"))
            known = status["VmHWM"] if len(pids) == 1 else _fields(Path(f"/proc/{one}/smaps_rollup"))["Pss"]
            mb += int(known.split()[0]) / _KB_PER_MB
    return Held(mb, threads, files, len(pids))


@contextmanager
def watched(pid: int) -> Iterator[list[Held]]:
    """Looks now and then, in a thread of ours; the list has one member, the most so far."""
    most = [look(pid)]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_S):
            most[0] = most[0].at_least(look(pid))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield most
    finally:
        over.set()
        watching.join()


def resident_mb(pid: int) -> float:
    """Of one process, now."""
    return int(_fields(Path(f"/proc/{pid}/status"))["VmRSS"].split()[0]) / _KB_PER_MB


def _descendants(pid: int) -> Iterator[int]:
    """Those that its main thread started, which is where our pools start theirs; there may be 10,000 others to ask."""
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from _descendants(int(child))


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208  # of 10,000 files, again and again
    except OSError:
        return []


def _fields(path: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return {name: value.strip() for name, _, value in lines}
