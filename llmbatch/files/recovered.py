"""The lines of an output that stand, found by row identity, and how a line is told from damage."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from llmbatch.errors import StorageError
from llmbatch.files.index import IdentityIndex, RowTable, identity_hash, identity_text, unsent_identity
from llmbatch.files.paths import open_private
from llmbatch.rules.resume import settle

_STATUS = ("ok", "error", "skipped")
_READ_BYTES = 4096  # most lines in one read, little to copy


@dataclass(frozen=True, slots=True)
class Found:
    """The line of a row that stands. ``holds_number`` is False if a later line of another row has its row number."""

    offset: int
    line: dict[str, Any]
    holds_number: bool


class Recovered:
    """The standing lines of a journal or a sealed file, found by row identity; a line is read only when asked for.

    About 30 bytes a row. ``ok`` (with the skipped) and ``failed`` count standing lines (``unrendered`` of the failed
    never became a request), ``paid_twice`` the answers dropped because the same request had one already. ``end`` is
    the size in bytes.
    Close it, or use it as a context manager.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ok = 0
        self.failed = 0
        self.unrendered = 0
        self.paid_twice = 0
        self.end = 0
        self.manifest: dict[str, Any] | None = None
        self.notices: list[str] = []
        self.by_row = RowTable()
        self._sealed = True  # until a run begins: the lines before are in the order in which seal wrote them
        self._index = IdentityIndex()
        self._parts: dict[str, dict[str, int]] = {}
        self._fd = open_private(path, os.O_RDONLY)

    def __len__(self) -> int:
        return self.ok + self.failed

    def find(self, id: str | int | float | None, row: int) -> Found | None:
        """The line of this row, if there is one."""
        return self._found(identity_text(id, row))

    def find_unsent(self, id: str | int | float | None, row: int) -> Found | None:
        """The line that says of this row that it can not be sent; of a row without id also an answer."""
        return self._found(unsent_identity(id, row))

    def _found(self, identity: str) -> Found | None:
        _, offset, line = self._slot(identity)
        if offset is None or line is None:
            return None
        return Found(offset, line, self.by_row.get(line["row"]) == offset)

    def parts(self, id: str | int | float | None, row: int) -> dict[str, dict[str, Any]]:
        """The answers that are kept of this row although it has no line, by the names of its tasks."""
        return {name: self.read(offset) for name, offset in self._parts.get(identity_text(id, row), {}).items()}

    def begins_with(self, rows: int) -> bool:
        """Whether the lines of the rows 1 to ``rows`` stand first, in order, as seal writes them."""
        offset = 0
        for row in range(1, rows + 1):
            if self.by_row.get(row) != offset:
                return False
            offset += len(self.read_bytes(offset))
        return True

    def read(self, offset: int) -> dict[str, Any]:
        """The line that starts at ``offset``."""
        line = parse_line(self.read_bytes(offset))
        if line is None:
            raise StorageError(f"{self.path}: the line at byte {offset} changed under us; stop whatever else writes it")
        return line

    def read_bytes(self, offset: int) -> bytes:
        """The same, as it is, with its newline."""
        return read_line(self._fd, offset)

    def close(self) -> None:
        """Let go of the file, and of the memory; the numbers stay."""
        self._index, self.by_row, self._parts = IdentityIndex(), RowTable(), {}
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # it was only read
                os.close(fd)

    def __enter__(self) -> Recovered:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def take(self, line: dict[str, Any], offset: int) -> None:
        """Learn the next line of the file."""
        if "llmbatch" in line and "part" in line:
            self._parts.setdefault(identity_text(line.get("id"), line["row"]), {})[line["part"]] = offset
            return
        if "llmbatch" in line:
            if "spill_of" not in line and "repaired" not in line:
                self.manifest = line
            self._sealed = False
            return
        text = identity_of(line)
        self._parts.pop(text, None)  # the row's own line holds what is good of them
        if self._index.add(identity_hash(text), offset) is None:
            self._stand(line, offset)
        else:
            self._take_again(text, line, offset)

    def _take_again(self, text: str, line: dict[str, Any], offset: int) -> None:
        slot, before, earlier = self._slot(text)
        if before is not None and earlier is not None:
            later_wins, paid_twice = settle(earlier, line)
            self.paid_twice += paid_twice
            if not later_wins:
                return
            self._count(earlier, -1)
            if self.by_row.get(earlier["row"]) == before:
                self.by_row.set(earlier["row"], None)
        self._index[slot] = offset
        self._stand(line, offset)

    def _stand(self, line: dict[str, Any], offset: int) -> None:
        self._count(line, 1)
        holder = self.by_row.get(line["row"])
        if holder is not None and self._sealed:
            return  # of a row that left the input: its number is another row's now
        if holder is not None:
            self._displace(holder)
        self.by_row.set(line["row"], offset)

    def _displace(self, holder: int) -> None:
        line = self.read(holder)
        if line["key"] is None:
            self._count(line, -1)  # it said that this row number could not be sent; now another line speaks for it

    def _count(self, line: dict[str, Any], by: int) -> None:
        if line["status"] == "error":
            self.failed += by
            self.unrendered += by * (line["key"] is None)
        else:
            self.ok += by

    def _slot(self, text: str) -> tuple[int, int | None, dict[str, Any] | None]:
        """Where this identity is or would be in the index. Hashes may collide; the line itself decides."""
        salt = 0
        while True:
            slot = identity_hash(text, salt)
            offset = self._index.get(slot)
            if offset is None:
                return slot, None, None
            line = self.read(offset)
            if identity_of(line) == text:
                return slot, offset, line
            salt += 1

    def standing(self, line: dict[str, Any]) -> int | None:
        """The offset of the line that stands for the row of this one."""
        return self._slot(identity_of(line))[1]


def read_line(fd: int, offset: int) -> bytes:
    """The line of an open file that starts at ``offset``, with its newline."""
    size = _READ_BYTES
    while True:
        data = os.pread(fd, size, offset)
        end = data.find(b"\n") + 1
        if end or len(data) < size:
            return data[:end] if end else data
        size *= 8


def parse_line(data: bytes) -> dict[str, Any] | None:
    """A line that we wrote: a manifest or a result. None for anything else."""
    try:
        line = orjson.loads(data)
    except ValueError:  # json also takes a lone surrogate, which a provider may send
        line = _exact(data)
    if type(line) is not dict:
        return None
    if type(line.get("id")) is float:  # json keeps integers beyond 64 bits, where orjson makes floats
        line = _exact(data)
    row = line.get("row")
    if type(row) is int and row > 0 and line.get("status") in _STATUS and "key" in line:
        return line  # type: ignore[no-any-return]  # its type was just checked
    return line if type(line.get("llmbatch")) is int else None


def identity_of(line: dict[str, Any]) -> str:
    """The identity of a result line's row. One that never rendered has its number: its id may be another row's."""
    identity = unsent_identity if line["key"] is None else identity_text
    return identity(line.get("id"), line["row"])


def _exact(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
