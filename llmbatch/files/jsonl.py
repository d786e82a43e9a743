"""One line of JSONL, or of plain text, becomes a Row; a bad one becomes a BadRow that says where and why."""

from __future__ import annotations

import json
from typing import Any

import orjson

from llmbatch.files.lines import BOM
from llmbatch.records import BadRow, Line, Row
from llmbatch.rules.nesting import MAX_NESTING, nests_too_deeply
from llmbatch.rules.reasons import RowError, excerpt, kind_of

# Both JSON parsers keep the last of two equal keys; for these that could send what nobody meant.
_ONCE = ("id", "custom_id", "messages", "model", "prompt")
_ONCE_QUOTED = tuple(f'"{key}"'.encode() for key in _ONCE)
# 64-bit integers have up to 20 digits; orjson turns longer ones into floats without a word.
# Translated so that every digit is a 0, a run of 19 is found five times faster than by a regular expression.
_DIGITS_TO_ZERO = bytes(ord("0") if chr(code) in "0123456789" else ord(" ") for code in range(256))
_LONG_NUMBER = b"0" * 19
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1


def parse_line(line: Line, index: int) -> Row | BadRow:
    """A line of JSONL as row number ``index``: an object, or a bare string as a prompt. Never raises."""
    try:
        fields = _fields(line)
        return Row(index, line.number, _identity(fields), fields)
    except RowError as error:
        return bad_row(line, index, str(error))


def text_line(line: Line, index: int) -> Row | BadRow:
    """A line of plain text as row number ``index``: the prompt is the line, without its line end. Never raises."""
    try:
        _refuse_unreadable(line)
        text = line.data.removesuffix(b"\r").removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        return bad_row(line, index, _not_utf8(line.data, error))
    except RowError as error:
        return bad_row(line, index, str(error))
    return Row(index, line.number, None, {"prompt": text})


def bad_row(line: Line, index: int, reason: str) -> BadRow:
    """The error row for ``line``, its number before the reason."""
    return BadRow(index, line.number, line.offset, f"line {line.number}: {reason}")


def _fields(line: Line) -> dict[str, Any]:
    _refuse_unreadable(line)
    data = line.data.removeprefix(BOM)
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RowError(_why_not_json(line, data, error)) from None
    if type(value) is str:
        return {"prompt": value}
    if type(value) is not dict:
        raise RowError(f"a row must be an object or a string, not {kind_of(value)}: {_shown(data)}")
    if nests_too_deeply(value, data):
        raise RowError(f"nested deeper than {MAX_NESTING} levels: {_shown(data)}")
    if _LONG_NUMBER in data.translate(_DIGITS_TO_ZERO) or _may_repeat_keys(data):
        return _parsed_exactly(data)
    return value


def _identity(fields: dict[str, Any]) -> str | int | float | None:
    name = "id" if "id" in fields else "custom_id"
    if name not in fields:
        return None
    row_id = fields[name]
    if type(row_id) not in (str, int, float) or row_id == "":
        given = "an empty string" if row_id == "" else kind_of(row_id)
        raise RowError(f"'{name}' must be a string that is not empty or a number, not {given}")
    return row_id  # type: ignore[no-any-return]  # its type was just checked


def _refuse_unreadable(line: Line) -> None:
    if line.problem is not None:
        raise RowError(line.problem)
    if line.oversize:
        raise RowError(f"longer than the limit of a line, skipped: {_shown(line.data)}")
    if not line.data.strip(b"\x00"):
        raise RowError(f"{len(line.data)} NUL bytes: this looks like a damaged file (a hole left by a crash?)")


def _may_repeat_keys(data: bytes) -> bool:
    for key in _ONCE_QUOTED:
        if data.count(key) > 1:
            return True
    # \u005f to \u007a spell "_" and the small letters, so a key may hide behind them.
    return b"\\u00" in data and (b"\\u005" in data or b"\\u006" in data or b"\\u007" in data)


def _parsed_exactly(data: bytes) -> dict[str, Any]:
    """Parse again with the slower parser, which keeps long integers and shows repeated keys."""
    too_long: list[int] = []

    def exact(digits: str) -> int:
        number = int(digits)
        if not _INT_MIN <= number <= _INT_MAX:
            too_long.append(number)
        return number

    fields: dict[str, Any] = json.loads(data, object_pairs_hook=_without_repeats, parse_int=exact)
    for name in ("id", "custom_id"):  # an identity is never sent, so it may be as long as it likes
        if type(fields.get(name)) is int and fields[name] in too_long:
            too_long.remove(fields[name])
    if too_long:
        raise RowError(f"the integer {excerpt(str(too_long[0]), 40)} is beyond 64 bits: write it as a string")
    return fields


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        for key in _ONCE:
            if keys.count(key) > 1:
                raise RowError(f"'{key}' stands {keys.count(key)} times in one object")
    return members


def _why_not_json(line: Line, data: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as bad:
        return _not_utf8(data, bad)
    if text.lstrip().startswith(("#", "//")):
        return f"a comment, which JSON does not have: remove the line: {_shown(data)}"
    reason = _explain(error.msg, text[error.pos :], complete=line.complete)
    return f"column {error.pos + 1}: {reason}: {_shown(data)}"


def _explain(message: str, rest: str, *, complete: bool) -> str:
    """What orjson's words mean here; ``rest`` starts at the place they are about."""
    reason = _mistake(message, rest)
    return reason if complete else f"{reason}, and the last line has no newline: was the file cut short?"


def _mistake(message: str, rest: str) -> str:
    if message.startswith("unexpected content"):
        two = rest.lstrip()[:1] in ("{", "[", '"')
        return "two JSON values on one line: put each on a line of its own" if two else "text after the end of the row"
    known = [reason for start, reason in _STARTS if rest.startswith(start)]
    known += [reason for part, reason in _MEANINGS if part in message]
    return known[0] if known else message


_STARTS = (
    ("NaN", "NaN is not JSON: use null or a string"),
    ("Infinity", "Infinity is not JSON: use null or a string"),
    ("-Infinity", "-Infinity is not JSON: use null or a string"),
    ("'", 'JSON strings stand in double quotes ("), not single ones'),
    ("True", "JSON says true, not True (is this Python's repr? use json.dumps)"),
    ("False", "JSON says false, not False (is this Python's repr? use json.dumps)"),
    ("None", "JSON says null, not None (is this Python's repr? use json.dumps)"),
)
_MEANINGS = (
    ("surrogate", "a lone surrogate escape, which is half a character and can not be sent"),
    ("infinity", "a number too large for JSON readers: write it as a string"),
    ("depth limit", "nested too deeply"),
    ("control character", "a raw control character in a string: write it as an escape (\\n, \\t, \\u0000)"),
    ("string key", 'a key must stand in double quotes (")'),
    ("unexpected end", "the row ends too early (is it spread over lines? jq -c . puts it on one)"),
)


def _not_utf8(data: bytes, error: UnicodeDecodeError) -> str:
    where = f"byte {error.start + 1} (0x{data[error.start]:02x})"
    return f"{where} is not UTF-8 (iconv -f ENCODING -t UTF-8 converts): {_shown(data)}"


def _shown(data: bytes) -> str:
    return excerpt(data[:500].decode("utf-8", "backslashreplace"))
