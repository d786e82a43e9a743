"""Parquet, read and written with pyarrow, which is imported here alone and when it is needed.

What JSON has no word for becomes text: dates, times and timestamps in ISO 8601, decimals as their digits, durations as
seconds, bytes as the text they hold, or in base64 where they are not UTF-8. NaN and the infinities become null, a map
a list of pairs.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, BinaryIO, Literal
from uuid import UUID

import orjson

from llmbatch.errors import InputError, OptionsError, StorageError
from llmbatch.files.lines import OVERSIZE_HEAD_BYTES
from llmbatch.files.tables import wrong_names
from llmbatch.records import Line
from llmbatch.rules.reasons import excerpt

# Rows decoded at a time: few, for a row may hold an image.
BATCH_ROWS = 256

# A long is an integer that is none as a float.
Kind = Literal["bool", "int", "long", "float", "vector", "text"]

# Raised for a value that Python can not hold: far dates, text that is not UTF-8, doubled names, unknown time zones.
_UNREADABLE = (ValueError, ArithmeticError, LookupError, TypeError, NotImplementedError)

INSTALL = "pip install 'llmbatch[parquet]'"


def require() -> None:
    """Raises OptionsError where results are to be written as Parquet and pyarrow is not there."""
    try:
        _pyarrow()
    except ImportError:
        raise OptionsError(f"--format parquet needs pyarrow: {INSTALL}") from None


def column_names(file: Any, name: str) -> list[str]:
    """The columns of an open file. Raises InputError if pyarrow is missing, or if the file is damaged."""
    return [str(column) for column in _open(file, name).schema_arrow.names]


def batches(file: Any, name: str, max_line_bytes: int) -> Iterator[list[Line]]:
    """The rows as lines of JSON, numbered from 1, a few at a time. Raises StorageError where they can not be read.

    A row with a value that Python has no word for is a line that says so, as is every row where names are wrong.
    """
    number = 0
    opened = _open(file, name)
    wrong = wrong_names([str(column) for column in opened.schema_arrow.names], "the table")
    _, pa = _pyarrow()
    try:
        for batch in opened.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            lines = []
            for row in [wrong] * batch.num_rows if wrong else _rows(batch):
                number += 1
                lines.append(_line(number, row, max_line_bytes))
            yield lines
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            what, mend = f"cannot read {name} on after row {number}", ""
        else:
            what, mend = f"{name} is damaged Parquet after row {number}", "write it anew, and "
        raise StorageError(f"{what}: {error}; {mend}the same command continues") from error


def json_value(value: Any) -> Any:
    """What stands in JSON for a value that it has no word for. Raises TypeError for one that is not known."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return b64encode(value).decode()
    if isinstance(value, datetime.timedelta):
        return str(value.total_seconds())
    if isinstance(value, Decimal | UUID):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise TypeError(type(value).__name__)


class TableWriter:
    """Writes columns of typed cells to an open binary file, a group of rows at a time."""

    def __init__(self, file: BinaryIO, kinds: Mapping[str, Kind]) -> None:
        self._parquet, self._pa = _pyarrow()
        types = {
            "bool": self._pa.bool_(),
            "int": self._pa.int64(),
            "long": self._pa.int64(),
            "float": self._pa.float64(),
            "vector": self._pa.list_(self._pa.float64()),
            "text": self._pa.string(),
        }
        self._schema = self._pa.schema([(name, types[kind]) for name, kind in kinds.items()])
        self._writer = self._parquet.ParquetWriter(file, self._schema)

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Rows of one group, each with a cell for every column."""
        cells = zip(*rows, strict=True)
        columns = [self._pa.array(column, field.type) for column, field in zip(cells, self._schema, strict=True)]
        self._writer.write_table(self._pa.Table.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        """Write the index, without which the file is none."""
        self._writer.close()


def _pyarrow() -> tuple[Any, Any]:
    return importlib.import_module("pyarrow.parquet"), importlib.import_module("pyarrow")


def _open(file: Any, name: str) -> Any:
    try:
        parquet, pa = _pyarrow()
    except ImportError:
        raise InputError(f"{name} is Parquet, which needs pyarrow: {INSTALL}") from None
    try:
        return parquet.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{name} is damaged Parquet: {error}") from None


def _rows(batch: Any) -> list[Mapping[str, Any] | str]:
    """The rows; of one that can not be read what is wrong with it."""
    with contextlib.suppress(*_UNREADABLE):
        columns = [_values(column) for column in batch.columns]
        return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]
    return [_row(batch.slice(at, 1)) for at in range(batch.num_rows)]


def _row(batch: Any) -> Mapping[str, Any] | str:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            [row[name]] = _values(column)
        except _UNREADABLE as error:
            return f"column {excerpt(name, 40)!r} can not be read: {excerpt(str(error), 200)}"
    return row


def _values(column: Any) -> list[Any]:
    """As Python has them; nanoseconds, for which it has no type, as text."""
    _, pa = _pyarrow()
    if pa.types.is_duration(column.type) and column.type.unit == "ns":
        return [None if ns is None else str(ns / 10**9) for ns in column.cast(pa.int64()).to_pylist()]
    wanted = _readable(column.type)
    values: list[Any] = (column if wanted == column.type else column.cast(wanted)).to_pylist()
    return values


def _readable(kind: Any) -> Any:
    """The type without nanoseconds, at any depth."""
    _, pa = _pyarrow()
    if (pa.types.is_timestamp(kind) or pa.types.is_time64(kind)) and kind.unit == "ns":
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_readable(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _readable(field.type)) for field in kind])
    return kind


def _line(number: int, row: Mapping[str, Any] | str, max_line_bytes: int) -> Line:
    if isinstance(row, str):
        return Line(number, 0, b"", problem=row)
    data = orjson.dumps(row, default=json_value, option=orjson.OPT_PASSTHROUGH_DATETIME)
    if len(data) > max_line_bytes:
        return Line(number, 0, data[:OVERSIZE_HEAD_BYTES], oversize=True)
    return Line(number, 0, data)
