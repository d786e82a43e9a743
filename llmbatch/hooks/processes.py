"""Processes for hooks that compute: each is a Python of its own, so they use all cores."""

from __future__ import annotations

import functools
import gc
import inspect
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from llmbatch.hooks import HookError
from llmbatch.hooks.given import checked
from llmbatch.hooks.loading import Hook, load_hook
from llmbatch.hooks.places import described

_DIED = (
    "hook {}: its process ended in the middle of a call (out of memory, a crash in C, os._exit?); calls under way in "
    "the other processes ended with it"
)
_AWAITABLE = (
    "hook {} gave something to be awaited, which a process can not: make it 'async def', or omit --hook-processes"
)


class Processes:
    """``most`` processes, started when they are needed. Owned by the run's loop.

    "spawn", because a fork copies the locks that other threads hold at that moment.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._executor = self._fresh()

    def submit(self, hook: Hook, given: Any) -> Future[Any]:
        """What the hook gives, checked; raises HookError, or BrokenProcessPool if its process died."""
        with _sigint_blocked():
            try:
                return self._executor.submit(_call, hook.name, hook.flag, given)
            except BrokenProcessPool:  # by an earlier call
                self._executor = self._fresh()
                return self._executor.submit(_call, hook.name, hook.flag, given)

    def close(self) -> None:
        """End the processes, whatever they do: their rows stay pending."""
        executor = self._executor
        for process in list((executor._processes or {}).values()):
            process.kill()
        executor.shutdown(wait=True, cancel_futures=True)  # what it waits for is dead
        del self._executor, executor
        gc.collect()  # its semaphores are given back by their finalizers, which our quick exit leaves out

    def _fresh(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._most, mp_context=context, initializer=_begin)


def process_error(hook: Hook, error: Exception) -> HookError:
    """What went wrong between the processes, in words."""
    if isinstance(error, BrokenProcessPool):
        return HookError(_DIED.format(hook.name))
    return HookError(f"hook {hook.name}: its result can not leave its process: {described(error)}")


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """A process that starts inherits it: Ctrl-C must not end one that has not come to ``_begin``."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In the processes


def _begin() -> None:
    """Ctrl-C is for the run, which drains; and standard output is for results."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sys.stdout = sys.stderr
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A run that is killed can not end its processes, and they would wait for calls for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(name: str, flag: str, given: Any) -> Any:
    try:
        value = _loaded(name, flag).function(given)
        if inspect.iscoroutine(value):
            value.close()
    except BaseException as error:
        raise HookError(f"hook {name}: {described(error)}") from None
    if inspect.isawaitable(value):
        raise HookError(_AWAITABLE.format(name))
    return checked(value, name, flag)


@functools.cache
def _loaded(name: str, flag: str) -> Hook:
    return load_hook(name, flag)
