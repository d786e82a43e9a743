"""Is everything that an output holds as it was written, and is everything there? Reads, and changes nothing."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import orjson

from llmbatch.errors import InputError, StorageError
from llmbatch.files.checksum import checksum_ok
from llmbatch.files.export import lines_behind
from llmbatch.files.index import identity_text
from llmbatch.files.jsonl import parse_line as parse_row
from llmbatch.files.jsonl import text_line
from llmbatch.files.lock import holder
from llmbatch.files.paths import OutputPaths, is_stream
from llmbatch.files.readers import open_input
from llmbatch.files.recovered import Recovered, identity_of, parse_line
from llmbatch.files.recovery import Foreign, file_lines, refuse_newer
from llmbatch.files.sniff import FormatOption
from llmbatch.records import BadRow, Row

MAX_FINDINGS = 20
JOURNAL_SUFFIX = ".partial"

Kind = Literal["damaged", "changed", "doubled", "missing", "other_id"]

# How a result line begins. In a JSON string the quotes would be escaped, so no text can look like it.
_ROW = re.compile(rb'"row":([1-9][0-9]{0,17}),"status":"')
_ID = re.compile(rb'\{"id":("(?:[^"\\]|\\.)*"|[^,"{}\[\]]*),"row":')
_NEAR_THE_START_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. ``line`` counts from 1, ``offset`` is its first byte. ``text`` may hold foreign text."""

    kind: Kind
    text: str
    line: int | None = None
    offset: int | None = None
    row: int | None = None
    id: str | int | float | None = None


@dataclass(slots=True)
class Verified:
    """What one pass over a file of an output found; the first ``MAX_FINDINGS`` in words, all of them counted.

    ``lines`` = ``good`` + ``damaged`` + ``changed`` + ``doubled``. ``missing`` and ``other_id`` count rows without a
    line of their own. What is normal is counted too: ``superseded`` lines of a journal (``paid_twice`` of them answers
    to a request that had one), ``kept`` ones of rows that are no longer in the input, ``unordered`` ones, ones
    ``without_checksum``, and ``pending`` rows of an unfinished run (None if no input was given).
    ``torn`` lines at the end of a journal are among the damaged; the next run mends them.
    ``cut``: the file does not end with a newline. ``held`` says who writes it now; ``both``: OUT stands beside the
    journal that was read.
    """

    path: Path
    unfinished: bool
    held: str | None = None
    lines: int = 0
    good: int = 0
    damaged: int = 0
    changed: int = 0
    doubled: int = 0
    missing: int = 0
    other_id: int = 0
    superseded: int = 0
    paid_twice: int = 0
    kept: int = 0
    unordered: int = 0
    without_checksum: int = 0
    pending: int | None = None
    torn: int = 0
    cut: bool = False
    both: bool = False
    wrong_places: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """How many lines and rows."""
        return self.damaged + self.changed + self.doubled + self.missing + self.other_id

    @property
    def to_repair(self) -> bool:
        """Whether the same ``run`` would refuse it, or not mend it."""
        return self.damaged > self.torn or self.doubled > 0

    def found(self, finding: Finding) -> None:
        """Count it, and keep it if it is among the first."""
        self.wrong_places += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)


def locate(name: str) -> tuple[OutputPaths, Path]:
    """The output that ``name`` means, OUT or OUT.partial, and the file of it that holds its lines now.

    Raises InputError if there is none.
    """
    if (lines := lines_behind(name)) is not None:
        raise InputError(f"{name} is made from {lines}, which holds the results: name that one")
    if name.endswith(JOURNAL_SUFFIX) and not Path(name + JOURNAL_SUFFIX).exists():
        name = name.removesuffix(JOURNAL_SUFFIX)
    paths = OutputPaths.of(name)
    for path in (paths.partial, paths.out):
        if path.exists():
            if path.is_dir() or is_stream(str(path)):
                raise InputError(f"{path} is no file of results")
            return paths, path
    raise InputError(f"no such file: {name}, nor {name}{JOURNAL_SUFFIX}")


async def verify(name: str, input_path: str | None = None, input_format: FormatOption = "auto") -> Verified:
    """Read OUT, or OUT.partial if it is unfinished, once; then the input, if one is given.

    About 30 bytes of memory a row. No lock is taken: beside a run it sees what is there.
    Raises InputError if there is no such file, OutputRefused if it is not ours or newer, StorageError.
    """
    try:
        survey = _survey(*locate(name))
    except FileNotFoundError:  # a run sealed it just now
        survey = _survey(*locate(name))
    with survey:
        if input_path is not None:
            await _compare(survey, input_path, input_format)
        elif not survey.verified.unfinished:
            survey.count_gaps()
    return survey.verified


def row_in(data: bytes) -> tuple[int | None, str | int | float | None]:
    """The row number and the id that stand near the start of a damaged result line, as far as they can be told."""
    start = data[:_NEAR_THE_START_BYTES]
    row, id = _ROW.search(start), _ID.match(start)
    found = None
    if id is not None:
        with contextlib.suppress(ValueError):
            found = json.loads(id.group(1))
    return (None if row is None else int(row.group(1))), found


def why_damaged(data: bytes) -> str:
    """What is wrong with a line that is none of ours."""
    if zeros := data.count(0):
        return "1 NUL byte" if zeros == 1 else f"{zeros:,} NUL bytes"
    if not data.endswith(b"\n"):
        return "torn: the file ends in the middle of it"
    try:
        orjson.loads(data)
    except ValueError:
        return "not JSON" if data.strip() else "empty"
    return "JSON, but no line of llmbatch"


class Survey:
    """One file of an output, read once: what it holds, and the rows it has lines for."""

    def __init__(self, path: Path, *, unfinished: bool) -> None:
        self.verified = Verified(path, unfinished)
        self.rows = Recovered(path)
        self._results = 0
        self._last_row = 0
        self._in_order_to: int | None = None  # where the leading run of ascending row numbers ends
        try:
            self._pass(path)
        except BaseException:
            self.rows.close()
            raise

    def __enter__(self) -> Survey:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.rows.close()

    def count_gaps(self) -> None:
        """Rows that a sealed file should have a line for."""
        # Behind the input's rows stand those that it no longer has, under any numbers.
        end = self._in_order_to if self.verified.kept else None
        for gap in self.rows.by_row.gaps():
            if end is not None and gap.start > end:
                return
            self.missing(gap)

    def missing(self, gap: range) -> None:
        """These rows have no line; of an unfinished run that is no finding."""
        if self.verified.unfinished:
            self.verified.pending = (self.verified.pending or 0) + len(gap)
            return
        if not gap:
            return
        self.verified.missing += len(gap)
        words = f"row {gap[0]} has" if len(gap) == 1 else f"rows {gap[0]} to {gap[-1]} have"
        self.verified.found(Finding("missing", f"{words} no line", row=gap[0]))

    def has_line(self, row: Row | BadRow) -> bool:
        """Whether there is a line for this row of the input. One with another id is told."""
        id = row.id if isinstance(row, Row) else None
        if self.verified.unfinished:
            found = self.rows.find(id, row.index) or self.rows.find_unsent(id, row.index)
            return found is not None and (found.line["key"] is None or found.line.get("id") == id)
        holder = self.rows.by_row.get(row.index)
        if holder is None:
            return False
        line = self.rows.read(holder)
        # Of a row that could not be sent the id may have been what was wrong.
        if isinstance(row, Row) and line["key"] is not None and identity_of(line) != identity_text(id, row.index):
            self.verified.other_id += 1
            text = f"its id is {line.get('id')!r}, and {id!r} in the input"
            self.verified.found(Finding("other_id", text, offset=holder, row=row.index, id=line.get("id")))
        return True

    def _pass(self, path: Path) -> None:
        verified, foreign, data = self.verified, Foreign(path), b"\n"
        for number, offset, data in file_lines(path):
            line = parse_line(data)
            verified.lines += 1
            if line is None:
                foreign.unreadable(number, data)
                self._damaged(number, offset, data)
                continue
            foreign.readable()
            verified.torn = 0
            if "llmbatch" in line:
                refuse_newer(path, line)
            self._take(number, offset, line, checksum_ok(data))
        foreign.refuse_if_suspected()
        verified.cut = not data.endswith(b"\n")
        if not verified.unfinished:
            verified.torn = 0
        verified.paid_twice = self.rows.paid_twice
        verified.superseded = self._results - len(self.rows) if verified.unfinished else 0

    def _damaged(self, number: int, offset: int, data: bytes) -> None:
        self.verified.damaged += 1
        self.verified.torn += 1
        row, id = row_in(data)
        self.verified.found(Finding("damaged", why_damaged(data), number, offset, row, id))

    def _take(self, number: int, offset: int, line: dict[str, Any], intact: bool | None) -> None:
        verified = self.verified
        verified.without_checksum += intact is None
        doubled = None
        if "llmbatch" in line or verified.unfinished:
            self._results += "llmbatch" not in line
            self.rows.take(line, offset)
        else:
            doubled = self._take_sealed(line, offset)
        row, id = line.get("row"), line.get("id")
        if doubled is not None:
            verified.doubled += 1
            verified.found(Finding("doubled", doubled, number, offset, row, id))
        elif intact is False:
            verified.changed += 1
            verified.found(Finding("changed", "changed since it was written", number, offset, row, id))
        else:
            verified.good += 1

    def _take_sealed(self, line: dict[str, Any], offset: int) -> str | None:
        """What is wrong if this row has a line already. Two rows may share a number: one of them was removed."""
        row = line["row"]
        holder = self.rows.by_row.get(row)
        if holder is not None:
            if identity_of(self.rows.read(holder)) == identity_of(line):
                return f"row {row} has a line already, at byte {holder}"
            self.verified.kept += 1
            self._in_order_to = self._in_order_to or self._last_row
            return None
        if line.get("id") is not None and (holder := self.rows.standing(line)) is not None:
            return f"its id has a line already, at byte {holder}"
        self.rows.take(line, offset)
        self._count_order(row)
        return None

    def _count_order(self, row: int) -> None:
        if row < self._last_row:
            self.verified.unordered += 1
            self._in_order_to = self._in_order_to or self._last_row
        self._last_row = row


def _survey(paths: OutputPaths, path: Path) -> Survey:
    signature = holder(paths)
    held = None if signature is None else str(signature)
    try:
        survey = Survey(path, unfinished=path == paths.partial)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    survey.verified.held = held
    survey.verified.both = path == paths.partial and paths.out.exists()
    if held is not None:
        _overlook_torn(survey.verified)
    return survey


def _overlook_torn(verified: Verified) -> None:
    """A run that is writing may have written half a line."""
    if verified.cut and verified.torn == 1:
        verified.torn = 0
        verified.damaged -= 1
        verified.lines -= 1
        verified.wrong_places -= 1
        verified.findings = [one for one in verified.findings if one.line != verified.lines + 1]


async def _compare(survey: Survey, input_path: str, input_format: FormatOption) -> None:
    """Hold the lines against the rows of the input that they should answer."""
    source = await open_input(input_path, input_format=input_format)
    parse = text_line if source.format == "text" else parse_row
    number, complete_to = 0, 0
    try:
        async for lines in source.batches():
            for line in lines:
                number += 1
                row = parse(line, number)
                if survey.has_line(row):
                    survey.missing(range(complete_to + 1, number))
                    complete_to = number
    finally:
        source.close()
    survey.missing(range(complete_to + 1, number + 1))
    survey.verified.kept += len(survey.rows.by_row.above(number))
