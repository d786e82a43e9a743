"""Result lines as a table: the columns of the input first, then ours."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llmbatch.files.export_batch import json_text, text_of
from llmbatch.files.parquet import Kind

Line = Mapping[str, Any]

# Ours, always there and always in this order: the path of each in a result line.
OURS: dict[str, tuple[str, ...]] = {
    "id": ("id",),
    "row": ("row",),
    "status": ("status",),
    "output": ("output",),
    "finish_reason": ("finish_reason",),
    "model": ("model",),
    "input_tokens": ("usage", "input_tokens"),
    "output_tokens": ("usage", "output_tokens"),
    "cached_input_tokens": ("usage", "cached_input_tokens"),
    "reasoning_tokens": ("usage", "reasoning_tokens"),
    "cost_usd": ("cost_usd",),
    "latency_s": ("latency_s",),
    "first_token_s": ("first_token_s",),
    "attempts": ("attempts",),
    "error_type": ("error", "type"),
    "error_message": ("error", "message"),
    "error_http_status": ("error", "http_status"),
    "request_id": ("request_id",),
    "key": ("key",),
}
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("row", "attempts", "error_http_status"), "int"),
    **dict.fromkeys(("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens"), "int"),
    **dict.fromkeys(("cost_usd", "latency_s", "first_token_s"), "float"),
    **dict.fromkeys(("status", "finish_reason", "model", "error_type", "error_message", "request_id", "key"), "text"),
}
_PREFIX = "llmbatch_"
# What of a line has a column, or is of no use in a table; anything else (tool calls, what a hook added) gets its own.
_TAKEN = frozenset({path[0] for path in OURS.values()} | {"input", "crc", "request_ids"})

# A spreadsheet takes text that begins so for a formula (OWASP, "CSV Injection"); a number is none.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_INT64 = range(-(2**63), 2**63)
_EXACT = range(-(2**53), 2**53 + 1)  # as a float, too
# Of two kinds that differ; of any others text.
_JOINED: dict[frozenset[Kind], Kind] = {frozenset(("int", "float")): "float", frozenset(("int", "long")): "long"}


class Columns:
    """The columns that a table of these lines needs, and the kind of each. ``learn`` all lines, then ask for cells.

    Names of the input stay as they are; one of ours that is the same gets a prefix.
    """

    def __init__(self) -> None:
        self._input: dict[str, Kind | None] = {}
        self._extra: dict[str, Kind | None] = {}
        self._ours: dict[str, Kind | None] = {name: _KINDS.get(name) for name in OURS}

    def learn(self, line: Line) -> None:
        """What one line needs."""
        for name, value in _input_of(line).items():
            self._input[name] = joined(self._input.get(name), kind_of(value))
        for name in line.keys() - _TAKEN:
            self._extra[name] = joined(self._extra.get(name), kind_of(line[name]))
        for name, path in OURS.items():
            self._ours[name] = joined(self._ours[name], kind_of(_at(line, path)))

    @property
    def kinds(self) -> dict[str, Kind]:
        """The names, in order."""
        kinds = {name: kind or "text" for name, kind in self._input.items()}
        for name, kind in (*self._ours.items(), *sorted(self._extra.items())):
            free = name
            while free in kinds:
                free = _PREFIX + free
            kinds[free] = kind or "text"
        return kinds

    def cells(self, line: Line) -> Iterator[Any]:
        """One value for each column; None where the line has none."""
        fields = _input_of(line)
        yield from (fields.get(name) for name in self._input)
        yield from (_at(line, path) for path in OURS.values())
        yield from (line.get(name) for name in sorted(self._extra))


def kind_of(value: Any) -> Kind | None:
    """The narrowest kind of column that holds ``value``; None is in all of them."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if value in _EXACT else "long" if value in _INT64 else "text"
    if isinstance(value, float):
        return "float"
    if isinstance(value, list) and value and all(map(_fits_float, value)):
        return "vector"
    return "text"


def joined(one: Kind | None, other: Kind | None) -> Kind | None:
    """The narrowest kind that holds what both hold."""
    if one is None or one == other:
        return other
    if other is None:
        return one
    return _JOINED.get(frozenset((one, other)), "text")


def typed(value: Any, kind: Kind) -> Any:
    """``value`` for a column of ``kind``."""
    return value if value is None or kind != "text" else text_of(value).encode("utf-8", "backslashreplace").decode()


def csv_rows(rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows in RFC 4180, but with the line end of the system that it runs on, which no reader minds."""
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([csv_cell(value) for value in row] for row in rows)
    return out.getvalue().encode("utf-8", "backslashreplace")


def csv_cell(value: Any) -> str:
    """Text as it is, but with an apostrophe before what a spreadsheet would run; anything else as JSON."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return json_text(value)
    return f"'{value}" if value.startswith(_FORMULA) and not _NUMBER.fullmatch(value) else value


def _fits_float(value: Any) -> bool:
    return type(value) is float or (type(value) is int and value in _EXACT)


def _at(line: Line, path: tuple[str, ...]) -> Any:
    value: Any = line
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _input_of(line: Line) -> Mapping[str, Any]:
    fields = line.get("input")
    return fields if isinstance(fields, Mapping) else {}
