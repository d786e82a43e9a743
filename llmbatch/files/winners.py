"""Which line of a journal stands for each row number: what the sealing pass needs to know.

8 bytes a row, and 11 more where several runs wrote one journal.

A row that runs again has two lines, and a row that moved (ids, reordered input) has one under each number. The last
word is rules/resume.py's; here only offsets are kept, and the few lines in question are read again.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from llmbatch.errors import InternalError, StorageError
from llmbatch.files.index import IdentitySet, RowTable, identity_hash
from llmbatch.files.paths import open_private
from llmbatch.files.recovered import identity_of, parse_line, read_line
from llmbatch.rules.resume import settle

_BUFFER_BYTES = 1 << 20


class Winners:
    """One pass over a complete journal, at construction. A context manager; not for several threads."""

    def __init__(self, path: Path, table: RowTable) -> None:
        self._path = path
        self._by_row = table
        self._displaced = array("Q")
        self._starts = 0
        self._failed = 0
        self._fd = open_private(path, os.O_RDONLY)
        try:
            self._pass()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Winners:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        tb: TracebackType | None = None,
    ) -> None:
        with contextlib.suppress(OSError):  # it was only read
            os.close(self._fd)

    def check(self, rows: int, failed: int | None) -> None:
        """Raises InternalError naming one of the rows 1..``rows`` that has no line of its own, or if it is known that
        ``failed`` of them are errors, and others are."""
        for row in range(1, rows + 1):
            if self._by_row.get(row) is None:
                raise self._missing(row)
        if self._starts > 1:
            self._check_stale(rows)
        if failed is None:
            return
        standing = self._failed - sum(self._line(offset)["status"] == "error" for offset in self._by_row.above(rows))
        if standing != failed:
            raise InternalError(
                f"{standing} rows have an error line in {self._path}, though {failed} failed; please report this"
            )

    def _check_stale(self, rows: int) -> None:
        """Only where several runs wrote can a row have moved and have left a line under its old number."""
        seen = IdentitySet()
        for row in range(rows, 0, -1):
            if not seen.add(identity_hash(identity_of(self._line(self._winner(row))))):
                raise self._missing(row)

    def _missing(self, row: int) -> InternalError:
        return InternalError(f"row {row} has no line in {self._path}, though the run ended; please report this")

    def kept(self, rows: int) -> array[int]:
        """Offsets of lines of rows that are no longer in the input: asked, answered, and standing nowhere else."""
        stale = sorted({*self._displaced, *self._by_row.above(rows)})
        if not stale:
            return array("Q")
        last: dict[int, int] = {}
        for offset in stale:
            line = self._line(offset)
            if line["key"] is not None:
                last[identity_hash(identity_of(line))] = offset
        for row in range(1, rows + 1):
            last.pop(identity_hash(identity_of(self._line(self._winner(row)))), None)
        return array("Q", sorted(last.values()))

    def lines(self, rows: int, kept: array[int], *, by_offset: bool) -> Iterator[bytes]:
        """The winning lines by row number, or as they were written, then the kept ones."""
        offsets: Iterator[int] = (self._winner(row) for row in range(1, rows + 1))
        if by_offset:
            offsets = iter(sorted(offsets))
        for offset in offsets:
            yield read_line(self._fd, offset)
        for offset in kept:
            yield read_line(self._fd, offset)

    def _pass(self) -> None:
        offset = 0
        with open(self._fd, "rb", buffering=_BUFFER_BYTES, closefd=False) as file:
            for data in file:
                line = parse_line(data)
                if line is None:
                    raise StorageError(f"{self._path} is damaged at byte {offset}, where this run wrote a good line")
                if "llmbatch" in line:
                    self._starts += "part" not in line
                else:
                    self._take(line, offset)
                offset += len(data)

    def _take(self, line: dict[str, Any], offset: int) -> None:
        holder = self._by_row.get(line["row"])
        if holder is not None:
            earlier = self._line(holder)
            if identity_of(earlier) == identity_of(line):
                if not settle(earlier, line).later_wins:
                    return
            elif not self._starts:
                self._displaced.append(offset)  # an earlier seal kept it behind, for a row that had left the input
                return
            else:
                self._displaced.append(holder)
            self._failed -= earlier["status"] == "error"
        self._failed += line["status"] == "error"
        self._by_row.set(line["row"], offset)

    def _winner(self, row: int) -> int:
        offset = self._by_row.get(row)
        assert offset is not None, "check comes first"
        return offset

    def _line(self, offset: int) -> dict[str, Any]:
        line = parse_line(read_line(self._fd, offset))
        if line is None:
            raise StorageError(f"{self._path} changed at byte {offset} while it was read")
        return line
