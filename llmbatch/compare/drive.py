"""The process of one driver: `python -m llmbatch.compare.drive`, started for each case by measure.py.

A job comes in on standard input, pickled; what happens goes out on standard output, a line of JSON each: "ready",
"sent" (everything still open, so that it can be counted), and "done" or "failed". In between it waits for an empty
line.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import orjson

from llmbatch.compare.blocking import Item, Send, processes, sequential, threads
from llmbatch.compare.job import Endpoint, Job, Outcome
from llmbatch.hooks import HookError
from llmbatch.hooks.places import described
from llmbatch.machine import raise_descriptors
from llmbatch.rules.comparison import percentile

Opened = Callable[[Job, Endpoint], AbstractContextManager[Send]]


def main() -> None:
    """One job, from its start to its figures."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # it may hold a key
    talk = _Talk()
    raise_descriptors()
    job: Job = pickle.loads(talk.heard())  # noqa: S301  # by our own parent, through a pipe
    opened, endpoint = _driver(job), Endpoint(job)
    items: list[Item] = list(enumerate(job.rows or job.requests))
    talk.tell({"state": "ready"})
    talk.wait()
    try:
        talk.tell(_measured(lambda: opened(job, endpoint), items, talk))
    except Exception as error:  # no more threads, a hook that fails: of interest to who compares
        talk.tell({"state": "failed", "why": str(error) if isinstance(error, HookError) else described(error)})
    os._exit(0)  # taking the interpreter down piece by piece takes as long again as many a case


def _driver(job: Job) -> Opened:
    """What is not used is not imported, and is no part of its memory."""
    if job.case.driver.kind == "loop":
        from llmbatch.compare.looping import loop

        return loop
    return {"sequential": sequential, "threads": threads, "processes": processes}[job.case.driver.kind]


def _measured(opened: Callable[[], AbstractContextManager[Send]], items: Sequence[Item], talk: _Talk) -> dict[str, Any]:
    before = list(_cpu_s())
    began_s = time.perf_counter()
    with opened() as send:
        outcomes = send(items)
        wall_s = time.perf_counter() - began_s
        talk.tell({"state": "sent", "threads": threading.active_count(), "rss_mb": _max_rss_mb()})
        talk.wait()
    user_s, system_s = (after - first for after, first in zip(_cpu_s(), before, strict=True))
    return {"state": "done", "wall_s": wall_s, "user_s": user_s, "system_s": system_s, **_told(outcomes)}


def _told(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    latencies = sorted(one.latency_s for one in outcomes)
    good = sorted((one.row, one.answer) for one in outcomes if one.failure is None)
    return {
        "ok": len(good),
        "failures": dict(Counter(one.failure for one in outcomes if one.failure is not None)),
        "latency_p50_s": percentile(latencies, 50),
        "latency_p95_s": percentile(latencies, 95),
        "latency_max_s": percentile(latencies, 100),
        "answers": f"{zlib.crc32(repr(good).encode()):08x}",
    }


def _cpu_s() -> Iterator[float]:
    """User and system seconds of this process and of the children that have ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    yield own.ru_utime + children.ru_utime
    yield own.ru_stime + children.ru_stime


def _max_rss_mb() -> float:
    """ru_maxrss is in kilobytes on Linux and in bytes on macOS (getrusage(2) of each)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class _Talk:
    """With the parent. What hooks print goes to standard error."""

    def __init__(self) -> None:
        self._in: BinaryIO = sys.stdin.buffer
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)

    def heard(self) -> bytes:
        """One message: its length in eight bytes, then that many; if the parent is gone before, so are we."""
        length = self._in.read(8)
        message = self._in.read(int.from_bytes(length, "big"))
        if len(length) < 8 or len(message) < int.from_bytes(length, "big"):
            os._exit(1)
        return message

    def wait(self) -> None:
        """Until the parent says go on; if it is gone, so are we."""
        if not self._in.readline():
            os._exit(1)

    def tell(self, what: dict[str, Any]) -> None:
        self._out.write(orjson.dumps(what) + b"\n")


if __name__ == "__main__":
    main()
