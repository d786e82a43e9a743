"""Answers that a full disk made an earlier run save elsewhere (files/spill.py) go back into their journal.

Call everything here under the output's lock, but for ``find_spills``.
"""

from __future__ import annotations

import contextlib
import glob
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from llmbatch.errors import StorageError
from llmbatch.files.paths import OutputPaths, open_private, sync_data, sync_directory, write_all
from llmbatch.files.recovered import Recovered, parse_line
from llmbatch.files.recovery import recover
from llmbatch.files.spill import SUFFIX, header

_READ_BYTES = 1 << 20


def find_spills(journal: Path, directories: Sequence[Path]) -> list[Path]:
    """The spills of exactly this journal, oldest first. Another user's file in a shared TMPDIR is none of ours."""
    name = f"{glob.escape(journal.name)}.*{SUFFIX}"
    there = [path for directory in dict.fromkeys(directories) for path in directory.glob(name)]
    found = [(written_ns, path) for path in there if (written_ns := _written_ns(path, journal)) is not None]
    return [path for _, path in sorted(found)]


def take_back(paths: OutputPaths, recovered: Recovered | None, directories: Sequence[Path]) -> Recovered | None:
    """Append what spills hold to the mended journal, remove them, and learn the journal anew; say so in its notices.

    Done twice it does no harm: a line that stands twice counts once. Raises StorageError if the disk is still full.
    """
    spills = find_spills(paths.partial, directories)
    if not spills:
        return recovered
    notices = [] if recovered is None else recovered.notices
    if recovered is not None:
        recovered.close()
    for spill in spills:
        lines, whole = _append_lines(paths, spill)
        with contextlib.suppress(OSError):  # it is in the journal now, and may be taken back again
            _put_away(spill, whole)
        notices.append(f"{lines} answers that a full disk had kept out were taken back from {spill}")
    again = recover(paths)
    assert again is not None, "the journal was just appended to"
    again.notices[:0] = [notice for notice in notices if notice not in again.notices]
    return again


def set_spills_aside(journal: Path, directories: Sequence[Path], stamp: str) -> None:
    """Results that are moved aside take theirs with them."""
    for spill in find_spills(journal, directories):
        spill.rename(spill.with_name(f"{spill.name}.bak-{stamp}"))


def _written_ns(path: Path, journal: Path) -> int | None:
    """When a spill of this journal was written; None if it is another's, or has just been taken back.

    Raises OSError if it may be ours and can not be read: what it holds must not be asked for again.
    """
    try:
        status, wanted = path.lstat(), header(journal)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return None
        with path.open("rb") as file:
            return status.st_mtime_ns if file.read(len(wanted)) == wanted else None
    except FileNotFoundError:
        return None


def _append_lines(paths: OutputPaths, spill: Path) -> tuple[int, bool]:
    """How many result lines were appended, durably, and whether there was nothing else in the spill."""
    try:
        fd = open_private(paths.partial, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        size = os.fstat(fd).st_size
        try:
            copied = _copy_good_lines(spill, fd)
            sync_data(fd)
            sync_directory(paths.directory)
        except OSError:
            os.ftruncate(fd, size)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(
            f"cannot take back the answers in {spill} into {paths.partial}: {error.strerror}; nothing was sent"
        ) from error
    return copied


def _copy_good_lines(spill: Path, fd: int) -> tuple[int, bool]:
    results, whole, waiting = 0, True, bytearray()
    with spill.open("rb", buffering=_READ_BYTES) as file:
        for data in file:
            line = parse_line(data) if data.endswith(b"\n") else None
            if line is None:
                whole = False
                continue
            results += "key" in line
            waiting += data
            if len(waiting) >= _READ_BYTES:
                write_all(fd, waiting)
                waiting.clear()
    write_all(fd, waiting)
    return results, whole


def _put_away(spill: Path, whole: bool) -> None:
    """What can not be read is kept, under a name that no run looks for."""
    if whole:
        spill.unlink()
    else:
        spill.rename(spill.with_suffix(".torn"))
    sync_directory(spill.parent)
