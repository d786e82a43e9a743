"""What is in this file? Judged from its first bytes, so that a wrong file is refused before anything is sent."""

from __future__ import annotations

import re
import shlex
from pathlib import PurePath
from typing import Any, Literal

import orjson

from llmbatch.errors import InputError
from llmbatch.files.lines import BOM
from llmbatch.rules.reasons import excerpt

Format = Literal["jsonl", "text", "csv", "tsv", "parquet"]
FormatOption = Literal["auto", "jsonl", "text", "csv", "tsv", "parquet"]
Packing = Literal["none", "gzip", "zstd"]

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # RFC 8878, 3.1.1
PARQUET_MAGIC = b"PAR1"  # the Parquet specification, "File format"
HEAD_BYTES = 64 * 1024
_BINARY_BYTES = 1024

_BY_SUFFIX: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}

# Magic numbers: the xz, bzip2 and zip specifications; each with what it is and the command for it.
_PACKED: tuple[tuple[bytes, str, str], ...] = (
    (b"\xfd7zXZ\x00", "xz compressed", "xzcat"),
    (b"BZh", "bzip2 compressed", "bzcat"),
    (b"PK\x03\x04", "a zip archive (or .xlsx)", "unzip -p"),
)
_UTF32_BOMS = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_CSV_NAME = re.compile(r'"?[A-Za-z_][\w .()-]*"?')


def packing(head: bytes, path: str) -> Packing:
    """How the bytes are packed; raises InputError for what is packed, or encoded, in a way that is not read."""
    for magic, what, command in _PACKED:
        if head.startswith(magic):
            raise InputError(f"{_shown(path)} is {what}: {_piped(command, path)}")
    _refuse_wide_text(head, path)
    if head.startswith(ZSTD_MAGIC):
        return "zstd"
    return "gzip" if head.startswith(GZIP_MAGIC) else "none"


def enough(head: bytes) -> bool:
    """Whether ``head`` decides: its first line is complete, and so is a second where only that one can tell."""
    lines = head.removeprefix(BOM).split(b"\n")
    complete = [line for line in lines[:-1] if line.strip()]
    if not complete:
        return False
    return len(complete) > 1 or complete[0].lstrip()[:1] not in b"[{" or isinstance(_json(complete[0]), dict)


def sniff(head: bytes, path: str, input_format: FormatOption) -> Format:
    """The format of the (decompressed) bytes: by option, else by suffix, else by the first line that is not blank.

    Raises InputError, with the command that would help, for a file that holds no rows.
    """
    wanted = input_format if input_format != "auto" else _by_suffix(path)
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    if wanted == "parquet":
        raise InputError(f"{_shown(path)} is no Parquet file: it starts with {_cut(head)}, not with PAR1")
    head = head.removeprefix(BOM)
    _refuse_wide_text(head, path)
    first, rest = first_line(head)
    _refuse_binary(head, first, path)
    if wanted is None and (table := _table_by_header(first)):
        wanted = table
    if wanted == "csv" or wanted == "tsv":
        _refuse_lone_cr(head, path, rows_are_json=False)
        _refuse_json_in_table(first, wanted, path)
        return wanted
    if wanted == "text":
        _refuse_lone_cr(head, path, rows_are_json=False)
        return "text"
    _refuse_lone_cr(head, path, rows_are_json=True)
    if first:
        _refuse_other_json(first, rest, path)
        _refuse_table_in_json(first, path)
    if wanted is None and first and first[:1] not in b'{"[':
        raise InputError(f"{_shown(path)} starts with {_cut(first)}: for one prompt per line add --input-format text")
    return "jsonl"


def doubt(head: bytes, path: str, found: Format) -> str | None:
    """A warning where the suffix says text and the content says JSON."""
    value = _json(first_line(head.removeprefix(BOM))[0]) if found == "text" else None
    if isinstance(value, dict) and value.keys() & {"prompt", "messages", "custom_id"}:
        return f"{_shown(path)} is read as text, but its first line is a JSON row: meant --input-format jsonl?"
    return None


def first_line(head: bytes) -> tuple[bytes, bytes]:
    """The first line that is not blank, stripped, and all after it."""
    first, _, rest = head.lstrip().partition(b"\n")
    return first.strip(), rest


def _by_suffix(path: str) -> Format | None:
    suffixes = [suffix.lower() for suffix in PurePath(path).suffixes]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    return _BY_SUFFIX.get(suffixes[-1]) if suffixes else None


def _refuse_wide_text(head: bytes, path: str) -> None:
    start = head[:4]
    some_nul = b"\x00" in start and start.strip(b"\x00") != b""
    if start in _UTF32_BOMS or (some_nul and start.count(b"\x00") == 3):
        raise InputError(f"{_shown(path)} is UTF-32 text: {_piped('iconv -f UTF-32 -t UTF-8', path)}")
    if start[:2] in _UTF16_BOMS:
        raise InputError(f"{_shown(path)} is UTF-16 text: {_piped('iconv -f UTF-16 -t UTF-8', path)}")
    if some_nul and start[:2].count(b"\x00") == 1 == start[2:].count(b"\x00"):
        order = "BE" if start[0] == 0 else "LE"
        raise InputError(f"{_shown(path)} is UTF-16 text: {_piped(f'iconv -f UTF-16{order} -t UTF-8', path)}")


def _refuse_binary(head: bytes, first: bytes, path: str) -> None:
    if head and not head.strip(b"\x00") and len(head) > 1 and b"\n" not in head:
        raise InputError(f"{_shown(path)} holds only NUL bytes: it looks damaged (a hole left by a crash?)")
    nul_rows_only = not first.strip(b"\x00")
    if first[:1] not in (b"{", b'"') and b"\x00" in head[:_BINARY_BYTES] and not nul_rows_only:
        raise InputError(f"{_shown(path)} is binary, not lines of text: it starts with {_cut(first)}")


def _refuse_lone_cr(head: bytes, path: str, *, rows_are_json: bool) -> None:
    if b"\n" in head or b"\r" not in head:
        return
    pieces = [piece for piece in head.split(b"\r") if piece.strip()]
    if len(pieces) > 1 and (not rows_are_json or _json(pieces[0]) is not None):
        source = "" if path == "-" else f"< {shlex.quote(path)} "
        command = f"tr '\\r' '\\n' {source}| llmbatch run -"
        raise InputError(f"no newline found in {_shown(path)}, its lines end in a lone CR: {command}")


def _refuse_other_json(first: bytes, rest: bytes, path: str) -> None:
    value = _json(first)
    if first.startswith(b"[") and not (isinstance(value, list) and rest.strip()):
        command = _piped("jq -c '.[]'", path)
        raise InputError(f"{_shown(path)} is one JSON array, not one row per line: {command}")
    if first.startswith(b"{") and value is None and rest.lstrip()[:1] in (b'"', b"}") and not first.endswith(b"}"):
        raise InputError(f"{_shown(path)} is JSON spread over lines, not one row per line: {_piped('jq -c .', path)}")
    if isinstance(value, dict) and _is_ours(value):
        raise InputError(
            f"{_shown(path)} is a results file of llmbatch, not an input: "
            "to run failed rows again, give the same command with the same input again"
        )


def _is_ours(value: dict[str, Any]) -> bool:
    key = value.get("key")
    return next(iter(value), None) == "llmbatch" or (
        "status" in value and isinstance(key, str) and key.startswith("fp1:")
    )


def _table_by_header(first: bytes) -> Literal["csv", "tsv"] | None:
    """What a first line of several different names promises."""
    if first[:1] in b"{[" or _json(first) is not None:
        return None
    line = first.decode("utf-8", "replace")
    for separator in ("\t", ",", ";", "|"):
        columns = line.split(separator)
        if len(columns) > 1 and len({*columns}) == len(columns) and all(map(_CSV_NAME.fullmatch, columns)):
            return "tsv" if separator == "\t" else "csv"
    return None


def _refuse_table_in_json(first: bytes, path: str) -> None:
    if table := _table_by_header(first):
        raise InputError(f"{_shown(path)} is {table.upper()}, not JSONL: add --input-format {table}")


def _refuse_json_in_table(first: bytes, table: str, path: str) -> None:
    if isinstance(_json(first), dict):
        raise InputError(f"{_shown(path)} holds JSON rows, not {table.upper()}: add --input-format jsonl")


def _json(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def _piped(command: str, path: str) -> str:
    return f"{command} {'' if path == '-' else shlex.quote(path) + ' '}| llmbatch run -"


def _shown(path: str) -> str:
    return "standard input" if path == "-" else excerpt(path)


def _cut(line: bytes) -> str:
    return f"'{excerpt(line[:200].decode('utf-8', 'backslashreplace'), 40)}'"
