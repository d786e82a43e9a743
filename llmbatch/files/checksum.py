"""The checksum that ends every line we write: ``,"crc":"xxxxxxxx"}``, CRC-32 of the bytes of the line before it.

It tells a line that was changed since it was written, by a hand or by a bad disk, and still is good JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

CHECKSUM = "crc"
_START = b',"crc":"'


def with_checksum(line: bytes) -> bytes:
    """``line``, a JSON object with at least one member and its newline, as it is written to a file."""
    body = line[:-2]
    return b'%s,"crc":"%08x"}\n' % (body, crc32(body))


def checksum_ok(line: bytes) -> bool | None:
    """Whether the line, with or without its newline, is as it was written.

    None if no checksum ends it: an older llmbatch wrote it, or another program wrote it anew.
    """
    if line[-19:-11] == _START:
        return line[-11:] == b'%08x"}\n' % crc32(line[:-19])
    if line[-18:-10] == _START:
        return line[-10:] == b'%08x"}' % crc32(line[:-18])
    return None


def without_checksum(line: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a line that was read, to be written again with a checksum of their own."""
    return {name: value for name, value in line.items() if name != CHECKSUM}
