"""A journal cut at every byte: no whole record is lost, no piece of one is believed.

A journal of 50 lines as the product writes them (answers and errors, from a few bytes to 20 KB, ids of all kinds,
separators that are no newlines, lone surrogates, manifests of several starts, lines that later ones replace or repeat)
is cut at a byte, and ends there, or goes on with zeros as after a power cut (1 to 8192), or with garbage. It is
recovered, a record is appended, and it is recovered again.

Kept if all records before the cut stand byte for byte and are found by their identity, the rest is in OUT.torn (0600),
the file ends with a newline, and the second recovery finds the new record as well and nothing to mend. The one refusal
allowed is garbage within the first bytes of the first line, by which a file is known as ours; it changes nothing.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orjson

from campaigns.campaign import Report, progress
from llmbatch.errors import OutputRefused
from llmbatch.files.journal import manifest_line
from llmbatch.files.paths import OutputPaths
from llmbatch.files.recovered import Recovered
from llmbatch.files.recovery import MANIFEST_START, recover
from llmbatch.files.results import again_line, result_line
from llmbatch.records import Failure, Reply, Result, Usage

Id = str | int | float | None

AT_ONCE = 2
SHARE = 500  # cases for one process at a time
LINES = 50
BOUNDARY_BYTES = 1  # on both sides of a line's end all cases are in the short form as well
TAILS = {
    "": b"",
    "nul1": b"\0",
    "nul7": b"\0" * 7,
    "nul512": b"\0" * 512,
    "nul4096": b"\0" * 4096,
    "nul8192": b"\0" * 8192,
    "garbage": b'\xff\xfe{"id":"\x80", \r "row":1}}',
}


@dataclass(frozen=True)
class Record:
    """One line. It stands for ``id`` and ``row``, unless an earlier one goes on to; a manifest stands for nothing."""

    data: bytes
    id: Id = None
    row: int = 0
    stands: bool = True
    paid_twice: bool = False


@cache
def journal() -> tuple[Record, ...]:
    """The 50 lines."""
    manifest = manifest_line({"version": "0.1", "model": "m", "input": {"path": "eingabe\u2028.jsonl", "size": 3}})
    again = manifest_line({"version": "0.2", "model": "m"})
    moved, twice, wrong = answer(2, "a\u2028b", "moves"), answer(3, 1, "first"), answer(4, 1.0, "stays")
    special = [
        Record(manifest),
        Record(answer(1, None, ""), None, 1),
        Record(moved, "a\u2028b", 2),
        Record(twice, 1, 3),
        Record(wrong, 1.0, 4),
        Record(answer(5, "1", "x" * 20_000), "1", 5),
        Record(error(6, 2**70, key="fp1:6"), 2**70, 6),
        Record(error(7, "bad", key=None), None, 7),
        Record(answer(8, "\ud800", "half of a pair: \udfff"), "\ud800", 8),
        Record(answer(9, "\u0085\r\v", "\u2028\u2029\r\x85é\U0001f600" * 30), "\u0085\r\v", 9),
        Record(again),
        Record(answer(6, 2**70, "at last"), 2**70, 6),
        Record(again_line(orjson.loads(moved), 60), "a\u2028b", 60),
        Record(answer(3, 1, "second"), 1, 3, stands=False, paid_twice=True),
        Record(error(4, 1.0, key="fp1:4"), 1.0, 4, stands=False),
        Record(error(10, None, key="fp1:10"), None, 10),
        Record(error(10, None, key="fp1:10", message="once more"), None, 10),
        Record(again),
    ]
    chance = random.Random(5)
    for row in range(11, 11 + LINES - len(special)):
        id = f"r{row}" if row % 3 else None
        size = 5_000 if row == 20 else chance.randrange(40)
        special.append(Record(error(row, id) if row % 5 == 0 else answer(row, id, "é\u2028" * size), id, row))
    return tuple(special)


def answer(row: int, id: Id, output: str) -> bytes:
    """The line of a row that was answered."""
    reply = Reply(output, "stop", "m", Usage(3, len(output)))
    return result_line(Result(row, id, f"fp1:{row}", reply, None, 1, 0.5, None, f"req_{row}_{output[:6]}"))


def error(row: int, id: Id, key: str | None = "fp1:e", message: str = "too slow\n") -> bytes:
    """The line of a row that failed, or, without a key, that never was a request."""
    failure = Failure("ambiguous", "timeout", message, 504, body="<html>\u2028</html>")
    return result_line(Result(row, id, key, None, failure, 3, None, None, None, ambiguous=1))


@cache
def whole() -> bytes:
    return b"".join(record.data for record in journal())


@cache
def ends() -> tuple[int, ...]:
    """How long the journal is with each number of its lines."""
    return tuple(accumulate((len(record.data) for record in journal()), initial=0))


LONG_RUNS = (len(whole()) + 1) * len(TAILS)
NEW = answer(1000, "new", "after the crash")


@dataclass(frozen=True)
class Case:
    """Where the journal is cut, and how it goes on."""

    offset: int
    tail: str

    @property
    def name(self) -> str:
        return f"{self.offset}:{self.tail}:"

    @property
    def records(self) -> int:
        """How many stand before the cut; of the last only the newline may be missing."""
        reach = self.offset + (self.tail == "")
        return sum(end <= reach for end in ends()[1:])

    @property
    def is_foreign(self) -> bool:
        """Nothing shows that it is ours."""
        return self.tail == "garbage" and self.offset < len(MANIFEST_START)


def wrong_with(case: Case, paths: OutputPaths) -> str | None:
    """Cut, recover, append, recover; what was wrong."""
    for path in (paths.partial, paths.torn):
        path.unlink(missing_ok=True)
    data = whole()[: case.offset] + TAILS[case.tail]
    paths.partial.write_bytes(data)
    kept = whole()[: ends()[case.records]]
    try:
        with recover(paths) as found:  # type: ignore[union-attr]
            end = found.end
    except OutputRefused:
        untouched = paths.partial.read_bytes() == data and not paths.torn.exists()
        return None if case.is_foreign and untouched else "it was refused"
    if paths.partial.read_bytes() != kept:
        return "the file does not end after the last whole record"
    if end != len(kept):
        return f"the file is said to end at byte {end}"
    torn = paths.torn.read_bytes() if paths.torn.exists() else b""
    if torn != data[len(kept) :]:
        return f"OUT.torn has {len(torn)} bytes of {len(data) - len(kept)}"
    if torn and paths.torn.stat().st_mode & 0o777 != 0o600:
        return "others may read OUT.torn"
    with paths.partial.open("ab") as file:
        file.write(NEW)
    with recover(paths) as found:  # type: ignore[union-attr]
        return wrong_in(found, journal()[: case.records], kept, torn, paths)


def wrong_in(found: Recovered, records: tuple[Record, ...], kept: bytes, torn: bytes, paths: OutputPaths) -> str | None:
    """What is wrong with the second recovery."""
    if paths.partial.read_bytes() != kept + NEW or torn != (paths.torn.read_bytes() if paths.torn.exists() else b""):
        return "the second recovery changed a file"
    standing = {identity(record): record for record in (*records, Record(NEW, "new", 1000)) if is_standing(record)}
    if len(found) != len(standing):
        return f"{len(found)} rows are found of {len(standing)}"
    if found.paid_twice != sum(record.paid_twice for record in records):
        return f"{found.paid_twice} are said to be paid for twice"
    for record in standing.values():
        said = json.loads(record.data)
        line = (found.find if said["key"] else found.find_unsent)(said["id"], record.row)
        if line is None or found.read_bytes(line.offset) != record.data:
            return f"id {record.id!r}, row {record.row} has another line: {None if line is None else line.line}"
    return None


def is_standing(record: Record) -> bool:
    return record.stands and record.row > 0


def identity(record: Record) -> tuple[Any, ...]:
    """1, 1.0 and "1" are three."""
    return (record.row,) if record.id is None else (type(record.id), record.id)


def cases(runs: int, chance: random.Random, word: str | None) -> Iterator[Case]:
    """All of them; where fewer are asked for, those around the ends of lines and others by chance."""
    all_ = [Case(offset, tail) for offset in range(len(whole()) + 1) for tail in TAILS]
    if word is not None:
        all_ = [case for case in all_ if case.name.startswith(word)]
    if runs < len(all_):
        near = {end + by for end in ends() for by in range(-BOUNDARY_BYTES, BOUNDARY_BYTES + 1)}
        all_.sort(key=lambda case: (case.offset not in near, chance.random()))
    yield from all_[:runs]


def look_at(share: list[Case]) -> list[tuple[Case, str]]:
    """What was wrong with some of them. Syncing would take the time and prove nothing."""
    module = "llmbatch.files.recovery"
    with (
        tempfile.TemporaryDirectory() as name,
        patch(f"{module}.sync_data", lambda fd: None),
        patch(f"{module}.sync_directory", lambda path: None),
    ):
        paths = OutputPaths.of(str(Path(name, "out.jsonl")))
        looked = [(case, said(case, paths)) for case in share]
    return [(case, wrong) for case, wrong in looked if wrong is not None]


def said(case: Case, paths: OutputPaths) -> str | None:
    try:
        return wrong_with(case, paths)
    except Exception as error:
        return repr(error)


def campaign(runs: int, seed: int, case: str | None = None) -> Report:
    """``runs`` cuts. ``case`` is OFFSET:TAIL:, such as 1234:nul7:, or its beginning."""
    report = Report()
    chosen = list(cases(runs, random.Random(seed), case))
    shares = [chosen[start : start + SHARE] for start in range(0, len(chosen), SHARE)]
    with ProcessPoolExecutor(AT_ONCE) as pool:
        for share, wrong in zip(shares, pool.map(look_at, shares), strict=True):
            report.runs += len(share)
            progress(report.runs // SHARE, len(shares))
            for one, why in wrong:
                report.broken.append(f"{one.name} {why}; python tests/campaigns cut --case {one.name}")
    report.counted = {"lines": len(journal()), "bytes": len(whole()), "offsets": len({one.offset for one in chosen})}
    return report
