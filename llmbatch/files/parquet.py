"""Parquet, read and written with pyarrow, which is imported here alone and when it is needed.

What JSON has no word for becomes text: dates, times and timestamps in ISO 8601, decimals as their digits, durations as
seconds, bytes as the text they hold, or in base64 where they are not UTF-8. NaN and the infinities become null, a map
a list of pairs.
"""

from __future__ import annotations

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
from llmbatch.records import Line

# Rows decoded at a time: few, for a row may hold an image.
BATCH_ROWS = 256

Kind = Literal["bool", "int", "float", "vector", "text"]

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
    """The rows as lines of JSON, numbered from 1, a few at a time. Raises StorageError where they can not be read."""
    number = 0
    opened = _open(file, name)
    _, pa = _pyarrow()
    try:
        for batch in opened.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            lines = []
            for row in _readable(batch).to_pylist():
                number += 1
                lines.append(_line(number, row, max_line_bytes))
            yield lines
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"cannot read {name} on after row {number}: {error}; the same command continues") from error


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


def _readable(batch: Any) -> Any:
    """Nanoseconds, for which Python has no type, as text."""
    _, pa = _pyarrow()
    columns = [
        column.cast(pa.string()) if pa.types.is_timestamp(field.type) and field.type.unit == "ns" else column
        for column, field in zip(batch.columns, batch.schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _line(number: int, row: Mapping[str, Any], max_line_bytes: int) -> Line:
    data = orjson.dumps(row, default=json_value, option=orjson.OPT_PASSTHROUGH_DATETIME)
    if len(data) > max_line_bytes:
        return Line(number, 0, data[:OVERSIZE_HEAD_BYTES], oversize=True)
    return Line(number, 0, data)
