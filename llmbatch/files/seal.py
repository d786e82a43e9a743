"""The journal of a complete run becomes OUT: one line per input row, in input order, by an atomic rename.

Interrupted anywhere, the next run finds the journal or OUT, and goes on from there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmbatch.errors import StorageError
from llmbatch.files.index import RowTable
from llmbatch.files.paths import OutputPaths, open_private, sync_data, sync_directory, write_all
from llmbatch.files.space import Space, megabytes
from llmbatch.files.winners import Winners

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Sealed:
    """``lines`` stand in OUT, ``kept`` of them for rows that are no longer in the input."""

    lines: int
    kept: int


def seal(
    paths: OutputPaths,
    rows: int,
    order: Literal["input", "completion"] = "input",
    table: RowTable | None = None,
    *,
    failed: int | None = None,
) -> Sealed:
    """Write OUT from a journal that has a line for each of the rows 1..``rows``, and remove the journal.

    The journal must be closed (durable) and the lock held. 8 to 20 bytes of memory a row. Blocks, so give it a
    thread, and a ``table`` with room for the rows that was made outside of it. ``failed`` is how many of the rows
    ended in an error, if the caller counted.
    Raises InternalError naming a row without a line, or if another number of lines are errors; StorageError when the
    disk fails. The journal is then untouched.
    """
    try:
        with Winners(paths.partial, table or RowTable()) as winners:
            winners.check(rows, failed)
            kept = winners.kept(rows)
            _write(paths, winners.lines(rows, kept, by_offset=order == "completion"))
    except OSError as error:
        raise _cannot_seal(paths, error) from error
    return Sealed(rows + len(kept), len(kept))


def _write(paths: OutputPaths, lines: Iterable[bytes]) -> None:
    try:
        _write_copy(paths, lines)
        paths.sealing.replace(paths.out)
    except BaseException:
        with contextlib.suppress(OSError):
            paths.sealing.unlink()
        raise
    sync_directory(paths.directory)
    paths.partial.unlink()
    sync_directory(paths.directory)


def _write_copy(paths: OutputPaths, lines: Iterable[bytes]) -> None:
    paths.sealing.unlink(missing_ok=True)  # left by a crash; nobody else writes it while we hold the lock
    fd = open_private(paths.sealing, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.fchmod(fd, _mode(paths))
        for chunk in _chunks(lines):
            write_all(fd, chunk)
        sync_data(fd)
    finally:
        os.close(fd)


def _mode(paths: OutputPaths) -> int:
    """That of an OUT that is replaced, else the journal's: an OUT made the journal again carries the user's mode."""
    there: Path = paths.out if paths.out.exists() else paths.partial
    return there.stat().st_mode & 0o777


def _chunks(lines: Iterable[bytes]) -> Iterable[bytes]:
    waiting: list[bytes] = []
    size = 0
    for line in lines:
        waiting.append(line)
        size += len(line)
        if size >= _CHUNK_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


def _cannot_seal(paths: OutputPaths, error: OSError) -> StorageError:
    if not paths.partial.exists():
        return StorageError(f"{paths.out} is complete, but its name may not survive a power cut: {error.strerror}")
    free, needed = Space.of(paths.directory).free_bytes, paths.partial.stat().st_size
    return StorageError(
        f"cannot write {paths.out}: {error.strerror}; every answer is safe in {paths.partial}. Make room "
        f"(it needs {megabytes(needed)} once more, {megabytes(free)} are free), then the same command finishes"
    )
