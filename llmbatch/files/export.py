"""Results in another format than ours: OUT, made as a whole from the sealed lines at OUT.jsonl, which stay the truth.

OUT exists when it is complete. It carries the time of the lines that it was made from, less a nanosecond for each of
those that it leaves out: an OUT of a later time was changed by somebody, any other is not of the rows known now.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from llmbatch.errors import OutputRefused, StorageError
from llmbatch.files import parquet
from llmbatch.files.export_batch import batch_line
from llmbatch.files.export_table import Columns, csv_rows, typed
from llmbatch.files.paths import OutputPaths, open_private, sync_data, sync_directory, write_all
from llmbatch.files.recovered import parse_line
from llmbatch.files.recovery import file_lines
from llmbatch.files.results import dump_line
from llmbatch.options import ResultsFormat

LINES_SUFFIX = ".jsonl"
_BATCH_START = b'{"id":"batch_req_'
# Rows of a table written at once: enough for compression, few enough for memory; and the bytes after which it is done.
_GROUP_ROWS, _GROUP_BYTES = 10_000, 16 * 2**20


class Export:
    """OUT in ``format``, and the lines it is made from. Call everything under the lock of those."""

    def __init__(self, out: Path, lines: OutputPaths, format: ResultsFormat) -> None:
        self.out = out
        self._lines = lines
        self._format = format
        self._making = out.with_name(f".{out.name}.making")

    @classmethod
    def of(cls, name: str, format: ResultsFormat) -> Export:
        """The export that ``name`` is; a symlink is followed. Raises OptionsError without what its format needs."""
        if format == "parquet":
            parquet.require()
        out = OutputPaths.of(name).out
        return cls(out, OutputPaths.of(str(out) + LINES_SUFFIX), format)

    @property
    def lines(self) -> OutputPaths:
        """The files of the results themselves."""
        return self._lines

    def refuse_foreign(self) -> None:
        """Raises OutputRefused for an OUT that no sealed lines stand behind."""
        if self.out.exists() and (self._lines.partial.exists() or not self._lines.out.exists()):
            raise OutputRefused(
                f"{self.out} exists, but was not made from {self._lines.out.name}; "
                "move it away or choose another --output"
            )

    def withdraw(self) -> None:
        """The lines are about to be continued, so OUT is not complete any more.

        Raises OutputRefused if it was changed since it was made: that work is not ours to remove. OSError.
        """
        if not self.out.exists():
            return
        if self.out.stat().st_mtime_ns > self._lines.out.stat().st_mtime_ns:
            raise OutputRefused(
                f"{self.out} was changed since it was made; move it away, and the same command makes it anew"
            )
        self.out.unlink()

    def renew(self, rows: int) -> bool:
        """Make OUT again if it is missing, older than its lines, or of other rows; whether it was.

        Raises StorageError.
        """
        with self._failing():
            if self.out.exists():
                made, newest = self.out.stat().st_mtime_ns, self._lines.out.stat().st_mtime_ns
                if made > newest or made == newest - self._left_out(rows):
                    return False
        self.make(rows)
        return True

    def make(self, rows: int) -> None:
        """OUT from the first ``rows`` sealed lines; those behind are of rows that left the input. Blocks, a thread.

        Raises StorageError when the disk fails; the lines are safe, and the same command makes it.
        """
        with self._failing():
            try:
                self._write_copy(rows)
                self._making.replace(self.out)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._making.unlink()
                raise
            sync_directory(self.out.parent)

    def _write_copy(self, rows: int) -> None:
        self._making.unlink(missing_ok=True)  # left by a crash
        fd = open_private(self._making, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            lines = self._lines.out.stat()
            os.fchmod(fd, (self.out.stat() if self.out.exists() else lines).st_mode & 0o777)
            _WRITERS[self._format](fd, self._lines.out, rows)
            sync_data(fd)
            made = lines.st_mtime_ns - self._left_out(rows)
            os.utime(fd, ns=(made, made))
        finally:
            os.close(fd)

    def _left_out(self, rows: int) -> int:
        return sum(1 for _ in file_lines(self._lines.out)) - rows

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"cannot write {self.out}: {error.strerror or error}; every answer is safe in {self._lines.out}, and "
                "the same command finishes"
            ) from error


def lines_behind(name: str) -> str | None:
    """The results that the export ``name`` is, or will be, made from; None if it is none."""
    lines = OutputPaths.of(name + LINES_SUFFIX)
    if not (lines.out.exists() or lines.partial.exists()):
        return None
    try:
        with Path(name).open("rb") as file:
            is_batch = file.read(len(_BATCH_START)) == _BATCH_START
    except OSError:
        is_batch = False
    return name + LINES_SUFFIX if is_batch or name.lower().endswith((".csv", ".parquet")) else None


def batch_bytes(line: bytes, created: int) -> bytes:
    """One of our lines in the shape of the OpenAI Batch output."""
    parsed = parse_line(line)
    assert parsed is not None, "a line that we wrote"
    return dump_line(batch_line(parsed, created))


def _lines_of(path: Path, rows: int) -> Iterator[dict[str, Any]]:
    for number, _, data in islice(file_lines(path), rows):
        yield _parsed(data, path, number)


def _parsed(data: bytes, path: Path, number: int) -> dict[str, Any]:
    line = parse_line(data)
    if line is None:
        raise StorageError(f"{path}: line {number} is damaged: llmbatch verify tells more")
    return line


def _write_batch(fd: int, path: Path, rows: int) -> None:
    created = int(path.stat().st_mtime)
    for group in _groups(dump_line(batch_line(line, created)) for line in _lines_of(path, rows)):
        write_all(fd, b"".join(group))


def _write_csv(fd: int, path: Path, rows: int) -> None:
    columns = _columns(path, rows)
    write_all(fd, csv_rows([list(columns.kinds)]))
    for group in _groups(csv_rows([[*columns.cells(line)]]) for line in _lines_of(path, rows)):
        write_all(fd, b"".join(group))


def _write_parquet(fd: int, path: Path, rows: int) -> None:
    columns = _columns(path, rows)
    kinds = columns.kinds
    with os.fdopen(os.dup(fd), "wb") as file:
        writer = parquet.TableWriter(file, kinds)
        done = 0
        for group in _groups(data for _, _, data in islice(file_lines(path), rows)):
            lines = [_parsed(data, path, number) for number, data in enumerate(group, done + 1)]
            writer.write([_typed(columns, kinds, line) for line in lines])
            done += len(group)
        writer.close()


def _typed(columns: Columns, kinds: dict[str, parquet.Kind], line: dict[str, Any]) -> list[Any]:
    return [typed(value, kind) for value, kind in zip(columns.cells(line), kinds.values(), strict=True)]


def _columns(path: Path, rows: int) -> Columns:
    columns = Columns()
    for line in _lines_of(path, rows):
        columns.learn(line)
    return columns


def _groups(pieces: Iterable[bytes]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece)
        if len(group) >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


_WRITERS: dict[ResultsFormat, Callable[[int, Path, int], None]] = {
    "openai-batch": _write_batch,
    "csv": _write_csv,
    "parquet": _write_parquet,
}
