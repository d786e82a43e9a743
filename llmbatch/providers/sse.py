"""Server-Sent Events: bytes in, the data of whole events out.

Follows the WHATWG HTML standard, section 9.2.6: only CR, LF and CRLF end a line, comments and unknown fields
are ignored, several data lines are joined by LF, an event ends at a blank line. Bytes may be split anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_LINE_END = re.compile(rb"\r\n|\r|\n")


class EventDecoder:
    """Incremental decoder of one stream. Owned by one attempt."""

    __slots__ = ("_buffer", "_data", "_first")

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []
        self._first = True

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The data of each event that ``chunk`` completes. Raises UnicodeDecodeError on bytes that are not UTF-8."""
        buffer = self._buffer + chunk
        if self._first and len(buffer) >= 3:
            buffer = buffer.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        start = 0
        for match in _LINE_END.finditer(buffer):
            # A CR at the very end may be the first half of CRLF: wait for the next chunk.
            if match.group() == b"\r" and match.end() == len(buffer):
                break
            data = self._line(buffer[start : match.start()])
            start = match.end()
            if data is not None:
                yield data
        self._buffer = buffer[start:]

    @property
    def pending_bytes(self) -> int:
        """Bytes held of an event that is not complete."""
        return len(self._buffer) + sum(map(len, self._data))

    def _line(self, line: bytes) -> str | None:
        if not line:
            data, self._data = self._data, []
            return b"\n".join(data).decode() if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        return None
