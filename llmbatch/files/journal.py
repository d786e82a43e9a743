"""The journal: a line handed over is in the file at once, durable within a second, and never lost to a full disk.

``append`` does not wait. One writer task takes all lines that wait and writes them together, so that under load many
lines share one hop to the writer thread; a second thread makes them durable, so that writes never wait behind a slow
disk. After a failure nothing more goes to the file: lines are saved elsewhere, and the run is told to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiofiles
import orjson

from llmbatch.errors import InternalError, StorageError
from llmbatch.files.checksum import with_checksum
from llmbatch.files.paths import OutputPaths, can_sync, cannot_open, open_private, sync_data, sync_directory
from llmbatch.files.recovery import FORMAT
from llmbatch.files.space import Space, running_full
from llmbatch.files.spill import Held, Spill

# A power cut may cost the last second. One fdatasync costs as much as 60 writes, so 256 lines share it.
SYNC_AFTER_S = 1.0
SYNC_AFTER_LINES = 256
SYNC_AFTER_BYTES = 4 * 2**20
# A disk slower than the answers would else fill the memory.
MAX_UNDURABLE_BYTES = 64 * 2**20

Written = Callable[[int], None]
_Batch = list[tuple[bytes, Written]]


class _File(Protocol):
    async def write(self, data: bytes, /) -> int: ...
    async def truncate(self, size: int, /) -> int: ...
    async def close(self) -> None: ...
    def fileno(self) -> int: ...


@dataclass(frozen=True, slots=True)
class DiskListener:
    """Who is told about the disk, from the event loop.

    ``failed``, once: lines are saved elsewhere; stop sending, drain, close. ``low``, once: there is room for what
    is in flight and for little else; stop sending. ``weak``, once: what this file system can not promise.
    """

    failed: Callable[[StorageError], None]
    low: Callable[[StorageError], None]
    weak: Callable[[str], None]


def manifest_line(fields: Mapping[str, Any]) -> bytes:
    """What every start appends: the run's own description, the format first. No secret may be in it."""
    return with_checksum(orjson.dumps({"llmbatch": FORMAT, **fields}, option=orjson.OPT_APPEND_NEWLINE))


class Journal:
    """Append-only, one owner, under the output's lock. Open it with ``Journal.open``; ``close`` drains it.

    ``failed`` is None, or the StorageError that tells what happened, where the lines are and what to do.
    ``in_flight``, kept by the owner, is how many answers may still come when nothing more is sent.
    """

    def __init__(
        self,
        path: Path,
        file: _File,
        end: int,
        spill: Spill,
        listener: DiskListener,
        threads: tuple[ThreadPoolExecutor, ThreadPoolExecutor],
    ) -> None:
        self.failed: StorageError | None = None
        self.in_flight = 0
        self._path = path
        self._file = file
        self._spill = spill
        self._listener = listener
        self._longest_line_bytes = 0
        self._told_low = False
        self._write_thread, self._sync_thread = threads
        self._waiting: _Batch = []
        self._end = end  # where the file will end when all that waits is written
        self._good = end  # the end of the last complete line in the file
        self._durable = end
        self._lines_to_sync = 0
        self._cause: str | None = None
        self._unsafe_from: int | None = None  # lines in the file from here on are saved elsewhere too
        self._can_sync = True
        self._unsaved: list[bytes] = []
        self._bug: Exception | None = None
        self._closing = False
        self._drained = False
        self._wake = asyncio.Event()
        self._dirty = asyncio.Event()
        self._due = asyncio.Event()
        self._moved = asyncio.Event()
        self._life = asyncio.create_task(self._live(), name="journal")

    @classmethod
    async def open(cls, paths: OutputPaths, *, spill_dirs: Sequence[Path], listener: DiskListener) -> Journal:
        """Open OUT.partial, new or mended by ``recover``, to append. Raises OptionsError or StorageError."""
        threads = ThreadPoolExecutor(1, "journal-write"), ThreadPoolExecutor(1, "journal-sync")
        try:
            file = await aiofiles.open(paths.partial, "ab", buffering=0, opener=_opener, executor=threads[0])
            try:
                durable = await asyncio.get_running_loop().run_in_executor(threads[1], can_sync, file.fileno())
            except OSError:
                await file.close()
                raise
        except OSError as error:
            for thread in threads:
                thread.shutdown()
            raise cannot_open(paths.partial, error) from error
        if not durable:
            listener.weak(f"the file system of {paths.partial} cannot make files durable: a power cut may cost answers")
        end = os.fstat(file.fileno()).st_size
        return cls(paths.partial, file, end, Spill(paths.partial, spill_dirs), listener, threads)

    def append(self, line: bytes, written: Written) -> None:
        """Hand over one line with its newline; ``written(offset of its first byte)`` is called when it is in the file.

        Lines that a failed disk refuses are saved elsewhere, and ``written`` is not called for them.
        """
        if self._drained:
            raise InternalError("a line came after the journal was closed; please report this")
        self._waiting.append((line, written))
        self._end += len(line)
        if len(line) > self._longest_line_bytes:
            self._longest_line_bytes = len(line)
        self._wake.set()

    async def sync(self) -> None:
        """Return when all that was appended before is durable. Raises StorageError if it can not be."""
        target = self._end
        while self._durable < target:
            if self.failed is not None:
                raise self.failed
            self._due.set()
            await self._moved.wait()

    async def room(self) -> None:
        """Wait while more than 64 MB are not durable yet: ask before sending, not before appending."""
        while self._end - self._durable > MAX_UNDURABLE_BYTES and self._cause is None:
            await self._moved.wait()

    async def close(self) -> None:
        """Write what waits, make it durable, close the file. Raises StorageError if the disk failed at any time."""
        self._closing = True
        self._wake.set()
        await asyncio.shield(self._life)
        if self._bug is not None:
            raise self._bug
        if self.failed is not None:
            raise self.failed

    async def _live(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sync_in_time())
                await self._write_in_turn()
            if self._cause is not None and (self.failed is None or self._unsaved or self._unsafe_from is not None):
                await self._save([])
        except Exception as error:  # a bug; who waits in sync or room must not wait for ever
            self._cause = f"the writer of {self._path} stopped: {error!r}"
            self._tell()
            raise
        finally:
            self._drained = True
            with contextlib.suppress(OSError):  # everything that matters was synced or saved
                await self._file.close()
            self._write_thread.shutdown(wait=False)
            self._sync_thread.shutdown(wait=False)

    async def _write_in_turn(self) -> None:
        while self._waiting or not self._closing:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            if batch and self._cause is None:
                batch = await self._write(batch)
            if self._cause is not None:
                await self._save(batch)
        self._drained = True
        self._dirty.set()
        self._due.set()

    async def _write(self, batch: _Batch) -> _Batch:
        """Write all lines together; return those that could not be written."""
        data = b"".join([line for line, _ in batch])
        done = 0
        try:
            while done < len(data):
                written = await self._file.write(data[done:] if done else data)
                if not written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                done += written
        except OSError as error:
            self._cause = f"cannot write {self._path}: {error.strerror}"
        rest = self._acknowledge(batch, done)
        if rest:
            with contextlib.suppress(OSError):  # recovery mends the torn line if this fails as well
                await self._file.truncate(self._good)
        return rest

    def _acknowledge(self, batch: _Batch, done: int) -> _Batch:
        """Count the lines that are whole in the file, and tell their owners; return the others."""
        limit, whole = self._good + done, 0
        for line, written in batch:
            if self._good + len(line) > limit:
                break
            start, self._good, whole = self._good, self._good + len(line), whole + 1
            try:
                written(start)
            except Exception as error:  # not the journal's: the other lines go on, and close raises it
                self._bug = self._bug or error
        self._lines_to_sync += whole
        self._dirty.set()
        if self._lines_to_sync >= SYNC_AFTER_LINES or self._good - self._durable >= SYNC_AFTER_BYTES:
            self._due.set()
        return batch[whole:]

    async def _sync_in_time(self) -> None:
        while self._can_sync and not (self._drained and self._durable == self._good):
            await self._dirty.wait()
            self._dirty.clear()
            if self._durable < self._good:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SYNC_AFTER_S):
                        await self._due.wait()
                await self._sync_once()

    async def _sync_once(self) -> None:
        self._due.clear()
        self._lines_to_sync, target = 0, self._good
        fd, loop = self._file.fileno(), asyncio.get_running_loop()
        try:
            space = await loop.run_in_executor(self._sync_thread, _sync_and_look, fd, self._path, target)
        except _TakenAway as error:
            self._give_up(f"{self._path} {error} by someone while running", error.unsafe_from)
        except OSError as error:  # the kernel may have dropped the pages, so asking again would lie
            self._give_up(f"cannot make {self._path} durable: {error.strerror}", self._durable)
        else:
            self._durable = target
            self._look_at(space)
        self._pulse()

    def _look_at(self, space: Space) -> None:
        """What is in flight must find room when sending stops, so it stops before the disk is full."""
        longest = self._longest_line_bytes
        if not self._told_low and self._cause is None and space.is_low(self.in_flight, longest):
            self._told_low = True
            self._listener.low(running_full(self._path, space, self.in_flight, longest))

    def _give_up(self, cause: str, unsafe_from: int | None) -> None:
        self._can_sync = False
        self._cause = self._cause or cause
        self._unsafe_from = unsafe_from
        self._wake.set()

    def _pulse(self) -> None:
        self._moved.set()
        self._moved.clear()

    async def _save(self, batch: _Batch) -> None:
        """Put lines that are not safe in the file into another one, and say so."""
        self._unsaved += [line for line, _ in batch]
        start = self._unsafe_from
        held = None if start is None else Held(self._file.fileno(), start, self._good)
        if held is not None or self._unsaved:
            loop, lines = asyncio.get_running_loop(), tuple(self._unsaved)
            if await loop.run_in_executor(self._write_thread, self._spill.save, held, lines):
                self._unsaved.clear()
                self._unsafe_from = self._unsafe_from if held is None else None
        self._tell()

    def _tell(self) -> None:
        first = self.failed is None
        step = self._spill.next_step(len(self._unsaved))
        self.failed = StorageError(f"{self._cause}; {step}")
        self._pulse()
        if first:
            self._listener.failed(self.failed)


class _TakenAway(Exception):
    """Someone did something to the journal's name or size. ``unsafe_from``: what only our descriptor leads to."""

    def __init__(self, what: str, unsafe_from: int | None) -> None:
        super().__init__(what)
        self.unsafe_from = unsafe_from


def _opener(path: str, flags: int) -> int:
    """Readable too: what can not be made durable is copied from it. A new file and its name are made durable."""
    fd = open_private(path, flags & ~os.O_WRONLY | os.O_RDWR)
    try:
        sync_data(fd)
        sync_directory(Path(path).parent)
    except OSError:
        os.close(fd)
        raise
    return fd


def _sync_and_look(fd: int, path: Path, good: int) -> Space:
    """Make the file durable, see whether it still is the output's, and what room is left. Raises also OSError."""
    sync_data(fd)
    ours = os.fstat(fd)
    if ours.st_nlink == 0:
        raise _TakenAway("was deleted", 0)
    try:
        there = path.stat()
    except FileNotFoundError:
        raise _TakenAway("was moved away", 0) from None
    if not os.path.samestat(ours, there):
        raise _TakenAway("was replaced", 0)
    if ours.st_size < good:
        raise _TakenAway("was truncated", None)
    return Space.of(fd)
