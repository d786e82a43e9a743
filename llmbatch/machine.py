"""What a run asks of the machine it is on: file descriptors, a fast loop, a patient garbage collector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

# Files, pipes, the loop's own, and those of whoever runs us as a library.
SPARE_DESCRIPTORS = 64
# <linux/prctl.h>
_PR_SET_DUMPABLE = 4


def raise_descriptors() -> int:
    """Raise the soft limit of open files to the hard one; returns how many connections fit under it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 1 << 20
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            soft = hard
        except (ValueError, OSError):
            pass  # macOS refuses more than kern.maxfilesperproc: what there is must do
    return max(1, soft - SPARE_DESCRIPTORS)


def keep_memory_private() -> None:
    """No core dump of this process, and on Linux no look into its memory by other processes of the same user.

    For a command that holds a key; a library leaves its host process as it is. Where it is not possible, nothing.
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def awake_and_asleep_s() -> float:
    """A monotonic clock that goes on while the machine is suspended, where there is one (Linux, clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class ThreadTime:
    """Seconds in which the thread that made this ran, or was ready to run and waited for a core; ask it there.

    The waiting counts on Linux only: the second number of schedstat, in nanoseconds
    (https://docs.kernel.org/scheduler/sched-stats.html).
    """

    def __init__(self) -> None:
        self._waited_ns: Callable[[], int] = lambda: 0
        with contextlib.suppress(OSError, ValueError, IndexError):
            fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, fd)
            waited_ns = partial(_waited_ns, fd)
            waited_ns()
            self._waited_ns = waited_ns

    def __call__(self) -> float:
        return time.thread_time() + self._waited_ns() / 1e9


def _waited_ns(fd: int) -> int:
    return int(os.pread(fd, 64, 0).split()[1])


def fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop where uvloop exists; it halves the CPU time of a request."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@contextmanager
def patient_collector() -> Iterator[None]:
    """Collect garbage rarely. Rows make no cycles, and with thousands of requests in flight the collector walks all
    that is alive again and again: a quarter to a half of the CPU time. Restored at the end."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
