"""Where results go: a file that appears when it is complete, or standard output as they come.

Both keep a journal (files/journal.py), so that nothing is lost or paid for twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from llmbatch.errors import StorageError
from llmbatch.files.export import Export, batch_bytes
from llmbatch.files.index import RowTable
from llmbatch.files.journal import DiskListener, Journal, manifest_line
from llmbatch.files.lock import OutputLock, Signature
from llmbatch.files.mounts import shared_file_system_of
from llmbatch.files.paths import OutputPaths, sync_directory
from llmbatch.files.recovered import Recovered, read_line
from llmbatch.files.recovery import recover, reopen_sealed, scan
from llmbatch.files.results import again_line
from llmbatch.files.seal import Sealed, seal
from llmbatch.files.space import refuse_full_disk
from llmbatch.files.spill import spill_directories
from llmbatch.files.stdout import StdoutWriter
from llmbatch.files.takeback import take_back
from llmbatch.options import RunOptions


class Output(Protocol):
    """Where the lines of a run go. Opened under its lock, before anything is sent.

    ``sealed`` is True while OUT stands as an earlier run completed it. ``cut_off`` is what the last run left of
    itself if it was killed. ``shared_file_system`` is the type of the network file system it lies on, if it does.
    ``ctl`` is the path of the socket for ``llmbatch ctl``, None if it keeps nothing on disk.
    """

    name: str
    unfinished_name: str
    lines_name: str
    recovered: Recovered | None
    sealed: bool
    cut_off: Signature | None
    shared_file_system: str | None
    ctl: Path | None

    @property
    def delivered(self) -> bool:
        """Once closed: every line has reached its reader."""
        ...

    async def begin(self, manifest: Mapping[str, Any]) -> None:
        """Ready to take lines; what an earlier run sealed is opened again. Raises StorageError on a full disk."""
        ...

    def note_in_flight(self, requests: int) -> None:
        """How many answers a kill would cost from now on. Call it before a request leaves; it does not fail."""
        ...

    def put(self, row: int, line: bytes, done: Callable[[], None]) -> None:
        """Hand over one line, without waiting; ``done`` is called when it is in the journal."""
        ...

    def keep_aside(self, line: bytes, done: Callable[[], None]) -> None:
        """A line for the journal alone; ``done`` is called when it is there."""
        ...

    def keep(self, row: int, recorded: Mapping[str, Any], *, reappend: bool) -> None:
        """A row whose line of an earlier run stands; ``reappend`` if its row number changed."""
        ...

    async def room(self) -> None:
        """Wait while the disk or the reader is far behind."""
        ...

    async def close(self) -> None:
        """Everything handed over is durable. Raises StorageError if it is not."""
        ...

    async def complete(self, rows: int, failed: int) -> Sealed:
        """Every row has its line."""
        ...

    async def renew(self, rows: int) -> bool:
        """All was done before: make again what is missing that is made from it; whether anything was."""
        ...

    def abandon(self) -> None:
        """Wait no longer for a reader; lines that it has not taken stay in the journal."""
        ...

    def release(self) -> None:
        """Let go of the lock; safe to call at any time."""
        ...


class FileOutput:
    """``OUT.partial`` while it runs, ``OUT`` when it is complete; an ``export`` is made from that in the end."""

    delivered = True

    def __init__(
        self,
        paths: OutputPaths,
        lock: OutputLock,
        options: RunOptions,
        listener: DiskListener,
        export: Export | None = None,
    ) -> None:
        self.name = str(paths.out if export is None else export.out)
        self.unfinished_name = str(paths.partial)
        self.lines_name = str(paths.out)
        self._export = export
        self.cut_off = lock.cut_off
        self.shared_file_system = shared_file_system_of(paths.directory)
        self.ctl: Path | None = paths.ctl
        self._paths = paths
        self._lock = lock
        self._order = options.order or "input"
        self._listener = listener
        self._journal: Journal | None = None
        self.sealed = False
        self.recovered = self._recover()

    def _recover(self) -> Recovered | None:
        with _nothing_sent(self._paths):
            recovered = recover(self._paths)
            if recovered is None and self._paths.out.exists():
                self.sealed = True
                return scan(self._paths.out)
            return take_back(self._paths, recovered, spill_directories(os.environ))

    async def begin(self, manifest: Mapping[str, Any]) -> None:
        refuse_full_disk(self._paths.directory)
        if self.sealed:
            self.sealed = False
            if self.recovered is not None:
                self.recovered.close()
            with _nothing_sent(self._paths):
                if self._export is not None:
                    self._export.withdraw()
                self.recovered = await asyncio.to_thread(reopen_sealed, self._paths)
        self._journal = await _open_journal(self._paths, manifest, self._listener)

    def note_in_flight(self, requests: int) -> None:
        _note(requests, self._lock, self._journal)

    def put(self, row: int, line: bytes, done: Callable[[], None]) -> None:
        assert self._journal is not None, "begin comes before put"
        self._journal.append(line, lambda offset: done())

    def keep_aside(self, line: bytes, done: Callable[[], None]) -> None:
        self.put(0, line, done)

    def keep(self, row: int, recorded: Mapping[str, Any], *, reappend: bool) -> None:
        if reappend and self._journal is not None:
            self._journal.append(again_line(recorded, row), _nothing)

    async def room(self) -> None:
        assert self._journal is not None, "begin comes before room"
        await self._journal.room()

    async def close(self) -> None:
        if self._journal is not None:
            await self._journal.close()

    async def complete(self, rows: int, failed: int) -> Sealed:
        if self.recovered is not None:
            self.recovered.close()  # the sealing pass needs the memory
        sealed = await asyncio.to_thread(seal, self._paths, rows, self._order, RowTable(rows), failed=failed)
        if self._export is not None:
            await asyncio.to_thread(self._export.make, rows)
        return sealed

    async def renew(self, rows: int) -> bool:
        return self._export is not None and await asyncio.to_thread(self._export.renew, rows)

    def abandon(self) -> None:
        """A file has no reader to wait for."""

    def release(self) -> None:
        if self.recovered is not None:
            self.recovered.close()
        self._lock.release()


class StdoutOutput:
    """Lines go to standard output as soon as they are in the journal, which is removed when all is delivered and ok.

    In completion order, or in input order: a line that comes early is then read back from the journal in its turn.
    """

    name = unfinished_name = lines_name = "standard output"
    sealed = False

    def __init__(
        self,
        paths: OutputPaths | None,
        lock: OutputLock | None,
        options: RunOptions,
        listener: DiskListener,
        on_stdout_error: Callable[[OSError], None],
    ) -> None:
        self.cut_off = None if lock is None else lock.cut_off
        self.shared_file_system = None if paths is None else shared_file_system_of(paths.directory)
        self.ctl = None if paths is None else paths.ctl
        self._paths = paths
        self._lock = lock
        self._listener = listener
        self._journal: Journal | None = None
        self._turns = _Turns(self._read_early) if options.order == "input" else None
        self.recovered = None
        if paths is not None:
            with _nothing_sent(paths):
                self.recovered = take_back(paths, recover(paths), spill_directories(os.environ))
        self._as_batch = options.results_format == "openai-batch"
        self._writer = StdoutWriter(on_stdout_error)
        self._fd: int | None = None

    @property
    def delivered(self) -> bool:
        return self._writer.delivered

    async def begin(self, manifest: Mapping[str, Any]) -> None:
        if self._paths is not None:
            refuse_full_disk(self._paths.directory)
            self._journal = await _open_journal(self._paths, manifest, self._listener)
            self._fd = os.open(self._paths.partial, os.O_RDONLY | os.O_CLOEXEC)

    def note_in_flight(self, requests: int) -> None:
        _note(requests, self._lock, self._journal)

    def put(self, row: int, line: bytes, done: Callable[[], None]) -> None:
        def written(offset: int | None) -> None:
            self._deliver(row, line, offset)
            done()

        if self._journal is None:
            written(None)
        else:
            self._journal.append(line, written)

    def keep_aside(self, line: bytes, done: Callable[[], None]) -> None:
        if self._journal is None:
            done()
        else:
            self._journal.append(line, lambda offset: done())

    def keep(self, row: int, recorded: Mapping[str, Any], *, reappend: bool) -> None:
        line = again_line(recorded, row)
        if reappend:
            self.put(row, line, lambda: None)
            return
        assert self.recovered is not None, "only a recovered line is kept"
        found = None if self._turns is None else self.recovered.find(recorded.get("id"), recorded["row"])
        self._deliver(row, line, None if found is None else found.offset)

    def _deliver(self, row: int, line: bytes, offset: int | None) -> None:
        ready = (line,) if self._turns is None else self._turns.ready(row, line, offset)
        for one in ready:
            self._writer.put(batch_bytes(one, int(time.time())) if self._as_batch else one)

    def _read_early(self, offset: int) -> bytes:
        assert self._fd is not None, "only the journal gives offsets"
        return read_line(self._fd, offset)

    async def room(self) -> None:
        await self._writer.room()
        if self._journal is not None:
            await self._journal.room()

    async def close(self) -> None:
        try:
            if self._journal is not None:
                await self._journal.close()
        finally:
            await self._writer.close()
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    async def complete(self, rows: int, failed: int) -> Sealed:
        if self._paths is not None and failed == 0:
            self._paths.partial.unlink(missing_ok=True)
            sync_directory(self._paths.directory)
        return Sealed(rows, 0)

    async def renew(self, rows: int) -> bool:
        return False

    def abandon(self) -> None:
        self._writer.abandon()

    def release(self) -> None:
        if self.recovered is not None:
            self.recovered.close()
        if self._lock is not None:
            self._lock.release()


class _Turns:
    """Lines by row number, let go in order. Of a line that comes early only its place in the journal is kept.

    8 bytes a row; only without a journal the line itself.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._next = 1
        self._places = RowTable()
        self._lines: dict[int, bytes] = {}

    def ready(self, row: int, line: bytes, offset: int | None) -> Iterator[bytes]:
        """Take one more line; what can be written now."""
        if row != self._next:
            self._set_aside(row, line, offset)
            return
        ready: bytes | None = line
        while ready is not None:
            yield ready
            self._next += 1
            ready = self._early(self._next)

    def _set_aside(self, row: int, line: bytes, offset: int | None) -> None:
        if offset is None:
            self._lines[row] = line
        else:
            self._places.set(row, offset)

    def _early(self, row: int) -> bytes | None:
        offset = self._places.get(row)
        return self._lines.pop(row, None) if offset is None else self._read(offset)


def _note(requests: int, lock: OutputLock | None, journal: Journal | None) -> None:
    if lock is not None:
        lock.note_in_flight(requests)
    if journal is not None:
        journal.in_flight = requests


@contextlib.contextmanager
def _nothing_sent(paths: OutputPaths) -> Iterator[None]:
    """A disk that fails while earlier results are put in order."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot continue {paths.out}: {error.strerror} ({error.filename or paths.directory}); nothing was sent"
        ) from error


async def _open_journal(paths: OutputPaths, manifest: Mapping[str, Any], listener: DiskListener) -> Journal:
    journal = await Journal.open(paths, spill_dirs=spill_directories(os.environ), listener=listener)
    journal.append(manifest_line(manifest), _nothing)
    return journal


def _nothing(offset: int = 0) -> None:
    """A line nobody waits for."""
