"""Lines to standard output, in a thread of their own: a slow reader slows the run down, and never stalls the loop."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from llmbatch.files.paths import write_all

STDOUT_FD = 1
# What may wait for a slow reader before no further row is taken.
MAX_WAITING_BYTES = 8 * 2**20


class StdoutWriter:
    """Writes what it is given, in order. ``on_error`` is called once, from the loop, if a write fails.

    The thread is a daemon: a write that waits for a stuck reader must not keep the process from exiting.
    """

    def __init__(self, on_error: Callable[[OSError], None], fd: int = STDOUT_FD) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_error = on_error
        self._fd = fd
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._moved = asyncio.Event()
        self._ended = asyncio.Event()
        self._abandoned = False
        self.error: OSError | None = None
        threading.Thread(target=self._pump, name="llmbatch-stdout", daemon=True).start()

    def put(self, data: bytes) -> None:
        """Hand over some lines; returns at once."""
        self._waiting_bytes += len(data)
        self._queue.put(data)

    async def room(self) -> None:
        """Wait while the reader is far behind."""
        while self._waiting_bytes > MAX_WAITING_BYTES and self.error is None and not self._abandoned:
            self._moved.clear()
            await self._moved.wait()

    async def close(self) -> None:
        """Wait until all is written, or the reader is gone or given up."""
        self._queue.put(None)
        await self._ended.wait()

    def abandon(self) -> None:
        """Wait no longer for a reader that does not read."""
        self._abandoned = True
        self._moved.set()
        self._ended.set()

    @property
    def delivered(self) -> bool:
        """Everything handed over so far was written."""
        return self.error is None and self._waiting_bytes == 0

    def _pump(self) -> None:
        while (data := self._queue.get()) is not None:
            error = self._write(data)
            if not self._tell(self._wrote, len(data), error):
                return
        self._tell(self._ended.set)

    def _write(self, data: bytes) -> OSError | None:
        if self.error is not None:
            return None
        try:
            write_all(self._fd, data)
        except OSError as error:
            return error
        return None

    def _tell(self, act: Callable[..., None], *values: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(act, *values)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return False
        return True

    def _wrote(self, size: int, error: OSError | None) -> None:
        self._waiting_bytes -= size
        self._moved.set()
        if error is not None and self.error is None:
            self.error = error
            self._on_error(error)


def is_same_file(path: str, fd: int) -> bool:
    """True if ``path`` exists and is the regular file behind the open descriptor ``fd``."""
    try:
        return os.path.samestat(Path(path).stat(), os.fstat(fd))
    except OSError:
        return False
