"""Threads for hooks that block."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_Task = tuple[Future[Any], Callable[[], Any]]


class DaemonThreads:
    """At most ``most`` threads, started when they are needed.

    They are daemons, as those of ThreadPoolExecutor are not: a hook that hangs must not keep the process from exiting.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._started = 0
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """``call``, in the next free thread. From one thread only."""
        future: Future[Any] = Future()
        self._tasks.put((future, call))
        if not self._idle.acquire(blocking=False) and self._started < self._most:
            self._started += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()
        return future

    def close(self) -> None:
        """No further calls. Threads end when their call does; nobody waits for them."""
        for _ in range(self._started):
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # whoever waits for it gets it
                    future.set_exception(error)
            self._idle.release()
