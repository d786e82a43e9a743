"""Damaged lines of an output are moved aside, wherever they are, so that the same run can go on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from llmbatch.errors import StorageError
from llmbatch.files.checksum import checksum_ok, with_checksum
from llmbatch.files.index import RowTable
from llmbatch.files.lock import OutputLock
from llmbatch.files.paths import OutputPaths, open_private, sync_data, sync_directory, write_all
from llmbatch.files.recovered import parse_line
from llmbatch.files.recovery import file_lines
from llmbatch.files.verify import Survey, Verified, locate, row_in

MAX_ROWS_TOLD = 20
_CHUNK_BYTES = 1 << 20
# Stands where a damaged line may have been a manifest: lines after it are not those of an earlier seal.
_REPAIRED = with_checksum(b'{"llmbatch":1,"repaired":true}\n')

Id = str | int | float | None


@dataclass(slots=True)
class Repaired:
    """What was found in the file at ``path``, and what became of it.

    ``moved`` lines (``moved_bytes``) are in ``torn`` now, ``kept`` ones stand. Of the rows that have no line any more
    ``again`` names the first few, row number and id, out of ``again_count``; of ``untold`` moved lines nothing tells
    the row. ``reopened``: a sealed OUT is unfinished again, and the same ``run`` completes it. ``in_flight`` requests
    were cut off by a kill, says the lock that it left, which is gone now.
    """

    path: Path
    torn: Path
    found: Verified
    in_flight: int = 0
    kept: int = 0
    moved: int = 0
    moved_bytes: int = 0
    reopened: bool = False
    untold: int = 0
    again_count: int = 0
    again: list[tuple[int, Id]] = field(default_factory=list)

    @property
    def changed_nothing(self) -> bool:
        return not self.moved and not self.reopened


def repair(name: str, *, drop_changed: bool = False) -> Repaired:
    """Keep every good line of OUT, or of OUT.partial, byte for byte; move the damaged ones to OUT.torn.

    ``drop_changed`` moves lines too that are good JSON but were changed since they were written. What is moved is
    durable before anything else is done, and the file is replaced as a whole: interrupted anywhere, the old one or the
    new one stands. Holds the lock, and reads the file up to three times.

    Raises InputError if there is no such file, OutputRefused if a run holds it or it is not ours, OptionsError if the
    directory can not be written to, StorageError when the disk fails.
    """
    paths, _ = locate(name)
    with OutputLock.acquire(paths) as lock:
        paths, path = locate(name)
        try:
            with Survey(path, unfinished=path == paths.partial) as survey:
                found = survey.verified
            in_flight = 0 if lock.cut_off is None else lock.cut_off.in_flight
            repaired = Repaired(path, paths.torn, found, in_flight)
            if found.damaged or (found.changed and drop_changed) or found.doubled:
                _Repair(paths, repaired, drop_changed).do()
        except OSError as error:
            raise StorageError(f"cannot repair {path}: {error.strerror}; no good line is lost") from error
    return repaired


class _Repair:
    """One file, in two passes: what is moved, then what is kept."""

    def __init__(self, paths: OutputPaths, repaired: Repaired, drop_changed: bool) -> None:
        self._paths = paths
        self._repaired = repaired
        self._drop_changed = drop_changed
        self._gone: dict[int, Id] = {}
        self._standing = RowTable()
        self._last_row = 0

    def do(self) -> None:
        if self._repaired.found.damaged or self._drop_changed:
            self._quarantine()
        try:
            self._write_copy()
            self._replace()
        except BaseException:
            with contextlib.suppress(OSError):
                self._paths.sealing.unlink(missing_ok=True)
            raise
        self._tell_rows()

    def _replace(self) -> None:
        paths = self._paths
        if self._repaired.path == paths.out:
            # OUT goes first: a run that found OUT and a journal would not know which one is wanted.
            paths.out.rename(paths.partial)
            sync_directory(paths.directory)
            self._repaired.reopened = True
        paths.sealing.replace(paths.partial)
        sync_directory(paths.directory)

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any] | None, bool]]:
        """Each line, what it says, and whether it is kept."""
        for _, _, data in file_lines(self._repaired.path):
            line = parse_line(data)
            yield data, line, line is not None and not (self._drop_changed and checksum_ok(data) is False)

    def _quarantine(self) -> None:
        repaired = self._repaired
        fd = open_private(self._paths.torn, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            for data, line, kept in self._lines():
                if kept:
                    continue
                write_all(fd, data)
                repaired.moved += 1
                repaired.moved_bytes += len(data)
                row, id = row_in(data) if line is None else (line.get("row"), line.get("id"))
                if row is None:
                    repaired.untold += line is None
                else:
                    self._gone[row] = id
            sync_data(fd)
            sync_directory(self._paths.directory)
        finally:
            os.close(fd)

    def _write_copy(self) -> None:
        paths = self._paths
        paths.sealing.unlink(missing_ok=True)  # left by a crash; nobody else writes it while we hold the lock
        fd = open_private(paths.sealing, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.fchmod(fd, self._repaired.path.stat().st_mode & 0o777)
            self._copy_kept(fd)
            sync_data(fd)
        finally:
            os.close(fd)

    def _copy_kept(self, fd: int) -> None:
        waiting, began = bytearray(), self._repaired.path == self._paths.out
        for data, line, kept in self._lines():
            if not kept or line is None:
                if not began and row_in(data)[0] is None:
                    waiting += _REPAIRED  # it may have said that a run began here
                    began = True
                continue
            began |= "llmbatch" in line
            if "llmbatch" not in line:
                self._standing.set(line["row"], self._repaired.kept)
                self._last_row = max(self._last_row, line["row"])
            self._repaired.kept += 1
            waiting += data if data.endswith(b"\n") else data + b"\n"
            if len(waiting) >= _CHUNK_BYTES:
                write_all(fd, waiting)
                waiting.clear()
        write_all(fd, waiting)

    def _tell_rows(self) -> None:
        """Which rows have no line any more: what the damaged lines say, and for the others the gaps that they left."""
        repaired = self._repaired
        gone = {row: id for row, id in self._gone.items() if self._standing.get(row) is None}
        gaps = list(self._gaps())
        told = {**dict.fromkeys(islice(chain(*gaps), MAX_ROWS_TOLD)), **gone}
        repaired.again = sorted(told.items())[:MAX_ROWS_TOLD]
        behind = sum(row > self._last_row for row in gone) if gaps else len(gone)
        repaired.again_count = behind + sum(map(len, gaps))
        repaired.untold = max(0, repaired.untold - (repaired.again_count - len(gone)))

    def _gaps(self) -> Iterator[range]:
        """Of a sealed file, where every row had its line; those of rows that were removed may have left any gap."""
        if self._repaired.reopened and not self._repaired.found.kept:
            yield from self._standing.gaps()
