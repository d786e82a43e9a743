"""Where results go: a file that appears when it is complete, or standard output as they come.

Both keep a journal (files/journal.py), so that nothing is lost or paid for twice.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from llmbatch.errors import OptionsError, OutputRefused, StorageError
from llmbatch.files.journal import Journal, manifest_line
from llmbatch.files.lock import OutputLock
from llmbatch.files.paths import OutputPaths, sync_directory
from llmbatch.files.recovered import Recovered
from llmbatch.files.recovery import recover, reopen_sealed, scan
from llmbatch.files.results import dump_line
from llmbatch.files.seal import Sealed, seal
from llmbatch.files.spill import spill_directories
from llmbatch.files.stdout import STDOUT_FD, StdoutWriter, is_same_file
from llmbatch.options import STDIO, RunOptions

# Pipelines that start with the same words and the same first line get journals of their own up to this number.
MAX_SAME_PIPELINES = 100


class Output(Protocol):
    """Where the lines of a run go. Opened under its lock, before anything is sent."""

    name: str
    recovered: Recovered | None

    @property
    def delivered(self) -> bool:
        """Once closed: every line has reached its reader."""
        ...

    async def begin(self, manifest: Mapping[str, Any]) -> None:
        """Ready to take lines; what an earlier run sealed is opened again."""
        ...

    def put(self, row: int, line: bytes, done: Callable[[], None]) -> None:
        """Hand over one line, without waiting; ``done`` is called when it is in the journal."""
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

    def abandon(self) -> None:
        """Wait no longer for a reader; lines that it has not taken stay in the journal."""
        ...

    def release(self) -> None:
        """Let go of the lock; safe to call at any time."""
        ...


class FileOutput:
    """``OUT.partial`` while it runs, ``OUT`` when it is complete."""

    delivered = True

    def __init__(
        self, paths: OutputPaths, lock: OutputLock, options: RunOptions, on_failure: Callable[[StorageError], None]
    ) -> None:
        self.name = str(paths.out)
        self._paths = paths
        self._lock = lock
        self._order = options.order or "input"
        self._on_failure = on_failure
        self._journal: Journal | None = None
        self._sealed = False
        self.recovered = self._recover()

    def _recover(self) -> Recovered | None:
        recovered = recover(self._paths)
        if recovered is None and self._paths.out.exists():
            self._sealed = True
            return scan(self._paths.out)
        return recovered

    async def begin(self, manifest: Mapping[str, Any]) -> None:
        if self._sealed:
            if self.recovered is not None:
                self.recovered.close()
            self.recovered = await asyncio.to_thread(reopen_sealed, self._paths)
        self._journal = await _open_journal(self._paths, manifest, self._on_failure)

    def put(self, row: int, line: bytes, done: Callable[[], None]) -> None:
        assert self._journal is not None, "begin comes before put"
        self._journal.append(line, lambda offset: done())

    def keep(self, row: int, recorded: Mapping[str, Any], *, reappend: bool) -> None:
        if reappend and self._journal is not None:
            self._journal.append(dump_line({**recorded, "row": row}), _nothing)

    async def room(self) -> None:
        assert self._journal is not None, "begin comes before room"
        await self._journal.room()

    async def close(self) -> None:
        if self._journal is not None:
            await self._journal.close()

    async def complete(self, rows: int, failed: int) -> Sealed:
        return await asyncio.to_thread(seal, self._paths, rows, self._order)

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

    name = "standard output"

    def __init__(
        self,
        paths: OutputPaths | None,
        lock: OutputLock | None,
        options: RunOptions,
        on_failure: Callable[[StorageError], None],
        on_stdout_error: Callable[[OSError], None],
    ) -> None:
        self._paths = paths
        self._lock = lock
        self._on_failure = on_failure
        self._journal: Journal | None = None
        self._turns = _Turns() if options.order == "input" else None
        self._writer = StdoutWriter(on_stdout_error)
        self._fd: int | None = None
        self.recovered = None if paths is None else recover(paths)

    @property
    def delivered(self) -> bool:
        return self._writer.delivered

    async def begin(self, manifest: Mapping[str, Any]) -> None:
        if self._paths is not None:
            self._journal = await _open_journal(self._paths, manifest, self._on_failure)
            self._fd = os.open(self._paths.partial, os.O_RDONLY | os.O_CLOEXEC)

    def put(self, row: int, line: bytes, done: Callable[[], None]) -> None:
        def written(offset: int) -> None:
            self._deliver(row, line, offset)
            done()

        if self._journal is None:
            written(0)
        else:
            self._journal.append(line, written)

    def keep(self, row: int, recorded: Mapping[str, Any], *, reappend: bool) -> None:
        line = dump_line({**recorded, "row": row})
        if reappend:
            self.put(row, line, lambda: None)
        else:
            self._deliver(row, line)

    def _deliver(self, row: int, line: bytes, offset: int | None = None) -> None:
        if self._turns is None:
            self._writer.put(line)
            return
        for ready in self._turns.ready(row, self._later(line, offset)):
            self._writer.put(ready)

    def _later(self, line: bytes, offset: int | None) -> Callable[[], bytes]:
        if offset is None or self._fd is None:
            return lambda: line
        fd, size = self._fd, len(line)
        return lambda: os.pread(fd, size, offset)

    async def room(self) -> None:
        await self._writer.room()
        if self._journal is not None:
            await self._journal.room()

    async def close(self) -> None:
        if self._journal is not None:
            await self._journal.close()
        await self._writer.close()
        if self._fd is not None:
            os.close(self._fd)

    async def complete(self, rows: int, failed: int) -> Sealed:
        if self._paths is not None and failed == 0:
            self._paths.partial.unlink(missing_ok=True)
            sync_directory(self._paths.directory)
        return Sealed(rows, 0)

    def abandon(self) -> None:
        self._writer.abandon()

    def release(self) -> None:
        if self.recovered is not None:
            self.recovered.close()
        if self._lock is not None:
            self._lock.release()


class _Turns:
    """Lines by row number, let go in order. Of a line that comes early only its place in the journal is kept."""

    def __init__(self) -> None:
        self._next = 1
        self._early: dict[int, Callable[[], bytes]] = {}

    def ready(self, row: int, line: Callable[[], bytes]) -> Iterator[bytes]:
        """Take one more line; what can be written now."""
        self._early[row] = line
        while self._next in self._early:
            yield self._early.pop(self._next)()
            self._next += 1


def open_file_output(options: RunOptions, on_failure: Callable[[StorageError], None], stamp: str) -> FileOutput:
    """Lock and recover ``options.output_path``. Raises OptionsError, OutputRefused or StorageError.

    ``stamp`` names what ``--restart`` moves aside.
    """
    paths = OutputPaths.of(options.output_path)
    _refuse_input_as_output(options, paths)
    if paths.out.is_dir():
        raise OptionsError(f"--output {paths.out} is a directory; name a file in it")
    lock = OutputLock.acquire(paths)
    try:
        if options.restart:
            _set_aside(paths, stamp)
        return FileOutput(paths, lock, options, on_failure)
    except BaseException:
        lock.release()
        raise


def open_stdout_output(
    options: RunOptions,
    state_directory: Path,
    identity: Mapping[str, Any],
    on_failure: Callable[[StorageError], None],
    on_stdout_error: Callable[[OSError], None],
    stamp: str,
) -> StdoutOutput:
    """Standard output, with its journal in ``state_directory``, named by what the run is: ``identity``.

    A run of the same words on the same data finds it again; while one runs, another one gets a journal of its own.
    """
    if options.input != STDIO and is_same_file(options.input, STDOUT_FD):
        raise OptionsError(f"standard output is the input file {options.input}; write to another file")
    if not options.journal_stdout:
        return StdoutOutput(None, None, options, on_failure, on_stdout_error)
    name = blake2b(dump_line(dict(identity)), digest_size=10).hexdigest()
    state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in range(1, MAX_SAME_PIPELINES):
        paths = OutputPaths.of(str(state_directory / (name if number == 1 else f"{name}-{number}")))
        try:
            lock = OutputLock.acquire(paths)
        except OutputRefused:
            continue
        if options.restart:
            _set_aside(paths, stamp)
        return StdoutOutput(paths, lock, options, on_failure, on_stdout_error)
    raise OutputRefused(f"{MAX_SAME_PIPELINES} runs of this very command are under way")


async def _open_journal(
    paths: OutputPaths, manifest: Mapping[str, Any], on_failure: Callable[[StorageError], None]
) -> Journal:
    journal = await Journal.open(paths, spill_dirs=spill_directories(os.environ), on_failure=on_failure)
    journal.append(manifest_line(manifest), _nothing)
    return journal


def _nothing(offset: int = 0) -> None:
    """A line nobody waits for."""


def _refuse_input_as_output(options: RunOptions, paths: OutputPaths) -> None:
    for path in (paths.out, paths.partial):
        same = is_same_file(str(path), 0) if options.input == STDIO else _same(path, options.input)
        if same and stat.S_ISREG(path.stat().st_mode):
            raise OptionsError(f"{path} is the input itself; choose another --output")


def _same(path: Path, other: str) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _set_aside(paths: OutputPaths, stamp: str) -> None:
    for path in (paths.out, paths.partial):
        if path.exists():
            path.rename(path.with_name(f"{path.name}.bak-{stamp}"))
    sync_directory(paths.directory)
