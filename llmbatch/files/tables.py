"""CSV and TSV as lines: each record becomes the JSON object that the same row of a JSONL file would be.

RFC 4180: a cell in quotes may hold the delimiter, line ends and doubled quotes. Cells are text, whatever they look
like: "007" stays "007", an empty cell is "".
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import orjson

from llmbatch.errors import InputError
from llmbatch.files.lines import BOM, OVERSIZE_HEAD_BYTES
from llmbatch.records import Line
from llmbatch.rules.reasons import RowError, excerpt

# The most frequent one in the header wins; of equals the first.
DELIMITERS = (",", ";", "\t", "|")
_QUOTE = b'"'


def delimiter_of(header: bytes) -> str:
    """What stands between the cells, judged by the first line of a CSV file; a comma if there is only one column."""
    outside = b"".join(header.split(_QUOTE)[::2])
    return max(DELIMITERS, key=lambda delimiter: outside.count(delimiter.encode()))


def cells_of(text: str, delimiter: str) -> list[str]:
    """The cells of one record, without its line end. Raises RowError where its quotes are wrong."""
    if '"' not in text:
        return text.split(delimiter)
    cells: list[str] = []
    at = 0
    while True:
        cell, at = _quoted(text, at + 1, len(cells) + 1) if text.startswith('"', at) else _bare(text, at, delimiter)
        cells.append(cell)
        if at == len(text):
            return cells
        if not text.startswith(delimiter, at):
            raise RowError(f"column {len(cells)} has text after its closing quote: {excerpt(text[at:], 40)}")
        at += 1


def _bare(text: str, at: int, delimiter: str) -> tuple[str, int]:
    end = text.find(delimiter, at)
    return (text[at:], len(text)) if end < 0 else (text[at:end], end)


def _quoted(text: str, at: int, column: int) -> tuple[str, int]:
    """The cell whose text begins at ``at``, and where it ends, after the closing quote."""
    start = at
    while (end := text.find('"', at)) >= 0:
        if not text.startswith('"', end + 1):
            return text[start:end].replace('""', '"'), end + 1
        at = end + 2
    raise RowError(f'the quote that opens column {column} is never closed: write a quote within a cell as ""')


class RecordSplitter:
    """Feed it chunks of any size, it gives a Line of JSON for each record that is complete; ``finish`` the last one.

    The first record is the header. A line's number is where its record starts; blank lines between records are
    counted. What is wrong with a record makes it a line that is no object but says what: the row becomes an error row.
    Memory is bounded by ``max_line_bytes`` and one chunk. Raises InputError when the header is longer than that.
    """

    def __init__(self, max_line_bytes: int, delimiter: str) -> None:
        self.blank_lines = 0
        self._cap = max_line_bytes
        self._delimiter = delimiter
        self._quotes = _Quotes(delimiter.encode())
        self._header: _Header | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._started = False  # a byte has come
        self._line = 1  # the one being read, and the one at which the record at hand starts
        self._first_line = 1
        self._offset = 0

    def feed(self, chunk: bytes) -> list[Line]:
        lines: list[Line] = []
        *pieces, tail = chunk.split(b"\n")
        for piece in pieces:
            self._hold(piece)
            self._end_physical_line(lines)
        if tail:
            self._hold(tail)
        return lines

    def finish(self) -> list[Line]:
        """The last record, if it had no newline, or if its quotes are not closed."""
        lines: list[Line] = []
        if self._held_bytes:
            self._quotes.end_line()
            self._end_record(lines, complete=False)
        return lines

    def _hold(self, part: bytes) -> None:
        self._quotes.read(part, at_start=self._held_bytes == 0)
        self._held_bytes += len(part)
        if self._held_bytes <= self._cap:
            self._held.append(part)
        elif self._held_bytes - len(part) <= self._cap:
            self._held = [b"".join([*self._held, part[:OVERSIZE_HEAD_BYTES]])[:OVERSIZE_HEAD_BYTES]]
        if self._header is None and self._held_bytes > self._cap:
            raise InputError(f"the header does not end within {self._cap} bytes: is a quote in it not closed?")

    def _end_physical_line(self, lines: list[Line]) -> None:
        self._quotes.end_line()
        self._line += 1
        if self._quotes.inside:
            self._hold(b"\n")
        else:
            self._end_record(lines, complete=True)

    def _end_record(self, lines: list[Line], *, complete: bool) -> None:
        data, size = b"".join(self._held), self._held_bytes
        number, offset = self._first_line, self._offset
        self._held, self._held_bytes, self._quotes.inside = [], 0, False
        self._first_line, self._offset = self._line, offset + size + 1
        if not self._started:
            data, self._started = data.removeprefix(BOM), True
        if size > self._cap:
            lines.append(Line(number, offset, data, complete, oversize=True))
        elif not data or data.isspace():
            self.blank_lines += 1
        elif self._header is None:
            self._header = _Header(number, data, self._delimiter)
        else:
            lines.append(self._header.row_of(Line(number, offset, data, complete)))


class _Header:
    """The names of the columns; makes an object of each record, or says what is wrong with it."""

    def __init__(self, line: int, data: bytes, delimiter: str) -> None:
        self._delimiter = delimiter
        self._names, self._wrong = header_names(data, delimiter, line)

    def row_of(self, line: Line) -> Line:
        """The record as a line of JSONL. Damage has words of its own downstream, as has what is not UTF-8."""
        if not line.data.strip(b"\x00"):
            return line
        try:
            text = line.data.removesuffix(b"\r").decode()
        except UnicodeDecodeError:
            return line
        try:
            if self._wrong:
                raise RowError(self._wrong)
            cells = cells_of(text, self._delimiter)
            self._refuse_ragged(cells, complete=line.complete)
        except RowError as error:
            return replace(line, problem=str(error))
        return replace(line, data=orjson.dumps(dict(zip(self._names, cells, strict=True))))

    def _refuse_ragged(self, cells: list[str], *, complete: bool) -> None:
        missing = self._names[len(cells) :]
        if missing:
            cut = "" if complete else "; was the file cut short?"
            columns = f"{len(cells)} cells for {len(self._names)} columns"
            raise RowError(f"{columns}, nothing for {excerpt(', '.join(missing), 60)}{cut}")
        if len(cells) > len(self._names):
            extra = cells[len(self._names)]
            columns = f"{len(cells)} cells for {len(self._names)} columns"
            raise RowError(f"{columns}, too many from {excerpt(repr(extra), 40)} on: is a delimiter not in quotes?")


def header_names(data: bytes, delimiter: str, line: int = 1) -> tuple[list[str], str]:
    """The names in a header record, and what is wrong with them, if anything is. Spaces around a name are dropped."""
    try:
        names = [name.strip() for name in cells_of(data.removesuffix(b"\r").decode(), delimiter)]
    except UnicodeDecodeError:
        return [], f"the header (line {line}) is not UTF-8"
    except RowError as error:
        return [], f"the header (line {line}): {error}"
    return names, wrong_names(names, f"the header (line {line})")


def wrong_names(names: list[str], where: str) -> str:
    """What is wrong where columns have no names of their own; empty if nothing is."""
    empty = [column for column, name in enumerate(names, 1) if not name]
    if empty:
        return f"{where} has no name for {_columns(empty)}"
    for name, times in Counter(names).most_common(1):
        if times > 1:
            twice = [column for column, other in enumerate(names, 1) if other == name]
            return f"{where} has the name {excerpt(name, 40)!r} for {_columns(twice)}"
    return ""


def _columns(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
    return f"column {shown}" if len(numbers) == 1 else f"columns {shown}"


class _Quotes:
    """Whether the bytes read so far end within quotes. A quote opens a cell only at its start, else it is text."""

    def __init__(self, delimiter: bytes) -> None:
        self.inside = False
        self._opening = delimiter + _QUOTE
        self._carry = b""  # the last byte, where only the next one says what it means

    def read(self, part: bytes, *, at_start: bool) -> None:
        """More of a line; ``at_start`` if a record begins with it."""
        data, self._carry = self._carry + part, b""
        if not self.inside and _QUOTE not in data and not data.endswith(self._opening[:1]):
            return
        at = 0
        if at_start and data.removeprefix(BOM).startswith(_QUOTE):
            self.inside, at = True, data.index(_QUOTE) + 1
        while at < len(data):
            at = self._closed(data, at) if self.inside else self._opened(data, at)

    def end_line(self) -> None:
        """A line ends, so what was carried has its meaning: a quote that nothing follows closes."""
        if self._carry == _QUOTE:
            self.inside = False
        self._carry = b""

    def _closed(self, data: bytes, at: int) -> int:
        end = data.find(_QUOTE, at)
        if end < 0:
            return len(data)
        if end + 1 == len(data):
            self._carry = _QUOTE
            return len(data)
        if data[end + 1 : end + 2] == _QUOTE:
            return end + 2
        self.inside = False
        return end + 1

    def _opened(self, data: bytes, at: int) -> int:
        found = data.find(self._opening, at)
        if found >= 0:
            self.inside = True
            return found + 2
        if data.endswith(self._opening[:1]):
            self._carry = self._opening[:1]
        return len(data)
