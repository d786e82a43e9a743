"""Server-Sent Events: bytes in, the data of whole events out.

Follows the WHATWG HTML standard, section 9.2.6: only CR, LF and CRLF end a line, comments and unknown fields
are ignored, several data lines are joined by LF, an event ends at a blank line. Bytes may be split anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventDecoder:
    """Incremental decoder of one stream. Owned by one attempt."""

    __slots__ = ("_begun", "_data", "_line")

    def __init__(self) -> None:
        # The line that is not complete yet, in pieces: joining it at every chunk would cost the square of its size.
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._begun = False

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The data of each event that ``chunk`` completes. Raises UnicodeDecodeError on bytes that are not UTF-8."""
        if self._line and self._line[-1].endswith(b"\r"):
            chunk = self._line.pop() + chunk
        start = 0
        for match in _LINE_END.finditer(chunk):
            # A CR at the very end may be the first half of CRLF: wait for the next chunk.
            if match.group() == b"\r" and match.end() == len(chunk):
                break
            self._line.append(chunk[start : match.start()])
            start = match.end()
            data = self._end_of_line()
            if data is not None:
                yield data
        if start < len(chunk):
            self._line.append(chunk[start:])

    def _end_of_line(self) -> str | None:
        line = b"".join(self._line)
        self._line.clear()
        if not self._begun:
            line, self._begun = line.removeprefix(_BYTE_ORDER_MARK), True
        if not line:
            data, self._data = self._data, []
            return b"\n".join(data).decode() if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        return None
