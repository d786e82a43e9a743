"""Bytes into lines: split at LF only, blank lines counted, a line over the cap skipped without being held."""

from __future__ import annotations

from llmbatch.errors import InputError
from llmbatch.records import Line

BOM = b"\xef\xbb\xbf"
# What is kept of a line over the cap, to show in its error row.
OVERSIZE_HEAD_BYTES = 200
# A first line this many times over the cap is no row but a file without lines.
ENDLESS_FACTOR = 4


class LineSplitter:
    """Feed it chunks of any size, it gives the lines that are complete; ``finish`` gives the last one.

    Only LF ends a line: CR, U+2028, VT and FF are data (RFC 8259 allows them in a row). Memory is bounded by
    ``max_line_bytes`` and one chunk. Raises InputError when the first line does not end within four times the cap.
    """

    def __init__(self, max_line_bytes: int) -> None:
        self.blank_lines = 0
        self._cap = max_line_bytes
        self._number = 0
        self._offset = 0
        self._held: list[bytes] = []
        self._held_bytes = 0

    def feed(self, chunk: bytes) -> list[Line]:
        pieces = chunk.split(b"\n")
        tail = pieces.pop()
        lines: list[Line] = []
        if pieces and (self._held_bytes or self._number == 0):
            self._hold(pieces.pop(0))
            self._end_held(lines, complete=True)
        self._add_all(pieces, lines)
        if tail:
            self._hold(tail)
        return lines

    def finish(self) -> list[Line]:
        """The last line, if it had no newline."""
        lines: list[Line] = []
        if self._held_bytes:
            self._end_held(lines, complete=False)
        return lines

    def _add_all(self, pieces: list[bytes], lines: list[Line]) -> None:
        # The hot loop: about 1 us per line, most of it the Line itself.
        number, offset, cap = self._number, self._offset, self._cap
        for piece in pieces:
            number += 1
            if not piece or piece.isspace():
                self.blank_lines += 1
            elif len(piece) <= cap:
                lines.append(Line(number, offset, piece))
            else:
                lines.append(Line(number, offset, piece[:OVERSIZE_HEAD_BYTES], True, True))
            offset += len(piece) + 1
        self._number, self._offset = number, offset

    def _hold(self, part: bytes) -> None:
        self._held_bytes += len(part)
        if self._held_bytes <= self._cap:
            self._held.append(part)
        else:
            self._held = [_head([*self._held, part])]
        if self._number == 0 and self._held_bytes > ENDLESS_FACTOR * self._cap:
            raise InputError(f"the first line does not end within {self._held_bytes} bytes: this is no file of lines")

    def _end_held(self, lines: list[Line], *, complete: bool) -> None:
        data, length, offset = b"".join(self._held), self._held_bytes, self._offset
        self._held, self._held_bytes = [], 0
        self._number += 1
        self._offset += length + 1
        if self._number == 1 and data.startswith(BOM):
            data, length, offset = data[len(BOM) :], length - len(BOM), offset + len(BOM)
        if length > self._cap:
            lines.append(Line(self._number, offset, data[:OVERSIZE_HEAD_BYTES], complete, True))
        elif not data or data.isspace():
            self.blank_lines += 1
        else:
            lines.append(Line(self._number, offset, data, complete))


def _head(pieces: list[bytes]) -> bytes:
    """The first OVERSIZE_HEAD_BYTES of ``pieces``, without putting all of them together."""
    head = b""
    for piece in pieces:
        head += piece[: OVERSIZE_HEAD_BYTES - len(head)]
        if len(head) == OVERSIZE_HEAD_BYTES:
            break
    return head
