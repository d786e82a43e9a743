"""What a run asks of the machine it is on: file descriptors, a fast loop, a patient garbage collector."""

from __future__ import annotations

import asyncio
import gc
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Files, pipes, the loop's own, and those of whoever runs us as a library.
SPARE_DESCRIPTORS = 64


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
