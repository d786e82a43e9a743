"""What an earlier run left behind: one pass over its lines before anything is sent.

A damaged tail is what a kill or a power cut leaves; it is moved to OUT.torn. Damage with good lines after it has
another cause, and is refused. Call everything here under the output's lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from llmbatch.errors import OutputRefused, StorageError
from llmbatch.files.checksum import checksum_ok
from llmbatch.files.paths import OutputPaths, open_private, sync_data, sync_directory, write_all
from llmbatch.files.recovered import Recovered, parse_line

FORMAT = 1
MANIFEST_START = b'{"llmbatch":'
_BUFFER_BYTES = 1 << 20
_FOREIGN_LINES = 100  # at the beginning: whether a file is ours need not be asked of all of it


def recover(paths: OutputPaths) -> Recovered | None:
    """Mend the journal's tail and learn what it holds; None if there is no journal.

    The journal is the truth. If OUT is there too, a seal was interrupted after its rename, provided OUT holds just the
    journal's standing lines: then the journal is removed, as the seal would have done, and None is returned. Any other
    OUT is refused, for nobody but the user can say which of the two is wanted.

    Raises OutputRefused for a file that is not ours or of a newer format, StorageError for damage in the middle.
    """
    if not paths.partial.exists():
        return None
    recovered, tail = _pass(paths.partial)
    try:
        if paths.out.exists():
            _finish_seal(paths, recovered)
            recovered.close()
            return None
        _mend(paths, recovered, tail)
    except BaseException:
        recovered.close()
        raise
    return recovered


def look(paths: OutputPaths) -> Recovered | None:
    """What ``recover`` or ``scan`` would find, or raise, changing nothing: a torn tail is only mentioned.

    None if nothing is there.
    """
    if not paths.partial.exists():
        return scan(paths.out) if paths.out.exists() else None
    recovered, tail = _pass(paths.partial)
    if tail.torn:
        recovered.notices.append(f"{_torn_records(tail)} at the end of {paths.partial.name} would be sent again")
    if not paths.out.exists():
        return recovered
    try:
        _refuse_another_output(paths, recovered)
    finally:
        recovered.close()
    return scan(paths.out)


def scan(path: Path) -> Recovered:
    """Learn what a sealed output holds, changing nothing: enough to say that there is nothing left to do."""
    recovered, tail = _pass(path)
    if tail.torn:
        recovered.close()
        raise _damaged(path, tail.offset, tail.number)
    return recovered


def reopen_sealed(paths: OutputPaths) -> Recovered:
    """Make the sealed OUT the journal again, so that failed, new or changed rows can be appended."""
    recovered, tail = _pass(paths.out)
    try:
        if tail.torn:
            raise _damaged(paths.out, tail.offset, tail.number)
        paths.out.rename(paths.partial)
        recovered.path = paths.partial
        sync_directory(paths.directory)
        _mend(paths, recovered, tail)
    except BaseException:
        recovered.close()
        raise
    return recovered


@dataclass(slots=True)
class _Tail:
    """The end of a file. ``offset`` and ``number`` are of the first line after the last good one, if it is torn.

    ``changed`` lines before it are good JSON with a checksum of other bytes.
    """

    offset: int = 0
    number: int = 0
    torn: bool = False
    lines: int = 0
    newline_missing: bool = False
    changed: int = 0
    first_changed: int = 0

    def tear(self, number: int, offset: int) -> None:
        if not self.torn:
            self.torn, self.number, self.offset = True, number, offset
        self.lines += 1


def _pass(path: Path) -> tuple[Recovered, _Tail]:
    try:
        recovered = Recovered(path)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    try:
        tail = _read_through(recovered)
    except OSError as error:
        recovered.close()
        raise StorageError(f"cannot read {path}: {error.strerror}; nothing was sent") from error
    except BaseException:
        recovered.close()
        raise
    if twice := recovered.paid_twice:
        answers = "1 answer was" if twice == 1 else f"{twice:,} answers were"
        recovered.notices.append(f"{answers} paid for twice; the first one stands")
    if tail.changed:
        recovered.notices.append(_changed(path, tail))
    return recovered, tail


def _read_through(recovered: Recovered) -> _Tail:
    tail, foreign = _Tail(), Foreign(recovered.path)
    offset, data, take = 0, b"", recovered.take
    for number, offset, data in file_lines(recovered.path):
        line = parse_line(data)
        if line is None:
            foreign.unreadable(number, data)
            tail.tear(number, offset)
            continue
        if tail.torn:
            raise _damaged(recovered.path, tail.offset, tail.number)
        if "llmbatch" in line:
            refuse_newer(recovered.path, line)
        take(line, offset)
        if checksum_ok(data) is False:
            tail.changed += 1
            tail.first_changed = tail.first_changed or number
    foreign.refuse_if_suspected()
    recovered.end = tail.offset if tail.torn else offset + len(data)
    tail.newline_missing = not tail.torn and data[-1:] not in (b"", b"\n")
    return tail


def file_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number (from 1), byte offset and bytes of each line; nothing but a newline ends one. Raises OSError."""
    offset = 0
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        for number, data in enumerate(file, start=1):
            yield number, offset, data
            offset += len(data)


class Foreign:
    """Tells a file that never was ours from a damaged one: nothing at its beginning can be read as ours."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._suspected = False

    def unreadable(self, number: int, data: bytes) -> None:
        """Another line that is not ours. A first one may be a torn manifest, or zeros that a power cut left.

        Raises OutputRefused when these lines are the first and enough.
        """
        if number == 1:
            start = data[: len(MANIFEST_START)].rstrip(b"\0")
            self._suspected = data.endswith(b"\n") or not MANIFEST_START.startswith(start)
        elif number == _FOREIGN_LINES:
            self.refuse_if_suspected()

    def readable(self) -> None:
        """A line of ours was found."""
        self._suspected = False

    def refuse_if_suspected(self) -> None:
        """Raises OutputRefused if no line was ours."""
        if self._suspected:
            raise OutputRefused(
                f"{self._path} is not a results file of llmbatch; move it away or choose another --output"
            )


def refuse_newer(path: Path, manifest: dict[str, Any]) -> None:
    """Raises OutputRefused for a manifest line of a format that is not known yet."""
    format = manifest["llmbatch"]
    if type(format) is int and format > FORMAT:
        raise OutputRefused(f"{path} was written by a newer llmbatch ({manifest.get('version')}); upgrade")


def _damaged(path: Path, offset: int, number: int) -> StorageError:
    return StorageError(
        f"{path}: line {number} (byte {offset}) is damaged; nothing was sent. "
        f"llmbatch repair {quote(str(path))} moves it aside and keeps the others; its row is then sent again"
    )


def _changed(path: Path, tail: _Tail) -> str:
    verify = f"llmbatch verify {quote(str(path))}"
    if tail.changed == 1:
        return f"line {tail.first_changed} was changed since it was written; it stands as it is: {verify}"
    return (
        f"{tail.changed:,} lines, the first of them line {tail.first_changed}, were changed since they were written; "
        f"they stand as they are: {verify}"
    )


def _mend(paths: OutputPaths, recovered: Recovered, tail: _Tail) -> None:
    try:
        if tail.torn:
            recovered.notices.append(_quarantine(paths, tail))
        elif tail.newline_missing:
            _end_last_line(paths.partial)
            recovered.end += 1
    except OSError as error:
        raise StorageError(f"cannot mend {paths.partial}: {error.strerror}; nothing was sent") from error


def _end_last_line(path: Path) -> None:
    """The record is whole and paid for; only its newline was cut off."""
    fd = open_private(path, os.O_WRONLY | os.O_APPEND)
    try:
        write_all(fd, b"\n")
        sync_data(fd)
    finally:
        os.close(fd)


def _quarantine(paths: OutputPaths, tail: _Tail) -> str:
    """Copy first, truncate after: a crash in between leaves the piece twice, never nowhere."""
    source = open_private(paths.partial, os.O_RDWR)
    target = open_private(paths.torn, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        size = os.fstat(source).st_size - tail.offset
        for start in range(tail.offset, tail.offset + size, _BUFFER_BYTES):
            write_all(target, os.pread(source, _BUFFER_BYTES, start))
        sync_data(target)
        sync_directory(paths.directory)
        os.ftruncate(source, tail.offset)
        sync_data(source)
    finally:
        os.close(source)
        os.close(target)
    rows = "its row" if tail.lines == 1 else "their rows"
    return f"{_torn_records(tail)} ({size} bytes) moved to {paths.torn.name}; {rows} will be sent again"


def _torn_records(tail: _Tail) -> str:
    return "1 torn record" if tail.lines == 1 else f"{tail.lines} torn records"


def _finish_seal(paths: OutputPaths, recovered: Recovered) -> None:
    _refuse_another_output(paths, recovered)
    paths.partial.unlink()
    sync_directory(paths.directory)


def _refuse_another_output(paths: OutputPaths, recovered: Recovered) -> None:
    if not _holds_the_same(paths.out, recovered):
        raise OutputRefused(
            f"both {paths.out} and {paths.partial} exist, and the first is not made from the second; "
            f"move {paths.out} away to continue the unfinished run, or {paths.partial} to keep the finished one"
        )


def _holds_the_same(out: Path, recovered: Recovered) -> bool:
    """Is every line of ``out`` a standing line, and every standing line that was ever a request in ``out``?"""
    requests = 0
    for _, _, data in file_lines(out):
        line = parse_line(data)
        found = None if line is None or "key" not in line else recovered.standing(line)
        if line is None or found is None or recovered.read_bytes(found) != data:
            return False
        requests += line["key"] is not None
    return requests == len(recovered) - recovered.unrendered
